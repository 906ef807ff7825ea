"""Folders that one process at a time may write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsescope.errors import ArtifactError


@contextmanager
def locked(folder: Path, what: str, *, where: Path, next_step: str) -> Iterator[None]:
    """Hold the lock of a folder; it ends with the process, however that ends.

    Args:
        folder: The folder, which is there.
        what: The error, if another process holds it.
        where: The folder as the reader knows it.
        next_step: What to do then.

    Raises:
        ArtifactError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(what, where=str(where), next_step=next_step) from None
    try:
        yield
    finally:
        lock.release()
