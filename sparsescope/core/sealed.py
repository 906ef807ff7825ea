"""Sealed JSON documents that describe a stored folder: the manifests of runs and of artifacts.

Such a document is written last, so its presence means that the folder is complete. Unknown fields are
refused: a typo must not pass as a default. Newer schema versions are refused with a hint; older ones are
migrated. A seal, the SHA-256 of everything else in it, tells a document that was changed after it was
written; it guards against decay and slips, not against forgery.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sparsescope.core.escaping import well_formed_values
from sparsescope.core.spec import canonical_json
from sparsescope.core.strict_json import parse
from sparsescope.errors import ArtifactError, SparsescopeError

SIZE_LIMIT = 5 * 1024 * 1024
# Names of runs and of artifacts: <analysis or kind>-<12 hex>.
ID = re.compile(r"[a-z][a-z0-9_]{0,63}-[0-9a-f]{12}")
# Names of tables and tensors become names of files, of downloads and of anchors in a page.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
FILE = re.compile(rf"(?:{NAME.pattern}/){{0,3}}{NAME.pattern}")
Migration = Callable[[dict[str, Any]], dict[str, Any]]


class Strict(BaseModel):
    """Base of everything in a sealed document: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", strict=False)


class FileEntry(Strict):
    """A file of the folder: relative path, size in bytes, SHA-256."""

    file: str
    bytes: int
    sha256: str

    @field_validator("file")
    @classmethod
    def _inside(cls, value: str) -> str:
        if not FILE.fullmatch(value):
            raise ValueError("must be a relative path inside the folder, of letters, digits, '_', '.', '-'")
        return value


class Sealed(Strict):
    """A document with a schema version and a seal."""

    schema_version: int
    seal: str = ""


_Document = TypeVar("_Document", bound=Sealed)


@dataclass(frozen=True, slots=True)
class Form(Generic[_Document]):
    """How one kind of document is read.

    Args:
        noun: What the folder is, for messages.
        file: Name of the document in the folder.
        model: Its model.
        version: The present schema version.
        migrations: From version n to n + 1.
        stated: The id that the document states.
        named: The id that its contents give.
        again: What to do about one that cannot be used.
    """

    noun: str
    file: str
    model: type[_Document]
    version: int
    migrations: dict[int, Migration]
    stated: Callable[[_Document], str]
    named: Callable[[_Document], str]
    again: str

    def read(self, folder: Path) -> _Document:
        """Read and check the document of a folder.

        Raises:
            ArtifactError: If it is missing, too large, not JSON, of a newer schema, malformed, changed after
                it was written, or if it does not belong to the folder it lies in.
        """
        path = folder / self.file
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(
                f"this is not a complete {self.noun}: it has no manifest",
                where=str(folder),
                allowed=f"a file {self.file} in it, no link",
                next_step=f"{self.again}; an interrupted run is resumed",
            )
        if path.stat().st_size > SIZE_LIMIT:
            raise ArtifactError("the manifest is too large", where=str(path), allowed=f"{SIZE_LIMIT} bytes")
        restore = f"restore the folder from a copy, or delete it and {self.again}"
        try:
            raw = parse(path.read_bytes())
            if not isinstance(raw, dict):
                raise ValueError("the top level is not an object")
            seal = seal_of(raw)
            document = self.model.model_validate(self._migrate(well_formed_values(raw), path))
            named = self.named(document)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(
                "the manifest is malformed",
                where=f"{path}, field {field}",
                allowed=first["msg"],
                got=repr(first.get("input"))[:120],
                next_step=restore,
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
                next_step=restore,
            ) from None
        except ValueError as error:
            raise ArtifactError(
                "the manifest is not valid JSON", where=str(path), got=str(error)[:200], next_step=restore
            ) from None
        stated = self.stated(document)
        if stated != folder.name or stated != named:
            raise ArtifactError(
                "the manifest does not belong to this folder",
                where=str(path),
                allowed=named,
                got=f"{stated} in folder {folder.name}",
                next_step=f"do not rename or edit stored folders; delete it and {self.again}",
            )
        if document.seal not in ("", seal):
            raise ArtifactError(
                "the manifest was changed after it was written",
                where=str(path),
                allowed=f"seal {document.seal[:16]}",
                got=f"seal {seal[:16]}",
                next_step=restore,
            )
        return document

    def _migrate(self, raw: dict[str, Any], path: Path) -> dict[str, Any]:
        """Bring an older document to the present schema; refuse a newer one."""
        version = raw.get("schema_version")
        if isinstance(version, int) and version > self.version:
            raise ArtifactError(
                f"this {self.noun} was written by a newer sparsescope",
                where=str(path),
                allowed=f"schema version up to {self.version}",
                got=str(version),
                next_step="upgrade: pip install --upgrade sparsescope",
            )
        while isinstance(version, int) and version < self.version and version in self.migrations:
            raw = self.migrations[version](raw)
            version = raw["schema_version"]
        if version != self.version:
            raise ArtifactError(
                "the manifest has no schema version that this sparsescope knows",
                where=str(path),
                allowed=str(self.version),
                got=repr(version)[:80],
            )
        return raw


def seal_of(raw: Mapping[str, Any]) -> str:
    """Return the seal of a parsed document: SHA-256 of the canonical JSON of everything but the seal."""
    return hashlib.sha256(
        canonical_json({key: raw[key] for key in raw if key != "seal"}).encode()
    ).hexdigest()


def sealed_bytes(document: Sealed) -> bytes:
    """Return a document as it is stored, with its seal."""
    raw = json.loads(document.model_dump_json(exclude={"seal"}))
    return json.dumps(raw | {"seal": seal_of(raw)}, indent=1, ensure_ascii=False).encode()
