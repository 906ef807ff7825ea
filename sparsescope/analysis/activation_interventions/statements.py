"""What interventions on hidden units found, in sentences, and the titles of their numbers."""

from __future__ import annotations

import re

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, rows, said

TITLES = {
    "loss_rise_top_k": "Loss rise, largest units kept",
    "loss_rise_random_k": "Loss rise, random units kept",
    "ece_dense": "Calibration error, untouched",
    "ece_top_k": "Calibration error, sparse",
    "robustness_excess": "Excess loss on corrupted input",
}
_KEPT = re.compile(r"with ([\d.]+) of the units")


def statements(result: Result) -> list[Statement]:
    """What keeping the largest units does to loss, calibration and robustness."""
    return [*_loss(result), *_calibration(result), *_robustness(result)]


def _kept(scalar: Scalar) -> str:
    """The share of the units that a number is about, as its definition says it."""
    found = _KEPT.search(scalar.definition)
    return f"{100 * float(found[1]):g} %" if found else "the stated share"


def _loss(result: Result) -> list[Statement]:
    found = defined(result, "loss_rise_top_k", "loss_rise_random_k")
    if found is None:
        return []
    top, random = found
    text = (
        f"Keeping the largest {_kept(top)} of the hidden units on every token changes the loss by "
        f"{said(top)}, as many random ones by {said(random)} ({basis(top)}): {_ranking(top, random)}."
    )
    return [Statement(text, "loss_curve", ("loss_rise_top_k", "loss_rise_random_k"))]


def _ranking(top: Scalar, random: Scalar) -> str:
    """Whether the ranking by size is worth anything, as far as the intervals tell."""
    if top.interval is None or random.interval is None:
        return "without intervals this is no finding"
    if top.interval.high < random.interval.low:
        return "size tells which units matter"
    return "that size tells which units matter is not shown"


def _calibration(result: Result) -> list[Statement]:
    found = defined(result, "ece_dense", "ece_top_k")
    if found is None:
        return []
    dense, top = found
    text = (
        f"The calibration error is {said(dense)} for the untouched model and {said(top)} for the sparse one"
    )
    table = rows(result, "calibration", model="dense")
    if table is not None and "null" in table:
        text += (
            "; a perfectly calibrated model would show "
            f"{100 * float(table['null'].iloc[0]):.2f} % on as many tokens"
        )
    return [Statement(f"{text} ({basis(dense)}).", "calibration", ("ece_dense", "ece_top_k"))]


def _robustness(result: Result) -> list[Statement]:
    found = defined(result, "robustness_excess")
    if found is None:
        return []
    excess, ends = found[0], found[0].interval
    if ends is None:
        reading = "without an interval this is no finding"
    elif ends.low <= 0 <= ends.high:
        reading = "a difference in robustness is not shown"
    else:
        reading = f"the sparse model is {'less' if excess.value > 0 else 'more'} robust"
    text = (
        f"Corrupted input raises the loss of the sparse model by {said(excess)} relative to the untouched one"
    )
    return [Statement(f"{text} ({basis(excess)}): {reading}.", "robustness", ("robustness_excess",))]
