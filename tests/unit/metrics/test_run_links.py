"""Links of a measure with the score of its own run: every way of dealing scores, planted links, no link."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import nct, t

from sparsescope.metrics.run_links import planted_power, swap_test


def runs(seed: int = 0, count: int = 4, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.random((count, n)).cumsum(1), generator.random((count, n)).cumsum(1)


@pytest.mark.parametrize("differences", [False, True])
def test_the_p_counts_every_way_to_deal_the_scores(differences):
    measures, scores = runs()
    x, y = (np.diff(each) if differences else each for each in (measures, scores))
    table = np.array([[np.corrcoef(one, two)[0, 1] for two in y] for one in x])
    found = swap_test(measures, scores, differences=differences)
    assert found.own == pytest.approx(np.mean(np.diag(table))) and found.runs == 4
    assert found.other == pytest.approx((table.sum() - np.trace(table)) / 12)
    means = [abs(np.mean(table[range(4), order])) for order in permutations(range(4))]
    assert found.p == pytest.approx(np.mean(np.array(means) >= abs(found.own) - 1e-12))


def test_a_trend_that_all_runs_share_is_no_link_of_their_own():
    """Measures and scores rise together in every run: strong correlations, as strong with any score."""
    generator = np.random.default_rng(1)
    trend = np.linspace(0, 10, 40)
    measures, scores = (trend + generator.normal(0, 0.3, (5, 40)) for _ in range(2))
    found = swap_test(measures, scores)
    assert found.own > 0.97 and found.own - found.other < 0.01 and found.p > 0.05
    own = swap_test(measures, scores, differences=True)
    assert abs(own.own) < 0.2


def test_a_link_of_the_run_is_found_by_the_swap():
    generator = np.random.default_rng(2)
    own = generator.normal(0, 1, (5, 40)).cumsum(1)
    found = swap_test(own + generator.normal(0, 0.1, own.shape), -own)
    assert found.own < -0.95 and abs(found.other) < 0.6 and found.p == pytest.approx(1 / 120)


def test_no_link_of_its_own_is_no_evidence_where_others_have_one():
    """Every measure goes with the score of another run: that its own correlation is least is no link."""
    generator = np.random.default_rng(7)
    own = generator.normal(0, 1, (3, 60)).cumsum(1)
    found = swap_test(own, own[[1, 2, 0]])
    table = np.array([[np.corrcoef(one, two)[0, 1] for two in own[[1, 2, 0]]] for one in own])
    assert found.own == pytest.approx(np.trace(table) / 3)
    assert found.p >= 1 / 3, "the way that gives each its own score is at least as far"


def test_many_runs_are_dealt_at_random_and_few_cannot_be():
    measures, scores = runs(3, count=9)
    found = swap_test(measures, measures, draws=500)
    assert found.own == pytest.approx(1) and found.p == pytest.approx(1 / 501)
    assert np.isnan(swap_test(measures[:1], scores[:1]).p)
    flat = np.vstack([measures[:2], np.ones((1, 12))])
    assert np.isnan(swap_test(flat, scores[:3]).own)
    assert np.isnan(swap_test(measures[:, :2], scores[:, :2]).own)


def test_power_has_the_size_of_the_test_without_a_link_and_grows_with_it():
    measure = np.random.default_rng(4).random(30).cumsum()
    found = planted_power(measure, (0.0, 0.3, 0.6, 0.9), draws=2000)
    shares = [each.differences for each in found]
    assert shares[3] > 0.99
    for strength, share in zip((0.0, 0.3, 0.6), shares, strict=False):  # 29 increments, held fixed
        center, limit = np.sqrt(29) * strength / np.sqrt(1 - strength**2), t.ppf(0.975, 27)
        exact = nct.sf(limit, 27, center) + nct.cdf(-limit, 27, center)
        assert share == pytest.approx(exact, abs=0.03)
    assert {each.n for each in found} == {30}


def test_power_beyond_trend_needs_a_score_without_a_strong_drift():
    measure = np.random.default_rng(5).normal(0, 1, 40).cumsum()
    strong, weak = (planted_power(measure, (0.9,), drift=drift, draws=500)[0] for drift in (2.0, 0.0))
    assert weak.beyond_trend > strong.beyond_trend and strong.differences > 0.99


def test_power_of_what_does_not_move_is_not_defined():
    assert np.isnan(planted_power(np.arange(10.0))[0].differences)  # every increment is the same
    few = planted_power(np.array([0.0, 1.0, np.nan, 3.0]))[0]
    assert few.n == 3 and np.isnan(few.differences)
    short = planted_power(np.array([0.0, 1.0, 3.0, 4.0, 9.0]))[0]
    assert np.isnan(short.beyond_trend) and 0 <= short.differences <= 1
