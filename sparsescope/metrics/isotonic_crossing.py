"""Where a falling score crosses a tolerance: a monotone fit, its inverse, and how sure that is.

Levels are ordered by how much is removed; noise makes neighboring scores change places, so the first
level that violates a tolerance is biased low. The fit is isotonic (pool adjacent violators), the crossing
is interpolated linearly.
Shapes: K levels, level 0 is the untouched model; B bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a curve of damage crosses a tolerance.

    Attributes:
        at: The level; the largest measured one where the curve stays below.
        bracket: Distance between the two measured levels around it; NaN where censored.
        censored: ``""``; ``"right"`` if the curve never exceeds the tolerance; ``"left"`` if
            level 0 already does.
    """

    at: float
    bracket: float
    censored: str


def monotone(values: np.ndarray, ceiling: float = 0.0) -> np.ndarray:
    """Return the isotonic (non-decreasing least-squares) fit of a curve.

    Args:
        values: [K]. A point that is not finite is a model that broke down: worse than all others, but how
            much worse does not matter and must not pull its neighbors up.
        ceiling: Least value that such a point gets; at least twice the largest finite magnitude is taken.

    Example:
        >>> monotone(np.array([0.0, 0.3, 0.1, 0.4])).round(6).tolist()  # what falls is pooled
        [0.0, 0.2, 0.2, 0.4]
    """
    from scipy.optimize import isotonic_regression

    y = np.asarray(values, float)
    ceiling = max(ceiling, 2 * np.max(np.abs(y[np.isfinite(y)]), initial=0.0), 1e-12)
    return isotonic_regression(np.where(np.isfinite(y), y, ceiling)).x


def tolerance_crossing(levels: np.ndarray, damage: np.ndarray, tolerance: float) -> Crossing:
    """Find the largest level whose monotone damage is within the tolerance.

    Args:
        levels: [K], rising, for example sparsity from 0 on. Equal levels are allowed.
        damage: [K], for example the rise of the loss over level 0. +inf where a model broke down.
        tolerance: Most damage that is accepted.

    Returns:
        The crossing.

    Example:
        >>> levels, damage = np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 3.0])
        >>> tolerance_crossing(levels, damage, tolerance=2.0)
        Crossing(at=0.75, bracket=0.5, censored='')
        >>> tolerance_crossing(levels, damage, tolerance=5.0).censored  # never reached
        'right'
    """
    order = np.argsort(levels, kind="stable")
    x, y = np.asarray(levels, float)[order], np.asarray(damage, float)[order]
    fitted = monotone(y, 10 * abs(tolerance))
    if fitted[0] > tolerance:
        return Crossing(float(x[0]), float("nan"), "left")
    above = np.flatnonzero(fitted > tolerance)
    if len(above) == 0:
        return Crossing(float(x[-1]), float("nan"), "right")
    after = int(above[0])
    before = after - 1
    share = (tolerance - fitted[before]) / (fitted[after] - fitted[before])
    return Crossing(float(x[before] + share * (x[after] - x[before])), float(x[after] - x[before]), "")


def resampled_crossings(levels: np.ndarray, damage: np.ndarray, tolerance: float) -> np.ndarray:
    """The crossing of each resample of documents, [B].

    Args:
        levels: [B, K], the levels of each resample.
        damage: [B, K], the damage of each resample.
        tolerance: Most damage that is accepted.

    Returns:
        Resamples that never cross have their largest level, so an end of an interval may be a bound.

    Example:
        >>> levels = np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]])
        >>> resampled_crossings(levels, np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 4.0]]), tolerance=2.0).tolist()
        [0.75, 0.5]
    """
    return np.array([tolerance_crossing(x, y, tolerance).at for x, y in zip(levels, damage, strict=True)])
