"""Whether a curve of damage has a corner, and where: two straight lines against smooth curves.

A corner is a claim about the shape of a curve, unlike the point where it reaches a tolerance
(``metrics.drop_points``). Two joined lines fit every convex curve better than one, at a place that depends on
where the grid of levels ends; so they are compared with smooth curves, and without a corner there is only the
tolerance. Continuous two-line fit: Hudson (1966), Journal of the American Statistical Association 61:1097.
Kneedle: Satopaa et al. (2011), ICDCSW 166.
Shapes: K levels, rising; D documents; B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.metrics.estimates import DocumentBootstrap

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

STRONG = 6.0  # difference of the information criterion: strong evidence (Kass & Raftery 1995)
_FLOOR = 1e-12
_RATES = np.geomspace(0.5, 60, 40)  # of smooth rivals, per range of levels
_MIDDLES = np.linspace(0.05, 1.2, 24)  # of the logistic, in the range of levels or a little beyond


@dataclass(frozen=True, slots=True)
class Hinge:
    """Two lines that meet. All NaN with fewer than six levels where the models did not break down.

    Attributes:
        at: Level of the corner.
        low: Lower end of its percentile interval over resamples of documents.
        high: Upper end.
        before: Slope up to the corner, nats per token and unit of level.
        after: Slope from there on.
        sharpness: abs(after) / max(abs(before), standard error of ``before``).
        delta_bic: BIC of the best other curve minus that of the two lines; above 0 the lines are better. It
            takes levels for independent, which those of the same documents are not: hence ``support``.
        rival: The best other curve: ``"line"``, ``"quadratic"``, ``"exponential"`` or ``"logistic"``.
        support: Share of resamples in which the two lines are better.
        exists: Whether ``delta_bic`` is above 6 and ``support`` is at least the level of the draws. If not:
            no knee, the tolerance point only.
    """

    at: float
    low: float
    high: float
    before: float
    after: float
    sharpness: float
    delta_bic: float
    rival: str
    support: float
    exists: bool


def hinge(levels: ArrayLike, sums: ArrayLike, counts: ArrayLike, draws: DocumentBootstrap) -> Hinge:
    """Fit two joined lines by least squares, with the break anywhere between the second level and the last
    but one.

    The best break is exact: for each gap the two separate lines, where they meet within the gap, and for each
    level a break there. Rivals are a line, a quadratic, a + b exp(k s) and a + b / (1 + exp(-k (s - m))),
    with k and m from a grid.

    Args:
        levels: [K], rising.
        sums: [K, D], loss minus that of the dense model, summed over the target tokens of each document,
            nats. Levels with a value that is not finite are left out.
        counts: [D], target tokens of each document.
        draws: Resamples of the D documents.

    Example:
        >>> draws = DocumentBootstrap.draw(strata=[0] * 4, resamples=200, seed=0, level=0.95)
        >>> levels = np.linspace(0, 0.9, 10)
        >>> damage = 2 * np.maximum(levels - 0.5, 0)
        >>> found = hinge(levels, 100 * np.outer(damage, [0.8, 1, 1, 1.2]), [100] * 4, draws)
        >>> round(found.at, 6), round(found.after, 6), found.exists
        (0.5, 2.0, True)
    """
    x, s, n = (np.asarray(v, np.float64) for v in (levels, sums, counts))
    good = np.isfinite(s).all(1)
    x, s = x[good], s[good]
    nan = math.nan
    if len(x) < 6:
        return Hinge(nan, nan, nan, nan, nan, nan, nan, "", nan, False)
    curves = np.vstack([s.sum(1) / n.sum(), draws.replicates(s.T, n[:, None])])
    at, rss = _two_lines(x, curves)
    bic = _criterion(rss, curves, 4)
    share = ((x - x[0]) / np.ptp(x))[:, None]
    logistic = 1 / (1 + np.exp(-_RATES[::2] * (share[:, :, None] - _MIDDLES[:, None])))
    rivals = {
        "line": _criterion(_residue(x, curves, x[:, None]), curves, 2),
        "quadratic": _criterion(_residue(x, curves, np.stack([x, x**2], 1)), curves, 3),
        "exponential": _criterion(_family(curves, np.exp(_RATES * (share - 1))), curves, 3),
        "logistic": _criterion(_family(curves, logistic.reshape(len(x), -1)), curves, 4),
    }
    best = np.min(list(rivals.values()), axis=0) - bic
    low, high = draws.ends(at[1:], int((n > 0).sum()))
    design = np.stack([np.ones_like(x), x, np.maximum(x - at[0], 0)], 1)
    inverse = np.linalg.inv(design.T @ design)
    _, before, change = inverse @ design.T @ curves[0]
    spread = math.sqrt(rss[0] / (len(x) - 4) * inverse[1, 1])
    support = float(np.mean(best[1:] > 0))
    return Hinge(
        at=float(at[0]),
        low=float(low),
        high=float(high),
        before=float(before),
        after=float(before + change),
        sharpness=float(abs(before + change) / max(abs(before), spread, 1e-300)),
        delta_bic=float(best[0]),
        rival=min(rivals, key=lambda name: rivals[name][0]),
        support=support,
        exists=bool(best[0] > STRONG and support >= draws.level),
    )


def kneedle(levels: ArrayLike, damage: ArrayLike, sensitivity: float = 1.0) -> float:
    """Level at which a rising, convex curve is farthest below the diagonal of its plot: a cross-check only.

    Both axes are scaled to [0, 1], so the answer moves with the last level unless there is a true corner.

    Args:
        levels: [K], rising.
        damage: [K]; values that are not finite are left out.
        sensitivity: S, how far the distance must fall behind a peak, in mean steps, before it counts.

    Returns:
        The first peak of the distance that is confirmed; NaN where none is, or the curve is constant.

    Example:
        >>> kneedle([0, 0.2, 0.4, 0.6, 0.8], [0, 0, 0, 1, 2])
        0.4
    """
    x, y = np.asarray(levels, np.float64), np.asarray(damage, np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) < 3 or np.ptp(y) == 0:
        return math.nan
    distance = (x - x[0]) / np.ptp(x) - (y - y.min()) / np.ptp(y)
    middle = distance[1:-1]
    peaks = 1 + np.flatnonzero((middle >= distance[:-2]) & (middle > distance[2:]))
    fall = sensitivity / (len(x) - 1)  # the mean step of the scaled levels
    for peak, following in zip(peaks, [*peaks[1:], len(x)], strict=False):
        if distance[peak:following].min() < distance[peak] - fall:
            return float(x[peak])
    return math.nan


def _two_lines(x: Array, curves: Array) -> tuple[Array, Array]:
    """Break and residual sum of squares of the best two joined lines of each curve, [C]."""
    at, rss = np.full(len(curves), np.nan), np.full(len(curves), np.inf)
    for j in range(1, len(x) - 1):  # a break at a level
        found = _residue(x, curves, np.stack([x, np.maximum(x - x[j], 0)], 1))
        at, rss = np.where(found < rss, x[j], at), np.minimum(found, rss)
    for j in range(1, len(x) - 2):  # a break between level j and the next
        left = x <= x[j]
        first, second = _line(x[left], curves[:, left]), _line(x[~left], curves[:, ~left])
        with np.errstate(invalid="ignore", divide="ignore"):
            meet = (second[0] - first[0]) / (first[1] - second[1])
        found = first[2] + second[2]
        better = (found < rss) & (meet > x[j]) & (meet < x[j + 1])
        at, rss = np.where(better, meet, at), np.where(better, found, rss)
    return at, rss


def _line(x: Array, curves: Array) -> tuple[Array, Array, Array]:
    """Offset at 0, slope and residual sum of squares of a line through each curve, [C]."""
    center = x - x.mean()
    slope = curves @ center / (center @ center)
    mean = curves.mean(1)
    rest = curves - mean[:, None] - slope[:, None] * center
    return mean - slope * x.mean(), slope, (rest**2).sum(1)


def _residue(x: Array, curves: Array, columns: Array) -> Array:
    """Residual sum of squares of the least-squares fit of a constant and the columns [K, P], [C]."""
    basis = np.linalg.qr(np.column_stack([np.ones_like(x), columns]))[0]
    return ((curves - curves @ basis @ basis.T) ** 2).sum(1)


def _family(curves: Array, shapes: Array) -> Array:
    """Residual sum of squares of a + b g with the best g of a family of shapes [K, G], [C]."""
    y, g = curves - curves.mean(1, keepdims=True), shapes - shapes.mean(0)
    return (y**2).sum(1) - ((y @ (g / np.linalg.norm(g, axis=0))) ** 2).max(1)


def _criterion(rss: Array, curves: Array, parameters: int) -> Array:
    """K ln(RSS / K) + p ln K; below rounding no fit is better than another."""
    k = curves.shape[1]
    total = ((curves - curves.mean(1, keepdims=True)) ** 2).sum(1)
    return k * np.log(np.maximum(rss, np.maximum(_FLOOR * total, 1e-300)) / k) + parameters * math.log(k)
