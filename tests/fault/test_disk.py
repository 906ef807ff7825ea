"""Disks that refuse: a clear message and exit code 1, complete runs untouched, nothing left
over, success afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsescope.core.run_store import Store
from sparsescope.runner import engine

RUN = (
    "run",
    "activation_sparsity",
    "--subject",
    "random-llama",
    "--corpus",
    "python-docs",
    "--tokens",
    "300",
    "--context",
    "64",
    "--batch-tokens",
    "64",
    "--set",
    "resamples=100",
)


@pytest.fixture
def command(capsys):
    """Function that runs a command line and returns exit code, standard output and standard error."""
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    def call(*words):
        capsys.readouterr()
        code = execute(app, [str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def fingerprint(folder):
    """SHA-256 over the names and bytes of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(
        b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)
    ).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are tiny: threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with one complete run; tests copy it."""
    from sparsescope.cli import app
    from sparsescope.cli.exit_codes import execute

    folder = tmp_path_factory.mktemp("stored")
    assert execute(app, [*RUN, "--set", "seed=7", "--home", str(folder)]) == 0
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch, stored):
    """A folder of runs with one complete run in it; checks at the end that it is as it was."""
    folder = tmp_path / "runs"
    shutil.copytree(stored, folder)
    monkeypatch.setenv("SPARSESCOPE_HOME", str(folder))
    (run,) = folder.iterdir()
    before = fingerprint(run)
    yield folder
    monkeypatch.undo()
    assert fingerprint(run) == before, "a complete run was altered"


CODES = ("EROFS", "EACCES", "ENOSPC")
OPERATIONS = ("open", "write", "fsync", "rename")
STAGES = {"check_writable": OPERATIONS[:3], "save_step": OPERATIONS, "write": OPERATIONS}
CASES = [(stage, operation, code) for stage, names in STAGES.items() for operation in names for code in CODES]


class HalfWriter:
    """A file that takes half of what it is given, then fails, as a disk does that runs full."""

    def __init__(self, handle, error):
        self.handle, self.error = handle, error

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.handle.close()

    def write(self, data):
        self.handle.write(data[: len(data) // 2])
        self.handle.flush()
        raise self.error


@pytest.fixture
def refuse(monkeypatch):
    """Function that makes an operation fail, from the moment on when a method of ``Store`` is called."""

    def inject(stage, operation, code):
        error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        armed, hits = [], []
        original_stage = getattr(Store, stage)

        def arm(self, *args, **kwargs):
            armed.append(True)
            return original_stage(self, *args, **kwargs)

        def refusing(name, original, wanted):
            def call(*args, **kwargs):
                if not armed or name != operation or not wanted(args):
                    return original(*args, **kwargs)
                hits.append(name)
                raise error

            return call

        open_file = Path.open

        def opening(path, mode="r", *args, **kwargs):
            if armed and "w" in mode and operation in ("open", "write"):
                hits.append(operation)
                if operation == "open":
                    raise error
                return HalfWriter(open_file(path, mode, *args, **kwargs), error)
            return open_file(path, mode, *args, **kwargs)

        monkeypatch.setattr(Store, stage, arm)
        monkeypatch.setattr(Path, "open", opening)
        monkeypatch.setattr(os, "fsync", refusing("fsync", os.fsync, lambda args: True))
        monkeypatch.setattr(Path, "rename", refusing("rename", Path.rename, lambda args: True))
        monkeypatch.setattr(Path, "replace", refusing("rename", Path.replace, lambda args: True))
        return hits

    return inject


def check_message(err, *, path, code):
    """One screen that names path, code and next step."""
    message = err[err.index("error:") :]
    assert len(err.splitlines()) <= 12 and "Traceback" not in err, err
    assert str(path) in message and code in message and "next:" in message, message


def leftovers(folder):
    return [
        path.name for path in folder.rglob("*") if path.name.startswith(".tmp-") or path.name.endswith(".tmp")
    ]


@pytest.mark.parametrize(("stage", "operation", "code"), CASES)
def test_a_refusing_disk(home, command, refuse, monkeypatch, stage, operation, code):
    if stage == "save_step":
        monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    hits = refuse(stage, operation, code)
    result, out, err = command(*RUN)
    monkeypatch.undo()
    assert hits, "the fault was not met"
    assert result == 1 and out == ""
    check_message(err, path=home, code=code)
    assert not leftovers(home)
    again = command(*RUN, "--home", home)
    assert again[0] == 0, again[2]
    verdicts = Store(home).verify()
    assert len(verdicts) == 2 and {verdict.status for verdict in verdicts} == {"ok"}
    assert not list(home.glob(".partial/*"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_report_that_cannot_be_written_leaves_the_old_one(
    home, command, refuse, monkeypatch, tmp_path, operation
):
    target = tmp_path / "report.html"
    target.write_text("old")
    run_id = Store(home).run_ids()[0]
    hits = refuse("open", operation, "ENOSPC")  # Store.open: after the run was found
    result, _, err = command("report", run_id, "-o", target)
    monkeypatch.undo()
    assert hits and result == 1
    check_message(err, path=target, code="ENOSPC")
    assert target.read_text() == "old" and not leftovers(tmp_path)
    assert command("report", run_id, "-o", target, "--home", home)[0] == 0
    assert target.read_text().startswith("<!doctype html>") or "<html" in target.read_text()[:300].lower()


@pytest.mark.parametrize("code", ["EACCES", "EIO"])
def test_runs_that_cannot_be_read_are_errors_of_the_disk_not_of_the_program(home, command, monkeypatch, code):
    def refuse(path):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), str(path))

    run_id = Store(home).run_ids()[0]
    monkeypatch.setattr(Path, "read_bytes", refuse)
    for words in (("show", run_id), ("compare", run_id, run_id)):
        result, _, err = command(*words)
        assert result == 1 and "cannot be read" in err and str(home) in err
    assert command("list")[0] == 0
    result, out, _ = command("verify")
    assert result == 1 and "unreadable" in out
    monkeypatch.setattr(Path, "iterdir", refuse)
    result, _, err = command("list")
    assert result == 1
    check_message(err, path=home, code=code)


def test_a_file_size_limit_of_the_system(home, command):
    """No injection: the kernel refuses to write more than 4 KiB into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        result, _, err = command(*RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result == 1
    check_message(err, path=home, code="EFBIG")
    assert not leftovers(home)
    assert command(*RUN)[0] == 0


def test_a_process_of_its_own_with_a_file_where_the_folder_should_be(tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    environment = {**os.environ, "SPARSESCOPE_HOME": str(file), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "sparsescope", *RUN]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    check_message(done.stderr, path=file, code="EEXIST")
    assert "a file stands where a folder is needed" in done.stderr
    assert file.read_text() == "precious"


def test_reading_verbs_bear_a_file_where_the_folder_should_be(tmp_path, command):
    file = tmp_path / "file"
    file.write_text("precious")
    assert command("list", "runs", "--home", file)[0] == 0
    assert command("verify", "--home", file)[0] == 0
    code, _, err = command("show", "activation_sparsity-0123456789ab", "--home", file)
    assert code == 1 and "there is no run yet" in err
    code, out, _ = command("doctor", "--home", file)
    assert code == 1 and "EEXIST" in out
