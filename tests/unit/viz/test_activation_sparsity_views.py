"""The declared views of activation_sparsity: right numbers, few marks, no crash on the shapes that occur."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from sparsescope.analysis.activation_sparsity import ANALYSIS
from sparsescope.analysis.activation_sparsity.views import parts
from sparsescope.reporting.page import figure_json
from sparsescope.viz.figure import MAX_MARKS, mark_count
from sparsescope.viz.layers import role, series

VIEWS = [view.name for view in ANALYSIS.views]
SHAPES = {
    "smollm2": {"layers": 30},
    "two layers, one document": {"layers": 2, "documents": 1},
    "one layer": {"layers": 1},
    "large relu": {"layers": 80, "relu": True},
    "experts": {"layers": 4, "experts": 64},
    "hostile domains": {"layers": 3, "domains": tuple("<b>{{7*7}}</b>" + str(i) for i in range(12))},
}


@pytest.fixture(scope="module")
def results(synthetic):
    return {name: synthetic.activation_result(**options) for name, options in SHAPES.items()}


def check(figure):
    assert figure.layout.meta["alt"].endswith((".", "measured", "result", "rows"))
    assert figure.layout.title.text
    for axis in [*figure.select_xaxes(), *figure.select_yaxes(col=1)]:
        assert axis.title.text
    assert mark_count(figure) <= MAX_MARKS
    assert {trace.type for trace in figure.data} <= {"scatter", "bar", "heatmap"}
    json.loads(figure_json(figure), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_draws_every_shape(results, view, shape):
    check(ANALYSIS.draw(view, results[shape]))


@pytest.mark.parametrize("view", VIEWS)
def test_views_draw_tables_with_nan_everywhere(synthetic, view):
    result = synthetic.activation_result(layers=3)
    for name in ("per_layer", "by_position", "by_domain", "frequency"):
        frame = result.tables[name]
        measured = [c.name for c in result.columns[name] if c.kind == "fraction" and c.name != "rank"]
        frame[measured] = np.nan
    check(ANALYSIS.draw(view, result))


@pytest.mark.parametrize("view", VIEWS)
def test_views_draw_empty_tables(synthetic, view):
    result = synthetic.activation_result(layers=2)
    result.tables = {name: frame.head(0) for name, frame in result.tables.items()}
    figure = ANALYSIS.draw(view, result)
    assert figure.layout.meta["alt"]


def test_per_layer_draws_the_numbers_of_the_table(results):
    result = results["smollm2"]
    table = result.tables["per_layer"]
    expected = table.loc[table["metric"] == "density_energy_90", "mean"].to_numpy()
    figure = ANALYSIS.draw("per_layer", result)
    lines = [t for t in figure.data if t.name == "90 %" and np.allclose(t.y, expected)]
    assert len(lines) == 1
    assert "11.6–21.3" in figure.layout.title.text
    assert parts.between(table.loc[table["metric"] == "density_energy_90", "mean"]) == "11.6–21.3 %"


def test_swiglu_leaves_the_exact_zero_line_out_and_relu_draws_it(results):
    names = [
        {t.name for t in ANALYSIS.draw("per_layer", results[shape]).data}
        for shape in ("smollm2", "large relu")
    ]
    assert "non-zero" not in names[0]
    assert "non-zero" in names[1]


def test_one_document_has_no_band_and_says_why(results):
    figure = ANALYSIS.draw("per_layer", results["two layers, one document"])
    assert not [t for t in figure.data if t.fill == "toself"]
    assert "no intervals" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_units_that_never_fire_stand_below_the_log_axis(results):
    figure = ANALYSIS.draw("frequency", results["smollm2"])
    axis = figure.layout.yaxis
    assert axis.type == "log"
    assert axis.ticktext[0] == "never"
    lowest = min(np.nanmin(t.y) for t in figure.data if t.y is not None and t.y[0] is not None)
    assert lowest == axis.tickvals[0] > 0
    assert any(t.marker.showscale for t in figure.data), "lines colored by layer need a color bar"


def test_unit_use_stacks_to_one_and_counts_the_dead(results):
    result = results["smollm2"]
    figure = ANALYSIS.draw("unit_use", result)
    total = sum(np.asarray(trace.y, dtype=float) for trace in figure.data)
    assert total == pytest.approx(np.ones(30))
    table = result.tables["unit_use"].query("rule == 'in use'")
    never = next(trace for trace in figure.data if trace.name == "never")
    assert np.asarray(never.y, dtype=float) == pytest.approx((table["dead"] / table["units"]).to_numpy())
    assert f"{int(table['dead'].sum()):,} of {int(table['units'].sum()):,} units" in figure.layout.title.text


def test_an_expert_without_tokens_is_no_dead_unit(synthetic):
    result = synthetic.activation_result(layers=2, experts=2)
    table = result.tables["unit_use"]
    table.loc[table["site"].str.contains("experts.1"), ["tokens", "dead"]] = [0, 1536]
    before = (
        synthetic.activation_result(layers=2, experts=1)
        .tables["unit_use"]
        .query("rule == 'in use'")["dead"]
        .sum()
    )
    assert f"{int(before):,} of {2 * 1536:,} units" in ANALYSIS.draw("unit_use", result).layout.title.text


def test_experts_become_one_median_line_with_a_range(results):
    figure = ANALYSIS.draw("per_layer", results["experts"])
    table = results["experts"].tables["per_layer"].query("metric == 'density_energy_90' and layer == 2")
    line = next(t for t in figure.data if t.name == "90 %" and t.xaxis == "x2")
    assert line.y[2] == pytest.approx(table["mean"].median())
    assert "median over up to 64 experts" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_other_shares_are_drawn_as_they_are_named(synthetic):
    result = synthetic.activation_result(layers=3)
    table = result.tables["per_layer"]
    table["metric"] = table["metric"].str.replace("_90", "_99.5").str.replace("_50", "_12.5")
    figure = ANALYSIS.draw("per_layer", result)
    assert {"12.5 %", "95 %", "99 %", "99.5 %"} <= {t.name for t in figure.data}
    assert "95" in figure.layout.title.text, "the share nearest to 90 stands for all"


def test_roles_are_not_mixed(synthetic):
    result = synthetic.activation_result(layers=3)
    other = result.tables["per_layer"].copy()
    other["site"] = other["site"].str.replace("mlp.hook_post", "hook_resid_post")
    result.tables["per_layer"] = pd.concat([result.tables["per_layer"], other], ignore_index=True)
    figure = ANALYSIS.draw("per_layer", result)
    titles = [a.text for a in figure.layout.annotations]
    assert any(t.startswith("mlp.hook_post: ") for t in titles)
    assert any(t.startswith("hook_resid_post: ") for t in titles)
    assert series(result.tables["per_layer"], ["metric"]).sites == 1


def test_role_of_a_site():
    assert role("blocks.3.mlp.experts.7.hook_post") == "mlp.experts.hook_post"
    assert role("blocks.12.mlp.hook_post") == "mlp.hook_post"
    assert role("hook_embed") == "hook_embed"


def test_bands_name_the_level_that_was_asked_for(synthetic):
    from dataclasses import replace

    result = synthetic.activation_result(layers=3)
    for name, scalar in result.scalars.items():
        if scalar.interval:
            result.scalars[name] = replace(scalar, interval=replace(scalar.interval, level=0.9))
    assert "90 % document" in ANALYSIS.draw("per_layer", result).layout.title.subtitle.text.replace(
        "\u00a0", " "
    ).replace("<br>", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "50 %"),
        (1.0, "100 %"),
        (0.0, "0 %"),
        (0.99999, "over 99.99 %"),
        (1e-6, "under 0.01 %"),
        (0.997, "99.70 %"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(value, text):
    assert parts.percent(value) == text
