"""When a model memorizes and when it generalizes, and how early a measure tells.

Onsets: t_mem is the first logged step with training accuracy >= 0.99 in m = 3 consecutive logs, t_gen the
same of the test accuracy. A run groks if t_gen >= t_mem + max(3 logs, t_mem / 2). Lead time of a measure:
t_gen minus the first step at which its CUSUM leaves the band of the steps before t_mem. Smallest sub-network:
Merrill et al. 2023 (arXiv 2303.11873), with a scan in place of a search that needs a monotone curve. Censored
onsets over seeds: Kaplan & Meier (1958).

Shapes: curves [n] over ascending steps [n].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ACCURACY, LOGS, LOST_BELOW = 0.99, 3, 0.9


@dataclass(frozen=True, slots=True)
class Onsets:
    """When a run memorized and generalized.

    Attributes:
        memorized: t_mem, None where the training accuracy never holds the level.
        generalized: t_gen, None where the test accuracy never holds it.
        grokked: Whether generalization came late by the rule at the head of this file.
        lost_at: First step after t_gen from which the test accuracy stays below 0.9 for m logs; None
            where it never does.
    """

    memorized: int | None
    generalized: int | None
    grokked: bool
    lost_at: int | None

    @property
    def delay(self) -> float:
        """t_gen - t_mem in steps; NaN where one is missing."""
        if self.memorized is None or self.generalized is None:
            return math.nan
        return float(self.generalized - self.memorized)

    @property
    def ratio(self) -> float:
        """t_gen / t_mem; NaN where one is missing or t_mem is 0."""
        if not self.memorized or self.generalized is None:
            return math.nan
        return self.generalized / self.memorized


def first_held(steps: NDArray[np.int64], holds: NDArray[np.bool_], logs: int = LOGS) -> int | None:
    """Return the first step from which a condition holds in so many consecutive logs; None
    where it never does.

    Example:
        >>> steps, holds = np.array([0, 10, 20, 30, 40]), np.array([False, True, False, True, True])
        >>> first_held(steps, holds, logs=2)  # at 10 it did not hold
        30
    """
    runs = (
        np.convolve(holds.astype(np.int64), np.ones(logs, dtype=np.int64), "valid")
        if len(holds) >= logs
        else np.zeros(0)
    )
    found = np.flatnonzero(runs == logs)
    return int(steps[found[0]]) if len(found) else None


def find_onsets(
    steps: NDArray[np.int64], train: Array, test: Array, *, level: float = ACCURACY, logs: int = LOGS
) -> Onsets:
    """Find t_mem and t_gen; see the head of this file.

    Args:
        steps: Logged steps, ascending.
        train: Training accuracy at them.
        test: Test accuracy at them.
        level: Accuracy that must be held.
        logs: m, consecutive logs that must hold it.

    Example:
        >>> steps = np.arange(0, 100, 10)
        >>> find_onsets(steps, train=1.0 * (steps >= 20), test=1.0 * (steps >= 70))
        Onsets(memorized=20, generalized=70, grokked=True, lost_at=None)
    """
    memorized = first_held(steps, train >= level, logs)
    generalized = first_held(steps, test >= level, logs)
    grokked, lost = False, None
    if generalized is not None:
        after = steps > generalized
        lost = first_held(steps[after], test[after] < LOST_BELOW, logs)
    if memorized is not None and generalized is not None:
        between = int(np.sum((steps > memorized) & (steps <= generalized)))
        grokked = between >= logs and generalized - memorized >= 0.5 * memorized
    return Onsets(memorized, generalized, grokked, lost)


def first_departure(
    steps: NDArray[np.int64], values: Array, until: int, *, threshold: float = 5.0, slack: float = 0.5
) -> float:
    """First step at which the CUSUM of a measure leaves the band of its early values.

    Detrended by recursive residuals (Brown, Durbin & Evans 1975): each later value is compared with the
    straight line in log(1 + step) through all values before it; z is the distance in standard errors of this
    prediction, with the spread of the values at steps up to ``until`` (brought from Student's to the normal
    distribution). S+ = max(0, S+ + z - slack) and the same downward add up; the first sum above ``threshold``
    is the departure (Page 1954). Unlike distances from one fixed line, recursive residuals of a measure that
    goes on as before are independent.

    Args:
        steps: Ascending steps.
        values: The measure at them; NaN where it is not defined.
        until: t_mem.
        threshold: In standard deviations.
        slack: Allowance for each step, in standard deviations.

    Returns:
        The step; NaN where fewer than four values lie in the band's time, or the measure stays in the band.

    Example:
        >>> values = np.array([0, 0.1, 0, 0.1, 0, 0.1, 1, 2, 3, 4, 5, 6])
        >>> first_departure(np.arange(12), values, until=5)
        7.0
    """
    good = np.isfinite(values)
    steps, values = np.asarray(steps)[good], np.asarray(values, np.float64)[good]
    early = steps <= until
    if early.sum() < 4 or early.all():
        return math.nan
    from scipy.stats import norm, t

    x, count = np.log1p(steps.astype(np.float64)), int(early.sum())
    slope, offset = np.polyfit(x[early], values[early], 1)
    spread = math.sqrt(float(((values - slope * x - offset)[early] ** 2).sum()) / (count - 2))
    # A measure that did not move at all before t_mem has no band: any change that is more than
    # rounding leaves it.
    spread = max(spread, 1e-6 * float(np.ptp(values)), 1e-300)
    up = down = 0.0
    for i in range(count, len(x)):
        center = x[:i].mean()
        slope, offset = np.polyfit(x[:i] - center, values[:i], 1)
        error = spread * math.sqrt(1 + 1 / i + (x[i] - center) ** 2 / ((x[:i] - center) ** 2).sum())
        rest = values[i] - slope * (x[i] - center) - offset
        tail = float(t.logsf(abs(rest) / error, count - 2))
        z = math.copysign(float(norm.isf(math.exp(tail))) if tail > -700 else 37.0, rest)
        up, down = max(0.0, up + z - slack), max(0.0, down - z - slack)
        if max(up, down) > threshold:
            return float(steps[i])
    return math.nan


def half_way(steps: NDArray[np.int64], values: Array, start: int, end: int) -> float:
    """Step at which a measure has made half of its way from its value at ``start`` to that at
    ``end``, for good.

    Args:
        steps: Ascending steps.
        values: The measure at them; NaN values are left out.
        start: For example t_mem; the nearest step is taken.
        end: For example the last step.

    Returns:
        The last crossing of the middle before ``end``, interpolated linearly; NaN where the
        measure did not move.

    Example:
        >>> round(half_way(np.array([0, 10, 20]), np.array([0.0, 1.0, 3.0]), start=0, end=20), 6)  # at 1.5
        12.5
    """
    good = np.isfinite(values) & (steps >= start) & (steps <= end)
    steps, values = np.asarray(steps)[good], np.asarray(values, np.float64)[good]
    if len(values) < 2 or values[0] == values[-1]:
        return math.nan
    share = (values - values[0]) / (values[-1] - values[0])
    before = int(np.flatnonzero(share < 0.5)[-1])
    part = (0.5 - share[before]) / (share[before + 1] - share[before])
    return float(steps[before] + part * (steps[before + 1] - steps[before]))


def smallest_subset(score: Callable[[int], float], total: int, level: float, *, points: int = 16) -> int:
    """Smallest number of top-ranked units that keeps a score, without assuming that the score is monotone.

    A geometric grid of about ``points`` sizes is scanned from below; the first that reaches the level is
    refined by bisection against its lower neighbor. The result is the smallest up to the grid: a size between
    smaller ones may do too.

    Args:
        score: Called with a number of kept units, 0 to ``total``.
        total: Number of units; all of them are taken to reach the level.
        level: Score that must be kept.
        points: Sizes in the grid.

    Example:
        >>> smallest_subset(lambda kept: kept / 10, total=10, level=0.65)
        7
    """
    grid = sorted({0, total, *np.unique(np.geomspace(1, max(total, 1), points).round().astype(int)).tolist()})
    low = -1
    for size in grid:
        if size == total or score(size) >= level:
            high = size
            break
        low = size
    while high - low > 1:
        middle = (low + high) // 2
        if score(middle) >= level:
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True, slots=True)
class MedianRange:
    """A median over seeds.

    Attributes:
        median: Median of the values.
        low: Lower end.
        high: Upper end.
        level: Exact coverage of the ends for the median of the population.
        n: Values.
    """

    median: float
    low: float
    high: float
    level: float
    n: int


def median_range(values: Sequence[float], level: float = 0.95) -> MedianRange:
    """Median with an interval between order statistics, valid for every continuous distribution.

    P(x_(j) <= median <= x_(n+1-j)) = 1 - 2 P(B < j) with B binomial(n, 1/2). The innermost pair that
    reaches the level is taken; with five values or fewer no pair reaches 95 %, and the range with its true
    coverage is given.

    Example:
        >>> median_range([3, 1, 2, 5, 4])  # five seeds: the range covers the median with 93.75 %
        MedianRange(median=3.0, low=1.0, high=5.0, level=0.9375, n=5)
    """
    from scipy.stats import binom

    x = np.sort(np.asarray([v for v in values if math.isfinite(v)], np.float64))
    n = len(x)
    if n == 0:
        return MedianRange(math.nan, math.nan, math.nan, 0.0, 0)
    covered = [1 - 2 * float(binom.cdf(j - 1, n, 0.5)) for j in range(1, n // 2 + 1)] or [0.0]
    inner = max([j for j, c in enumerate(covered) if c >= level], default=0)
    return MedianRange(float(np.median(x)), float(x[inner]), float(x[n - 1 - inner]), covered[inner], n)


def kaplan_meier_median(times: Sequence[float], observed: Sequence[bool]) -> float:
    """Median time to an event where some runs ended without it.

    Args:
        times: Step of the event, or the last step of a run without it.
        observed: Whether the event was seen.

    Returns:
        The first time at which the Kaplan-Meier survival is 1/2 or less; NaN where it stays above.

    Example:
        >>> kaplan_meier_median([100, 200, 300], [True, True, False])  # the third ended without it
        200.0
    """
    survival = 1.0
    t, seen = np.asarray(times, np.float64), np.asarray(observed, bool)
    for at in np.unique(t[seen]):
        survival *= 1 - np.sum(seen & (t == at)) / np.sum(t >= at)
        if survival <= 0.5 + 1e-12:
            return float(at)
    return math.nan
