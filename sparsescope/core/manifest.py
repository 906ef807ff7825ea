"""The ``manifest.json`` of a stored run: its schema, its validation, its migrations.

The manifest is written last, so its presence means that the run is complete. Unknown fields are
refused: a typo must not pass as a default. Newer schema versions are refused with a hint; older
ones are migrated by the functions in ``MIGRATIONS``. A seal, the SHA-256 of everything else in it, tells a
manifest that was changed after it was written; it guards against decay and slips, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sparsescope.core.result import Column, Note, Scalar
from sparsescope.core.spec import Spec, canonical_json
from sparsescope.core.strict_json import parse
from sparsescope.core.text import well_formed_values
from sparsescope.errors import ArtifactError, SparsescopeError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 5 * 1024 * 1024
RUN_ID = re.compile(r"[a-z][a-z0-9_]{0,63}-[0-9a-f]{12}")
# Names of tables and tensors become names of files, of downloads and of anchors in a page.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_FILE = re.compile(rf"(?:{NAME.pattern}/){{0,3}}{NAME.pattern}")
# What pages and reports take for granted of a subject and a corpus; None and absence are allowed.
_SUBJECT: dict[str, type] = {
    "id": str, "revision": str, "weight_hash": str, "config_hash": str, "origin_precision": str, "dtype": str,
    "attn_implementation": str, "device": str, "architecture": str, "n_parameters": int, "n_layers": int, "d_model": int,
}  # fmt: skip
_CORPUS: dict[str, type] = {"name": str, "license": str, "digest": str, "tokens": int, "documents": int, "context": int}
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
        if not _FILE.fullmatch(value):
            raise ValueError("must be a relative path inside the run, of letters, digits, '_', '.', '-'")
        return value


class TableEntry(FileEntry):
    """A stored table and the meaning of its columns."""

    rows: int
    columns: tuple[Column, ...]

    @field_validator("columns")
    @classmethod
    def _distinct(cls, value: tuple[Column, ...]) -> tuple[Column, ...]:
        if len({column.name for column in value}) < len(value):
            raise ValueError("two columns have the same name")
        return value


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
    seal: str = ""

    @field_validator("tables", "tensors")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = next((name for name in value if not NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"a name is made of letters, digits, '_', '.' and '-', not {wrong[:80]!r}")
        return value

    @field_validator("scalars", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        """A number is a number, or the name of one that JSON lacks; pydantic would take ``true`` for 1."""
        for entry in value if isinstance(value, list | tuple) else ():
            given = entry.get("value") if isinstance(entry, dict) else None
            if isinstance(given, bool) or (isinstance(given, str) and given not in ("NaN", "Infinity", "-Infinity")):
                raise ValueError(f"the value of a number is {given!r}"[:160])
        return value

    @field_validator("scalars")
    @classmethod
    def _distinct(cls, value: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        if len({scalar.name for scalar in value}) < len(value):
            raise ValueError("two numbers have the same name")
        return value

    @field_validator("spec")
    @classmethod
    def _described(cls, value: Spec) -> Spec:
        for name, found, known in (("subject", value.subject, _SUBJECT), ("corpus", value.corpus, _CORPUS)):
            for key, kind in known.items() if found is not None else ():
                given = (found or {}).get(key)
                if given is not None and (not isinstance(given, kind) or isinstance(given, bool)):
                    raise ValueError(f"{name}.{key} must be of type {kind.__name__}, not {type(given).__name__}")
        if value.corpus is not None and "digest" not in value.corpus:
            raise ValueError("corpus.digest is missing")
        return value


def seal_of(raw: Mapping[str, Any]) -> str:
    """Return the seal of a parsed manifest: SHA-256 of the canonical JSON of everything but the seal."""
    return hashlib.sha256(canonical_json({key: raw[key] for key in raw if key != "seal"}).encode()).hexdigest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as it is stored, with its seal."""
    raw = json.loads(manifest.model_dump_json(exclude={"seal"}))
    return json.dumps(raw | {"seal": seal_of(raw)}, indent=1, ensure_ascii=False).encode()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a run folder.

    Raises:
        ArtifactError: If it is missing, too large, not JSON, of a newer schema, malformed, changed after it was
            written, or if it does not belong to the folder it lies in.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(
            "this is not a complete run: it has no manifest",
            where=str(folder),
            allowed=f"a file {MANIFEST} in it, no link",
            next_step="run the analysis again; an interrupted run is resumed",
        )
    if path.stat().st_size > MANIFEST_LIMIT:
        raise ArtifactError("the manifest is too large", where=str(path), allowed=f"{MANIFEST_LIMIT} bytes")
    try:
        raw = parse(path.read_bytes())
        if not isinstance(raw, dict):
            raise ValueError("the top level is not an object")
        seal = seal_of(raw)
        raw = _migrate(well_formed_values(raw), path)
        manifest = Manifest.model_validate(raw)
        named = manifest.spec.run_id
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
    except ArtifactError:
        raise
    except SparsescopeError as error:  # from the records inside, which do not know where they stand
        raise ArtifactError(
            "the manifest is malformed",
            where=str(path),
            allowed=error.allowed,
            got=error.got or error.what,
            next_step="restore the folder from a copy, or delete it and run the analysis again",
        ) from None
    except ValueError as error:
        raise ArtifactError(
            "the manifest is not valid JSON",
            where=str(path),
            got=str(error)[:200],
            next_step="restore the folder from a copy, or delete it and run the analysis again",
        ) from None
    if manifest.run_id != folder.name or manifest.run_id != named:
        raise ArtifactError(
            "the manifest does not belong to this folder",
            where=str(path),
            allowed=named,
            got=f"run_id {manifest.run_id} in folder {folder.name}",
            next_step="do not rename or edit runs; delete the folder and run the analysis again",
        )
    if manifest.seal not in ("", seal):
        raise ArtifactError(
            "the manifest was changed after it was written",
            where=str(path),
            allowed=f"seal {manifest.seal[:16]}",
            got=f"seal {seal[:16]}",
            next_step="restore the folder from a copy, or delete it and run the analysis again",
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
