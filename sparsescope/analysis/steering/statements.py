"""What ``steering`` found, in sentences."""

from __future__ import annotations

import math
from typing import Any

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows

TITLES = {"lift_{}": "Lift, {}", "contrast_{}": "Contrast, {}"}
_CHOSEN = "chosen on training documents"


def statements(result: Result) -> list[Statement]:
    """How much each method steers beside random directions, and whether directions tell their concepts."""
    return [*_contrast(result), *_lift(result), *_detection(result)]


def _contrast(result: Result) -> list[Statement]:
    table = rows(result, "methods", target=_CHOSEN)
    if table is None or not len(table):
        return []
    ordered: list[Any] = sorted(table.itertuples(), key=lambda row: -row.contrast)
    parts = [
        f"{row.method} {row.contrast:+.3f} [{row.contrast_low:+.3f}, {row.contrast_high:+.3f}]"
        for row in ordered
    ]
    text = (
        "Adding against subtracting a direction lifts text of its concept over other text, nats a token at "
        f"equal KL divergence, by {'; '.join(parts)} (n = {int(table['concepts'].iloc[0])} concepts)."
    )
    named = tuple(name for name in result.scalars if name.startswith("contrast_"))
    return [Statement(f"{text} {_verdict(result, ordered)}".rstrip(), "contrasts", named[:4])]


def _lift(result: Result) -> list[Statement]:
    table = rows(result, "methods", target=_CHOSEN)
    if table is None or not len(table):
        return []
    ordered: list[Any] = sorted(table.itertuples(), key=lambda row: -row.lift)
    parts = [f"{row.method} {row.lift:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" for row in ordered]
    text = (
        f"The best of {int(ordered[0].tries)} tries on training documents lifts other text of the concept by "
        f"{'; '.join(parts)}."
    )
    return [Statement(text, "lifts", ())]


def _verdict(result: Result, ordered: list[Any]) -> str:
    """Which methods are told apart from random directions, and whether the best is from the second."""
    pairs = rows(result, "comparisons", target=_CHOSEN, measure="contrast")
    if pairs is None:
        return ""
    apart = [
        row.first
        for row in pairs.itertuples()
        if row.second == "random" and math.isfinite(row.low) and row.low > 0
    ]
    text = f"Above random directions: {', '.join(apart) or 'none'}."
    first, second = ordered[0].method, ordered[1].method
    for row in pairs.itertuples():
        if {row.first, row.second} == {first, second}:
            told = row.low > 0 or row.high < 0
            text += f" {first} is {'' if told else 'not '}told apart from {second}."
    return text


def _detection(result: Result) -> list[Statement]:
    table = rows(result, "detection")
    if table is None:
        return []
    parts = [f"{row.method} {row.auroc:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in table.itertuples()]
    text = (
        "Documents of a concept are told from others by the direction, area under the ROC curve: "
        f"{'; '.join(parts)}."
    )
    return [Statement(text, "detection", ())]
