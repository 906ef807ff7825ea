"""Declared tables: shared columns, intervals that know their column, long frames, types without rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparsescope.core.columns import Column, declared_frame
from sparsescope.core.registry import analyses, benchmarks, find_record
from sparsescope.core.result import Result
from sparsescope.core.tables import JACKKNIFED, LAYER, ends_of, grid, with_interval
from sparsescope.errors import SpecError

MEAN = Column("mean", "fraction", "Mean.", "x")
COLUMNS = (LAYER, Column("site", "site", "Site."), *with_interval(MEAN), Column("tokens", "count", "Tokens."))


def test_an_interval_names_its_column():
    assert with_interval(MEAN, JACKKNIFED, "a_", " of it") == (
        MEAN,
        Column(
            "a_low",
            "fraction",
            "Lower end of the jackknife interval over folds of documents of it.",
            "x",
            low_of="mean",
        ),
        Column(
            "a_high",
            "fraction",
            "Upper end of the jackknife interval over folds of documents of it.",
            "x",
            high_of="mean",
        ),
    )
    assert [column.name for column in ends_of(MEAN)] == ["low", "high"]


def test_every_declared_interval_is_of_a_column_of_its_table_and_comes_in_pairs():
    records = [*analyses(), *benchmarks()]
    assert sum(len(record.tables) for record in records) > 30
    for record in records:
        for name, columns in record.tables.items():
            names = [column.name for column in columns]
            assert len(set(names)) == len(names), (record.name, name)
            lows = sorted(column.low_of for column in columns if column.low_of)
            assert lows == sorted(column.high_of for column in columns if column.high_of), (record.name, name)
            assert set(lows) <= set(names), (record.name, name)
            left = [n for n in names if n.rpartition("_")[2] in {"low", "high"}]
            marked = [column.name for column in columns if column.low_of or column.high_of]
            assert set(left) - set(marked) <= {"null_high"}, "an interval that no one finds"


def test_every_view_shows_a_declared_table():
    for record in analyses():
        if record.tables:
            assert {view.table for view in record.views} <= set(record.tables), record.name


def test_a_grid_has_a_row_for_each_cell_the_last_axis_fastest():
    values = np.arange(6).reshape(2, 3)
    frame = grid(
        [{"layer": [4, 5], "site": ["a", "b"]}, {"metric": ["x", "y", "z"]}],
        value=values,
        column=[[7], [8]],
        same=1,
    )
    assert frame.to_dict("list") == {
        "layer": [4, 4, 4, 5, 5, 5],
        "site": ["a"] * 3 + ["b"] * 3,
        "metric": ["x", "y", "z"] * 2,
        "value": list(range(6)),
        "column": [7, 7, 7, 8, 8, 8],
        "same": [1] * 6,
    }


def test_rows_and_frames_come_into_the_declared_order():
    row = {"mean": 0.5, "high": 0.6, "low": 0.4, "site": "a", "layer": 0, "tokens": 3}
    wanted = [0, "a", 0.5, 0.4, 0.6, 3]
    for table in ([row], pd.DataFrame([row]), [tuple(wanted)], (r for r in [row])):
        frame = declared_frame("t", COLUMNS, table, "here")
        assert (
            frame.columns.tolist() == [column.name for column in COLUMNS] and frame.iloc[0].tolist() == wanted
        )


@pytest.mark.parametrize(
    "table", [[], pd.DataFrame(columns=["tokens", "layer", "site", "mean", "high", "low"])]
)
def test_a_table_without_rows_has_the_types_of_its_kinds(table):
    full = declared_frame("t", COLUMNS, [(0, "a", 0.5, 0.4, 0.6, 3)], "here")
    empty = declared_frame("t", COLUMNS, table, "here")
    assert len(empty) == 0
    pd.testing.assert_series_equal(empty.dtypes, full.dtypes)


@pytest.mark.parametrize(
    "table",
    [[{"mean": 0.5}], [(1, 2)], pd.DataFrame({"layer": [0]}), [{c.name: 0 for c in COLUMNS} | {"more": 1}]],
)
def test_other_columns_are_refused(table):
    with pytest.raises(SpecError, match="columns that are declared"):
        declared_frame("t", COLUMNS, table, "here")


def test_a_result_takes_the_tables_of_its_record():
    out = Result("activation_rank")
    out.add("spectrum", [{"components": 1, "energy": 0.5, "site": "a", "layer": 0, "reference": 0.1}])
    assert out.columns["spectrum"] == find_record("activation_rank").tables["spectrum"]
    with pytest.raises(SpecError, match="unknown table 'spectra'"):
        out.add("spectra", [])


def test_an_interval_of_a_column_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match="interval of a column"):
        Result("a").add_table(
            "t", pd.DataFrame({"low": [0.1]}), (Column("low", "value", "Low.", low_of="mean"),)
        )
