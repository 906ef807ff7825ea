"""Durable file writes and the translation of operating-system errors.

A file appears under its name only when it is complete: temporary file in the same folder, write,
flush, fsync, rename, fsync of the folder. Every failure of these five steps becomes an
``ArtifactError`` that names the path, the reason and the next step.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsescope.errors import ArtifactError, SpecError

#: Bytes of one part of a path, and of the whole of it, that file systems take.
LONGEST_PART, LONGEST_PATH = 255, 4095
_NEXT_STEP = {
    errno.ENOSPC: "free space on that disk, or set SPARSESCOPE_HOME to a folder on another one",
    errno.EDQUOT: "free some of your quota, or set SPARSESCOPE_HOME to another folder",
    errno.EROFS: "the disk is read-only: set SPARSESCOPE_HOME to a folder that you can write to",
    errno.EACCES: "set SPARSESCOPE_HOME to a folder that you can write to, or change the permissions",
    errno.EPERM: "set SPARSESCOPE_HOME to a folder that you can write to, or change the permissions",
    errno.ENOENT: "check that the folder exists",
    errno.EEXIST: "a file stands where a folder is needed: set SPARSESCOPE_HOME to another folder",
    errno.ENOTDIR: "a file stands where a folder is needed: set SPARSESCOPE_HOME to another folder",
}


def check_name(given: str | Path, where: str) -> None:
    """Refuse a path that no file can have, before the system is asked for it.

    Args:
        given: What a user gave.
        where: Where it was given, for the message.

    Raises:
        SpecError: It is too long, or has a NUL.
    """
    text = str(given)
    longest = max((_bytes(part) for part in Path(text).parts), default=0)
    if "\0" in text or longest > LONGEST_PART or _bytes(text) > LONGEST_PATH:
        raise SpecError(
            "no file can have this name",
            where=where,
            allowed=f"at most {LONGEST_PART} bytes between two slashes, {LONGEST_PATH} in all, and no NUL",
            got=f"{text[:60]!r}{' ...' if len(text) > 60 else ''}, {_bytes(text)} bytes",
            next_step="leave the NUL out" if "\0" in text else "give a shorter name",
        )


def given_path(given: str | Path, where: str) -> Path:
    """Return a path that a user gave, with ``~`` expanded; whether anything is there is not looked at.

    Args:
        given: What a user gave.
        where: Where it was given, for the message.

    Raises:
        SpecError: No file can have this name, or it begins with the home of a user who is not there.
    """
    check_name(given, where)
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise SpecError(
            "this path begins with the home of a user who is not there",
            where=where,
            allowed="~/... for your own home, ~USER/... for that of USER, or ./~... for a file of this name",
            got=repr(str(given)[:200]),
            next_step="give the path without ~",
        ) from None


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into an ``ArtifactError`` about ``path``."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "OSError")
        raise ArtifactError(
            f"cannot {action}",
            where=str(path),
            got=f"{code}: {error.strerror or error}",
            next_step=_NEXT_STEP.get(error.errno or 0, "mend the cause and run the same command again"),
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and flush it to the disk. Not atomic; for files in a temporary folder."""
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def sync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, action: str = "write the file") -> None:
    """Write a file atomically: readers see the old content or the new, never a part.

    Raises:
        ArtifactError: If the disk refuses; the old file is untouched and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with storage_errors(action, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_file(temporary, data)
            temporary.replace(path)
            sync_path(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
