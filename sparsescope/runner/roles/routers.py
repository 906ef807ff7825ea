"""The role ``routers``: the routers of the checkpoints of a series, read without the rest of the models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_path
from sparsescope.errors import SpecError
from sparsescope.models.checkpoints import CheckpointSeries, open_series

if TYPE_CHECKING:
    from sparsescope.core.run_store import Store


def open(given: Any, opened: Mapping[str, tuple[Any, ...]], store: Store | None) -> CheckpointSeries:
    """Return a series whose routers can be read; ``NAME@REVISION,REVISION`` takes some revisions.

    Raises:
        SpecError: It is something else.
        SubjectError: There is no such series.
        DependencyError: The hub cannot be asked for the revisions.
    """
    if isinstance(given, CheckpointSeries):
        return given
    if isinstance(given, Path):
        return open_series(given)
    if isinstance(given, str):
        whole = given_path(
            given, "name of a series of routers"
        ).is_dir()  # a folder may have an @ in its name
        name, _, revisions = (given, "", "") if whole else given.partition("@")
        series = open_series(name, revisions=revisions.split(",") if revisions else None)
        if revisions and series.trained is not None:
            raise SpecError(
                "a series of our own trainer is read whole",
                where=given,
                allowed="revisions of a hub model, or of a folder with one folder for each checkpoint",
                got=revisions,
                next_step=f"give {name} alone",
            )
        return series
    raise SpecError(
        "routers are those of a series of checkpoints",
        where="ss.run(routers=...)",
        allowed="a name such as 'bytes-moe', a folder, a hub id, or ss.open_series(...)",
        got=type(given).__name__,
    )


def identity(value: CheckpointSeries) -> dict[str, Any]:
    """Its name, and the digest of step and routers of every checkpoint."""
    whole = hashlib.sha256()
    for step in value.steps:
        whole.update(f"{step} {value.routers(step).digest}\n".encode())
    return {"id": value.name, "steps": list(value.steps), "digest": whole.hexdigest()}


def capabilities(value: CheckpointSeries) -> frozenset[str]:
    """Nothing beyond routers."""
    return frozenset({"routers"})


def words(value: CheckpointSeries, opened: Mapping[str, tuple[Any, ...]], flag: str) -> list[str] | None:
    """The option that opens it again; of a folder only the last part is shown."""
    if value.shipped:  # whole: of its checkpoints none can be chosen here
        return [flag, value.name] if len(value) == len(open_series(value.name)) else None
    revisions = ",".join(_revisions(value))
    return [flag, f"{value.name if '/' in value.name else f'PATH/TO/{value.name}'}@{revisions}"]


def python(value: CheckpointSeries) -> str:
    """How it is given in Python."""
    if value.shipped and len(value) == len(open_series(value.name)):
        return f"open_series({value.name!r})"
    return f"open_series({value.name!r}, revisions={_revisions(value)!r})"


def _revisions(value: CheckpointSeries) -> list[str]:
    return [checkpoint.revision for checkpoint in value.checkpoints]
