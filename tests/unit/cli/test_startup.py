"""Fresh processes: what is imported when, closed pipes, and both ways to start the program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "plotly",
    "streamlit",
    "datasets",
    "numba",
    "sklearn",
    "scipy",
)
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "SPARSESCOPE_HOME": "/nonexistent/runs"}


def imported_by(code):
    """The heavy modules that a fresh interpreter has loaded after ``code``, and the seconds that it took."""
    start = time.perf_counter()
    program = (
        "import sys\n"
        f"{code}\n"
        f"print(sorted(set({(*HEAVY, 'numpy', 'pandas', 'pydantic', 'typer')}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], time.perf_counter() - start


def test_importing_the_package_loads_nothing_heavy():
    found, seconds = imported_by("import sparsescope")
    assert found == "[]"
    assert seconds < 5


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["list"], ["run", "activation_sparsity", "--subject", "nosuch"]]
)
def test_no_verb_loads_torch_before_it_needs_it(words):
    code = (
        "from sparsescope.cli import app\n"
        "from sparsescope.cli.exit_codes import execute\n"
        f"execute(app, {words!r})"
    )
    found, seconds = imported_by(code)
    assert not [name for name in HEAVY if f"'{name}'" in found], found
    assert seconds < 10


@pytest.mark.parametrize("module", ["sparsescope", "sparsescope.cli"])
def test_the_program_starts_as_a_module(module):
    words = [sys.executable, "-m", module, "list", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["runs"] == []


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    """What ``sparsescope list | head -1`` does where the output does not fit the pipe."""
    names = tmp_path / "runs"
    for n in range(1500):
        run = names / f"activation_sparsity-{n:012x}"
        run.mkdir(parents=True)
        (run / "manifest.json").write_text("{}")
    words = [sys.executable, "-m", "sparsescope", "list", "runs", "--home", str(names)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout.readline() == b"runs\n"
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=60) == 0 and errors == b"", errors


def test_a_terminal_that_knows_ascii_only(tmp_path):
    words = [sys.executable, "-m", "sparsescope", "verify", "--home", str(tmp_path / "\u65e5\u672c")]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0 and "\\u65e5" in done.stdout and done.stderr == ""


def test_only_a_verb_that_works_prints_on_standard_output():
    done = subprocess.run(
        [sys.executable, "-m", "sparsescope", "report", "org/model", "-o", "/tmp/never.html"],
        capture_output=True, text=True, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr.startswith("loading org/model\nerror: the model hub cannot be reached")
        and "Traceback" not in done.stderr
    )
