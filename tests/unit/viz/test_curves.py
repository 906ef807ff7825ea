"""Band, line and dotted reference of a column: which columns are the interval, what is
drawn, what is left out.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, interval_of
from sparsescope.viz.generic import draw_table
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades

OLD = (
    Column("layer", "layer", "Layer."),
    Column("mean", "fraction", "Mean."),
    Column("low", "fraction", "Low."),
    Column("high", "fraction", "High."),
    Column("ratio", "value", "Ratio."),
    Column("ratio_low", "value", "Low."),
    Column("ratio_high", "value", "High."),
    Column("gain", "value", "No interval of its kind."),
)
SAID = (
    Column("layer", "layer", "Layer."),
    Column("mean", "fraction", "Mean."),
    Column("from", "fraction", "Low.", low_of="mean"),
    Column("to", "fraction", "High.", high_of="mean"),
    Column("low", "fraction", "Low.", low_of="other"),
    Column("other", "fraction", "No upper end."),
)
ROWS = pd.DataFrame(
    {"layer": [0, 1, 2], "mean": [0.5, np.nan, 0.25], "from": 0.2, "to": 0.6, "even": [0.1, 0.1, 0.1]}
)


@pytest.mark.parametrize(
    ("columns", "name", "ends"),
    [
        (OLD, "mean", ("low", "high")),
        (OLD, "ratio", ("ratio_low", "ratio_high")),
        (OLD, "gain", None),
        (OLD, "layer", None),
        (OLD, "absent", None),
        (SAID, "mean", ("from", "to")),
        (SAID, "other", None),
        ((), "mean", None),
    ],
)
def test_columns_say_what_an_interval_belongs_to_and_names_where_none_does(columns, name, ends):
    assert interval_of(columns, name) == ends


def test_a_curve_has_band_line_and_dotted_reference():
    figure = fig.panels()
    last = curve(
        figure,
        ROWS,
        "mean",
        "m",
        color=theme.BLUE,
        columns=SAID,
        reference="even",
        reference_name="null",
        legend=True,
    )
    band, line, dotted = figure.data
    assert last == 0.25 and band.fill == "toself" and max(band.y, key=lambda y: y or 0) == 0.6
    assert list(line.customdata) == [
        "layer 0: 50 % [20 %, 60 %]",
        "layer 1: – [20 %, 60 %]",
        "layer 2: 25 % [20 %, 60 %]",
    ]
    assert (dotted.name, dotted.line.dash, dotted.line.color) == (
        "null",
        "dot",
        theme.BLUE,
    ) and line.showlegend


def test_a_curve_without_interval_or_reference_is_a_line():
    figure = fig.panels()
    curve(
        figure,
        ROWS.assign(even=np.nan),
        "mean",
        "m",
        color=theme.BLUE,
        reference="even",
        text="{0.layer}: {1}".format,
    )
    curve(figure, ROWS, "mean", "m", color=theme.BLUE, columns=SAID, band=False)
    assert len(figure.data) == 2 and figure.data[0].customdata[0] == "0: 50 %"
    assert figure.data[1].customdata[0] == "layer 0: 50 % [20 %, 60 %]", (
        "hover texts have the interval all the same"
    )


def test_nothing_is_drawn_of_values_that_are_not_finite():
    figure = fig.panels()
    assert math.isnan(
        curve(figure, ROWS.assign(mean=np.inf), "mean", "m", color=theme.BLUE, columns=SAID, reference="even")
    )
    assert len(figure.data) == 0


def test_the_legend_names_lines_and_bars_of_one_name_once():
    figure = fig.panels(1, 2)
    for column in (1, 2):
        curve(figure, ROWS, "mean", "m", color=theme.BLUE, legend=True, column=column)
        fig.bars(figure, [0], [1], "b", color=theme.BLUE, texts=["one"], column=column)
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False]


def test_layers_are_lines_colored_by_depth():
    table = pd.DataFrame({"layer": [0, 0, 5, 5], "site": list("abcd"), "x": [2, 1, 1, 2], "y": [4, 3, 2, 1]})
    figure, shades = fig.panels(), layer_shades(table)
    layer_lines(figure, table, "x", "y", "{0.site}".format, shades=shades)
    layer_bar(figure, shades)
    first, second, bar = figure.data
    assert (list(first.x), list(first.y), list(first.customdata)) == ([1, 2], [3, 4], ["b", "a"])
    assert (first.line.color, second.line.color) == tuple(theme.ramp(2)) and bar.marker.cmax == 5
    layer_lines(figure, table, "x", "y", "{0.site}".format, shades=shades, split=("site",))
    assert len(figure.data) == 7


def test_default_figures_draw_the_interval_that_is_declared():
    frame = pd.DataFrame(
        {"layer": [0, 1], "mean": [0.5, 0.4], "from": [0.2, 0.3], "to": [0.6, 0.7], "low": 0.0, "other": 0.1}
    )
    figure = draw_table("t", frame, SAID)
    assert min(y for y in figure.data[0].y if y is not None) == 0.2
    text = (*SAID[:2], Column("from", "label", "A text.", low_of="mean"), *SAID[3:])
    assert len(draw_table("t", frame, text).data) == 1, "an end that is no number is no interval"
