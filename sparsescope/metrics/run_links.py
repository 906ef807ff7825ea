"""Does a measure go with the score of its own run or of any run; would a link be found; does it foretell?

Two measures that move while a model trains correlate whatever the link (``metrics.trends``). Three tests look
past that. Swap: a link of a run is stronger with its own score than with the score of another run at the same
steps. Power: how often a link of known strength would be found with so many checkpoints. Early value: over
runs, whether the measure when the training pairs are known goes with the step of generalizing.

Shapes: R runs, n steps that all of them have; measures and scores [R, n].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.metrics.trends import LEAST_N, LEAST_PERCENTILE, monotone_surrogates, pearson_p

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

EXACT_UP_TO = 7
STRENGTHS = (0.3, 0.5, 0.7, 0.9)
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Swap:
    """Correlations of measures with the scores of their own runs and of others.

    Attributes:
        own: Mean Pearson correlation with the score of the same run.
        other: Mean with the scores of the other runs.
        p: Share of all ways to deal the scores to the runs whose mean is as far from 0 as ``own``; at least
            1 / R!, or 1 / (draws + 1) of ways that are drawn.
        runs: R.
    """

    own: float
    other: float
    p: float
    runs: int


def swap_test(
    measures: ArrayLike, scores: ArrayLike, *, differences: bool = False, draws: int = 2000, seed: int = 0
) -> Swap:
    """Compare the correlations of runs with their own scores and with those of other runs.

    Args:
        measures: [R, n], of the same steps.
        scores: [R, n].
        differences: Correlate the differences between neighboring steps.
        draws: Ways of dealing that are drawn where there are too many (R > 7).
        seed: Their seed.

    Returns:
        All NaN for fewer than two runs, or where one series is constant or not finite.

    Example:
        >>> measures = [[0, 1, 2, 9], [0, 5, 6, 7], [3, 3, 0, 0]]
        >>> found = swap_test(measures, measures)
        >>> found.own, round(found.p, 3)  # 1 of 6 ways: each its own
        (1.0, 0.167)
    """
    x, y = (np.asarray(each, np.float64) for each in (measures, scores))
    if differences:
        x, y = np.diff(x), np.diff(y)
    runs, nan = len(x), math.nan
    if runs < 2 or x.shape[1] < 3:
        return Swap(nan, nan, nan, runs)
    table = _correlations(x, y)
    if not np.isfinite(table).all():
        return Swap(nan, nan, nan, runs)
    own = float(np.diag(table).mean())
    other = float((table.sum() - np.trace(table)) / (runs * (runs - 1)))
    if runs <= EXACT_UP_TO:
        orders = np.array(list(permutations(range(runs))))
    else:
        drawn = np.random.default_rng(seed).permuted(np.tile(np.arange(runs), (draws, 1)), axis=1)
        orders = np.concatenate([np.arange(runs)[None], drawn])
    means = np.abs(table[np.arange(runs), orders].mean(1))
    return Swap(own, other, float(np.mean(means >= abs(own) - 1e-9)), runs)


def _correlations(x: Array, y: Array) -> Array:
    """Pearson correlation of each row of one with each row of the other; NaN of constant rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        u, v = (
            (each - each.mean(1, keepdims=True)) / (each.std(1, keepdims=True) * math.sqrt(each.shape[1]))
            for each in (x, y)
        )
    return np.clip(u @ v.T, -1, 1)


@dataclass(frozen=True, slots=True)
class Power:
    """How often a planted link is found.

    Attributes:
        strength: Correlation of the increments of measure and score that is planted.
        differences: Share of draws in which the correlation of the differences has p < 0.05.
        beyond_trend: Share in which the correlation of the values lies beyond 95 % of monotone surrogates.
        n: Checkpoints.
    """

    strength: float
    differences: float
    beyond_trend: float
    n: int


def planted_power(
    measure: ArrayLike,
    strengths: tuple[float, ...] = STRENGTHS,
    *,
    drift: float = 1.0,
    draws: int = 1000,
    seed: int = 0,
) -> list[Power]:
    """Power of both tests of a link, for a measure as it was observed.

    The increments of planted scores have standard deviation 1, a drift, and the given correlation with those
    of the measure. At strength 0 ``differences`` is the size of that test, about 0.05.

    Args:
        measure: [n]; values that are not finite are left out.
        strengths: Correlations to plant, in [0, 1).
        drift: Mean increment of a planted score; of an observed one |mean| / standard deviation.
        draws: Planted scores for each strength, and monotone surrogates.
        seed: Seed of both.

    Returns:
        One for each strength; shares are NaN for fewer than four values, or a measure that does not move.

    Example:
        >>> measure = np.cumsum(np.random.default_rng(0).random(40))
        >>> none, strong = planted_power(measure, (0.0, 0.8), draws=400)
        >>> none.differences < 0.1, strong.differences > 0.9
        (True, True)
    """
    x = np.asarray(measure, np.float64)
    x = x[np.isfinite(x)]
    steps = np.diff(x)
    if len(x) < 4 or np.ptp(steps) == 0:
        return [Power(strength, math.nan, math.nan, len(x)) for strength in strengths]
    generator = np.random.default_rng(seed)
    steps = (steps - steps.mean()) / steps.std()
    surrogates = monotone_surrogates(x, draws, generator)
    found = []
    for strength in strengths:
        noise = generator.standard_normal((draws, len(steps)))
        increments = strength * steps + math.sqrt(1 - strength**2) * noise
        r = _correlations(steps[None], increments)[0]
        seen = np.array([pearson_p(value, len(steps)) for value in r]) < _ALPHA
        scores = np.cumsum(np.pad(drift + increments, ((0, 0), (1, 0))), axis=1)
        whole = np.abs(_correlations(x[None], scores)[0])
        smaller = (np.abs(_correlations(surrogates, scores)) < whole).mean(0)
        beyond = 100 * smaller >= LEAST_PERCENTILE
        trend = float(beyond.mean()) if len(x) >= LEAST_N else math.nan
        found.append(Power(strength, float(seen.mean()), trend, len(x)))
    return found
