"""Pieces of the sentences of figures: numbers in titles, hover texts and alt texts, and who
the figure is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsescope.core.numbers import format_number
from sparsescope.core.result import Result

if TYPE_CHECKING:
    import pandas as pd

_DASH = "\N{EN DASH}"
NO_INTERVALS = "no intervals: they need two documents or more"


def decimal(value: float) -> str:
    """Format a number that is not a share."""
    return f"{value:.4f}" if math.isfinite(value) else _DASH


def percent(value: float) -> str:
    """Format a share with three digits, never rounded to 0 or 100 %."""
    if not math.isfinite(value):
        return _DASH
    if value in (0.0, 1.0) or 0.0005 <= value < 0.995:
        return f"{100 * value:.3g} %"
    return format_number(float(value), "fraction").replace("> ", "over ").replace("< ", "under ")


def subject_prefix(result: Result) -> str:
    """Name of the subject with a colon, as a subtitle begins; empty where it is not known."""
    return f"{result.about}: " if result.about else ""


def with_interval(value: float, low: float, high: float, show: Callable[[float], str] = percent) -> str:
    """Format a value, followed by its interval where there is one, for example
    ``31.2 % [30.9 %, 31.5 %]``.
    """
    interval = f" [{show(low)}, {show(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return show(value) + interval


def level_of(result: Result) -> float | None:
    """Coverage of the intervals of a result; None where no number has one."""
    return next((s.interval.level for s in result.scalars.values() if s.interval is not None), None)


def band_text(result: Result, what: str = "document-cluster bootstrap interval") -> str:
    """Say what the bands are, or why there are none."""
    level = level_of(result)
    return NO_INTERVALS if level is None else f"bands: {100 * level:g} % {what}"


def paired_text(table: pd.DataFrame) -> str:
    """Say what the bands of paired differences are, from a table with ``low`` and ``documents``."""
    if table["low"].isna().all():
        return NO_INTERVALS
    return f"bands: paired document-cluster bootstrap, {int(table['documents'].max())} documents"
