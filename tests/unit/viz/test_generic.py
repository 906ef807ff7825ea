"""The default figure draws any table that the column kinds allow."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsescope.core.columns import COLUMN_KINDS, INDEX_KINDS, TEXT_KINDS, Column
from sparsescope.core.result import Result
from sparsescope.reporting.page import figure_json
from sparsescope.testing import check_panel
from sparsescope.viz.figure import MAX_MARKS, mark_count
from sparsescope.viz.generic import draw, draw_table
from sparsescope.viz.token_strip import VALUES, is_text

NUMBERS = st.one_of(
    st.floats(width=64), st.integers(-(2**40), 2**40), st.just(float("nan")), st.just(float("inf")), st.none()
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["<b>", "=cmd()", "\u202e", "a", "b"]), st.none())


@st.composite
def tables(draw, kinds=st.lists(st.sampled_from(COLUMN_KINDS), min_size=0, max_size=5), least=0):
    kinds = draw(kinds)
    rows = draw(st.integers(least, 12))
    columns = tuple(Column(f"{kind}_{i}", kind, "Description <i>.", "") for i, kind in enumerate(kinds))
    data = {
        c.name: draw(st.lists(TEXTS if c.kind in TEXT_KINDS else NUMBERS, min_size=rows, max_size=rows))
        for c in columns
    }
    return pd.DataFrame(data, columns=[c.name for c in columns]), columns


@st.composite
def token_tables(draw):
    """Tables of tokens. Of ``tables`` few in a hundred are: the time would go into the others."""
    others = [
        kind
        for kind in COLUMN_KINDS
        if kind not in (INDEX_KINDS - {"position", "token"}) | {"metric", "site"}
    ]
    kinds = st.tuples(st.sampled_from(VALUES), st.lists(st.sampled_from(others), max_size=3))
    frame, columns = draw(
        tables(kinds.map(lambda found: ["token_text", found[0], *found[1]]).flatmap(st.permutations), least=1)
    )
    positions, documents = (
        [column.name for column in columns if column.kind == kind] for kind in ("position", "document")
    )
    if positions:  # drawn at random, two would nearly always be alike
        size = {"min_size": len(frame), "max_size": len(frame)}
        unique = st.lists(NUMBERS, unique_by=lambda n: n if n == n else None, **size)
        counted = st.just(frame.groupby(documents, dropna=False).cumcount()) if documents else unique
        frame[positions[0]] = draw(unique | counted)
    return frame, columns


def check(figure):
    meta = figure.layout.meta
    assert meta["alt"]
    assert figure.layout.title.text
    assert figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text
    assert mark_count(figure) <= MAX_MARKS
    parsed = json.loads(figure_json(figure), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert {trace["type"] for trace in parsed["data"]} <= {"scatter", "bar", "heatmap"}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_any_table_gives_a_valid_figure(table):
    check(draw_table("any <b>table</b>", *table))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(token_tables().filter(lambda table: is_text(*table)))
def test_any_table_of_tokens_gives_a_valid_panel(table):
    made = Result("any")
    made.add_table("t", *table)
    panel = draw(made, "t")
    check_panel(panel)
    assert sum("data-mark" in tag.attributes for top in panel.body for tag in top) <= len(table[0])


def columns(*pairs):
    return tuple(Column(name, kind, f"The {name}.") for name, kind in pairs)


def test_layers_and_metrics_give_one_line_each():
    frame = pd.DataFrame({"layer": [0, 1] * 2, "metric": ["x", "x", "y", "y"], "mean": [0.1, 0.2, 0.3, 0.4]})
    figure = draw_table("t", frame, columns(("layer", "layer"), ("metric", "metric"), ("mean", "fraction")))
    check(figure)
    assert [trace.name for trace in figure.data] == ["x", "y"]
    assert figure.layout.yaxis.title.text == "mean"


def test_a_site_that_names_the_layer_gives_one_line():
    frame = pd.DataFrame({"layer": [0, 1, 2], "site": ["a0", "a1", "a2"], "value": [1.0, 2.0, 3.0]})
    figure = draw_table("t", frame, columns(("layer", "layer"), ("site", "site"), ("value", "value")))
    assert len(figure.data) == 1
    assert len(figure.data[0].x) == 3


def test_layer_by_head_is_a_heat_map():
    frame = pd.DataFrame(
        [(a, b, a * b / 20) for a in range(4) for b in range(5)], columns=["layer", "head", "value"]
    )
    figure = draw_table("t", frame, columns(("layer", "layer"), ("head", "head"), ("value", "value")))
    check(figure)
    assert figure.data[0].type == "heatmap"
    assert np.asarray(figure.data[0].z).shape == (4, 5)


def test_labels_without_an_index_are_bars_with_the_longest_first():
    frame = pd.DataFrame({"label": ["a", "<b>", "c"], "count": [1, 3, 2]})
    figure = draw_table("t", frame, columns(("label", "label"), ("count", "count")))
    assert list(figure.data[0].y) == ["‹b›", "c", "a"]


@pytest.mark.parametrize("values", [[], [math.nan, math.nan], [math.inf, -math.inf], ["x", "y"]])
def test_nothing_to_draw_is_said(values):
    figure = draw_table("t", pd.DataFrame({"value": values}), columns(("value", "value")))
    check(figure)
    assert "no" in figure.layout.annotations[0].text


def test_a_large_table_is_thinned():
    frame = pd.DataFrame({"neuron": range(50_000), "value": np.linspace(0, 1, 50_000)})
    figure = draw_table("t", frame, columns(("neuron", "neuron"), ("value", "value")))
    check(figure)
    assert figure.data[0].x[-1] == 49_999


def test_hostile_names_are_not_markup(synthetic):
    frame = pd.DataFrame(
        {"layer": [0, 1] * len(synthetic.HOSTILE), "domain": [h for h in synthetic.HOSTILE for _ in "ab"]}
    )
    frame["mean"] = 0.5
    figure = draw_table("t", frame, columns(("layer", "layer"), ("domain", "domain"), ("mean", "fraction")))
    for trace in figure.data:
        assert not set(trace.name) & set("<>&$")
