"""Standard output and standard error that are full, closed or gone: an exit code, no trace, clean JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

VERB = [sys.executable, "-m", "sparsescope"]


def run(arguments, redirect, **more):
    """Run a verb with a redirection of the shell."""
    line = " ".join([*VERB, *arguments, redirect])
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, **more,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["show", "activation_sparsity"]])
def test_a_full_disk_behind_standard_output_is_said(arguments):
    done = run(arguments, "> /dev/full")
    assert done.returncode == 1
    assert "standard output cannot be written to" in done.stderr and "No space left" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("arguments", [["show", "nothing"], ["show", "nothing", "--json"], ["shw", "--json"]])
def test_an_error_behind_a_full_disk_keeps_its_exit_code(arguments):
    done = run(arguments, "> /dev/full")
    assert done.returncode == 1 and "Traceback" not in done.stderr and "internal" not in done.stderr


@pytest.mark.parametrize("redirect", ["2>&-", "2> /dev/full"])
def test_without_standard_error_json_stays_clean(redirect, tmp_path):
    arguments = ["run", "activation_sparsity", "--subject", "random-llama", "--corpus", "python-docs"]
    arguments += ["--tokens", "200", "--context", "64", "--home", str(tmp_path), "--json"]
    done = run(arguments, redirect)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)["run"].startswith("activation_sparsity-")


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "2>&-"])
def test_closed_streams_do_no_harm(redirect, tmp_path):
    assert run(["list", "--home", str(tmp_path)], redirect).returncode == 0
    done = run(["show", "nothing"], redirect)
    assert done.returncode == 1 and "Traceback" not in done.stderr
