"""Claims of a study, checked: what was claimed, what was measured, and whether it holds.

A claim holds if the measured number satisfies its relation; whether the interval around the number leaves
room for the opposite is said beside it (``decided``). A ratio of two runs (of two subjects, or with other
parameters) gets the range of its ends: lower end / upper end to upper end / lower end, which is wide,
because the two intervals come from the same documents. A claim that fails is reported as such; one that
cannot be checked says why.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sparsescope.core.numbers import Scalar, format_number
from sparsescope.core.result import Result
from sparsescope.errors import near_matches

if TYPE_CHECKING:
    from sparsescope.runner.study import Study, StudyFinding, StudyResult

Status = Literal["holds", "does not hold", "not checked"]
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_WORDS = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}


@dataclass(frozen=True, slots=True)
class CheckedFinding:
    """A checked claim.

    Attributes:
        label: The claim in the words of the study.
        claim: The claim as it was checked.
        measured: The numbers with their intervals, or why there are none.
        status: Whether the measured number satisfies the claim.
        decided: Whether the whole interval says the same; None where there is no interval.
        value: The number that was compared: the scalar, or the ratio of two.
        low: Lower end of its interval; NaN where there is none.
        high: Upper end.
        n: Independent units behind the interval (documents); None where there is none.
        reading: What the study says about the outcome.
    """

    label: str
    claim: str
    measured: str
    status: Status
    decided: bool | None = None
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    reading: str = ""

    def _repr_html_(self) -> str:
        """Draw the checked claim in a notebook."""
        from sparsescope.runner.study_html import finding_html

        return finding_html(self)


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    unit: str
    low: float = math.nan
    high: float = math.nan
    n: int | None = None

    def text(self) -> str:
        shown = format_number(self.value, self.unit)
        if self.n is None:
            return f"{shown}, no interval"
        return (
            f"{shown} [{format_number(self.low, self.unit)}, "
            f"{format_number(self.high, self.unit)}], n = {self.n}"
        )


class _Missing(Exception):
    """Why a claim cannot be checked; it never leaves this file."""


def check(finding: StudyFinding, outcome: StudyResult) -> CheckedFinding:
    """Check one claim.

    Args:
        finding: The claim.
        outcome: The runs of the study.
    """
    quantity = finding.scalar.replace("_", " ") + (
        f" / {finding.per.replace('_', ' ')}" if finding.per else ""
    )
    study = outcome.study
    whose = f"{quantity} of {_run(study, finding.subject, finding.analysis)}"
    try:
        first = _number(finding, finding.subject, finding.analysis, outcome)
        if not finding.compares:
            claim = f"{whose} {_bound(finding, first.unit)}"
            return _judge(finding, claim, first.text(), first)
        other = finding.other_subject or finding.subject, finding.other_analysis or finding.analysis
        claim = f"{whose} {_WORDS[finding.relation]} {finding.times or 0.0:g} × that of {_run(study, *other)}"
        second = _number(finding, *other, outcome)
        ratio = _ratio(first, second)
        low, high = format_number(ratio.low, ""), format_number(ratio.high, "")
        ends = f" [{low}, {high}]" if ratio.n is not None else ", no interval"
        measured = f"{first.text()} against {second.text()}: ratio {format_number(ratio.value, '')}{ends}"
        return _judge(finding, claim, measured, ratio)
    except _Missing as why:
        return CheckedFinding(finding.label, whose, str(why), "not checked", reading=finding.reading)


def _run(study: Study, subject: str, id: str) -> str:
    """The run in the words of the study."""
    return study.subject(subject).title + study.suffix(id)


def _judge(finding: StudyFinding, claim: str, measured: str, number: _Number) -> CheckedFinding:
    if not math.isfinite(number.value):
        return CheckedFinding(
            finding.label, claim, f"{measured}: no finite number", "not checked", reading=finding.reading
        )
    side = _side(finding, number.value)
    decided = None
    if number.n is not None:
        decided = _side(finding, number.low) == side == _side(finding, number.high)
    return CheckedFinding(
        finding.label, claim, measured, "holds" if side == 0 else "does not hold", decided,
        number.value, number.low, number.high, number.n, finding.reading,
    )  # fmt: skip


def _side(finding: StudyFinding, value: float) -> int:
    """0 where the claim holds of ``value``; otherwise on which side of the claimed range it lies."""
    if isinstance(finding.value, list):
        return 0 if finding.value[0] <= value <= finding.value[1] else 1 if value > finding.value[1] else -1
    bound = finding.value if finding.value is not None else finding.times or 0.0
    return 0 if _RELATIONS[finding.relation](value, bound) else 1


def _bound(finding: StudyFinding, unit: str) -> str:
    if isinstance(finding.value, list):
        return f"between {format_number(finding.value[0], unit)} and {format_number(finding.value[1], unit)}"
    return f"{_WORDS[finding.relation]} {format_number(float(finding.value or 0.0), unit)}"


def _number(finding: StudyFinding, subject: str, id: str, outcome: StudyResult) -> _Number:
    """The scalar of one run, divided by its scalar ``per`` where there is one."""
    result = outcome.result(subject, id)
    if result is None:
        raise _Missing(f"{_run(outcome.study, subject, id)} was not measured")
    scalar = _scalar(result, finding.scalar)
    ends = scalar.interval
    whole = _Number(scalar.value, scalar.unit, *((ends.low, ends.high, ends.n) if ends else ()))
    if finding.per is None:
        return whole
    part = _scalar(result, finding.per)
    if not part.value:
        raise _Missing(f"{finding.per} is zero")
    unit = "fraction" if scalar.unit == part.unit else ""
    if part.interval is not None or ends is None:  # of a quotient of two estimates there is no interval
        return _Number(scalar.value / part.value, unit)
    low, high = sorted((ends.low / part.value, ends.high / part.value))
    return _Number(scalar.value / part.value, unit, low, high, ends.n)


def _scalar(result: Result, name: str) -> Scalar:
    if name not in result.scalars:
        near = near_matches(name, result.scalars)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise _Missing(f"{result.analysis} has no number called {name}{hint}")
    return result.scalars[name]


def _ratio(first: _Number, second: _Number) -> _Number:
    if not second.value > 0:
        raise _Missing(
            "a ratio needs a positive number to compare with; it is "
            f"{format_number(second.value, second.unit)}"
        )
    value = first.value / second.value
    if first.n is None or second.n is None or second.low <= 0:
        return _Number(value, "")
    corners = [a / b for a in (first.low, first.high) for b in (second.low, second.high)]
    return _Number(value, "", min(corners), max(corners), min(first.n, second.n))
