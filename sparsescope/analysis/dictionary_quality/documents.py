"""Which documents are used for what. No score is computed on a document that a dictionary was fitted on, or
that its thresholds were set on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsescope.dictionaries.documents import document_digest, drawn, of_documents
from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.dictionary_quality.entries import Entry

LEAST = 8
"""Documents that must be left for dictionaries that are given."""
_SEEN = ("train", "thresholds")


@dataclass(frozen=True, slots=True)
class Parts:
    """The text, divided.

    Attributes:
        fit: What dictionaries trained here and baselines are fitted on, and thresholds are set on
            (``match_l0``).
        evaluation: What everything is scored on.
        left_out: Documents that a given dictionary has seen.
    """

    fit: TokenizedCorpus
    evaluation: TokenizedCorpus
    left_out: int = 0


def divide(corpus: TokenizedCorpus, entries: Sequence[Entry], share: float, seed: int) -> Parts:
    """Divide a text by document.

    Args:
        corpus: The text.
        entries: Dictionaries that are given; empty where they are trained here.
        share: Of the tokens that dictionaries trained here are fitted on; of given ones, baselines and
            thresholds get one half.
        seed: Of the draw.

    Raises:
        SubjectError: There are too few documents.
    """
    seen: dict[str, str] = {}
    for entry in entries:
        documents = entry.training.get("documents")
        known = documents if isinstance(documents, dict) else {}
        for part in _SEEN:
            seen |= dict.fromkeys(known.get(part) or (), entry.label)
    left = [document for document in corpus.documents if document_digest(document.ids) not in seen]
    least = LEAST if entries else 2
    if len(left) < least:
        gone = len(corpus.documents) - len(left)
        raise SubjectError(
            "there are too few documents that the dictionaries have not seen"
            if gone
            else "dictionaries are fitted on some documents and judged on others, and there are too few",
            where=f"corpus {corpus.name}"
            + (f", dictionary {', '.join(sorted({*seen.values()}))}" if gone else ""),
            allowed=f"{least} documents or more",
            got=f"{len(corpus.documents)} documents"
            + (f", {gone} of which they were trained on or have their thresholds from" if gone else ""),
            next_step="read other text: another --seed or --corpus, or more of it (--tokens)",
        )
    first, rest = drawn(left, 0.5 if entries else share, seed)
    return Parts(of_documents(corpus, first), of_documents(corpus, rest), len(corpus.documents) - len(left))
