"""Trainings of dictionaries that are killed go on to the same bits, whatever the moment cut short."""

from __future__ import annotations

import pytest

from sparsescope.training.state import FILE, PREVIOUS

SEED = 20250302
KILLS, STEPS = 5, 24


@pytest.fixture(scope="module")
def trials(driven):
    """One record for each training; see dictionary_driver.py."""
    return driven("dictionary_driver", SEED, KILLS)


def test_the_kills_hit_the_middle_of_trainings(trials):
    assert len(trials) == KILLS
    kills = [kill for record in trials for kill in record["kills"]]
    assert all(kill["code"] in (0, -9) for kill in kills)
    cut = [kill for kill in kills if kill["code"] == -9 and 0 < max(kill["newest"], kill["previous"]) < STEPS]
    assert len(cut) >= 2 and any(kill["half"] for kill in cut), "no training was killed in the middle"
    assert any(record.get("damaged") for record in trials)


def test_a_killed_training_ends_with_the_bits_of_one_that_was_never_killed(trials):
    wrong = [record for record in trials if not record["same"]]
    assert not wrong, wrong


def test_it_goes_on_from_the_last_state_that_can_be_read(trials):
    for record in trials:
        last = record["kills"][-1]
        assert -2 not in (last["newest"], last["previous"]), "a state was left half written under its name"
        from_step = last["previous"] if record.get("damaged") or last["newest"] < 0 else last["newest"]
        assert record["again"] == STEPS - max(0, from_step), record
        assert last["previous"] < 0 or last["newest"] < 0 or last["newest"] == last["previous"] + 1


def test_saved_after_every_step_only_the_step_whose_save_was_cut_short_is_lost(trials):
    for record in trials:
        first = record["kills"][0]
        held = max(0, first["newest"], first["previous"])
        assert first["made"] - held in (0, 1), record


def test_nothing_half_written_stays(trials):
    assert all(set(record["left"]) <= {FILE, PREVIOUS} for record in trials), trials
