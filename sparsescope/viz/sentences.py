"""Pieces of the sentences of figures: numbers in titles, hover texts and alt texts, and who the figure is about."""

from __future__ import annotations

import math

from sparsescope.core.result import Result, format_number

_DASH = "\N{EN DASH}"


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
    name = str(result.provenance.get("subject", {}).get("id", ""))
    return f"{name}: " if name else ""
