"""Correlation of a measure with a score along training, with what tells a link from two trends.

Two independent series that both rise correlate strongly: with increments drawn from an exponential
distribution the median Pearson correlation is 0.92, whatever the link. So a correlation comes with n, an
interval, a rank correlation with its exact permutation p, the correlation of the differences, the partial
correlation given log step, and its place among monotone surrogates: the increments of the measure in another
order, all in one direction. Effective n after Bartlett (1935).

Shapes: series [n] over ascending steps [n].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

EXACT_UP_TO = 9
LEAST_N, LEAST_PERCENTILE = 8, 95.0


@dataclass(frozen=True, slots=True)
class Correlation:
    """A correlation of two series and what qualifies it. NaN where something is not defined.

    Attributes:
        n: Points.
        pearson: Pearson's r.
        low: Lower end of the Fisher z interval (n >= 5).
        high: Upper end.
        spearman: Rank correlation.
        spearman_p: Two-sided permutation p, exact up to n = 9.
        kendall: tau-b.
        differenced: Pearson's r of the first differences.
        partial: Pearson's r given log(1 + step).
        trend_percentile: Share, in percent, of monotone surrogates with a smaller |r|.
        least: Smallest r when one point is left out.
        most: Largest.
        n_effective: n (1 - r1 r2) / (1 + r1 r2) with the lag-one autocorrelations, at most n.
    """

    n: int
    pearson: float
    low: float
    high: float
    spearman: float
    spearman_p: float
    kendall: float
    differenced: float
    partial: float
    trend_percentile: float
    least: float
    most: float
    n_effective: float

    @property
    def beyond_trend(self) -> bool:
        """Whether n >= 8 and the correlation is above 95 % of the monotone surrogates."""
        return self.n >= LEAST_N and self.trend_percentile >= LEAST_PERCENTILE


def correlate(
    steps: Array, measure: Array, score: Array, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> Correlation:
    """Correlate a measure with a score; points where one is not finite are left out.

    Args:
        steps: Ascending steps.
        measure: The measure; its increments make the surrogates.
        score: What it is compared with.
        draws: Surrogates, and random permutations where there are too many for all of them.
        level: Coverage of the interval.
        seed: Seed of both.

    Example:
        >>> steps = np.arange(10.0)
        >>> found = correlate(steps, measure=np.log1p(steps), score=steps)  # both rise, and that is all
        >>> round(found.pearson, 2), found.beyond_trend
        (0.95, False)
    """
    from scipy.stats import kendalltau, rankdata

    good = np.isfinite(measure) & np.isfinite(score)
    s, x, y = (np.asarray(v, np.float64)[good] for v in (steps, measure, score))
    n = len(x)
    nan = math.nan
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(n, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan, nan)
    r = pearson(x, y)
    low, high = fisher_interval(r, n, level)
    left = [pearson(np.delete(x, i), np.delete(y, i)) for i in range(n)] if n > 3 else [nan]
    generator = np.random.default_rng(seed)
    surrogates = monotone_surrogates(x, draws, generator)
    smaller = np.abs([pearson(row, y) for row in surrogates]) < abs(r)
    return Correlation(
        n,
        r,
        low,
        high,
        pearson(rankdata(x), rankdata(y)),
        permutation_p(x, y, draws, generator),
        float(kendalltau(x, y).statistic),
        pearson(np.diff(x), np.diff(y)),
        partial(x, y, np.log1p(s)),
        100 * float(smaller.mean()),
        float(np.nanmin(left)) if np.isfinite(left).any() else nan,
        float(np.nanmax(left)) if np.isfinite(left).any() else nan,
        effective_n(x, y),
    )


def pearson(x: Array, y: Array) -> float:
    """Pearson's r; NaN where one side is constant.

    Example:
        >>> round(pearson(np.array([0.0, 1.0, 2.0]), np.array([5.0, 3.0, 1.0])), 6)
        -1.0
    """
    u, v = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(u @ u)) * math.sqrt(float(v @ v))
    return float(np.clip(u @ v / norm, -1, 1)) if norm > 0 else math.nan


def fisher_interval(r: float, n: int, level: float = 0.95, *, least: int = 5) -> tuple[float, float]:
    """tanh(artanh r -+ z / sqrt(n - 3)); NaN below ``least`` points.

    Example:
        >>> low, high = fisher_interval(0.9, n=10)
        >>> round(low, 2), round(high, 2)
        (0.62, 0.98)
    """
    from scipy.stats import norm

    if n < max(least, 4) or not math.isfinite(r):
        return math.nan, math.nan
    if abs(r) >= 1:
        return r, r
    reach = float(norm.ppf((1 + level) / 2)) / math.sqrt(n - 3)
    return math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)


def pearson_p(r: float, n: int) -> float:
    """Two-sided p of Pearson's r for independent normal points: t = r sqrt((n - 2) / (1 - r^2)).

    Example:
        >>> round(pearson_p(0.9, n=10), 4)
        0.0004
    """
    from scipy.stats import t

    if abs(r) >= 1:
        return 0.0
    return float(2 * t.sf(abs(r) * math.sqrt((n - 2) / (1 - r * r)), n - 2))


def permutation_p(x: Array, y: Array, draws: int, generator: np.random.Generator) -> float:
    """Two-sided permutation p of the rank correlation: all orders up to n = 9, else random ones, the
    given one counted.

    Example:
        >>> p = permutation_p(np.arange(4.0), np.arange(4.0), draws=0, generator=np.random.default_rng(0))
        >>> round(p, 4)  # the same order or its reverse: 2 of 24
        0.0833
    """
    from scipy.stats import rankdata

    u, v = rankdata(x), rankdata(y)
    u, v = u - u.mean(), v - v.mean()
    observed = abs(float(u @ v))
    n = len(u)
    if n <= EXACT_UP_TO:
        orders = np.array(list(permutations(range(n))))
        return float(np.mean(np.abs(v[orders] @ u) >= observed - 1e-9))
    drawn = np.abs(generator.permuted(np.tile(v, (draws, 1)), axis=1) @ u)
    return float((1 + np.sum(drawn >= observed - 1e-9)) / (1 + draws))


def partial(x: Array, y: Array, given: Array) -> float:
    """Pearson's r of what is left of both after a straight line in ``given``; NaN where nothing is left.

    Example:
        >>> steps, wiggle = np.arange(6.0), np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
        >>> x, y = steps + wiggle, steps - wiggle
        >>> round(pearson(x, y), 2), round(partial(x, y, steps), 2)  # both rise, in opposite steps
        (0.85, -1.0)
    """
    base = np.stack([np.ones_like(given), given], 1)
    rest = [v - base @ np.linalg.lstsq(base, v, rcond=None)[0] for v in (x, y)]
    if any(float(r @ r) <= 1e-20 * float(v @ v) for r, v in zip(rest, (x, y), strict=True)):
        return math.nan
    return pearson(rest[0], rest[1])


def monotone_surrogates(x: Array, draws: int, generator: np.random.Generator) -> Array:
    """Rising series with the absolute increments of x in random order: [draws, n].

    Example:
        >>> rows = monotone_surrogates(np.array([0.0, 3.0, 2.0]), draws=2, generator=np.random.default_rng(0))
        >>> rows[:, -1].tolist()  # increments 3 and 1 in some order, both upward
        [4.0, 4.0]
    """
    steps = generator.permuted(np.tile(np.abs(np.diff(x)), (draws, 1)), axis=1)
    return np.concatenate([np.zeros((draws, 1)), np.cumsum(steps, axis=1)], axis=1)


def effective_n(x: Array, y: Array) -> float:
    """Return n (1 - r1 r2) / (1 + r1 r2) with the lag-one autocorrelations of both, at most n.

    Example:
        >>> round(effective_n(np.arange(20.0), np.arange(20.0)), 1)  # a trend of 20 points counts for 3
        3.2
    """

    def lag_one(v: Array) -> float:
        u = v - v.mean()
        return float(u[:-1] @ u[1:] / (u @ u))

    product = lag_one(x) * lag_one(y)
    return float(min(len(x) * (1 - product) / (1 + product), len(x)))
