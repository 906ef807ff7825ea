"""The declared views of attention_sparsity: right numbers, few marks, no crash on the shapes that occur."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.analysis.attention_sparsity import ANALYSIS
from sparsescope.analysis.attention_sparsity.views import parts
from sparsescope.reporting.page import figure_json
from sparsescope.testing import check_figure
from sparsescope.viz.figure import MAX_MARKS, mark_count

VIEWS = [view.name for view in ANALYSIS.views]
FEW = {
    "windows": 4,
    "dose_windows": 2,
    "dose_shares": (0.5, 0.9),
    "dose_widths": (16,),
    "resamples": 100,
    "t_min": 8,
}


@pytest.fixture(scope="module")
def result(small_corpus):
    return ss.run("attention_sparsity", ss.load("random-llama"), small_corpus, **FEW)


def check(figure, name):
    check_figure(figure, name)
    assert mark_count(figure) <= MAX_MARKS
    assert {trace.type for trace in figure.data} <= {"scatter", "bar", "heatmap"}
    json.loads(figure_json(figure), parse_constant=lambda constant: pytest.fail(constant))


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_of_a_result(result, view):
    figure = ANALYSIS.draw(view, result)
    check(figure, view)
    assert (
        figure.layout.title.text.startswith("<b>")
        and "nan" not in figure.layout.title.text + figure.layout.meta["alt"]
    )


@pytest.mark.parametrize("view", VIEWS)
def test_views_without_intervals_and_without_a_dose(view):
    words = "one two three four five six seven eight nine ten " * 12
    alone = ss.run(
        "attention_sparsity",
        ss.load("random-llama"),
        ss.corpus([words], context=64),
        **{**FEW, "dose_windows": 0},
    )
    assert alone.tables["per_layer"]["low"].isna().all()
    check(ANALYSIS.draw(view, alone), view)


@pytest.mark.parametrize("view", VIEWS)
def test_views_draw_references_that_are_missing(result, view):
    changed = copy.deepcopy(result)
    for name in ("per_layer", "per_head", "by_length"):
        changed.tables[name][["low", "high", "uniform", "null"]] = np.nan
    changed.tables["critical"][["sparsity", "low", "high"]] = np.nan
    changed.tables["critical"]["right_censored"] = "yes"
    check(ANALYSIS.draw(view, changed), view)


def test_numbers_in_the_figures_are_those_of_the_tables(result):
    heat = ANALYSIS.draw("entropy_grid", result).data[0]
    row = (
        result.tables["per_head"].query("layer == 2 and head == 1 and metric == 'entropy_normalized'").iloc[0]
    )
    assert heat.z[1][2] == row["mean"] and heat.customdata[1][2].endswith(parts.percent(row["mean"]))
    bars = ANALYSIS.draw("mass_profile", result).data
    np.testing.assert_allclose(np.sum([bar.y for bar in bars], axis=0), 1)
    lines = {trace.name: trace for trace in ANALYSIS.draw("dose_response", result).data if trace.name}
    table = result.tables["dose_response"].query("rule == 'top-p'").sort_values("sparsity")
    np.testing.assert_array_equal(lines["top-p of the mass"].y, table["rise"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.12345, "12.3 %"),
        (0.999, "99.90 %"),
        (np.nan, "–"),
        (1e-6, "under 0.01 %"),
    ],
)
def test_percent(value, text):
    assert parts.percent(value) == text
