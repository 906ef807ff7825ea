"""Compiled loops are kept where something can be written, and the doctor says where."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sparsescope.cli import diagnosis
from sparsescope.kernels import compiled_cache
from sparsescope.kernels.compiled_cache import VARIABLE, choose_cache, find_cache


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing is known or set."""
    monkeypatch.delenv(VARIABLE, raising=False)
    find_cache.cache_clear()
    yield
    find_cache.cache_clear()


def only(monkeypatch, *folders):
    monkeypatch.setattr(compiled_cache, "_writable", lambda folder: folder in folders)


def test_numba_chooses_where_it_can(monkeypatch, tmp_path):
    beside = Path(compiled_cache.__file__).parent / "__pycache__"
    only(monkeypatch, beside)
    assert (find_cache().folder, find_cache().chosen) == (beside, False)
    choose_cache()
    assert VARIABLE not in os.environ


def test_what_the_user_set_stays(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    only(monkeypatch)
    choose_cache()
    assert os.environ[VARIABLE] == str(tmp_path) and find_cache().lasting


def test_read_only_code_and_home_leave_our_own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSESCOPE_CACHE", str(tmp_path))
    only(monkeypatch, tmp_path / "numba")
    choose_cache()
    assert os.environ[VARIABLE] == str(tmp_path / "numba")


def test_where_nothing_can_be_written_a_folder_of_the_process_is_taken_and_the_doctor_says_so(monkeypatch):
    only(monkeypatch)
    choose_cache()
    folder = Path(os.environ[VARIABLE])
    assert folder.is_dir() and folder.is_relative_to(tempfile.gettempdir())
    (found,) = [f for f in diagnosis.installation(None) if f.what == "compiled kernels"]
    assert not found.ok and "SPARSESCOPE_CACHE" in found.detail
    folder.rmdir()


def test_loops_run_in_a_process_that_can_write_nowhere(tmp_path):
    """As in a container with read-only code and HOME=/: numba is refused both of its folders."""
    script = """
import sparsescope.kernels.compiled_cache as cache
from numba.core import caching
for kind in (caching.InTreeCacheLocator, caching.UserWideCacheLocator):
    kind.from_function = classmethod(lambda *arguments: None)
cache._writable = lambda folder: False
cache.find_cache.cache_clear()
cache.choose_cache()
import numpy as np
from sparsescope.kernels.sparse_products_compiled import select
indices, values = np.empty(3, np.int32), np.empty(3, np.float32)
print(select(np.array([1, 0.1], np.float32), np.ones(2, np.float32) / 2, indices, values))
"""
    environment = {**os.environ, "HOME": "/"}
    environment.pop(VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "1\n", done.stderr
