"""What an analysis gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sparsescope.core.artifact_store import ArtifactStore, ArtifactWriter
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    import numpy as np

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject

    Arrays = dict[str, np.ndarray]


class Tell(Protocol):
    """Told what an analysis is doing and how far it is."""

    def __call__(self, phase: str, done: int, total: int, unit: str = "") -> None:
        """Show it; ``unit`` is what this phase counts, where it is not ``Analysis.unit``."""


class Keep(Protocol):
    """Opens a writer for an artifact; see ``core.artifact_store.ArtifactStore.keep``."""

    def __call__(self, kind: str, name: str = "", **facts: Any) -> AbstractContextManager[ArtifactWriter]:
        """Keep files of this kind; they are ``Result.artifacts[name]`` (the kind where no name is given)."""


def _say_nothing(phase: str, done: int, total: int, unit: str = "") -> None:
    """Progress that nobody looks at."""


def _compute(name: str, make: Callable[[], Arrays]) -> Arrays:
    """A step of a run that keeps nothing."""
    return make()


@contextmanager
def _keep(kind: str, name: str = "", **facts: Any) -> Iterator[ArtifactWriter]:
    """An artifact outside of a run."""
    with ArtifactStore(None).keep(kind, **facts) as writer:
        yield writer


@dataclass(frozen=True, slots=True)
class Context:
    """The inputs of a run, opened, and what a run offers to an analysis.

    Attributes:
        inputs: What was opened, by role. An analysis finds the roles that it declares; an optional one that
            was not given is an empty tuple.
        progress: Call it as ``progress(phase, done, total)`` during long work, in ``Analysis.unit``; a phase
            that counts something else gives its unit as a fourth argument.
        step: ``step(name, make)`` returns the arrays that ``make()`` returns. In a stored run the
            arrays of a finished step are kept, so that a run that was killed goes on after its last
            step. Names are file names.
        keep: ``with keep(kind, format=...) as writer:`` leaves files for other runs, such as
            a trained dictionary.
    """

    inputs: Mapping[str, tuple[Any, ...]]
    progress: Tell = field(default=_say_nothing)
    step: Callable[[str, Callable[[], Arrays]], Arrays] = field(default=_compute)
    keep: Keep = field(default=_keep)

    @classmethod
    def of(cls, *, progress: Tell = _say_nothing, **inputs: Any) -> Context:
        """A context of opened inputs by role, one each: ``Context.of(subject=subject, text=tokens)``."""
        return cls({role: (value,) for role, value in inputs.items()}, progress=progress)

    def one(self, role: str) -> Any:
        """Return the first input of a role.

        Raises:
            SpecError: If there is none.
        """
        if not self.inputs.get(role):
            raise SpecError(
                f"this run has no {role}",
                where="Context",
                allowed=sorted(self.inputs),
                next_step=f"declare {role!r} in Analysis.inputs",
            )
        return self.inputs[role][0]

    @property
    def subject(self) -> Subject:
        """The model under study."""
        return self.one("subject")

    @property
    def corpus(self) -> TokenizedCorpus:
        """The text as the tokenizer of the model sees it."""
        return self.one("text")

    @property
    def series(self) -> CheckpointSeries:
        """The series under study."""
        return self.one("series")

    @property
    def companions(self) -> tuple[CheckpointSeries, ...]:
        """Further series to set beside it, for example the same recipe with other seeds."""
        return self.inputs["series"][1:]
