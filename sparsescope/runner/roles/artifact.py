"""A role whose input is an artifact, for roles that packages add: an id in the folder of runs, a folder, or
the object itself.

What the input must be an analysis says by ``requires``: the kind of the artifact is its capability.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.artifacts import Artifact
from sparsescope.core.files import given_path
from sparsescope.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from sparsescope.core.run_store import Store


def open(given: Any, opened: Mapping[str, tuple[Any, ...]], store: Store | None) -> Artifact:
    """Return the artifact; it must be there.

    Raises:
        SpecError: It is something else.
        ArtifactError: It is missing or damaged.
    """
    if not isinstance(given, Artifact | str | Path):
        raise SpecError(
            "an artifact is given by its id, its folder, or the object",
            where="ss.run",
            got=type(given).__name__,
            next_step="run: sparsescope list artifacts",
        )
    found = given if isinstance(given, Artifact) else _named(given, store)
    if not found.present:
        raise ArtifactError(
            f"the artifact {found.id} is missing",
            where=str(found.path),
            next_step=found.remake or "run: sparsescope list artifacts",
        )
    return found


def _named(given: str | Path, store: Store | None) -> Artifact:
    """An artifact in a folder of its own, or in the folder of runs."""
    path = given_path(given, "artifact")
    if path.is_dir():
        return Artifact(path.resolve().name, path)
    from sparsescope.core.run_store import home

    return ArtifactStore(home() if store is None else store.root).open(str(given))


def identity(value: Artifact) -> dict[str, Any]:
    """Its id, and the digest of kind, format and files."""
    return {"id": value.id, "digest": value.digest}


def capabilities(value: Artifact) -> frozenset[str]:
    """Its kind."""
    return frozenset({value.kind})


def words(value: Artifact, opened: Mapping[str, tuple[Any, ...]], flag: str) -> list[str] | None:
    """The option that names it."""
    return [flag, value.id]


def python(value: Artifact) -> str:
    """How it is given in Python."""
    return repr(value.id)


def artifact(value: Artifact) -> Artifact:
    """The artifact itself."""
    return value
