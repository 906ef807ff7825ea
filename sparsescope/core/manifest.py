"""The ``manifest.json`` of a stored run: its fields, its schema, its migrations; see ``core/sealed.py``
for how it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from sparsescope.core.columns import Column
from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Note
from sparsescope.core.sealed import ID, NAME, FileEntry, Form, Migration, Sealed, Strict
from sparsescope.core.spec import Spec

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
RUN_ID = ID
# What pages and reports take for granted of a subject and a corpus; None and absence are allowed.
_SUBJECT: dict[str, type] = {
    "id": str,
    "revision": str,
    "weight_hash": str,
    "config_hash": str,
    "origin_precision": str,
    "dtype": str,
    "attn_implementation": str,
    "device": str,
    "architecture": str,
    "n_parameters": int,
    "n_layers": int,
    "d_model": int,
}
_CORPUS: dict[str, type] = {
    "name": str,
    "license": str,
    "digest": str,
    "tokens": int,
    "documents": int,
    "context": int,
}


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


class TensorEntry(Strict):
    """A stored tensor: file, key inside it, named dimensions."""

    file: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


class ArtifactIds(Strict):
    """The artifacts of a run: those that it made, by name, and those that it read, by the
    role of the input.
    """

    made: dict[str, str] = Field(default_factory=dict)
    read: dict[str, str] = Field(default_factory=dict)

    @field_validator("made", "read")
    @classmethod
    def _ids(cls, value: dict[str, str]) -> dict[str, str]:
        for name, artifact_id in value.items():
            if not NAME.fullmatch(name) or not ID.fullmatch(artifact_id):
                given = f"{name[:40]!r}: {artifact_id[:80]!r}"
                raise ValueError(f"must name artifacts by ids such as dictionary-0123456789ab, not {given}")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> ArtifactIds:
        if self.made.keys() & self.read.keys():
            raise ValueError("an artifact has the name of a role")
        return self


class Manifest(Sealed):
    """Everything about a run that is not a table or a tensor."""

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
    artifacts: ArtifactIds = ArtifactIds()
    preset: str = ""

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
            if isinstance(given, bool) or (
                isinstance(given, str) and given not in ("NaN", "Infinity", "-Infinity")
            ):
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
                    raise ValueError(
                        f"{name}.{key} must be of type {kind.__name__}, not {type(given).__name__}"
                    )
        entries = [entry for given in (value.inputs or {}).values() for entry in given]
        for where, found in (("corpus", value.corpus), *(("inputs", entry) for entry in entries)):
            if found is not None and not isinstance(found.get("digest"), str):
                raise ValueError(f"{where}.digest is missing")
        return value


def _from_1(raw: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 adds artifacts, a preset, titles of numbers and the ends of intervals; all may be absent."""
    return raw | {"schema_version": 2}


# From version n to n + 1. Each has a stored fixture in tests/fixtures/manifests/.
MIGRATIONS: dict[int, Migration] = {1: _from_1}
FORM = Form(
    noun="run",
    file=MANIFEST,
    model=Manifest,
    version=SCHEMA_VERSION,
    migrations=MIGRATIONS,
    stated=lambda manifest: manifest.run_id,
    named=lambda manifest: manifest.spec.run_id,
    again="run the analysis again",
)


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a run folder; see ``Form.read`` for what it raises."""
    return FORM.read(folder)
