"""What an analysis gets to work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject


@dataclass(frozen=True, slots=True)
class Context:
    """The subject and the text of a run.

    Attributes:
        subject: The model under study.
        corpus: The text as its tokenizer sees it.
    """

    subject: Subject
    corpus: TokenizedCorpus
