"""Three texts of one corpus: for calibration, for choices, and held out. No document is in two of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sparsescope.analysis.sparse_inference import SparseInferenceParams
from sparsescope.errors import SubjectError
from sparsescope.inference.sparsifier import beginnings

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument


@dataclass(frozen=True, slots=True)
class Texts:
    """The three parts of a text.

    Attributes:
        calibration: Thresholds, norms and gradients are of it.
        development: Methods with choices choose on it; None where there are too few documents.
        held_out: Everything that is reported is of it.
    """

    calibration: TokenizedCorpus
    development: TokenizedCorpus | None
    held_out: TokenizedCorpus


def part_text(corpus: TokenizedCorpus, params: SparseInferenceParams) -> Texts:
    """Take calibration documents from the beginning of the stream, then those for choices; held-out ones from
    its end. The stream interleaves the domains.

    Raises:
        SubjectError: There are too few documents for calibration and held-out text.
    """
    documents = list(corpus.documents)
    held, _ = beginnings(documents[::-1], params.tokens, params.document_tokens)
    most = max(1, len(documents) - 2)  # two documents at least are left for the rest
    held = held[: max(1, min(len(held), most, (len(documents) + 1) // 2))]
    rest = documents[: len(documents) - len(held)]
    fit, used = beginnings(rest, params.calibration_tokens, params.document_tokens)
    choose, _ = beginnings(rest[used:], params.development_tokens, params.document_tokens)
    if not choose and len(fit) > 2:  # a fifth of the calibration text
        cut = max(1, len(fit) // 5)
        fit, choose = fit[:-cut], fit[-cut:]
    scored = [document for document in held if len(document) + len(corpus.prefix) >= 4]
    if not fit or not scored:
        raise SubjectError(
            "methods are calibrated on some documents and judged on others, and there are too few documents",
            where=f"corpus {corpus.name}",
            allowed="at least two documents, better a hundred",
            got=f"{len(documents)} documents, {corpus.n_tokens} tokens",
            next_step="read more text (--tokens), or a corpus of more documents",
        )
    return Texts(_of(corpus, fit), _of(corpus, choose) if choose else None, _of(corpus, scored[::-1]))


def _of(corpus: TokenizedCorpus, documents: list[TokenizedDocument]) -> TokenizedCorpus:
    mark = f"{corpus.digest} {[(document.index, len(document)) for document in documents]}"
    return replace(corpus, documents=tuple(documents), digest=hashlib.sha256(mark.encode()).hexdigest())
