"""The strength at which a direction moves predictions by a given KL divergence.

The divergence need not rise with the strength, and directions differ in what they do by factors of a
thousand. So the strength is doubled or halved until the target lies between two tries; what lies between is
then found by interpolation on logarithmic scales, kept away from the ends of the interval. Every try is
remembered, also for other targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

CLOSE = 0.05
"""A divergence counts as the target within this share of it."""
MOST_STEPS = 14
MOST_HALVINGS = 12
REACHED, NOT_REACHED = "reached", "not reached"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A strength.

    Attributes:
        strength: The nearest that was found.
        achieved: Its divergence.
        status: ``REACHED`` or ``NOT_REACHED``.
    """

    strength: float
    achieved: float
    status: str


@dataclass(slots=True)
class Calibration:
    """Strengths of one direction.

    Args:
        divergence: KL divergence at a strength above zero.
        start: Where the search begins.

    Example:
        >>> found = Calibration(lambda strength: strength**2, start=1.0)
        >>> made = found.at(0.25)
        >>> made.status, abs(made.achieved - 0.25) <= 0.0125
        ('reached', True)
        >>> Calibration(lambda strength: min(strength, 0.1), start=1.0).at(0.5).status
        'not reached'
    """

    divergence: Callable[[float], float]
    start: float
    known: dict[float, float] = field(default_factory=dict)

    def at(self, target: float) -> Calibrated:
        """The strength for a target."""
        low, high = self._bracket(target)
        for _ in range(MOST_HALVINGS):
            best = self._nearest(target)
            if self._close(best, target) or low is None or high is None:
                break
            middle = self._between(low, high, target)
            if self._ask(middle) < target:
                low = middle
            else:
                high = middle
        best = self._nearest(target)
        return Calibrated(best, self.known[best], REACHED if self._close(best, target) else NOT_REACHED)

    def _bracket(self, target: float) -> tuple[float | None, float | None]:
        """Neighbouring strengths below and above the target, the smallest such pair."""
        strength = self.start
        if not self.known:
            self._ask(strength)
        for _ in range(MOST_STEPS):
            ordered = sorted(self.known)
            for low, high in pairwise(ordered):
                if self.known[low] < target <= self.known[high]:
                    return low, high
            if self.known[ordered[0]] >= target:
                self._ask(ordered[0] / 2)
            else:
                self._ask(ordered[-1] * 2)
        return None, None

    def _between(self, low: float, high: float, target: float) -> float:
        """Where the target should lie, if the divergence were a power of the strength."""
        below, above = self.known[low], self.known[high]
        share = 0.5
        if 0 < below < above < math.inf:
            share = min(0.9, max(0.1, math.log(target / below) / math.log(above / below)))
        return low * (high / low) ** share

    def _ask(self, strength: float) -> float:
        if strength not in self.known:
            found = self.divergence(strength)
            self.known[strength] = found if math.isfinite(found) else math.inf
        return self.known[strength]

    def _nearest(self, target: float) -> float:
        return min(
            self.known,
            key=lambda strength: (abs(math.log(max(self.known[strength], 1e-12) / target)), strength),
        )

    def _close(self, strength: float, target: float) -> bool:
        return abs(self.known[strength] - target) <= CLOSE * target
