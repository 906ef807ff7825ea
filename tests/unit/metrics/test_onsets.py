"""Onsets, departures, sub-network sizes and medians over seeds: rules by hand, closed forms, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.metrics import onsets as p

STEPS = np.arange(0, 1000, 10)


def rising(at: int, low: float = 0.1) -> np.ndarray:
    return np.where(at <= STEPS, 1.0, low)


def test_onsets_are_the_first_of_three_logs_that_hold() -> None:
    train, test = rising(100), rising(400)
    train[5] = 1.0  # one lucky log is no onset
    found = p.find_onsets(STEPS, train, test)
    assert (found.memorized, found.generalized, found.grokked, found.lost_at) == (100, 400, True, None)
    assert found.delay == 300 and found.ratio == 4


@pytest.mark.parametrize(
    ("memorized", "generalized", "grokked"),
    [
        (100, 100, False),
        (100, 140, False),
        (100, 150, True),
        (0, 20, False),
        (0, 30, True),
        (400, 590, False),
        (400, 600, True),
    ],
)
def test_late_means_three_logs_and_half_of_the_time_to_memorize(
    memorized: int, generalized: int, grokked: bool
) -> None:
    assert p.find_onsets(STEPS, rising(memorized), rising(generalized)).grokked is grokked


def test_a_run_that_never_generalizes_and_one_that_loses_it() -> None:
    found = p.find_onsets(STEPS, rising(100), np.full(len(STEPS), 0.05))
    assert (
        (found.generalized, found.grokked) == (None, False)
        and math.isnan(found.delay)
        and math.isnan(found.ratio)
    )
    test = rising(300)
    test[50:52] = 0.5  # two logs: a dip
    assert p.find_onsets(STEPS, rising(100), test).lost_at is None
    test[70:73] = 0.5
    assert p.find_onsets(STEPS, rising(100), test).lost_at == 700
    assert p.find_onsets(STEPS[:2], np.ones(2), np.ones(2)).memorized is None  # too few logs to hold


def test_departure_is_found_soon_after_the_change_and_not_without_one() -> None:
    drawn = np.random.default_rng(0).normal(0, 0.1, (20, len(STEPS)))
    changed = drawn + np.where(STEPS >= 500, 2.0, 0.0)
    assert np.median([p.first_departure(STEPS, values, 300) for values in changed]) == 500
    assert math.isnan(p.first_departure(STEPS, drawn[1], 900))
    moved = changed[1]
    at = p.first_departure(STEPS, moved, 300)
    assert p.first_departure(STEPS, -3 * moved + 7, 300) == at  # scale, shift and sign do not matter
    trend = moved + 5 * np.log1p(STEPS)
    assert p.first_departure(STEPS, trend, 300) == at  # nor does a line in log step


def test_a_measure_that_goes_on_as_before_seldom_departs() -> None:
    drawn = np.random.default_rng(1).normal(size=(200, len(STEPS)))
    alarms = [math.isfinite(p.first_departure(STEPS, values + 2 * np.log1p(STEPS), 300)) for values in drawn]
    assert np.mean(alarms) < 0.3
    # Four early values
    few = [math.isfinite(p.first_departure(STEPS[::10], values[::10], 300)) for values in drawn]
    assert np.mean(few) < 0.1


def test_departure_needs_four_early_values_and_ignores_missing_ones() -> None:
    values = np.where(STEPS >= 500, 1.0, 0.0)
    assert math.isnan(p.first_departure(STEPS, values, 20))
    assert p.first_departure(STEPS, values, 300) == 500
    gaps = np.where(STEPS == 500, np.nan, values)
    assert p.first_departure(STEPS, gaps, 300) == 510


def test_half_way() -> None:
    values = np.clip((STEPS - 200) / 400, 0, 1)
    assert p.half_way(STEPS, values, 0, 990) == pytest.approx(400)
    assert p.half_way(STEPS, 3 - 2 * values, 0, 990) == pytest.approx(400)
    assert math.isnan(p.half_way(STEPS, np.ones(len(STEPS)), 0, 990))
    bumped = np.where(STEPS == 100, 1.0, values)  # there and back again is not for good
    assert p.half_way(STEPS, bumped, 0, 990) == pytest.approx(400)


def test_smallest_subset_of_a_monotone_and_of_a_bumpy_score() -> None:
    for needed in (0, 1, 7, 100, 512):
        assert p.smallest_subset(lambda k, needed=needed: float(k >= needed), 512, 1.0) == needed
    calls: list[int] = []

    def bumpy(k: int) -> float:
        calls.append(k)
        return float(k in (3, 4) or k >= 200)

    assert p.smallest_subset(bumpy, 512, 1.0) == 3  # a search that takes the score for monotone ends at 200
    assert len(calls) < 20
    assert p.smallest_subset(lambda k: 0.0, 5, 1.0) == 5
    assert p.smallest_subset(lambda k: 1.0, 0, 1.0) == 0


def test_median_with_exact_coverage() -> None:
    found = p.median_range([3, 1, 2, 5, 4, math.nan])
    assert (found.median, found.low, found.high, found.n) == (3, 1, 5, 5)
    assert found.level == pytest.approx(1 - 2 / 2**5)  # 0.9375: five seeds reach no more
    found = p.median_range(range(1, 11))
    assert (found.low, found.high) == (2, 9)
    assert found.level == pytest.approx(1 - 2 * 11 / 1024)
    assert p.median_range([7.0]).level == 0 and p.median_range([]).n == 0


def test_coverage_of_the_median_by_simulation() -> None:
    drawn = np.random.default_rng(1).exponential(size=(2000, 8))
    hits = [found.low <= math.log(2) <= found.high for found in map(p.median_range, drawn)]
    assert np.mean(hits) == pytest.approx(p.median_range(drawn[0]).level, abs=0.02)


def test_kaplan_meier() -> None:
    assert p.kaplan_meier_median([1, 2, 3], [True] * 3) == 2
    # S(2) = 3/4, S(5) = 3/4 * 1/2: the run that ended at 3 without the event leaves the risk set
    assert p.kaplan_meier_median([2, 3, 5, 9], [True, False, True, False]) == 5
    assert math.isnan(p.kaplan_meier_median([5, 5, 2], [False, False, True]))
