"""kill -9 at random moments of keeping an artifact: it is complete or absent, and the next one that
keeps it tidies up.
"""

from __future__ import annotations

import pytest

SEED = 20250117
KILLS = 30


@pytest.fixture(scope="module")
def trials(driven):
    """One record for each killed process; see artifact_kill_driver.py."""
    return driven("artifact_kill_driver", SEED, KILLS)


def test_the_kills_hit_the_writing(trials):
    assert len(trials) == KILLS and {trial["code"] for trial in trials} <= {0, -9}
    assert sum(trial["code"] == -9 for trial in trials) >= 0.5 * KILLS, (
        "most processes ended before they were killed"
    )
    assert sum(trial["left_by_it"] for trial in trials) >= 5, "no writing was interrupted"
    assert any(not trial["names"] for trial in trials)


def test_an_artifact_is_complete_or_absent(trials):
    for trial in trials:
        assert trial["names"] == trial["listed"] and len(trial["names"]) <= 1, trial
        assert trial["verdicts"] == ["ok"] * len(trial["names"]), trial
        assert trial["names"] or trial["code"] == -9, trial


def test_the_next_one_keeps_it_and_leaves_nothing_else(trials):
    assert not [trial for trial in trials if not trial["again"] or not trial["kept_the_old"] or trial["left"]]
