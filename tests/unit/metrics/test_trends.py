"""Correlation panel: exact permutation p, Fisher intervals, the null of two trends, partial
and differenced correlations.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.metrics import trends as t


@pytest.mark.parametrize(
    ("x", "y", "rho", "p"),
    [
        ([1, 2, 3, 4], [1, 2, 2, 3], 0.9487, 4 / 24),
        ([1, 2, 3, 4, 5], [1, 1, 2, 3, 3], 0.9487, 8 / 120),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 4], 0.9747, 4 / 120),
        ([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 5], 0.9856, 4 / 720),
    ],
)
def test_exact_permutation_p_of_few_points(x: list[int], y: list[int], rho: float, p: float) -> None:
    found = t.correlate(np.arange(len(x)), np.array(x, float), np.array(y, float), draws=50)
    assert found.spearman == pytest.approx(rho, abs=5e-5)
    assert found.spearman_p == pytest.approx(p)


def test_random_permutations_agree_with_scipy() -> None:
    from scipy.stats import kendalltau, spearmanr

    generator = np.random.default_rng(0)
    x = generator.normal(size=30)
    y = x + 2 * generator.normal(size=30)
    found = t.correlate(np.arange(30), x, y, draws=4000)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)
    assert found.spearman_p == pytest.approx(spearmanr(x, y).pvalue, abs=0.02)
    assert found.kendall == pytest.approx(kendalltau(x, y).statistic)


def test_fisher_intervals_and_p_of_small_samples() -> None:
    assert t.fisher_interval(-0.9471, 4, least=4) == pytest.approx((-0.999, 0.156), abs=1e-3)
    assert t.fisher_interval(-0.9471, 9) == pytest.approx((-0.989, -0.763), abs=1e-3)
    assert math.isnan(t.fisher_interval(0.9, 4)[0])
    assert t.pearson_p(-0.9471, 4) == pytest.approx(0.053, abs=5e-4)
    assert t.pearson_p(0.9246, 4) == pytest.approx(0.075, abs=5e-4)


@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [("exponential", 0.90, 0.94), ("uniform", 0.95, 0.98), ("lognormal", 0.91, 0.95)],
)
def test_two_independent_rising_series_correlate_strongly(draw: str, low: float, high: float) -> None:
    generator = np.random.default_rng(1)
    series = getattr(generator, draw)(size=(2000, 2, 5)).cumsum(-1)
    assert low < np.median([t.pearson(x, y) for x, y in series]) < high


@pytest.mark.parametrize(("n", "share"), [(4, 0.50), (6, 0.50), (10, 0.71)])
def test_share_above_092_of_independent_trends(n: int, share: float) -> None:
    series = np.random.default_rng(2).exponential(size=(4000, 2, n)).cumsum(-1)
    assert np.mean([t.pearson(x, y) > 0.92 for x, y in series]) == pytest.approx(share, abs=0.04)


def test_a_trend_alone_is_not_beyond_trend_and_a_shared_jump_is() -> None:
    generator = np.random.default_rng(3)
    steps = np.arange(40.0)
    beyond = 0
    for _ in range(40):
        x, y = generator.exponential(size=(2, 40)).cumsum(-1)
        found = t.correlate(steps, x, y, draws=200)
        assert found.pearson > 0.9
        beyond += found.beyond_trend
    assert beyond <= 8
    increments = np.where(steps == 25, 30.0, 0.3) * generator.uniform(0.5, 1.5, 40)
    x = np.cumsum(increments)
    y = np.cumsum(np.where(steps == 25, 9.0, 0.1) * generator.uniform(0.5, 1.5, 40))
    found = t.correlate(steps, x, -y, draws=1000)
    assert found.beyond_trend and found.pearson < -0.9 and found.differenced < -0.9
    # Too few points, whatever r
    assert not t.correlate(steps[:7], x[22:29], y[22:29], draws=100).beyond_trend


def test_differences_and_partial_correlation_take_a_shared_trend_off() -> None:
    generator = np.random.default_rng(4)
    steps = np.arange(200.0)
    trend = 5 * np.log1p(steps)
    x, y = trend + generator.normal(size=200), trend + generator.normal(size=200)
    found = t.correlate(steps, x, y, draws=50)
    assert found.pearson > 0.9 and abs(found.differenced) < 0.2 and abs(found.partial) < 0.2
    assert math.isnan(t.partial(trend, y, np.log1p(steps)))


def test_surrogates_keep_the_increments_and_rise() -> None:
    x = np.array([3.0, 1.0, 2.0, 7.0, 7.0])
    drawn = t.monotone_surrogates(x, 30, np.random.default_rng(5))
    steps = np.diff(drawn, axis=1)
    assert (steps >= 0).all()
    np.testing.assert_allclose(np.sort(steps, axis=1), np.tile([0, 1, 2, 5], (30, 1)), atol=1e-12)


def test_leave_one_out_shows_a_correlation_made_by_one_point() -> None:
    x = np.array([0.0, 1, 0, 1, 0, 1, 0, 1, 50])
    y = np.array([0.0, 1, 1, 0, 0, 1, 1, 0, 50])
    found = t.correlate(np.arange(9.0), x, y, draws=50)
    assert found.pearson > 0.99 and found.least < 0.1


def test_effective_n_and_undefined_cases() -> None:
    generator = np.random.default_rng(6)
    white = generator.normal(size=(2, 500))
    assert t.effective_n(*white) == pytest.approx(500, rel=0.03)
    assert t.effective_n(*white.cumsum(-1)) < 60
    found = t.correlate(np.arange(4.0), np.ones(4), np.arange(4.0))
    assert found.n == 4 and math.isnan(found.pearson) and not found.beyond_trend
    gaps = t.correlate(np.arange(6.0), np.array([1, np.nan, 2, 3, 4, 5.0]), np.arange(6.0), draws=20)
    assert gaps.n == 5


def test_scale_and_sign() -> None:
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(2, 12))
    steps = np.arange(12.0)
    a, b = t.correlate(steps, x, y, draws=100), t.correlate(steps, -3 * x + 1, 2 * y - 5, draws=100)
    assert a.pearson == pytest.approx(-b.pearson) and a.low == pytest.approx(-b.high)
    assert a.trend_percentile == pytest.approx(b.trend_percentile, abs=1)
    assert (a.n_effective, a.kendall) == pytest.approx((b.n_effective, -b.kendall))
