"""The role ``series``: the checkpoints of a training run, and further ones that are set beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.result import Severity
from sparsescope.errors import SpecError
from sparsescope.models.checkpoints import CheckpointSeries, open_series
from sparsescope.runner.inputs import series_capabilities

if TYPE_CHECKING:
    from sparsescope.core.run_store import Store


def open(given: Any, opened: Mapping[str, tuple[Any, ...]], store: Store | None) -> CheckpointSeries:
    """Return a series from what a user gave: the series itself, its name or its folder.

    Raises:
        SpecError: It is something else.
        SubjectError: There is no such series.
    """
    if isinstance(given, CheckpointSeries):
        return given
    if isinstance(given, str | Path):
        return open_series(given)
    raise SpecError(
        "this analysis studies a series of checkpoints",
        where="ss.run(subject)",
        allowed="a name such as 'grokking-relu', a folder, or ss.open_series(...)",
        got=type(given).__name__,
        next_step='for example: "grokking-relu"',
    )


def identity(value: CheckpointSeries, *companions: CheckpointSeries) -> dict[str, Any]:
    """Return what ``SubjectIdentity.as_dict`` returns for a model: the last checkpoint, under
    a hash of them all.

    ``weight_hash`` covers step and weights of each checkpoint, the curves and the probe set, and the same
    of the companions. A series of our own trainer says its digests; of others every checkpoint is loaded
    once to be hashed.

    Args:
        value: The series.
        companions: Series that the analysis sets beside it.
    """
    last = value.subject(value.steps[-1])
    whole = hashlib.sha256()
    for part in (value, *companions):
        whole.update(_marks(part).encode())
    found = last.identity.as_dict()
    first, final, count = value.steps[0], value.steps[-1], len(value)
    return {
        **found,
        "id": value.name,
        "revision": f"steps {first} to {final}, {count} checkpoints",
        "weight_hash": whole.hexdigest(),
    }


def capabilities(value: CheckpointSeries) -> frozenset[str]:
    """What analyses can ask of it; see ``series_capabilities``. Of a series of others its last checkpoint
    says what it reads, and whether it has experts, or small ones in its MLP.
    """
    if value.trained is not None:
        return frozenset(series_capabilities(str(value.trained.data.get("kind")), value.kinds))
    last = value.subject(value.steps[-1])
    gated = {"gates"} if isinstance(getattr(last.model.config, "gate", None), str) else set[str]()
    return frozenset({"tokenizer", "experts", "small_experts"} & last.capabilities | gated)


def unstorable(value: CheckpointSeries) -> tuple[str, ...]:
    """What the identity of its last checkpoint does not cover. Those of our own trainer are loaded as they
    were trained.
    """
    return () if value.trained is not None else value.subject(value.steps[-1]).unstorable


def words(value: CheckpointSeries, opened: Mapping[str, tuple[Any, ...]], flag: str) -> list[str] | None:
    """The option that opens it again; of a folder only the last part is shown."""
    return [flag, value.name if value.shipped or "/" in value.name else f"PATH/TO/{value.name}"]


def python(value: CheckpointSeries) -> str:
    """How it is given in Python."""
    return f"open_series({value.name!r})"


def notes(value: CheckpointSeries) -> tuple[tuple[Severity, str], ...]:
    """Checkpoints with equal weights: a copied folder looks like a plateau of training."""
    groups = value.repeated
    if not groups:
        return ()
    shown = "; ".join(", ".join(map(str, steps)) for steps in groups[:4]) + (
        "; ..." if len(groups) > 4 else ""
    )
    count = sum(len(steps) for steps in groups)
    return (
        (
            "warning",
            f"{count} of the {len(value)} checkpoints of {value.name} have the same weights as another one "
            f"(steps {shown}): either training stood still, or a checkpoint was copied.",
        ),
    )


def _marks(series: CheckpointSeries) -> str:
    """One line for each thing that a result may depend on. Hashes are kept, as loading takes long."""
    content = series.trained
    if content is None:
        series.hashes = {found.step: subject.identity.weight_hash for found, subject in series}
        return "\n".join(f"{found.revision} {series.hashes[found.step]}" for found in series.checkpoints)
    lines = [f"{name} {digest}" for name, digest in sorted(content.files.items())]
    recorded = [
        content.baselines,
        *({k: dict(v) for k, v in found.stored.items()} for found in content.checkpoints),
    ]
    lines += [f"{found.step} {found.sha256}" for found in content.checkpoints]
    lines.append(json.dumps(recorded, sort_keys=True))  # losses that results show as they were recorded
    return "\n".join([*lines, content.probe_digest])
