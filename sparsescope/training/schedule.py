"""Learning rate by step: a linear ramp, then constant, a cosine, or a line down to a share of the peak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Decay = Literal["constant", "cosine", "linear"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning rate for each step of a run.

    Attributes:
        peak: The highest learning rate.
        steps: Steps of the run.
        warmup_steps: Steps of the linear ramp from ``peak / warmup_steps`` to the peak.
        decay: What follows.
        decay_steps: Last steps of the run in which the rate falls; None for all that follow the ramp.
        final_fraction: Of the peak, what a cosine or a line ends at.
    """

    peak: float
    steps: int
    warmup_steps: int = 0
    decay: Decay = "constant"
    decay_steps: int | None = None
    final_fraction: float = 0.1

    def rate(self, step: int) -> float:
        """Return the learning rate of step 0, 1, ..."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.peak
        begin = (
            self.warmup_steps
            if self.decay_steps is None
            else max(self.warmup_steps, self.steps - self.decay_steps)
        )
        done = min(1.0, max(0.0, (step - begin) / max(1, self.steps - begin)))
        if self.decay == "linear":
            return self.peak * (self.final_fraction + (1 - self.final_fraction) * (1 - done))
        return self.peak * (
            self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * done)) / 2
        )
