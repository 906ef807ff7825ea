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
#: What to do about a place of runs that cannot be written to; of any other the user gave the path.
FOR_RUNS = "set SPARSESCOPE_HOME to a folder elsewhere that you can write to"
_ELSEWHERE = "give another path, where you can write"
_NEXT_STEP = {
    errno.ENOSPC: "free space on that disk, or {instead}",
    errno.EDQUOT: "free some of your quota, or {instead}",
    errno.EROFS: "the disk is read-only: {instead}",
    errno.EACCES: "change the permissions, or {instead}",
    errno.EPERM: "change the permissions, or {instead}",
    errno.ENOENT: "check that the folder exists",
    errno.EEXIST: "a file stands where a folder is needed: {instead}",
    errno.ENOTDIR: "a file stands where a folder is needed: {instead}",
    errno.EISDIR: "a folder stands where a file is needed: {instead}",
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
    """Return a path that a user gave, with ``~`` expanded; there need be nothing. Every such path comes here.

    Args:
        given: What a user gave.
        where: Where it was given, for the message.

    Raises:
        SpecError: No file can have this name, it begins with the home of a user who is not there, the working
            folder is gone, or the system does not let this user look there.
    """
    check_name(given, where)
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise SpecError(
            "this path begins with the home of a user who is not there",
            where=where,
            allowed="~/... for your own home, ~USER/... for that of USER, or ./~... for a file of this name",
            got=repr(str(given)[:200]),
            next_step="give the path without ~",
        ) from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_absolute() and not _has_working_folder():
            raise SpecError(
                "the working folder was deleted, so a relative path leads nowhere",
                where=where,
                allowed="an absolute path",
                got=repr(str(given)[:200]),
                next_step="go to a folder that exists: cd",
            ) from None
    except OSError as error:
        raise SpecError(
            "the system does not let you look there",
            where=where,
            allowed="a path whose folders you may enter",
            got=f"{str(given)[:200]!r}: {error.strerror}",
            next_step="change the permissions of its folders, or give another path",
        ) from None
    return path


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def given_output(given: str | Path, where: str, what: str = "file", option: str = "") -> Path:
    """Return the file to write that a user gave; of a link the file that it leads to, which is written then.

    Args:
        given: What a user gave.
        where: Where it was given, for the message.
        what: What is to be written, for the message.
        option: How it is given on the command line, for the message.

    Raises:
        SpecError: See ``given_path``; or there is something else than a file: a folder, a device, ``-``.
    """
    path = given_path(given, where)
    if str(given) == "-" or str(given).endswith(("/", "\\")) or (path.exists() and not path.is_file()):
        raise no_output(given, where, what, option)
    return path.resolve() if path.is_symlink() else path


def no_output(given: str | Path, where: str, what: str, option: str = "") -> SpecError:
    """The error of an output that cannot be written; for the arguments see ``given_output``."""
    return SpecError(
        f"the {what} cannot be written there",
        where=where,
        allowed="a file in an existing folder that you can write to",
        got=str(given)[:200],
        next_step=f"choose another path with: {option}" if option else "choose another path",
    )


def _bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


@contextmanager
def storage_errors(action: str, path: Path, *, instead: str = _ELSEWHERE) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into an ``ArtifactError`` about ``path``.

    Args:
        action: What was tried.
        path: With what.
        instead: What else can be done.
    """
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "OSError")
        raise ArtifactError(
            f"cannot {action}",
            where=str(path),
            got=f"{code}: {error.strerror or error}",
            next_step=_NEXT_STEP.get(
                error.errno or 0, "mend the cause and run the same command again"
            ).format(instead=instead),
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


def replace_file(
    path: Path, data: bytes, *, action: str = "write the file", instead: str = _ELSEWHERE
) -> None:
    """Write a file atomically: readers see the old content or the new, never a part.

    Args:
        path: The file.
        data: Its content.
        action: What this is, for the message.
        instead: What else can be done, for the message.

    Raises:
        ArtifactError: If the disk refuses; the old file is untouched and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with storage_errors(action, path, instead=instead):
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
