"""kill -9 at random moments: complete runs stay as they are, nothing is half readable, the next
run ends the same.
"""

from __future__ import annotations

import pytest

SEED = 20250117
KILLS = 30


@pytest.fixture(scope="module")
def trials(driven):
    """One record for each disturbed process; see kill_driver.py."""
    return driven("kill_driver", SEED, KILLS)


@pytest.fixture(scope="module")
def killed(trials):
    return [record for record in trials if record.get("signal") == "SIGKILL"]


def test_the_kills_hit_every_phase_with_and_without_saved_state(killed):
    assert len(killed) == KILLS
    dead = [record for record in killed if record["code"] == -9]
    assert len(dead) >= 0.5 * KILLS, "most processes ended before they were killed"
    for phase in ("start", "pass", "write"):
        assert {record["saving"] for record in dead if record["phase"] == phase} == {True, False}
    assert any(record["left_by_it"] for record in dead), "no write was interrupted"
    assert any(record["saved"] for record in dead), "no saved state was left"
    assert any(record["resumed"] for record in dead), "no run went on from a saved state"
    assert all(record["code"] in (0, -9) for record in killed)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("verdicts", ["ok"]),
        ("unreadable", []),
        ("altered", []),
        ("half_written", []),
        ("differs", ""),
        ("left", []),
    ],
)
def test_after_every_signal(trials, what, expected):
    """Verify says ok, every run opens, older runs are untouched, the next run equals the
    undisturbed one, all is tidy.
    """
    wrong = [record for record in trials if record[what] != expected]
    assert not wrong, wrong


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_keeps_the_work_and_says_so(trials, name):
    (record,) = [record for record in trials if record.get("signal") == name]
    assert record["code"] == 130
    assert "goes on from its last saved state" in record["said"] and "Traceback" not in record["said"]
    assert record["saved"] == 1 and record["resumed"] and not record["complete"]


def test_two_processes_that_make_the_same_run_both_succeed(trials):
    (record,) = [record for record in trials if record["phase"] == "together"]
    assert record["codes"] == [0, 0] and record["complete"]
