"""Where a curve changes its slope: least-squares segmentation into straight lines, with a penalty and a null.

The best division of a curve into k lines is found exactly by dynamic programming (Bellman & Roth 1969). The
number of lines minimizes n ln(RSS / n) + (3 k - 1) ln n: two coefficients for each line and one place for
each break. Such a penalty takes neighboring values for independent; so the gain of the last line is
compared with what curves of k - 1 lines and autoregressive noise of order one give by chance, the noise
being fitted to the residuals.

Shapes: curves [n] at places x [n], ascending.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class Segment:
    """One straight line: points ``first`` to ``last`` (inclusive indices), ``slope`` per unit of x,
    ``offset`` at x = 0.
    """

    first: int
    last: int
    slope: float
    offset: float


@dataclass(frozen=True, slots=True)
class Segmentation:
    """Lines of a curve.

    Attributes:
        segments: In order; without gaps.
        explained: 1 - RSS / total sum of squares.
        p_value: Chance of a gain as large from noise alone, of the last line that was added;
            NaN with one line.
    """

    segments: tuple[Segment, ...]
    explained: float
    p_value: float


def segment(
    x: Array, y: Array, *, most: int = 6, shortest: int = 3, surrogates: int = 199, seed: int = 0
) -> Segmentation:
    """Divide a curve into straight lines.

    Args:
        x: Places, ascending.
        y: Values; those that are not finite are left out.
        most: Most lines.
        shortest: Least points of a line.
        surrogates: Curves of the null; 0 for none.
        seed: Seed of the null.

    Example:
        >>> x = np.arange(8.0)
        >>> found = segment(x, np.where(x < 4, x, 3 * x), surrogates=0)
        >>> [(line.first, line.last, round(line.slope, 6)) for line in found.segments]
        [(0, 3, 1.0), (4, 7, 3.0)]
    """
    good = np.flatnonzero(np.isfinite(y))
    x, y = np.asarray(x, np.float64)[good], np.asarray(y, np.float64)[good]
    n = len(y)
    if n < shortest:
        return Segmentation((), math.nan, math.nan)
    most = max(1, min(most, n // shortest))
    total = float(((y - y.mean()) ** 2).sum())
    rss, starts = _best(_costs(x, y, shortest), most)
    # Below rounding no further line is worth anything.
    scores = [
        n * math.log(max(rss[k], _FLOOR * total, 1e-300) / n) + (3 * k - 1) * math.log(n)
        for k in range(1, most + 1)
    ]
    k = int(np.argmin(scores)) + 1
    bounds = starts[k]
    lines = [_line(x, y, a, b) for a, b in pairwise(bounds)]
    p_value = _chance(x, y, k, starts, rss, shortest, surrogates, seed) if k > 1 and surrogates else math.nan
    kept = tuple(Segment(int(good[s.first]), int(good[s.last]), s.slope, s.offset) for s in lines)
    return Segmentation(kept, 1 - rss[k] / total if total > 0 else math.nan, p_value)


def _line(x: Array, y: Array, a: int, b: int) -> Segment:
    """Least-squares line through points a to b - 1."""
    slope, offset = np.polyfit(x[a:b], y[a:b], 1)
    return Segment(a, b - 1, float(slope), float(offset))


def _costs(x: Array, y: Array, shortest: int) -> Array:
    """RSS of a line through points i to j - 1, for all i < j: [n + 1, n + 1]; infinite
    where it is too short.
    """
    x, y = x - x.mean(), y - y.mean()
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in (x, y, x * x, x * y, y * y)]
    sx, sy, sxx, sxy, syy = (s[None, :] - s[:, None] for s in sums)
    count = np.subtract.outer(-np.arange(len(x) + 1), -np.arange(len(x) + 1)).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        vxx, vxy, vyy = sxx - sx * sx / count, sxy - sx * sy / count, syy - sy * sy / count
        rss = np.maximum(vyy - vxy * vxy / vxx, 0.0)
    return np.where(count >= shortest, rss, np.inf)


def _best(costs: Array, most: int) -> tuple[dict[int, float], dict[int, list[int]]]:
    """Least RSS of 1 ... ``most`` lines, and the bounds of the lines, first 0 and last n."""
    n = len(costs) - 1
    total = costs[0].copy()  # total[j]: the first j points
    back: list[NDArray[np.int64]] = []
    rss, bounds = {1: float(total[n])}, {1: [0, n]}
    for k in range(2, most + 1):
        options = total[:, None] + costs
        back.append(options.argmin(0))
        total = options.min(0)
        places = [n]
        for step in reversed(back):
            places.append(int(step[places[-1]]))
        rss[k], bounds[k] = float(total[n]), [0, *places[:0:-1], n]
    return rss, bounds


def _fitted(x: Array, y: Array, bounds: list[int]) -> Array:
    parts = [_line(x, y, a, b) for a, b in pairwise(bounds)]
    return np.concatenate([s.slope * x[s.first : s.last + 1] + s.offset for s in parts])


def _chance(
    x: Array,
    y: Array,
    k: int,
    starts: dict[int, list[int]],
    rss: dict[int, float],
    shortest: int,
    surrogates: int,
    seed: int,
) -> float:
    """Share of surrogates (k - 1 lines and AR(1) noise) whose k-th line gains as much, the
    curve itself counted.
    """
    generator = np.random.default_rng(seed)
    n = len(y)
    rest = y - _fitted(x, y, starts[k])
    power = float(rest[:-1] @ rest[:-1])
    phi = float(np.clip(rest[:-1] @ rest[1:] / power, -0.99, 0.99)) if power > 0 else 0.0
    scale = math.sqrt(float((rest**2).sum()) / max(n - 2 * k, 1))
    base = _fitted(x, y, starts[k - 1])
    gain = rss[k - 1] / max(rss[k], 1e-300)
    higher = 0
    for _ in range(surrogates):
        noise = generator.normal(size=n) * scale
        noise[1:] *= math.sqrt(1 - phi * phi)
        for i in range(1, n):
            noise[i] += phi * noise[i - 1]
        found, _ = _best(_costs(x, base + noise, shortest), k)
        higher += found[k - 1] / max(found[k], 1e-300) >= gain
    return (1 + higher) / (1 + surrogates)
