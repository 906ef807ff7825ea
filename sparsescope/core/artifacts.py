"""Artifacts: what a run leaves for other runs, such as a trained dictionary or a set of masks.

``<folder of runs>/artifacts/<kind>-<12 hex>/`` holds files in the layout that the field's tools load, and
``artifact.json``, written last and sealed. The id hashes kind, format and the checksums of the files, so a
folder that comes from elsewhere has an identity of the same kind, and equal contents are one artifact.
Artifacts are immutable, and opened when used.
"""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import field_validator

from sparsescope.core.escaping import well_formed
from sparsescope.core.files import given_path, sha256_file, storage_errors
from sparsescope.core.run_files import damage_of, inside
from sparsescope.core.sealed import ID, FileEntry, Form, Sealed
from sparsescope.core.shown import Shown
from sparsescope.core.spec import canonical_json
from sparsescope.core.tensor_header import read_tensors
from sparsescope.errors import ArtifactError, SpecError, unknown_name

RECORD = "artifact.json"
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")
_AGAIN = "make the artifact again, or copy its folder here"


class ArtifactRecord(Sealed):
    """The ``artifact.json`` of an artifact."""

    id: str
    kind: str
    format: str
    files: tuple[FileEntry, ...]
    meta: dict[str, Any]
    created: str
    made_by: str

    @field_validator("files")
    @classmethod
    def _distinct(cls, value: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        if len({entry.file for entry in value}) < len(value):
            raise ValueError("a file is listed twice")
        return value

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of kind, format and the checksums of the files."""
        named = {
            "kind": self.kind,
            "format": self.format,
            "files": {entry.file: entry.sha256 for entry in self.files},
        }
        return hashlib.sha256(canonical_json(named).encode()).hexdigest()

    @property
    def named(self) -> str:
        """The id that the contents give."""
        return f"{self.kind}-{self.digest[:12]}"


FORM = Form(
    noun="artifact",
    file=RECORD,
    model=ArtifactRecord,
    version=1,
    migrations={},
    stated=lambda record: record.id,
    named=lambda record: record.named,
    again="make the artifact again",
)


class Artifact(Shown):
    """One artifact; nothing is read before it is used.

    Args:
        artifact_id: ``<kind>-<12 hex>``.
        path: Its folder.
        remake: The command that makes it again, for messages; empty where it is not known.
        record: Of a folder that comes from elsewhere, what it would say of itself; None for
            a stored artifact.
    """

    def __init__(
        self, artifact_id: str, path: Path, *, remake: str = "", record: ArtifactRecord | None = None
    ) -> None:
        self.id = check_id(artifact_id)
        self.path = path
        self.remake = remake
        self._record = record
        self._from_elsewhere = record is not None

    @classmethod
    def of_folder(cls, kind: str, path: str | Path, format: str) -> Artifact:
        """A folder that comes from elsewhere; its id is the one that it would have if it were kept.

        Hidden files and an ``artifact.json`` at the top do not count. Links to files are followed, as the
        cache of the hub needs.

        Args:
            kind: What it is, for example ``"dictionary"``.
            path: The folder.
            format: Its layout, for example ``"saelens"``.

        Raises:
            SpecError: If the kind is malformed or the name of an analysis.
            ArtifactError: If the folder cannot be read or holds no file.
        """
        check_kind(kind)
        path = given_path(path, "folder of an artifact")
        with storage_errors("read the folder", path):
            names = [
                name for name in files_in(path) if not any(part.startswith(".") for part in name.split("/"))
            ]
            entries = [entry_of(path / name, name) for name in names if name != RECORD]
        if not entries:
            raise ArtifactError(
                "there is no file in this folder", where=str(path), allowed=f"a {kind} in the format {format}"
            )
        record = new_record(kind, format, entries, {}, made_by="")
        return cls(record.id, path, remake="copy the folder here again", record=record)

    @property
    def record(self) -> ArtifactRecord:
        """What ``artifact.json`` says.

        Raises:
            ArtifactError: If the artifact is missing or its record cannot be used.
        """
        if self._record is None:
            if not (self.path / RECORD).is_file():
                raise self._refuse(
                    "this artifact is missing", self.path, "there is no such folder, or it is not complete"
                )
            with storage_errors("read the artifact", self.path):
                self._record = FORM.read(self.path)
        return self._record

    @property
    def kind(self) -> str:
        """What it is, for example ``"dictionary"``."""
        return self.id.rpartition("-")[0]

    @property
    def format(self) -> str:
        """The layout of its files, for example ``"saelens"``."""
        return self.record.format

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Relative path, size in bytes and SHA-256 of every file, sorted by path."""
        return self.record.files

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    @property
    def meta(self) -> dict[str, Any]:
        """What its maker says about it; not part of the id."""
        return self.record.meta

    @property
    def created(self) -> str:
        """When it was made, UTC."""
        return self.record.created

    @property
    def made_by(self) -> str:
        """The run or the command that made it."""
        return self.record.made_by

    @property
    def digest(self) -> str:
        """SHA-256 of kind, format and the checksums of the files; the id holds its first 12 digits."""
        return self.record.digest

    @property
    def present(self) -> bool:
        """Whether it is there, each file with its size; checksums are compared by ``verify``."""
        try:
            return not self._damage(checksums=False)
        except ArtifactError:
            return False

    def verify(self) -> list[str]:
        """Compare size and checksum of every file; return what differs.

        Raises:
            ArtifactError: If the artifact is missing or its record cannot be used.
        """
        return self._damage(checksums=True)

    def path_of(self, name: str, *, check: bool = False) -> Path:
        """Return the path of one file.

        Args:
            name: Its relative path.
            check: Also compare its checksum, as who reads all of it should; its size is always compared.

        Raises:
            ArtifactError: If the artifact has no such file, or it is missing or damaged.
        """
        known = {entry.file: entry for entry in self.files}
        if name not in known:
            raise unknown_name(
                f"file of {self.id}", name, known, next_step="see Artifact.files", error=ArtifactError
            )
        path = self._place(name)
        with storage_errors("read the artifact", path):
            damage = damage_of(path, known[name], checksum=check)
        if damage:
            raise self._refuse("this artifact is damaged", path, damage[0])
        return path

    def tensors(self, name: str, *, check: bool = False) -> dict[str, np.ndarray]:
        """Return the tensors of one safetensors file, mapped: what is not indexed is not read.

        Args:
            name: Relative path of the file.
            check: Also compare its checksum, as who reads all of it should.

        Raises:
            ArtifactError: If it is missing, damaged or not a safetensors file of types that numpy has.
        """
        return read_tensors(self.path_of(name, check=check))

    def _damage(self, *, checksums: bool) -> list[str]:
        with storage_errors("read the artifact", self.path):
            return [
                text for e in self.files for text in damage_of(self._place(e.file), e, checksum=checksums)
            ]

    def _place(self, name: str) -> Path:
        """Where a file lies; a link out of the folder is refused unless the folder comes from elsewhere."""
        return self.path / name if self._from_elsewhere else inside(self.path, name)

    def _refuse(self, what: str, where: Path, got: str) -> ArtifactError:
        maker = self._record.made_by if self._record else ""
        again = self.remake or (f"make it again; it was made by {maker}" if maker else _AGAIN)
        return ArtifactError(what, where=str(where), allowed=self.id, got=got, next_step=again)

    def _shown(self) -> dict[str, object]:
        if not self.present:
            return {"id": self.id, "files": "missing"}
        return {"id": self.id, "format": self.format, "files": len(self.files)}


def check_kind(kind: str) -> str:
    """Return the kind of an artifact.

    Raises:
        SpecError: If it is malformed, or the name of an analysis: runs and artifacts have
            ids of the same form.
    """
    from sparsescope.core.registry import analyses, benchmarks

    if not _KIND.fullmatch(kind):
        raise SpecError("the kind of an artifact is malformed", allowed=_KIND.pattern, got=repr(kind)[:120])
    if kind in analyses() or kind in benchmarks():
        raise SpecError("no kind of artifact has the name of an analysis", allowed="another name", got=kind)
    return kind


def check_id(artifact_id: str) -> str:
    """Return the id of an artifact.

    Raises:
        ArtifactError: If it is not of the form ``<kind>-<12 hex>``.
    """
    if not ID.fullmatch(artifact_id):
        raise ArtifactError(
            "not the id of an artifact",
            allowed="<kind>-<12 hex digits>",
            got=repr(artifact_id)[:120],
            next_step="run: sparsescope list",
        )
    return artifact_id


def new_record(
    kind: str, format: str, entries: list[FileEntry], meta: dict[str, Any], made_by: str
) -> ArtifactRecord:
    """The record of an artifact with these files, its id worked out."""
    record = ArtifactRecord(
        schema_version=FORM.version,
        id="",
        kind=kind,
        format=well_formed(format),
        files=tuple(sorted(entries, key=lambda entry: entry.file)),
        meta=meta,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        made_by=well_formed(made_by),
    )
    return record.model_copy(update={"id": record.named})


def files_in(folder: Path) -> list[str]:
    """Relative paths of what is in a folder and is not a folder, sorted; links to
    folders are not followed.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in (*names, *links)]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def entry_of(path: Path, name: str) -> FileEntry:
    """Size and checksum of a file; its name is not checked, since folders from elsewhere have
    names of their own.
    """
    if not path.is_file():
        raise ArtifactError("this is not a file", where=str(path), allowed="files and folders of files")
    return FileEntry.model_construct(
        file=well_formed(name), bytes=path.stat().st_size, sha256=sha256_file(path)
    )
