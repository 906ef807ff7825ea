"""Claims against numbers that are known: each relation, ratios, intervals that reach over a
bound, what is missing.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.runner.findings import check
from sparsescope.runner.study import Declaration, Study, StudyFinding, StudyResult, StudyRun


def outcome(*, ids=("a",), **numbers):
    """Subjects by name with their scalars ``{name: (value, low, high)}`` or ``{name: value}``; by
    ``subject_id`` with several.
    """
    subjects = [{"name": name} for name in dict.fromkeys(name.partition("_")[0] for name in numbers)]
    analyses = [{"name": "a"} if id == "a" else {"name": "a", "id": id} for id in ids]
    declared = Declaration.model_validate(
        {"name": "toy", "title": "t", "question": "q", "subject": subjects, "analysis": analyses}
    )
    runs = []
    for subject, id in itertools.product(declared.subjects, ids):
        result = Result("a")
        for name, given_value in numbers.get(f"{subject.name}_{id}", numbers.get(subject.name, {})).items():
            value, *ends = given_value if isinstance(given_value, tuple) else (given_value,)
            interval = Interval(*ends, 0.95, "bootstrap", 12) if ends else None
            result.add_scalar(name, value, "fraction" if name != "odd" else "bytes", "d", interval=interval)
        runs.append(StudyRun(subject, "a", result, id=id))
    return StudyResult(Study(Path("study.toml"), declared), runs)


def claim(relation, **rest):
    return StudyFinding.model_validate(
        {"label": "l", "analysis": "a", "scalar": "s", "subject": "x", "relation": relation} | rest
    )


@pytest.mark.parametrize(
    ("relation", "value", "status", "decided"),
    [
        ("<", 0.5, "holds", True),
        ("<", 0.2, "does not hold", False),
        ("<=", 0.2, "holds", False),
        (">", 0.1, "holds", True),
        (">=", 0.3, "does not hold", True),
        ("between", [0.1, 0.25], "holds", True),
        ("between", [0.195, 0.25], "holds", False),
        ("between", [0.3, 0.4], "does not hold", True),
        ("between", [0.205, 0.207], "does not hold", False),
    ],
)
def test_a_number_against_a_constant(relation, value, status, decided):
    found = check(claim(relation, value=value), outcome(x={"s": (0.2, 0.19, 0.21)}))
    assert (found.status, found.decided, found.n) == (status, decided, 12)
    assert "20.00 % [19.00 %, 21.00 %], n = 12" in found.measured


def test_without_an_interval_nothing_is_decided():
    found = check(claim("<", value=0.5), outcome(x={"s": 0.2}))
    assert found.status == "holds" and found.decided is None and "no interval" in found.measured


def test_a_quotient_of_two_numbers_of_one_subject():
    found = check(claim("<=", value=0.04, per="units"), outcome(x={"s": (2, 1, 3), "units": 100}))
    assert found.value == 0.02 and (found.low, found.high) == (0.01, 0.03) and found.decided
    both = check(claim("<=", value=0.04, per="units"), outcome(x={"s": (2, 1, 3), "units": (100, 90, 110)}))
    assert both.decided is None, "of a quotient of two estimates there is no interval"


positive = st.floats(0.01, 100)


@given(positive, positive, positive, positive, positive, positive)
def test_the_range_of_a_ratio_holds_every_quotient_of_the_ends(a, b, c, d, e, f):
    (low, value, high), (low2, value2, high2) = sorted((a, b, c)), sorted((d, e, f))
    numbers = outcome(x={"s": (value, low, high)}, y={"s": (value2, low2, high2)})
    found = check(claim("<=", times=1.0, other_subject="y"), numbers)
    quotients = [p / q for p, q in itertools.product((low, value, high), (low2, value2, high2))]
    assert found.low == pytest.approx(min(quotients)) and found.high == pytest.approx(max(quotients))
    assert (found.status == "holds") == (value / value2 <= 1.0)


@given(positive, positive, st.sampled_from([0.25, 2.0, 8.0]))
def test_a_ratio_does_not_depend_on_the_unit(a, b, scale):
    first, second = (
        check(claim("<", times=0.5, other_subject="y"), outcome(x={"s": k * a}, y={"s": k * b}))
        for k in (1.0, scale)
    )
    assert first.status == second.status and first.value == second.value


@pytest.mark.parametrize(
    ("numbers", "rest", "said"),
    [
        ({"x": {"s_": 1.0}}, {"value": 1.0}, "near: s_"),
        ({"x": {"s": float("nan")}}, {"value": 1.0}, "no finite number"),
        ({"x": {"s": 1.0, "n": 0.0}}, {"value": 1.0, "per": "n"}, "n is zero"),
        ({"x": {"s": 1.0}, "y": {"s": 0.0}}, {"times": 1.0, "other_subject": "y"}, "positive number"),
    ],
)
def test_what_cannot_be_checked_says_why(numbers, rest, said):
    found = check(claim("<", **rest), outcome(**numbers))
    assert found.status == "not checked" and said in found.measured


def test_two_runs_of_one_analysis_with_other_parameters():
    numbers = outcome(
        ids=("a", "wide"),
        x_a={"s": (0.2, 0.19, 0.21)},
        x_wide={"s": (0.1, 0.09, 0.11)},
        y={"s": (0.4, 0.39, 0.41)},
    )
    found = check(claim("<", times=3.0, other_analysis="wide"), numbers)
    assert (found.status, found.value, found.decided, found.n) == ("holds", 2.0, True, 12)
    assert (
        found.claim == "s of x (a) below 3 × that of x (wide)"
        and "20.00 %" in found.measured
        and "10.00 %" in found.measured
    )
    crossed = check(claim("<", times=0.5, other_subject="y", other_analysis="wide"), numbers)
    assert (
        crossed.status == "does not hold"
        and crossed.value == 0.5
        and crossed.claim.endswith("that of y (wide)")
    )
    assert check(claim("<", analysis="wide", value=0.15), numbers).claim == "s of x (wide) below 15.00 %"
    assert check(claim("<", value=0.15), outcome(x={"s": 0.2})).claim == "s of x below 15.00 %", (
        "one run needs no id"
    )


def test_a_subject_that_failed_leaves_its_claims_unchecked():
    numbers = outcome(x={"s": 1.0})
    numbers.runs[0].result = None
    assert "was not measured" in check(claim("<", value=1.0), numbers).measured
