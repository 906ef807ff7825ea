"""Trainings that are killed or interrupted go on to the same checkpoints; what is lost is bounded,
after Ctrl-C nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

SEED = 20250301
KILLS = 12


@pytest.fixture(scope="module")
def trials(driven):
    """One record for each killed process; see train_driver.py."""
    return driven("train_driver", SEED, KILLS)


def test_the_kills_hit_steps_and_the_writing_of_the_series(trials):
    assert len(trials) == KILLS
    dead = [record for record in trials if record["code"] == -9]
    assert {record["phase"] for record in dead} == {"b", "f"}
    cut = [record for record in dead if record["phase"] == "b" and 0 < record["made"] < record["steps"]]
    assert {record["saves"] for record in cut} == {0.0, 10.0}, (
        "no training was killed between its first and last step"
    )
    assert all(record["code"] in (0, -9) for record in trials)


def test_a_killed_training_goes_on_to_the_same_series_and_leaves_nothing_else(trials):
    wrong = [record for record in trials if not record["same"]]
    assert not wrong, wrong


def test_it_goes_on_from_the_saved_step_and_at_most_one_step_was_not_saved(trials):
    """Saved after every step, only the step whose save was cut short is lost; all that was saved
    is not made again.
    """
    unfinished = [record for record in trials if not record["complete"]]
    assert any(record["saved"] for record in unfinished)
    assert all(record["saved"] + record["again"] == record["steps"] for record in unfinished)
    assert all(record["made"] - record["saved"] in (0, 1) for record in unfinished if record["saves"] == 0.0)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe that takes some seconds."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        from train_driver import RECIPE
    finally:
        sys.path.pop(0)
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE.replace("60", "400").replace("log_every = 20", "log_every = 200"))
    return path


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    return finished(recipe, tmp_path_factory.mktemp("whole") / "run")


def finished(recipe, output):
    """Train, or go on; the digests of the checkpoints and of the curves."""
    from sparsescope.models.formats.series_file import SeriesFolder
    from sparsescope.training.recipe import read_recipe
    from sparsescope.training.trainer import train

    content = SeriesFolder.open(train(read_recipe(recipe), output)).content
    return [(found.step, found.sha256, found.float32_hash) for found in content.checkpoints], content.files[
        "curves.parquet"
    ]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_an_interrupt_saves_after_the_running_step_and_loses_nothing(recipe, expected, tmp_path, how):
    command = [sys.executable, "-m", "sparsescope", "train", str(recipe), "--output", str(tmp_path / "run")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as child:
        first = child.stderr.readline()  # shown before the first step
        child.send_signal(how)
        said = first + child.stderr.read()
    assert child.returncode == 130, said
    assert (
        "0 of 400 steps" in first and "goes on from its last saved state" in said and "Traceback" not in said
    )
    with safe_open(tmp_path / "run" / ".partial" / "state.safetensors", framework="pt") as file:
        step = json.loads(file.metadata()["facts"])["step"]
    assert 1 <= step < 400, (
        "the state is not that after the running step: the first save by the clock comes after ten seconds"
    )
    assert finished(recipe, tmp_path / "run") == expected
