"""The axis of training steps: logarithmic where a run covers several powers of ten, with a place for step 0.

Step 0, the initialization, has no logarithm. It is drawn left of the first step after it, at a third of
it, and labelled 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from numpy.typing import NDArray

_MANY = 12  # checkpoints; with more of them ticks are round numbers instead
_FAR = 20.0  # last step over first one
_APART = 0.12  # of the width of a panel, from label to label


@dataclass(frozen=True, slots=True)
class StepAxis:
    """Places of steps on an axis.

    Attributes:
        steps: All steps that are drawn, ascending.
        log: Whether the axis is logarithmic.
    """

    steps: tuple[int, ...]
    log: bool

    @classmethod
    def of(cls, steps: Sequence[Any]) -> StepAxis:
        """Choose the axis: logarithmic if the last step is more than ``_FAR`` times the first one after 0."""
        found = tuple(sorted({int(step) for step in steps}))
        later = [step for step in found if step > 0]
        return cls(found, bool(later) and later[-1] > _FAR * later[0])

    def x(self, steps: Sequence[Any]) -> NDArray[np.float64]:
        """Where steps are drawn."""
        values = np.asarray(steps, np.float64)
        return np.where(values > 0, values, self._zero) if self.log else values

    def place(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with a further column ``at``: where their ``step`` is drawn."""
        return rows.assign(at=self.x(rows["step"]))

    @property
    def _zero(self) -> float:
        return min(step for step in self.steps if step > 0) / 3

    def arrange(self, figure: go.Figure, *, columns: int = 1) -> None:
        """Set type, range, ticks and title of all x axes.

        Args:
            figure: Changed in place.
            columns: Panels side by side; many leave room for few ticks and a short title.
        """
        title = "optimizer step"
        if not self.log:
            figure.update_xaxes(title_text=title, separatethousands=True)
            return
        if columns < 3:
            title += " (logarithmic, 0 set apart)" if self.steps[0] == 0 else " (logarithmic)"
        ticks = self._ticks(_APART * max(1.0, 0.7 * columns))
        low, high = (math.log10(float(self.x([step])[0])) for step in (self.steps[0], self.steps[-1]))
        figure.update_xaxes(
            type="log", range=[low - 0.08, high + 0.08], tickmode="array", tickvals=list(self.x(ticks)),
            ticktext=[f"{step:,}" for step in ticks], title_text=title, tickangle=0,
        )  # fmt: skip

    def _ticks(self, apart: float) -> list[int]:
        """Steps that get a label: first and last, and of the others what has room; round numbers
        where there are many.
        """
        first, last = self.steps[0], self.steps[-1]
        offered = list(self.steps)
        if len(offered) > _MANY:
            decades = range(int(math.log10(max(last, 1))) + 1)
            offered = [
                first,
                *(m * 10**e for e in decades for m in (1, 2, 5) if first < m * 10**e < last),
                last,
            ]
            smallest = min(step for step in self.steps if step > 0)
            offered = [step for step in offered if step == first or step >= smallest]
        places = {step: math.log10(float(self.x([step])[0])) for step in offered}
        gap = apart * (places[last] - places[first])
        kept = [last]
        for step in reversed(offered[1:-1]):
            if places[kept[-1]] - places[step] > gap and places[step] - places[first] > gap:
                kept.append(step)
        return [*dict.fromkeys([first, *reversed(kept)])]
