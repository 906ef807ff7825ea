"""How artifacts are kept: the writer that streams their files, and the folder where they
stand beside the runs.

An artifact is built in a hidden temporary folder on the same file system, flushed, and renamed, as runs are;
so it is complete or absent, whatever happens to the process.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sparsescope.core.artifacts import RECORD, Artifact, check_kind, entry_of, files_in, new_record
from sparsescope.core.escaping import well_formed_values
from sparsescope.core.files import FOR_RUNS, storage_errors, sync_path, write_file
from sparsescope.core.publish import publish, remove_strays, temporary_path
from sparsescope.core.sealed import FILE, ID, FileEntry, sealed_bytes
from sparsescope.core.spec import canonical_json
from sparsescope.errors import ArtifactError, SpecError

FOLDER = "artifacts"
META_LIMIT = 64 * 1024


class ArtifactWriter:
    """Takes the files of an artifact that is being made; see ``ArtifactStore.keep``.

    Attributes:
        folder: Where a library may save files itself; they are hashed at the end.
        meta: What there is to say about the artifact; it may be completed until the end.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder = folder
        self.meta = meta
        self._streamed: dict[str, tuple[FileEntry, tuple[int, ...]]] = {}
        self._artifact: Artifact | None = None

    @property
    def artifact(self) -> Artifact:
        """The artifact, once the block of ``keep`` ended."""
        if self._artifact is None:
            raise ArtifactError(
                "the artifact is not kept yet", where=str(self.folder), allowed="after the block of keep"
            )
        return self._artifact

    @contextmanager
    def file(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for writing from its first byte to its last; the checksum is taken on the way.

        Args:
            name: Relative path: letters, digits, '_', '.', '-', at most three folders deep.

        Raises:
            ArtifactError: If the name is not of this form or taken, or the disk refuses.
        """
        path = self.folder / check_file(name)
        with storage_errors("store the artifact", path, instead=FOR_RUNS):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("xb")
        stream = _Stream(handle, path)
        try:
            yield stream  # type: ignore[misc]  # RawIOBase is what a BinaryIO is for all that writes to it
            stream.finish()
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            handle.close()
        self._streamed[name] = (
            FileEntry(file=name, bytes=stream.count, sha256=stream.hash.hexdigest()),
            _state(path),
        )

    def write(self, name: str, data: bytes) -> None:
        """Write a small file; see ``file``."""
        with self.file(name) as handle:
            handle.write(data)

    def entries(self) -> list[FileEntry]:
        """Every file of the folder with its checksum; what a library saved is hashed and flushed now."""
        found = []
        for name in files_in(self.folder):
            path = self.folder / check_file(name)
            if path.is_symlink():
                raise ArtifactError("a link cannot be kept in an artifact", where=str(path), allowed="files")
            entry, state = self._streamed.get(name, (None, ()))
            if entry is None or state != _state(path):  # a library wrote it
                entry = entry_of(path, name)
                sync_path(path)
            found.append(entry)
        for place, folders, _ in os.walk(self.folder):
            for folder in folders:
                sync_path(Path(place) / folder)
        return found


class _Stream(io.RawIOBase):
    """A file that is written once, from the first byte to the last, and hashed on the way."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        super().__init__()
        self.hash, self.count = hashlib.sha256(), 0
        self._handle, self._path = handle, path

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.count

    def write(self, data: Any) -> int:
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # an empty array cannot be cast
        with storage_errors("store the artifact", self._path, instead=FOR_RUNS):
            self._handle.write(view)
        self.hash.update(view)
        self.count += len(view)
        return len(view)

    def finish(self) -> None:
        """Flush what was written to the disk."""
        with storage_errors("store the artifact", self._path, instead=FOR_RUNS):
            self._handle.flush()
            os.fsync(self._handle.fileno())


@dataclass(frozen=True, slots=True)
class ArtifactVerdict:
    """What ``verify`` says of one artifact: ``status`` is ``ok``, ``damaged`` or ``unreadable``."""

    artifact_id: str
    status: str
    detail: str


class ArtifactStore:
    """The artifacts of one folder of runs.

    Args:
        root: The folder of runs. None for artifacts that are not stored: each lives in a temporary folder as
            long as its ``Artifact`` object.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = None if root is None else root / FOLDER

    def has(self, artifact_id: str) -> bool:
        """Whether the artifact is there, each file with its size."""
        return self.root is not None and self.find(artifact_id).present

    def ids(self) -> list[str]:
        """Ids of the artifacts, newest first."""
        if self.root is None or not self.root.is_dir():
            return []
        with storage_errors("read the folder of artifacts", self.root):
            found = [p for p in self.root.iterdir() if ID.fullmatch(p.name) and (p / RECORD).is_file()]
            return [p.name for p in sorted(found, key=lambda p: (-(p / RECORD).stat().st_mtime_ns, p.name))]

    def open(self, artifact_id: str) -> Artifact:
        """Return an artifact; its files are opened when used.

        Raises:
            ArtifactError: If there is none of this id, or its record cannot be used.
        """
        found = self.find(artifact_id)
        if not (found.path / RECORD).is_file():
            raise ArtifactError(
                f"no artifact {artifact_id!r}",
                where=str(self.root or "artifacts that are not stored"),
                allowed=self.ids()[:8] or "there is no artifact yet",
                next_step="run: sparsescope list",
            )
        _ = found.record  # one that cannot be used is found out now
        return found

    def find(self, artifact_id: str, *, remake: str = "") -> Artifact:
        """Return an artifact that may be missing; ``Artifact.present`` says whether it is.

        Args:
            artifact_id: Its id.
            remake: The command that makes it again.

        Raises:
            ArtifactError: If the id is malformed.
        """
        return Artifact(artifact_id, (self.root or Path(FOLDER)) / artifact_id, remake=remake)

    def adopt(self, artifact: Artifact) -> Artifact:
        """Return the artifact as it stands here, copied where it does not; a missing one stays missing.

        Raises:
            ArtifactError: If it is damaged or the disk refuses.
        """
        if self.has(artifact.id) or not artifact.present:
            return self.find(artifact.id, remake=artifact.remake)
        with self.keep(
            artifact.kind, format=artifact.format, meta=artifact.meta, made_by=artifact.made_by
        ) as writer:
            for entry in artifact.files:
                with (
                    artifact.path_of(entry.file, check=True).open("rb") as source,
                    writer.file(entry.file) as target,
                ):
                    shutil.copyfileobj(source, target)
        return writer.artifact

    def verify(self) -> list[ArtifactVerdict]:
        """Check the size and checksum of every file of every artifact."""
        verdicts = []
        for artifact_id in self.ids():
            try:
                damage = self.open(artifact_id).verify()
            except ArtifactError as error:
                verdicts.append(ArtifactVerdict(artifact_id, "unreadable", error.message()))
                continue
            verdicts.append(ArtifactVerdict(artifact_id, "damaged" if damage else "ok", "; ".join(damage)))
        return verdicts

    @contextmanager
    def keep(
        self,
        kind: str,
        *,
        format: str,
        meta: Mapping[str, Any] | None = None,
        made_by: str = "",
    ) -> Iterator[ArtifactWriter]:
        """Make an artifact: the files are written in the block, and at its end the artifact is
        there, or not at all.

        One with the same contents that is there already stays. After an exception nothing is left.

        Args:
            kind: What it is, ``[a-z][a-z0-9_]*``, for example ``"dictionary"``.
            format: The layout of the files, for example ``"saelens"`` or ``"safetensors"``.
            meta: What there is to say about it, JSON of at most ``META_LIMIT`` bytes.
            made_by: The run or the command that makes it.

        Yields:
            The writer; ``writer.artifact`` afterwards.

        Raises:
            SpecError: If the kind is malformed or the name of an analysis, or ``meta`` is not JSON.
            ArtifactError: If a name of a file is refused, there is no file, or the disk refuses.
        """
        check_kind(kind)
        place = self.root or Path(tempfile.gettempdir())
        with storage_errors("store the artifact", place, instead=FOR_RUNS):
            if self.root is None:
                temporary = Path(tempfile.mkdtemp(prefix=f"sparsescope-{kind}-"))
            else:
                self.root.mkdir(parents=True, exist_ok=True)
                remove_strays(self.root)
                temporary = temporary_path(self.root, kind)
                temporary.mkdir()
        writer = ArtifactWriter(temporary, dict(meta or {}))
        try:
            with _own_errors(temporary):
                yield writer
            with storage_errors("store the artifact", place, instead=FOR_RUNS):
                writer._artifact = self._finish(writer, kind, format, made_by)
        finally:
            if self.root is not None or writer._artifact is None:
                shutil.rmtree(temporary, ignore_errors=True)

    def _finish(self, writer: ArtifactWriter, kind: str, format: str, made_by: str) -> Artifact:
        """Write the record and rename the folder, or leave it and tie it to the object."""
        entries = writer.entries()
        if not entries:
            raise ArtifactError(
                "an artifact without files cannot be kept", where=f"kind {kind}", allowed="one file or more"
            )
        record = new_record(kind, format, entries, _plain(writer.meta), made_by)
        folder = writer.folder / record.id if self.root is None else writer.folder
        if self.root is None:  # the record is found in a folder of the artifact's name only
            folder.mkdir()
            for path in [path for path in writer.folder.iterdir() if path != folder]:
                path.rename(folder / path.name)
        write_file(folder / RECORD, sealed_bytes(record))
        sync_path(folder)
        if self.root is None:
            artifact = Artifact(record.id, folder)
            weakref.finalize(artifact, shutil.rmtree, writer.folder, ignore_errors=True)
            return artifact
        artifact = self.find(record.id)
        lost = (artifact.path / RECORD).is_file() and not artifact.present
        publish(writer.folder, artifact.path, lambda path: (path / RECORD).is_file(), replace=lost)
        return self.find(record.id)


def check_file(name: str) -> str:
    """Return the relative path of a file of an artifact.

    Raises:
        ArtifactError: If it could leave the folder or is not portable.
    """
    if not FILE.fullmatch(name) or name == RECORD:
        raise ArtifactError(
            "a file of this name cannot be kept in an artifact",
            where="files of an artifact",
            allowed="a relative path of letters, digits, '_', '.', '-', at most three "
            f"folders deep; not {RECORD}",
            got=repr(name)[:120],
        )
    return name


def _plain(meta: dict[str, Any]) -> dict[str, Any]:
    """The meta data as they can be stored."""
    try:
        text = canonical_json(well_formed_values(meta))
    except (TypeError, ValueError) as error:
        raise SpecError(
            "the meta data of an artifact are not JSON", allowed="plain values, no NaN", got=str(error)
        ) from None
    if len(text) > META_LIMIT:
        raise SpecError(
            "the meta data of an artifact are too large",
            allowed=f"{META_LIMIT} bytes",
            got=f"{len(text)} bytes",
        )
    plain: dict[str, Any] = well_formed_values(meta)
    return plain


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written again."""
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns


@contextmanager
def _own_errors(folder: Path) -> Iterator[None]:
    """Translate the disk's refusal to write into the folder; an error about a file elsewhere is not ours."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise
        with storage_errors("store the artifact", folder, instead=FOR_RUNS):
            raise
