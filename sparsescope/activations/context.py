"""What an analysis gets to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

    Arrays = dict[str, np.ndarray]


def _say_nothing(phase: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def _compute(name: str, make: Callable[[], Arrays]) -> Arrays:
    """A step of a run that keeps nothing."""
    return make()


@dataclass(frozen=True, slots=True)
class Context:
    """The subject and the text of a run.

    Attributes:
        subject: The model under study.
        corpus: The text as its tokenizer sees it.
        progress: Call it as ``progress(phase, done, total)``, in tokens, during long work.
        step: ``step(name, make)`` returns the arrays that ``make()`` returns. In a stored run the arrays of a finished step
            are kept, so that a run that was killed goes on after its last step. Names are file names.
    """

    subject: Subject
    corpus: TokenizedCorpus
    progress: Callable[[str, int, int], None] = field(default=_say_nothing)
    step: Callable[[str, Callable[[], Arrays]], Arrays] = field(default=_compute)
