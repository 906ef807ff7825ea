"""Comparisons: deltas, verdicts, aligned tables, only the settings that differ."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import SpecError
from sparsescope.reporting.compare import ABSENT, compare, format_delta


def result(**scalars):
    made = Result("activation_sparsity")
    made.provenance = {
        "params": {"seed": 0},
        "subject": {"id": "a"},
        "corpus": {"name": "c"},
        "environment": {"torch": "2.13"},
    }
    for name, (value, direction) in scalars.items():
        made.add_scalar(name, value, "fraction", "d", direction=direction)
    return made


def test_different_analyses_are_refused():
    with pytest.raises(SpecError, match="same analysis"):
        compare(Result("a"), Result("b"))


def test_equal_results_differ_in_nothing(synthetic):
    a, b = (synthetic.activation_result(layers=3) for _ in range(2))
    found = compare(a, b)
    assert found.settings == found.environment == found.notes == ()
    assert {change.verdict for change in found.scalars} == {"same"}
    for table in found.tables:
        assert table.changed().empty, table.name
        assert (table.only_a, table.only_b) == (0, 0)


@pytest.mark.parametrize(
    ("direction", "before", "after", "verdict"),
    [
        ("higher", 0.1, 0.2, "better"),
        ("higher", 0.2, 0.1, "worse"),
        ("lower", 0.2, 0.1, "better"),
        ("lower", 0.1, 0.2, "worse"),
        ("none", 0.1, 0.2, "changed"),
        ("higher", 0.1, 0.1, "same"),
        ("higher", math.nan, 0.1, ""),
    ],
)
def test_verdicts(direction, before, after, verdict):
    change = compare(result(x=(before, direction)), result(x=(after, direction))).scalars[0]
    assert change.verdict == verdict
    assert math.isnan(change.delta) or change.delta == pytest.approx(after - before)


def test_deltas_of_fractions_are_points():
    change = compare(result(x=(0.312, "none")), result(x=(0.301, "none"))).scalars[0]
    assert format_delta(change) == "-1.10 points"


def test_a_scalar_of_one_side_has_no_delta():
    change = compare(result(x=(0.1, "none")), result()).scalars[0]
    assert change.verdict == ""
    assert math.isnan(change.b)
    assert format_delta(change) == "–"


def test_intervals_are_compared_not_judged():
    a, b = Result("x"), Result("x")
    for made, low, high in ((a, 0.1, 0.2), (b, 0.3, 0.4)):
        made.add_scalar("s", (low + high) / 2, "", "d", interval=Interval(low, high, 0.95, "m", 5))
        made.add_scalar("t", 0.2, "", "d", interval=Interval(0.1, 0.3, 0.95, "m", 5))
    found = {change.name: change.apart for change in compare(a, b).scalars}
    assert found == {"s": True, "t": False}


def test_an_input_that_differs_is_listed():
    a, b = result(), result()
    a.provenance["inputs"] = {"dictionary": {"id": "dictionary-0123456789ab"}}
    b.provenance["inputs"] = {"dictionary": {"id": "dictionary-ba9876543210"}}
    (found,) = compare(a, b).settings
    assert (found.name, found.a, found.b) == (
        "inputs.dictionary.id",
        "dictionary-0123456789ab",
        "dictionary-ba9876543210",
    )


def test_only_settings_that_differ_are_listed():
    a, b = result(), result()
    b.provenance = {**b.provenance, "params": {"seed": 1, "new": [1, 2]}, "environment": {"torch": "2.14"}}
    found = compare(a, b)
    assert [(d.name, d.a, d.b) for d in found.settings] == [
        ("params.seed", "0", "1"),
        ("params.new", ABSENT, "1, 2"),
    ]
    assert [d.name for d in found.environment] == ["torch"]


def two_tables(first, second, *columns):
    a, b = Result("x"), Result("x")
    for made, frame in ((a, first), (b, second)):
        made.add_table("t", frame, columns)
    return compare(a, b).tables[0]


LAYER, LABEL = Column("layer", "layer", ""), Column("label", "label", "")
MEAN, COUNT = Column("mean", "fraction", "m"), Column("n", "count", "n", "docs")


def test_tables_are_aligned_on_keys_whatever_the_order():
    first = pd.DataFrame({"layer": [0, 1, 2], "label": ["x"] * 3, "mean": [0.1, 0.2, 0.3], "n": [1, 2, 3]})
    second = pd.DataFrame({"layer": [2, 1, 5], "label": ["x"] * 3, "mean": [0.4, 0.2, 0.9], "n": [3, 2, 1]})
    table = two_tables(first, second, LAYER, LABEL, MEAN, COUNT)
    assert table.keys == ("layer", "label")
    assert (table.only_a, table.only_b) == (1, 1)
    row = table.frame.set_index("layer").loc[2]
    assert row["mean b - a"] == pytest.approx(0.1)
    assert sorted(table.changed()["layer"]) == [0, 2, 5]
    assert [c.name for c in table.columns] == list(table.frame.columns)
    assert "1 rows only in a" in table.summary()


def test_rows_without_unique_keys_are_matched_in_order():
    first = pd.DataFrame({"layer": [0, 0, 1], "mean": [0.1, 0.2, 0.3]})
    second = pd.DataFrame({"layer": [0, 0, 1], "mean": [0.1, 0.5, 0.3]})
    table = two_tables(first, second, LAYER, MEAN)
    assert "order" in table.note
    assert list(table.changed()["mean b - a"].round(6)) == [0.3]


def test_missing_on_both_sides_is_no_difference():
    frame = pd.DataFrame({"layer": [0, 1], "mean": [math.nan, 0.1]})
    assert two_tables(frame, frame.copy(), LAYER, MEAN).changed().empty


def test_a_table_of_one_side_is_noted():
    a, b = Result("x"), Result("x")
    a.add_table("t", pd.DataFrame({"layer": [0]}), (LAYER,))
    assert compare(a, b).notes == ("table 't' is only in a",)
