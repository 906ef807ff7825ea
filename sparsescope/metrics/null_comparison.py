"""An observed number among what a null gives: mean, spread, z and permutation p.

p counts the observed number as one of the draws, (b + 1) / (m + 1) (Phipson & Smyth 2010, Stat. Appl. Genet.
Mol. Biol. 9:39), so m draws never give less than 1 / (m + 1). z is a size: its p would take the null for
normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class NullComparison:
    """An observed number and its null.

    Attributes:
        observed: The number.
        mean: Mean of the null.
        sd: Standard deviation of the null; NaN for one draw.
        z: (observed - mean) / sd; NaN where the null does not vary.
        p_above: Share of the draws, the observed one included, that are as large or larger.
        p_below: The same for as small or smaller.
        draws: m.
    """

    observed: float
    mean: float
    sd: float
    z: float
    p_above: float
    p_below: float
    draws: int

    @property
    def difference(self) -> float:
        """Observed - mean of the null: mutual information without what chance gives."""
        return self.observed - self.mean

    @property
    def reduction(self) -> float:
        """(mean - observed) / mean of the null: by how much a distance is smaller; NaN for a mean of 0."""
        return (self.mean - self.observed) / self.mean if self.mean else math.nan


def against_null(observed: float, draws: ArrayLike) -> NullComparison:
    """Compare a number with draws of its null.

    Args:
        observed: The number.
        draws: [m], at least one. Differences of rounding (1e-9, relative to the largest) count as ties.

    Returns:
        The comparison; all NaN where the number or a draw is not finite.

    Example:
        >>> found = against_null(3.0, [0.0, 1.0, 1.0, 2.0])
        >>> found.mean, round(found.z, 2), found.p_above, found.p_below
        (1.0, 2.45, 0.2, 1.0)
    """
    null = np.asarray(draws, np.float64)
    m, nan = len(null), math.nan
    if m == 0 or not np.isfinite(null).all() or not math.isfinite(observed):
        return NullComparison(float(observed), nan, nan, nan, nan, nan, m)
    tie = _TIE * max(float(np.abs(null).max()), abs(observed))
    mean, sd = float(null.mean()), float(null.std(ddof=1)) if m > 1 else nan
    return NullComparison(
        float(observed),
        mean,
        sd,
        (observed - mean) / sd if sd > tie else nan,
        float(1 + np.sum(null >= observed - tie)) / (1 + m),
        float(1 + np.sum(null <= observed + tie)) / (1 + m),
        m,
    )
