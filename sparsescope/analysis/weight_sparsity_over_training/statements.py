"""What weight sparsity over training found, in sentences, and the titles of its numbers."""

from __future__ import annotations

import math
from typing import Any

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, rows, said, said_value

TITLES = {
    "checkpoints_with_signal": "Checkpoints with signal",
    "first_signal_step": "First step with signal",
    "last_signal_step": "Last step with signal",
    "loss_last": "Loss, last checkpoint",
    "loss_chance": "Loss at chance",
    "memorized_step": "Step of memorization",
    "generalized_step": "Step of generalization",
}
_MIDDLE = 0.05
_RANDOM = "Random"


def main_rules(result: Result) -> list[str]:
    """The tolerances that figures and sentences take: the one in nats that is nearest to 0.05, and the first
    share of the gain.
    """
    table = result.tables.get("drop_points")
    found = list(dict.fromkeys(table["rule"])) if table is not None else []
    nats = [rule for rule in found if rule.startswith("+")]
    middle = sorted(nats, key=lambda rule: abs(float(rule.split()[0]) - _MIDDLE))[:1]
    return middle + [rule for rule in found if rule not in nats][:1]


def main_curve(result: Result) -> str:
    """Title of the curve that was named first."""
    table = result.tables.get("excess")
    return str(table["curve"].iloc[0]) if table is not None and len(table) else ""


def statements(result: Result) -> list[Statement]:
    """What can go at the end, how that came about, and whether it came abruptly."""
    last = result.scalars.get("last_signal_step")
    if last is None or not math.isfinite(last.value):
        text = (
            "No drop point: no checkpoint has a loss on this probe that is below chance, so pruning has "
            "nothing to break."
        )
        return [Statement(text, "drop_points", ("loss_last", "loss_chance"))]
    return [*_end(result, int(last.value)), *_course(result), *_abrupt(result)]


def _scalar(result: Result, stem: str, rule: str, curve: str) -> Scalar | None:
    """The scalar of a curve at a tolerance, which its name and definition say."""
    number = rule.split()[0].removeprefix("+")
    ending = f"_at_{number}" if rule.startswith("+") else f"_at_{float(number) / 100:g}_of_gain"
    for name, scalar in result.scalars.items():
        if (
            name.startswith(stem)
            and name.endswith(ending)
            and f"to zero by {curve} with" in scalar.definition
        ):
            return scalar
    return None


def _phrase(rule: str) -> str:
    return f"{rule.removeprefix('+')} on chance" if "gain" in rule else rule.removeprefix("+")


def _points(scalar: Scalar) -> str:
    """A difference of shares in percentage points, with its interval."""
    ends = scalar.interval
    between = f" [{100 * ends.low:+.1f}, {100 * ends.high:+.1f}]" if ends is not None else ""
    return f"{100 * scalar.value:+.1f}{between} points"


def _end(result: Result, step: int) -> list[Statement]:
    rule, curve = main_rules(result)[0], main_curve(result)
    own, null, excess = (
        _scalar(result, stem, rule, name)
        for stem, name in (("sparsity_last_", curve), ("sparsity_last_", _RANDOM), ("excess_", curve))
    )
    if own is None or null is None or excess is None:
        return []
    bound = rows(result, "drop_points", step=step, rule=rule, curve=curve)
    at_least = (
        "at least " if bound is not None and str(bound["censored"].iloc[0]).startswith("at least") else ""
    )
    text = (
        f"At step {step:,} {curve.lower()} can set {at_least}{said(own)} of the block weights to zero before "
        f"the loss rises by {_phrase(rule)} ({basis(own)}); random masks {said(null)}, a difference of "
        f"{_points(excess)}."
    )
    return [Statement(text, "excess", (own.name, excess.name))]


def _course(result: Result) -> list[Statement]:
    parts, names, curve = [], [], main_curve(result)
    for rule in main_rules(result):
        first, change, null = (
            _scalar(result, stem, rule, name)
            for stem, name in (("sparsity_first_", curve), ("change_", curve), ("change_", _RANDOM))
        )
        if first is None or change is None or null is None:
            continue
        parts.append(
            f"at a tolerance of {_phrase(rule)} the drop point {_verb(change)} {_points(change)} from "
            f"{said_value(first)}, that of random masks {_points(null)}"
        )
        names += [change.name]
    found = defined(result, "checkpoints_with_signal", "first_signal_step", "last_signal_step")
    if not parts or found is None or found[0].value < 2:
        return []
    text = f"From step {int(found[1].value):,}, the first with signal, to {int(found[2].value):,} "
    text += "; ".join(parts) + " (one training run)."
    generalized = defined(result, "generalized_step")
    if generalized is not None:
        text += f" The run generalizes at step {int(generalized[0].value):,}."
    return [Statement(text, "drop_points", (*names, "checkpoints_with_signal"))]


def _verb(change: Scalar) -> str:
    """The direction of a paired change, as far as its interval allows."""
    ends = change.interval
    if ends is None or ends.low <= 0 <= ends.high:
        return "shows no change,"
    return "falls," if change.value < 0 else "rises,"


def _abrupt(result: Result) -> list[Statement]:
    table = rows(result, "abruptness", curve=main_curve(result), rule=main_rules(result)[0])
    if table is None:
        return []
    row: Any = next(table.itertuples())
    verdict = str(row.verdict)
    if verdict.startswith("needs"):
        return [Statement(f"Whether it comes abruptly cannot be said: that {verdict}.", "drop_points")]
    if not math.isfinite(row.jump):
        return [Statement("Nothing comes abruptly: the drop point never rises.", "drop_points")]
    text = (
        f"The largest rise between neighboring checkpoints, from step {int(row.before):,} to "
        f"{int(row.after):,}, is {100 * row.jump:.1f} points [{100 * row.jump_low:.1f}, "
        f"{100 * row.jump_high:.1f}], {100 * row.beyond_random:.1f} more than random masks, "
        f"{100 * row.share:.0f} % of all changes (p = {row.p_value:.2g} in "
        f"gradual courses, {row.checkpoints} checkpoints): {verdict.split(':')[0]}."
    )
    return [Statement(text, "drop_points")]
