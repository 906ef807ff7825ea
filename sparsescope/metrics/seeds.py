"""Means over independent trainings: Student's t interval over seeds.

Trainings of one recipe that differ in their seed are the independent units wherever something is said of the
recipe; the documents of one training say nothing about the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STUDENT = "Student t over seeds"


class Mean(NamedTuple):
    """A mean over seeds and the ends of its interval, NaN where there is none."""

    mean: float
    low: float
    high: float


def over_seeds(values: Sequence[float], level: float) -> Mean:
    """Mean of independent values with Student's interval, mean +- t_(n-1) s / sqrt(n); no ends for n < 2.

    Args:
        values: One number of each training.
        level: Coverage of the interval.

    Example:
        >>> [round(value, 3) for value in over_seeds([1.0, 2.0, 3.0], 0.95)]
        [2.0, -0.484, 4.484]
    """
    from scipy.special import stdtrit

    found, n = np.asarray(values, np.float64), len(values)
    if n < 2:
        return Mean(float(found.mean()) if n else math.nan, math.nan, math.nan)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * float(found.std(ddof=1)) / math.sqrt(n)
    return Mean(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half)
