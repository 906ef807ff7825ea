"""What sparsity over training found, in sentences, and the titles of its numbers.

Exact zeros lead only where there are some: of SwiGLU and GELU the energy sets do.
"""

from __future__ import annotations

import re

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said, said_value

TITLES = {
    f"{stem}_{part}": f"{what}, {when}"
    for stem, what in {"nonzero": "Nonzero units", "density_energy": "Energy set"}.items()
    for part, when in {
        "first": "first checkpoint",
        "last": "last checkpoint",
        "control_first": "first, shuffled",
        "control_last": "last, shuffled",
        "change": "last minus first",
        "lowest": "smallest",
        "lowest_step": "step of the smallest",
    }.items()
} | {
    "dead_first": "Dead units, first checkpoint",
    "dead_last": "Dead units, last checkpoint",
    "loss_first": "Loss, first checkpoint",
    "loss_last": "Loss, last checkpoint",
    "unigram_margin": "Least gain on a unigram model",
    "trigram_margin": "Least gain on a trigram model",
    "push_first": "Gradient on active units, first",
    "push_last": "Gradient on active units, last",
    "documents": "Documents",
}
_NEARLY_ALL = 0.98
_STEP = re.compile(r"step (\d+)")
_SHARE = re.compile(r"holds (\d+)\s?%")


def statements(result: Result) -> list[Statement]:
    """How the density changed, what the loss did meanwhile, and whether the gradient shrinks active units."""
    return [*_density(result), *_loss(result), *_push(result)]


def _density(result: Result) -> list[Statement]:
    zeros = defined(result, "nonzero_first", "nonzero_last")
    exact = zeros is not None and min(zero.value for zero in zeros) <= _NEARLY_ALL
    stem = "nonzero" if exact else "density_energy"
    found = defined(result, f"{stem}_first", f"{stem}_last", f"{stem}_change")
    if found is None:
        return []
    first, last, change = found
    share = _SHARE.search(first.definition)
    what = (
        "that are not zero"
        if exact
        else f"that hold {share[1] if share else 'the stated'} % of a token's energy"
    )
    text = (
        f"From step {_step(first)} to step {_step(last)} the share of hidden units {what} {_course(change)} "
        f"from {said(first)} to {said(last)} ({basis(change)}, one training run)."
    )
    control = defined(result, f"{stem}_control_last")
    if control is not None:
        beyond = (
            "learned directions and thresholds make the difference"
            if _beyond(last, control[0])
            else "no difference is shown"
        )
        text += f" With shuffled input weights the last checkpoint has {said_value(control[0])}: {beyond}."
    named = (last.name, first.name, *([control[0].name] if control else []), "dead_last")
    return [Statement(text, "density", named)]


def _step(scalar: Scalar) -> str:
    """The step of the checkpoint, as the definition says it."""
    found = _STEP.search(scalar.definition)
    return f"{int(found[1]):,}" if found else "?"


def _course(change: Scalar) -> str:
    """The direction of a paired change, as far as its interval allows."""
    ends = change.interval
    if change.value == 0 or (ends is not None and ends.low <= 0 <= ends.high):
        return "shows no change,"
    return "falls" if change.value < 0 else "rises"


def _beyond(last: Scalar, control: Scalar) -> bool:
    """Whether the interval of a density leaves out that of its control."""
    return last.interval is not None and not last.interval.low <= control.value <= last.interval.high


def _loss(result: Result) -> list[Statement]:
    found = defined(result, "loss_first", "loss_last")
    if found is None:
        return []
    first, last = found
    text = f"Meanwhile the loss goes from {said(first)} to {said(last)} ({basis(last)})"
    margin = defined(result, "trigram_margin")
    if margin is not None:
        side = "below" if margin[0].value > 0 else "above"
        size = said_value(Scalar("", abs(margin[0].value), margin[0].unit, "none", ""))
        text += f"; in its worst domain the last checkpoint is {size} {side} a trigram model"
    return [Statement(f"{text}.", "losses", ("loss_last", *(s.name for s in margin or ())))]


def _push(result: Result) -> list[Statement]:
    found = defined(result, "push_first", "push_last")
    if found is None:
        return []
    first, last = found
    reading = {
        1: "descent shrinks active units",
        -1: "descent grows active units",
        0: "no direction is shown",
    }
    text = (
        f"The mean gradient along active units, relative to its size, is {said(first)} at the first "
        f"checkpoint ({reading[_sign(first)]}) and {said(last)} at the last "
        f"({reading[_sign(last)]}; {basis(last)})."
    )
    return [Statement(text, "push", ("push_first", "push_last"))]


def _sign(scalar: Scalar) -> int:
    """1 or -1 where the interval does not reach zero; 0 where it does, or where there is none."""
    ends = scalar.interval
    return 0 if ends is None else int(ends.low > 0) - int(ends.high < 0)
