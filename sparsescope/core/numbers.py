"""One number with its meaning and its interval, and how numbers are written for people."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from sparsescope.core.columns import STRICT

Direction = Literal["higher", "lower", "none"]
_LONGEST_SLUG = 40


@dataclass(frozen=True, slots=True)
class Interval:
    """An uncertainty interval.

    Args:
        low: Lower end, in the unit of the number.
        high: Upper end.
        level: Nominal coverage, for example 0.95.
        method: How it was made, for example ``"document-cluster bootstrap"``.
        n: The number of independent units behind it (documents, seeds).
    """

    __pydantic_config__ = STRICT

    low: float
    high: float
    level: float
    method: str
    n: int

    @classmethod
    def of(cls, low: Any, high: Any, level: float, method: str, n: int) -> Interval | None:
        """The interval with these ends; None where they are not finite, since there is none."""
        ends = float(low), float(high)
        return cls(*ends, level, method, int(n)) if all(map(math.isfinite, ends)) else None


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number with its meaning.

    Args:
        name: Identifier within the result.
        value: The number; NaN where it is not defined.
        unit: ``"fraction"``, ``"count"``, ``"seconds"``, ... Empty when it has none.
        direction: Which direction is better, or ``"none"``.
        definition: One sentence, or a formula, that defines the number.
        interval: Its uncertainty, or None where the number is a count or a constant.
        title: What people read in place of the name; empty where the name says it.
    """

    __pydantic_config__ = STRICT

    name: str
    value: float
    unit: str
    direction: Direction
    definition: str
    interval: Interval | None = None
    title: str = ""


def format_number(value: float, unit: str) -> str:
    """Format a number for people: fractions as percent, counts with separators.

    A fraction just below 100 % is never rounded up to 100 %, nor a tiny one down to 0 %: the
    difference between "always" and "almost always" is what a reader of sparsity looks for.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "not defined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if unit == "fraction":
        percent = 100 * value
        if 0 < percent < 0.01:
            return "< 0.01 %"
        if 99.99 < percent < 100:
            return "> 99.99 %"
        return f"{percent:.2f} %"
    if unit == "count" or (unit in {"tokens", "documents", "units"} and float(value).is_integer()):
        return f"{round(value):,}" if abs(value) < 1e15 else f"{value:.4g}"
    if unit == "seconds":
        return f"{value:.2f} s"
    if unit == "bytes":
        size, names = float(f"{value:.3g}"), ("bytes", "kB", "MB", "GB", "TB")
        power = next((n for n in range(4) if abs(size) < 1000 ** (n + 1)), 4)
        return f"{size / 1000**power:.3g} {names[power]}"
    return f"{value:.4g}" + (f" {unit}" if unit else "")


def format_scalar(scalar: Scalar) -> str:
    """Format a scalar with its interval, for example ``31.20 % [30.90 %, 31.52 %], n = 79``."""
    text = format_number(scalar.value, scalar.unit)
    if scalar.interval is not None:
        i = scalar.interval
        text += f" [{format_number(i.low, scalar.unit)}, {format_number(i.high, scalar.unit)}], n = {i.n}"
    return text


def slug_of(label: str, taken: set[str]) -> str:
    """A label as part of the name of a number, unlike those that are taken, which it joins.

    Example:
        >>> taken = set()
        >>> slug_of("Feature Choice", taken), slug_of("feature-choice", taken)
        ('feature_choice', 'feature_choice_2')
    """
    plain = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:_LONGEST_SLUG].strip("_") or "unnamed"
    found, number = plain, 2
    while found in taken:
        found, number = f"{plain}_{number}", number + 1
    taken.add(found)
    return found
