"""The role ``dictionary``: a trained dictionary by the id of an artifact, a folder of any layout that is
read, or the object itself. An analysis gets a ``GivenDictionary``, whose ``load()`` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.artifact_store import ArtifactStore
from sparsescope.core.artifacts import RECORD, Artifact
from sparsescope.core.files import given_path
from sparsescope.core.sealed import ID
from sparsescope.dictionaries.artifact import KIND, keep_dictionary
from sparsescope.dictionaries.given import GivenDictionary
from sparsescope.errors import SpecError
from sparsescope.runner.roles import artifact as artifacts

if TYPE_CHECKING:
    from sparsescope.core.run_store import Store


def open(given: Any, opened: Mapping[str, tuple[Any, ...]], store: Store | None) -> GivenDictionary:
    """Return the dictionary; it must be there, and its layout known.

    Raises:
        SpecError: It is something else, or a folder of no known layout.
        ArtifactError: It is missing or damaged.
    """
    if isinstance(given, GivenDictionary):
        return given
    if isinstance(given, Artifact):
        return GivenDictionary(artifacts.open(given, opened, store))
    if isinstance(given, str | Path):
        path = given_path(given, "dictionary")
        if path.is_dir() and not (path / RECORD).is_file():
            from sparsescope.dictionaries.interchange import detect_format

            return GivenDictionary(Artifact.of_folder(KIND, path, detect_format(path)))
        found = artifacts.open(given, opened, store)
        if found.kind != KIND:
            raise SpecError(
                "this artifact is no dictionary", where="--dictionary", allowed=f"{KIND}-...", got=found.id,
                next_step="run: sparsescope list artifacts",
            )  # fmt: skip
        return GivenDictionary(found)
    from sparsescope.dictionaries.base import Dictionary

    if not isinstance(given, Dictionary):
        raise SpecError(
            "a dictionary is given by its id, its folder, or the object",
            where="ss.run",
            got=type(given).__name__,
            next_step="run: sparsescope list artifacts",
        )
    return GivenDictionary(keep_dictionary(given, ArtifactStore(None if store is None else store.root).keep))


def identity(value: GivenDictionary) -> dict[str, Any]:
    """Its id, and the digest of kind, format and files."""
    return {"id": value.artifact.id, "digest": value.artifact.digest}


def capabilities(value: GivenDictionary) -> frozenset[str]:
    """Its kind."""
    return frozenset({KIND})


def words(value: GivenDictionary, opened: Mapping[str, tuple[Any, ...]], flag: str) -> list[str] | None:
    """The option that names it."""
    found = value.artifact
    return [flag, found.id if ID.fullmatch(found.path.name) else str(found.path)]


def python(value: GivenDictionary) -> str:
    """How it is given in Python."""
    return repr(value.artifact.id)


def artifact(value: GivenDictionary) -> Artifact:
    """The artifact behind it."""
    return value.artifact
