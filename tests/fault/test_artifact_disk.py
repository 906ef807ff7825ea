"""Disks that refuse an artifact: a clear message, other artifacts untouched, nothing left
over, success afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
from pathlib import Path

import pytest

from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Spec
from sparsescope.errors import ArtifactError


def keep(store, content=b"new" * 4000):
    with store.artifacts.keep("toy", format="t") as writer:
        writer.write("deep/streamed.bin", content)
        (writer.folder / "saved.bin").write_bytes(content)
    return writer.artifact


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(
        b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)
    ).hexdigest()


@pytest.fixture
def store(tmp_path):
    """A folder of runs with one artifact; checks at the end that it is as it was."""
    found = Store(tmp_path / "runs")
    older = keep(found, b"old")
    before = fingerprint(older.path)
    yield found
    assert fingerprint(older.path) == before, "a complete artifact was altered"


class HalfWriter:
    """A file that takes half of what it is given, then fails, as a disk does that runs full."""

    def __init__(self, handle, error):
        self.handle, self.error = handle, error

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.close()

    def close(self):
        self.handle.close()

    def write(self, data):
        self.handle.write(data[: len(data) // 2])
        self.handle.flush()
        raise self.error


@pytest.fixture
def refuse(monkeypatch):
    """Function that makes an operation fail from its n-th call on."""

    def inject(operation, code, call):
        error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        hits = []

        def failing(original, name):
            def wrapped(*args, **kwargs):
                if name == operation:
                    hits.append(name)
                    if len(hits) >= call:
                        raise error
                return original(*args, **kwargs)

            return wrapped

        open_file = Path.open

        def opening(path, mode="r", *args, **kwargs):
            if operation in ("open", "write") and ("w" in mode or "x" in mode):
                hits.append(operation)
                if len(hits) >= call and operation == "open":
                    raise error
                if len(hits) >= call:
                    return HalfWriter(open_file(path, mode, *args, **kwargs), error)
            return open_file(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", opening)
        monkeypatch.setattr(Path, "mkdir", failing(Path.mkdir, "mkdir"))
        monkeypatch.setattr(Path, "rename", failing(Path.rename, "rename"))
        monkeypatch.setattr(os, "fsync", failing(os.fsync, "fsync"))
        return hits

    return inject


# Of a streamed file, of the one that a library saves, of the record; the folder of the artifact;
# the parent folder.
CASES = [
    ("mkdir", 1),
    ("mkdir", 2),
    ("open", 1),
    ("open", 2),
    ("open", 3),
    ("write", 1),
    ("write", 2),
    ("write", 3),
    ("fsync", 1),
    ("fsync", 3),
    ("fsync", 5),
    ("rename", 1),
]


def check_message(error, path, code):
    text = error.message()
    assert str(path) in text and code in text and "next:" in text and "cannot store the artifact" in text, (
        text
    )


@pytest.mark.parametrize("code", ["EROFS", "EACCES", "ENOSPC"])
@pytest.mark.parametrize(("operation", "call"), CASES)
def test_a_refusing_disk(store, refuse, monkeypatch, operation, call, code):
    hits = refuse(operation, code, call)
    with pytest.raises(ArtifactError) as found:
        keep(store)
    monkeypatch.undo()
    assert len(hits) >= call, "the fault was not met"
    check_message(found.value, store.root, code)
    assert len(list(store.artifacts.root.iterdir())) == 1, "something was left over"
    assert keep(store).verify() == []
    assert [verdict.status for verdict in store.artifacts.verify()] == ["ok", "ok"]


def test_a_file_size_limit_of_the_system(store):
    """No injection: the kernel refuses to write more than 4 KiB into a file, into ours and into
    that of a library.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ArtifactError) as streamed:
            keep(store)
        with pytest.raises(ArtifactError) as saved, store.artifacts.keep("toy", format="t") as writer:
            (writer.folder / "saved.bin").write_bytes(b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for found in (streamed, saved):
        check_message(found.value, store.root, "EFBIG")
    assert len(list(store.artifacts.root.iterdir())) == 1
    assert keep(store).present


def test_an_error_about_a_file_elsewhere_is_not_one_of_the_store(store, tmp_path):
    with pytest.raises(FileNotFoundError), store.artifacts.keep("toy", format="t") as writer:
        writer.write("copy", (tmp_path / "missing").read_bytes())
    assert len(list(store.artifacts.root.iterdir())) == 1


def spec():
    return Spec(analysis="toy", version="1", params={}, subject={"weight_hash": "w"})


def test_a_run_that_cannot_be_replaced_stays(store, monkeypatch):
    folder = store.write(Result("toy"), spec(), seconds=1, environment={})
    before = fingerprint(folder)
    rename = Path.rename

    def failing(path, target):
        if path.name.startswith(".tmp-toy-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match="ENOSPC"):
        store.write(Result("toy"), spec(), seconds=2, environment={}, replace=True)
    monkeypatch.undo()
    assert fingerprint(folder) == before
    assert sorted(path.name for path in store.root.iterdir()) == ["artifacts", folder.name]
    store.write(Result("toy"), spec(), seconds=2, environment={}, replace=True)
    assert store.manifest(folder.name).seconds == 2 and fingerprint(folder) != before
