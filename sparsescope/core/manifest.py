"""The ``manifest.json`` of a stored run: its schema, its validation, its migrations.

The manifest is written last, so its presence means that the run is complete. Unknown fields are
refused: a typo must not pass as a default. Newer schema versions are refused with a hint; older
ones are migrated by the functions in ``MIGRATIONS``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sparsescope.core.result import Column, Note, Scalar
from sparsescope.core.spec import Spec
from sparsescope.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 5 * 1024 * 1024
RUN_ID = re.compile(r"[a-z][a-z0-9_]{0,63}-[0-9a-f]{12}")
# From version n to n + 1. Each has a stored fixture in tests/fixtures/manifests/.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", strict=False)


class FileEntry(_Strict):
    """A file of the run: relative path, size in bytes, SHA-256."""

    file: str
    bytes: int
    sha256: str

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\\" in value or not value:
            raise ValueError("must be a relative path inside the run")
        return value


class TableEntry(FileEntry):
    """A stored table and the meaning of its columns."""

    rows: int
    columns: tuple[Column, ...]


class TensorEntry(_Strict):
    """A stored tensor: file, key inside it, named dimensions."""

    file: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class Manifest(_Strict):
    """Everything about a run that is not a table or a tensor."""

    schema_version: int
    run_id: str
    created: str
    seconds: float
    spec: Spec
    environment: dict[str, Any]
    scalars: tuple[Scalar, ...]
    notes: tuple[Note, ...]
    tables: dict[str, TableEntry]
    tensors: dict[str, TensorEntry]
    files: tuple[FileEntry, ...]
    command: str


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a run folder.

    Raises:
        ArtifactError: If it is missing, too large, not JSON, of a newer schema, malformed, or if it
            does not belong to the folder it lies in.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            "this is not a complete run: it has no manifest",
            where=str(folder),
            next_step="run the analysis again; an interrupted run is resumed",
        )
    if path.stat().st_size > MANIFEST_LIMIT:
        raise ArtifactError("the manifest is too large", where=str(path), allowed=f"{MANIFEST_LIMIT} bytes")
    try:
        raw = json.loads(path.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError("the top level is not an object")
        raw = _migrate(raw, path)
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            "the manifest is malformed",
            where=f"{path}, field {field}",
            allowed=first["msg"],
            got=repr(first.get("input"))[:120],
            next_step="restore the folder from a copy, or delete it and run the analysis again",
        ) from None
    except OSError as error:
        raise ArtifactError(
            "the manifest cannot be read",
            where=str(path),
            got=f"{type(error).__name__}: {error.strerror or error}",
            next_step="check the permissions and the disk",
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            "the manifest is not valid JSON",
            where=str(path),
            got=str(error)[:200],
            next_step="restore the folder from a copy, or delete it and run the analysis again",
        ) from None
    if manifest.run_id != folder.name or manifest.run_id != manifest.spec.run_id:
        raise ArtifactError(
            "the manifest does not belong to this folder",
            where=str(path),
            allowed=manifest.spec.run_id,
            got=f"run_id {manifest.run_id} in folder {folder.name}",
            next_step="do not rename or edit runs; delete the folder and run the analysis again",
        )
    return manifest


def _migrate(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """Bring an older manifest to the present schema; refuse a newer one."""
    version = raw.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            "this run was written by a newer sparsescope",
            where=str(path),
            allowed=f"schema version up to {SCHEMA_VERSION}",
            got=str(version),
            next_step="upgrade: pip install --upgrade sparsescope",
        )
    while isinstance(version, int) and version < SCHEMA_VERSION and version in MIGRATIONS:
        raw = MIGRATIONS[version](raw)
        version = raw["schema_version"]
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            "the manifest has no schema version that this sparsescope knows",
            where=str(path),
            allowed=str(SCHEMA_VERSION),
            got=repr(version)[:80],
        )
    return raw
