"""Cells look the same everywhere, and a spreadsheet never runs one."""

from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.core.columns import Column
from sparsescope.viz.tables import csv, format_cell, format_rows, guard, heading


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (0.5, "fraction", "50.00 %"),
        (0.9999999, "fraction", "> 99.99 %"),
        (1.0, "fraction", "100.00 %"),
        (1e-9, "fraction", "< 0.01 %"),
        (0.0, "fraction", "0.00 %"),
        (math.nan, "fraction", "–"),
        (None, "count", "–"),
        (pd.NA, "count", "–"),
        (1234567, "count", "1,234,567"),
        (np.int64(3), "layer", "3"),
        (3.0, "layer", "3"),
        (math.inf, "value", "∞"),
        (-math.inf, "value", "−∞"),
        (1536, "bytes", "1.50 KiB"),
        (12, "bytes", "12 B"),
        (0.1234567, "value", "0.1235"),
        (" the", "token_text", "·the"),
        ("<b>", "label", "<b>"),
        (True, "label", "yes"),
    ],
)
def test_cells_by_kind(value, kind, shown):
    assert format_cell(value, Column("c", kind, "d")) == shown


def test_a_fraction_is_a_percentage_only_where_its_metric_is_a_share():
    column = Column("mean", "fraction", "d")
    assert format_cell(0.61, column, "density_energy_90") == "61.00 %"
    assert format_cell(0.61, column, "gini") == "0.6100"


def test_rows_are_formatted_with_the_metric_of_their_row():
    frame = pd.DataFrame({"metric": ["gini", "density_l1_50"], "mean": [0.5, 0.5]})
    columns = (Column("metric", "metric", ""), Column("mean", "fraction", ""))
    assert format_rows(frame, columns) == [["gini", "0.5000"], ["density l1 50", "50.00 %"]]
    assert format_rows(frame, columns, 1) == [["gini", "0.5000"]]
    assert format_rows(frame.head(0), columns) == []


def test_heading_names_the_unit():
    assert heading(Column("time", "value", "", "tokens")) == "time (tokens)"


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@x", "\tx", "\rx"])
def test_formulas_are_guarded(text):
    assert guard(text) == "'" + text


def test_numbers_are_not_guarded():
    assert guard(-1.5) == -1.5
    text = csv(pd.DataFrame({"value": [-1.5]}), (Column("value", "value", ""),))
    assert text.splitlines()[-1] == "-1.5"


def test_csv_carries_the_run_and_the_units_and_reads_back_equal():
    frame = pd.DataFrame({"label": ['a,"b"', "=x", "line\nbreak"], "time": [0.1, math.nan, 1e-17]})
    columns = (Column("label", "label", ""), Column("time", "value", "", "s"))
    text = csv(frame, columns, comments=["run r-1\nsecond"])
    head = text.splitlines()[:2]
    assert head == ["# run r-1⏎second", "# label [label]; time [value, s]"]
    back = pd.read_csv(io.StringIO(text), skiprows=2)
    assert list(back["label"]) == ['a,"b"', "'=x", "line\nbreak"]
    assert back["time"].equals(frame["time"])


@given(st.lists(st.text(st.characters(codec=None), max_size=20), max_size=8))
def test_no_text_cell_starts_a_formula_and_all_can_be_encoded(texts):
    frame = pd.DataFrame({"label": pd.Series(texts, dtype=object)})
    text = csv(frame, (Column("label", "label", ""),))
    text.encode("utf-8")
    import csv as reader

    lines = text.split("\n", 1)[1]
    for row in list(reader.reader(io.StringIO(lines, newline="")))[1:]:
        assert not row or not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))
