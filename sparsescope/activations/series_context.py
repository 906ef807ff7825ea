"""What an analysis of checkpoints gets to work with, and what names a series in a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsescope.activations.context import _compute, _say_nothing

if TYPE_CHECKING:
    from sparsescope.activations.context import Arrays
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries


@dataclass(frozen=True, slots=True)
class SeriesContext:
    """The checkpoints of a run.

    Attributes:
        series: The series under study.
        companions: Further series to set beside it, for example the same recipe with other seeds.
        corpus: The text on which an analysis that reads one evaluates every checkpoint; None for the others.
        progress: Call it as ``progress(phase, done, total)``, in checkpoints.
        step: ``step(name, make)`` returns the arrays that ``make()`` returns and keeps them in a stored run; see ``Context``.
    """

    series: CheckpointSeries
    companions: tuple[CheckpointSeries, ...] = ()
    corpus: TokenizedCorpus | None = None
    progress: Callable[[str, int, int], None] = field(default=_say_nothing)
    step: Callable[[str, Callable[[], Arrays]], Arrays] = field(default=_compute)


def series_identity(series: CheckpointSeries, companions: Sequence[CheckpointSeries] = ()) -> dict[str, Any]:
    """Return what ``SubjectIdentity.as_dict`` returns for a model: the last checkpoint, under a hash of them all.

    ``weight_hash`` covers step and weights of each checkpoint, the curves and the probe set, and the same of the companions.
    A series of our own trainer says its digests; of others every checkpoint is loaded once to be hashed.

    Args:
        series: The series.
        companions: Series that the analysis sets beside it.
    """
    last = series.subject(series.steps[-1])
    whole = hashlib.sha256()
    for part in (series, *companions):
        whole.update(_marks(part).encode())
    found = last.identity.as_dict()
    first, final, count = series.steps[0], series.steps[-1], len(series)
    return {
        **found,
        "id": series.name,
        "revision": f"steps {first} to {final}, {count} checkpoints",
        "weight_hash": whole.hexdigest(),
    }


def _marks(series: CheckpointSeries) -> str:
    """One line for each thing that a result may depend on."""
    content = series.trained
    if content is None:
        return "\n".join(f"{found.revision} {subject.identity.weight_hash}" for found, subject in series)
    lines = [f"{name} {digest}" for name, digest in sorted(content.files.items())]
    recorded = [content.baselines, *({k: dict(v) for k, v in found.stored.items()} for found in content.checkpoints)]
    lines += [f"{found.step} {found.sha256}" for found in content.checkpoints]
    lines.append(json.dumps(recorded, sort_keys=True))  # losses that results show as they were recorded
    return "\n".join([*lines, content.probe_digest])
