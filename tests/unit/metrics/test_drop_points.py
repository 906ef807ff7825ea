"""Drop points: exact curves, the interval by its definition, its coverage, corners, what has no answer."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics.drop_points import (
    INVERTED,
    damage_band,
    drop_point,
    has_signal,
    minimum_detectable,
    non_inferior,
)
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.hinges import hinge, kneedle
from sparsescope.metrics.isotonic_crossing import tolerance_crossing

LEVELS = np.arange(20) * 0.05
DOMAINS = np.repeat([0, 1], [40, 24])
FLAT_THEN_UP = 0.1 * np.maximum(LEVELS - 0.5, 0)  # 0.01 is reached at 0.6


def boot(domains=DOMAINS, resamples=400, seed=0, level=0.95):
    return DocumentBootstrap.draw(np.asarray(domains), resamples, seed, level)


def documents(damage, seed=0, spread=0.5, noise=0.0, sample=False):
    """Sums [K, 64] and tokens of documents that are damaged in proportion to the curve, and skewed; their
    mean is the curve, or that of what they are a sample of.
    """
    generator = np.random.default_rng(seed)
    counts = generator.integers(100, 700, 64)
    factor = generator.lognormal(-(spread**2) / 2, spread, 64)
    factor /= 1 if sample else factor @ counts / counts.sum()
    extra = generator.normal(0, noise, (len(damage), 64)) * (np.arange(len(damage)) > 0)[:, None]
    return (np.asarray(damage)[:, None] * factor + extra) * counts, counts


# The point


def test_a_piecewise_linear_curve_is_inverted_exactly():
    counts = np.arange(1, 65)
    found = drop_point(LEVELS, FLAT_THEN_UP[:, None] * counts, counts, 0.0125, boot())
    assert found.at == pytest.approx(0.625)
    assert (found.low, found.high) == pytest.approx((0.625, 0.625)), "documents are alike: no spread"
    assert found.bracket == pytest.approx(0.05) and found.censored == ""
    assert not found.low_is_bound and not found.high_is_bound
    assert found.pooled == 11  # 0 to 0.5
    assert (found.tolerance, found.method) == (0.0125, INVERTED)


def test_the_point_is_that_of_the_isotonic_fit_of_the_mean_over_tokens():
    sums, counts = documents(FLAT_THEN_UP, noise=0.03)
    found = drop_point(LEVELS, sums, counts, 0.01, boot())
    assert found.at == tolerance_crossing(LEVELS, sums.sum(1) / counts.sum(), 0.01).at
    long = np.where(np.arange(64) < 32, 9, 1)  # long documents are damaged 3 times as much
    sums = FLAT_THEN_UP[:, None] * long * np.where(np.arange(64) < 32, 3, 1)
    assert drop_point(LEVELS, sums, long, 0.01, boot()).at == pytest.approx(0.5 + 0.1 / 2.8)


def test_one_unlucky_level_ends_neither_plateau_nor_interval():
    damage = FLAT_THEN_UP.copy()
    damage[3] = 0.012  # the first level above the tolerance
    sums, counts = documents(damage, spread=0.3)
    found = drop_point(LEVELS, sums, counts, 0.01, boot())
    assert 0.55 < found.low < 0.6 < found.high < 0.65
    assert found.pooled == 3, "the run of levels with 0 in their interval ends there"


def test_the_plateau_is_what_cannot_be_told_from_no_damage():
    sums, counts = documents(FLAT_THEN_UP, seed=4, noise=0.01)
    draws = boot()
    mean, low, _ = damage_band(sums, counts, draws)
    found = drop_point(LEVELS, sums, counts, 0.01, draws).pooled
    assert found == 11 and (low[:11] <= 0).all() and low[11] > 0 and (mean[1:11] > 0).any()


# The interval


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_band_is_the_studentized_bootstrap_resample_by_resample(level):
    sums, counts = documents(LEVELS**3, noise=0.05)
    draws = boot(resamples=300, level=level)

    def ratio(weights, k):
        """Mean and its standard error, of documents repeated as often as they are drawn."""
        repeat = np.repeat(np.arange(64), weights.astype(int))
        s, n = sums[k, repeat], counts[repeat]
        mean = s.sum() / n.sum()
        return mean, math.sqrt(64 / 63 * ((s - mean * n) ** 2).sum()) / n.sum()

    band = damage_band(sums, counts, draws)
    for k in (1, 7, 19):
        mean, error = ratio(np.ones(64), k)
        t = np.array([(m - mean) / e for m, e in (ratio(w, k) for w in draws.weights)])
        tail, both = (1 - level) / 2, np.quantile(np.abs(t), level)
        low = mean - error * max(np.quantile(t, 1 - tail), both)
        high = mean + error * max(-np.quantile(t, tail), both)
        assert (band.mean[k], band.low[k], band.high[k]) == pytest.approx((mean, low, high), rel=1e-9)
    assert (band.low[0], band.high[0]) == (0, 0)


def test_the_ends_are_where_the_damage_is_just_not_sure():
    """Also between levels, where a straight line between the ends of two levels is 10 % off: a mixture of two
    levels has less spread than the mixture of their spreads.
    """
    sums, counts = documents(9 * np.maximum(LEVELS - 0.5, 0), spread=0.6, noise=0.2)
    found = drop_point(LEVELS, sums, counts, 0.2, boot())
    assert 0.5 < found.low < found.at < found.high < 0.55
    share = (np.array([[found.low], [found.high]]) - 0.5) / 0.05
    band = damage_band(sums[10] * (1 - share) + sums[11] * share, counts, boot())
    assert (band.high[0], band.low[1]) == pytest.approx((0.2, 0.2), rel=0.02)


def test_the_interval_covers_the_truth_where_percentiles_do_not():
    """Few, skewed documents; nominal 95 %. Two standard errors of 300 draws are 2.5 %."""
    damage, covered, percentile = 0.01 * np.expm1(10 * LEVELS) / np.expm1(5), 0, 0
    for seed in range(300):
        sums, counts = documents(damage, seed, spread=1.0, noise=0.003, sample=True)
        draws = boot(seed=seed)
        found = drop_point(LEVELS, sums, counts, 0.01, draws)
        covered += found.low <= 0.5 <= found.high
        low, high = draws.ends(draws.replicates(sums[10], counts))
        percentile += low <= 0.01 <= high
    assert covered >= 0.915 * 300
    assert covered > percentile + 3


def test_the_interval_holds_the_point_and_grows_with_the_level():
    for seed in range(40):
        sums, counts = documents(0.1 * LEVELS**3, seed, noise=0.15)
        wide, narrow = (drop_point(LEVELS, sums, counts, 0.01, boot(level=v, seed=seed)) for v in (0.99, 0.6))
        assert wide.low <= narrow.low <= narrow.at <= narrow.high <= wide.high
        assert wide.high - wide.low > narrow.high - narrow.low


def test_an_offset_that_all_levels_share_is_seen_in_the_interval():
    """An unlucky measurement of the dense model moves all levels together."""
    sums, counts = documents(FLAT_THEN_UP, spread=0.1)
    sure = drop_point(LEVELS, sums, counts, 0.01, boot())
    sums[1:] += np.random.default_rng(0).normal(0, 0.015, 64) * counts
    unsure = drop_point(LEVELS, sums, counts, 0.01, boot())
    assert unsure.high - unsure.low > 1.5 * (sure.high - sure.low)
    assert unsure.pooled > 1


# Ends of the grid


def test_ends_of_the_grid_are_bounds():
    flat = drop_point(LEVELS, *documents(0.001 * LEVELS), 0.01, boot())
    assert flat.censored == "right" and flat.at == flat.low == flat.high == LEVELS[-1]
    assert flat.high_is_bound and not flat.low_is_bound and math.isnan(flat.bracket)
    early = drop_point(LEVELS, *documents(0.4 * LEVELS), 0.01, boot())
    assert early.censored == "left" and early.at == pytest.approx(0.025, abs=0.01) and early.low == 0
    assert early.low_is_bound and not early.high_is_bound and early.bracket == pytest.approx(0.05)
    late = drop_point(LEVELS[:13], *documents(FLAT_THEN_UP[:13] * 1.02), 0.01, boot())
    assert late.censored == "" and late.low < late.at < late.high == LEVELS[12]
    assert late.high_is_bound and not late.low_is_bound


def test_a_model_that_broke_down_is_worse_than_any_other():
    sums, counts = documents(FLAT_THEN_UP, spread=0.2)
    whole = drop_point(LEVELS, sums, counts, 0.01, boot())
    for what in (np.inf, np.nan):
        broken = sums.copy()
        broken[16:, 5] = what  # one document is enough
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = drop_point(LEVELS, broken, counts, 0.01, boot())
            assert non_inferior(LEVELS, broken, counts, 0.01, boot()) == 0.55
        assert (found.at, found.low, found.high) == pytest.approx((whole.at, whole.low, whole.high))
    broken[12:] = np.nan
    assert 0.55 < drop_point(LEVELS, broken, counts, 0.01, boot()).at < 0.6
    broken[1:] = np.nan
    found = drop_point(LEVELS, broken, counts, 0.01, boot())
    assert found.censored == "left" and 0 < found.high < 0.05 and found.pooled == 1


def test_one_document_has_a_point_and_no_interval():
    counts = np.zeros(4)
    counts[2] = 100
    found = drop_point(LEVELS, FLAT_THEN_UP[:, None] * counts, counts, 0.01, boot([0] * 4))
    assert found.at == pytest.approx(0.6) and math.isnan(found.low) and math.isnan(found.high)
    assert not found.low_is_bound and not found.high_is_bound
    assert math.isnan(non_inferior(LEVELS, FLAT_THEN_UP[:, None] * counts, counts, 0.01, boot([0] * 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": LEVELS[::-1]}, "levels do not rise"),
        ({"levels": [0.0]}, "levels do not rise"),
        ({"counts": np.ones(63)}, "do not fit"),
        ({"counts": np.zeros(64)}, "do not fit"),
        ({"draws": boot([0] * 63)}, "do not fit"),
        ({"sums": np.ones((19, 64))}, "do not fit"),
        ({"sums": np.ones((20, 64))}, "level 0 has damage"),
        ({"sums": np.full((20, 64), np.nan)}, "level 0 has damage"),
        ({"tolerance": 0.0}, "above 0"),
        ({"tolerance": math.nan}, "above 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {
        "levels": LEVELS,
        "sums": FLAT_THEN_UP[:, None] * np.ones(64),
        "counts": np.ones(64),
        "tolerance": 0.01,
        "draws": boot(resamples=20),
    }
    for function in (drop_point, non_inferior):
        with pytest.raises(SpecError, match=message):
            function(**(given | change))


def test_one_call_is_quick():
    sums, counts = documents(FLAT_THEN_UP)
    draws, walls = boot(resamples=1000), []
    for _ in range(3):
        start = time.perf_counter()
        drop_point(LEVELS, sums, counts, 0.01, draws)
        walls.append(time.perf_counter() - start)
    assert min(walls) < 0.3


# Non-inferiority, power, signal


def test_non_inferiority_asks_for_the_upper_end_level_by_level():
    sums, counts = documents(FLAT_THEN_UP, spread=0.4)
    draws = boot()
    high = damage_band(sums, counts, draws).high
    assert high[11] < 0.0101 < high[12] and (sums.sum(1) / counts.sum())[12] < 0.0101
    assert non_inferior(LEVELS, sums, counts, 0.0101, draws) == LEVELS[11]
    sums[5] += 0.02 * counts  # a failure ends it, whatever comes later
    assert non_inferior(LEVELS, sums, counts, 0.01, draws) == LEVELS[4]
    sums[1] += 0.02 * counts
    assert non_inferior(LEVELS, sums, counts, 0.01, draws) == 0
    assert non_inferior(LEVELS, sums, counts, 9.0, draws) == LEVELS[-1]


def test_a_level_at_the_tolerance_is_rarely_called_non_inferior():
    wrong = 0
    for seed in range(300):
        sums, counts = documents([0, 0.01], seed, spread=0.8, sample=True)
        wrong += non_inferior([0, 0.5], sums, counts, 0.01, boot(seed=seed)) == 0.5
    assert wrong / 300 < 0.09  # nominal 0.025; a rule on the mean is wrong in half of them


def test_the_detectable_damage_is_found_four_times_of_five():
    generator = np.random.default_rng(0)
    counts = generator.integers(50, 800, 400)
    first = generator.normal(0, 1, 400) * counts
    size = minimum_detectable([0, 0.5], [np.zeros(400), first], counts, 0.4)
    mean = first.sum() / counts.sum()
    error = math.sqrt(400 / 399 * ((first - mean * counts) ** 2).sum()) / counts.sum()
    assert size == pytest.approx(2.8 * error)
    found = []
    for _ in range(1000):
        sums = generator.normal(size, 1, 400) * counts
        found.append(abs(sums.sum() / counts.sum()) > 1.96 * error)
    assert 0.72 < np.mean(found) < 0.88


def test_the_detectable_damage_is_that_of_the_nearest_level():
    sums, counts = documents(LEVELS)
    assert minimum_detectable(LEVELS, sums, counts, 0.52) == minimum_detectable(LEVELS, sums, counts, 0.5)
    assert minimum_detectable(LEVELS, sums, counts, 0.9) == pytest.approx(
        9 * minimum_detectable(LEVELS, sums, counts, 0.1)
    )
    assert minimum_detectable(LEVELS, sums, counts, 0.01) == 0  # the dense model
    sums[3, 0] = np.inf
    assert math.isnan(minimum_detectable(LEVELS, sums, counts, 0.15))
    assert math.isnan(minimum_detectable(LEVELS, sums[:, :1], counts[:1], 0.5))


def test_a_model_at_chance_has_no_signal():
    assert has_signal(6.0, 7.0, 0.5) and not has_signal(6.0, 7.0, 0.52)
    assert not has_signal(7.0, 7.0, 0.0) and not has_signal(7.5, 7.0, 0.0)
    assert not has_signal(math.nan, 7.0, 0.1) and not has_signal(6.0, math.inf, 0.1)
    assert not has_signal(6.0, 7.0, math.nan)


# Corners

CORNER = 0.02 * LEVELS + 0.8 * np.maximum(LEVELS - 0.53, 0)
SMOOTH = {
    "exponential": 0.01 * np.expm1(10 * LEVELS),
    "logistic": 0.4 / (1 + np.exp(-18 * (LEVELS - 0.7))),
    "quadratic": LEVELS**2,
    "line": 0.3 * LEVELS,
}


def test_a_corner_between_levels_is_found_exactly():
    counts = np.arange(1, 65)
    found = hinge(LEVELS, CORNER[:, None] * counts, counts, boot(resamples=50))
    assert (found.at, found.low, found.high) == pytest.approx((0.53, 0.53, 0.53))
    assert (found.before, found.after) == pytest.approx((0.02, 0.82))
    assert found.sharpness == pytest.approx(41) and found.exists and found.support == 1
    again = hinge(3 * LEVELS, 5 * CORNER[:, None] * counts, counts, boot(resamples=50))
    assert (again.at, again.after) == pytest.approx((3 * 0.53, 5 / 3 * 0.82))


@pytest.mark.parametrize("seed", range(6))
def test_no_other_break_fits_better(seed):
    """Against least squares with the break at each of 3,000 places, on curves with much noise."""
    damage = CORNER + np.random.default_rng(seed).normal(0, 0.03 * (1 + 3 * (seed % 2)), 20)
    found = hinge(LEVELS, (damage - damage[0])[:, None] * np.ones(64), np.ones(64), boot(resamples=2))

    def rss(at):
        design = np.stack([np.ones(20), LEVELS, np.maximum(LEVELS - at, 0)], 1)
        return np.linalg.lstsq(design, damage)[1][0]

    least = min(rss(at) for at in np.linspace(LEVELS[1], LEVELS[-2], 3000))
    assert rss(found.at) <= least * (1 + 1e-9)
    if found.before**2 < 0.01:  # a flat start: its standard error is the yardstick
        design = np.stack([np.ones(20), LEVELS, np.maximum(LEVELS - found.at, 0)], 1)
        error = math.sqrt(rss(found.at) / 16 * np.linalg.inv(design.T @ design)[1, 1])
        assert found.sharpness == pytest.approx(abs(found.after) / max(abs(found.before), error))


def test_a_corner_exists_and_smooth_curves_have_none():
    truly = hinge(LEVELS, *documents(CORNER, spread=0.3, noise=0.03), boot())
    assert truly.exists and truly.delta_bic > 6 and truly.support > 0.95
    assert truly.low <= 0.53 <= truly.high and 0 < truly.high - truly.low < 0.1
    for name, damage in SMOOTH.items():
        found = hinge(LEVELS, *documents(damage - damage[0], spread=0.3, noise=0.005), boot())
        assert not found.exists and found.delta_bic < (6 if name == "line" else 0) and found.rival == name
    noise = hinge(LEVELS, *documents(0 * LEVELS, noise=1), boot())
    assert not noise.exists


def test_a_corner_that_resamples_do_not_share_is_none():
    """One document has it, so a resample has it with 1 - (1 - 1 / 40)^40, about 64 %."""
    damage = np.outer(np.maximum(LEVELS - 0.4, 0), np.arange(64) == 0)
    found = hinge(LEVELS, damage, np.ones(64), boot(resamples=2000))
    assert found.delta_bic > 6 and found.support == pytest.approx(0.637, abs=0.04) and not found.exists


def test_a_weak_corner_is_none_though_all_documents_share_it():
    damage = 0.2 * np.maximum(LEVELS - 0.5, 0) + np.random.default_rng(0).normal(0, 0.01, 20)
    found = hinge(LEVELS, *documents(damage - damage[0], spread=0.3), boot())
    assert 0 < found.delta_bic < 6 and found.support == 1 and not found.exists


def test_corners_need_levels_and_leave_out_what_broke_down():
    sums, counts = documents(CORNER, spread=0.2)
    broken = sums.copy()
    broken[18:, 3] = np.inf
    assert hinge(LEVELS, broken, counts, boot(resamples=50)).at == pytest.approx(
        hinge(LEVELS[:18], sums[:18], counts, boot(resamples=50)).at
    )
    few = hinge(LEVELS[:5], sums[:5], counts, boot(resamples=50))
    assert math.isnan(few.at) and math.isnan(few.delta_bic) and not few.exists
    alone = hinge(LEVELS, sums[:, :1], counts[:1], boot([0], resamples=50))
    assert alone.at == pytest.approx(0.53) and math.isnan(alone.low)


def test_kneedle_tells_a_corner_and_else_the_end_of_the_plot():
    corner, smooth = np.maximum(LEVELS - 0.5, 0), np.expm1(10 * LEVELS)
    ends = (15, 17, 20)  # 0.70, 0.80, 0.95
    assert [kneedle(LEVELS[:k], corner[:k]) for k in ends] == pytest.approx([0.5, 0.5, 0.5])
    assert [kneedle(LEVELS[:k], smooth[:k]) for k in ends] == pytest.approx([0.5, 0.6, 0.7])
    assert kneedle(2 * LEVELS + 1, 5 * corner - 3) == pytest.approx(2)


def test_kneedle_takes_a_peak_that_is_confirmed():
    bump = np.array([0, 0, 0, 0.17, 0.1, 0.1, 0.1, 0.1, 0.5, 1.0])  # the distance falls at 3, by 0.06
    levels = np.arange(10)
    assert kneedle(levels, bump) == 7
    assert kneedle(levels, bump, sensitivity=0.3) == 2
    assert math.isnan(kneedle(levels, bump, sensitivity=9))


def test_kneedle_without_a_knee():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(kneedle(LEVELS, np.ones(20)))
    assert math.isnan(kneedle(LEVELS, LEVELS))
    assert math.isnan(kneedle([0, 1], [0, 1]))
    broken = np.append(np.maximum(LEVELS[:19] - 0.5, 0), np.inf)
    assert kneedle(LEVELS, broken) == pytest.approx(0.5)
