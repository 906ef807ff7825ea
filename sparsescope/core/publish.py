"""Folders that appear under their name complete or not at all: runs and artifacts.

A folder is built under a hidden name on the same file system, flushed, and renamed. The hidden name
says which process of which machine owns it, so that what a killed process leaves is swept by the
next one that writes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

from sparsescope.core.files import sync_path

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_STALE_SECONDS = 86_400


def temporary_path(root: Path, what: str) -> Path:
    """A hidden name in ``root`` that no other process takes, and that says whose it is."""
    return root / f".tmp-{what}-{HOST}-{os.getpid()}-{secrets.token_hex(4)}"


def publish(
    temporary: Path, final: Path, is_complete: Callable[[Path], bool], *, replace: bool = False
) -> None:
    """Rename a finished folder into place; another process may have been first, and then its folder stays.

    Args:
        temporary: The finished folder, on the same file system.
        final: Its name.
        is_complete: Whether a folder that stands under the name may stay there.
        replace: Take the place of a complete folder. There is a moment without a folder, never one
            with a part of it.

    Raises:
        OSError: If the disk refuses; what stood under the name is there again.
    """
    aside = None
    if os.path.lexists(final) and (replace or not is_complete(final)):
        # What is complete but not wanted goes; anything else can only be made by a person,
        # whose files are kept.
        kept = final.with_name(f".incomplete-{final.name}-{secrets.token_hex(4)}")
        aside = temporary_path(final.parent, f"old-{final.name}") if replace else kept
        with contextlib.suppress(FileNotFoundError):  # another process did the same
            final.rename(aside)
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not is_complete(final):
            if aside is not None and not os.path.lexists(final):
                aside.rename(final)
            raise
    if replace and aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    sync_path(final.parent)


def remove_strays(root: Path) -> None:
    """Delete what killed processes of this machine left unfinished in ``root``, and any that
    is older than a day.
    """
    for path in root.glob(".tmp-*"):
        owner = re.fullmatch(r"\.tmp-.+-([^-]+)-(\d{1,9})-[0-9a-f]+", path.name)
        if owner is None:
            continue  # not ours
        try:
            stale = time.time() - _last_written(path) > _STALE_SECONDS
        except FileNotFoundError:
            continue
        if not stale and (owner[1] != HOST or _alive(int(owner[2]))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _last_written(path: Path) -> float:
    """When something in the folder was last written to; a large file may be written for hours."""
    return max(inner.lstat().st_mtime for inner in (path, *path.rglob("*")))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
