"""Whether a course of values rises abruptly: the share of its largest rise, beside gradual courses.

A rise is looked for between neighboring checkpoints. Its share is the rise over the sum of all absolute
changes, so noise makes it smaller. The null is a course that goes up all the time, by independent increments
that are as large on average as the gap between checkpoints on logarithmic steps: a gamma process, whose
shares are Dirichlet. With equal gaps these are the pieces of a stick broken at random, and the p-value that
of Fisher (1929) for the largest of m shares: sum_j (-1)^(j+1) C(m, j) (1 - j g)_+^(m-1). A smooth course has
more equal increments than that, so it is called abrupt more rarely than the level says. Straight lines
(``metrics.changepoints``) do not tell: any bend of a smooth course is a change of slope.
Shapes: n checkpoints, m = n - 1 gaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEAST = 12  # checkpoints; with fewer, one step out of few is a large share of any course


@dataclass(frozen=True, slots=True)
class Rise:
    """The largest rise of a course.

    Attributes:
        before: Index of the checkpoint before it.
        share: Its share of all changes.
        p_value: Chance of as large a share in a gradual course.
    """

    before: int
    share: float
    p_value: float


def largest_rise(steps: ArrayLike, values: ArrayLike, *, surrogates: int, seed: int) -> Rise | None:
    """Find the largest rise between neighbors; None where nothing rises.

    Args:
        steps: [n], ascending; step 0 stands at a third of the next one, as it is drawn.
        values: [n], finite.
        surrogates: Gradual courses that are drawn.
        seed: Of their generator.

    Example:
        >>> steps, jump = np.arange(100, 1300, 100), np.repeat([0.1, 0.6], 6)
        >>> found = largest_rise(steps, jump + 0.001 * np.arange(12), surrogates=999, seed=0)
        >>> found.before, found.share > 0.9, found.p_value
        (5, True, 0.001)
        >>> largest_rise(steps, np.linspace(0.1, 0.6, 12), surrogates=999, seed=0).p_value > 0.5
        True
    """
    changes = np.diff(np.asarray(values, np.float64))
    if not len(changes) or changes.max() <= 0:
        return None
    x = np.asarray(steps, np.float64)
    gaps = np.diff(np.log(np.where(x > 0, x, x[1] / 3)))
    before = int(changes.argmax())
    share = float(changes[before] / np.abs(changes).sum())
    if len(changes) == 1:
        return Rise(before, share, math.nan)
    drawn = np.random.default_rng(seed).dirichlet(gaps / gaps.mean(), size=surrogates).max(1)
    return Rise(before, share, float((1 + (drawn >= share).sum()) / (1 + surrogates)))
