"""Interrupted runs of schema 1: finished steps are not made again; a state of the shared pass of another
version is not used.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import sparsescope as ss
from sparsescope.runner import engine

FROZEN = Path(__file__).resolve().parents[1] / "fixtures" / "frozen"
INTERRUPTED = json.loads((FROZEN / "frozen.json").read_text())["interrupted"]
PASSES = [name for name, kept in INTERRUPTED.items() if kept["steps"][0].endswith("/pass.safetensors")]
STEPS = [name for name in INTERRUPTED if name not in PASSES]
STATE_VERSION = 1  # of the accumulators when the fixtures were made


def begun(name, tmp_path):
    """A folder of runs that holds the partial work of one run, as it was left."""
    folder = Path(INTERRUPTED[name]["steps"][0]).parent
    shutil.copytree(FROZEN / "interrupted" / ".partial" / folder, tmp_path / ".partial" / folder)
    return tmp_path


def stored(frozen, name):
    return ss.open(FROZEN / "stored" / frozen["runs"][name]["run"])


def events(home, name):
    lines = (home / INTERRUPTED[name]["run"] / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.parametrize("name", STEPS)
def test_finished_steps_are_not_made_again(name, freeze, frozen, check_same, tmp_path):
    home = begun(name, tmp_path)
    kept = {step: (home / ".partial" / step).stat() for step in INTERRUPTED[name]["steps"]}
    seen, changed = set(), set()

    def progress(*told):
        """Look what lies there; a step that is made again gets a new file."""
        seen.update(
            str(path.relative_to(home / ".partial")) for path in home.glob(".partial/*/*.safetensors")
        )
        changed.update(
            step for step, before in kept.items() if (home / ".partial" / step).stat().st_ino != before.st_ino
        )

    result = freeze.made(frozen["runs"][name], home, progress)
    assert result.run_id == INTERRUPTED[name]["run"]
    assert not changed, "made again"
    assert seen >= set(kept)
    if name != "density":  # which keeps a step for each layer; all were there
        assert seen > set(kept), "no further step was kept"
    check_same(stored(frozen, name), result)
    assert not list(home.glob(".partial/*")), "partial work of a finished run was left"


@pytest.mark.parametrize("name", PASSES)
def test_a_run_with_a_state_of_the_pass_ends_the_same(name, freeze, frozen, check_same, tmp_path):
    """It goes on from a state of the present version, and begins anew with an older one."""
    home = begun(name, tmp_path)
    result = freeze.made(frozen["runs"][name], home)
    check_same(stored(frozen, name), result)
    assert ("resumed" in events(home, name)) == (engine.STATE_VERSION == STATE_VERSION)
    assert not list(home.glob(".partial/*"))


@pytest.mark.parametrize("name", PASSES)
def test_a_state_of_another_version_is_not_used(name, freeze, frozen, check_same, tmp_path):
    home = begun(name, tmp_path)
    path = home / ".partial" / INTERRUPTED[name]["steps"][0]
    with safe_open(path, framework="numpy") as file:
        meta = json.loads(file.metadata()["meta"])
        # safe_open is no dict
        arrays = {key: 0 * file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert meta["source"]["state"] == STATE_VERSION
    meta["source"]["state"] = 0
    save_file(arrays, path, {"meta": json.dumps(meta)})
    result = freeze.made(frozen["runs"][name], home)
    assert "resumed" not in events(home, name)
    check_same(stored(frozen, name), result)
