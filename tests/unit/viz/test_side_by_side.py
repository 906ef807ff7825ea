"""Lines of several subjects: pairs share a color, controls are dashed, titles say what is seen."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.core.columns import Column
from sparsescope.testing import check_figure
from sparsescope.viz import theme
from sparsescope.viz.side_by_side import Axes, Line, compare_lines

LAYER = Column("layer", "layer", "Layer.")
SHARE = Column("mean", "fraction", "Mean.")
AXES = Axes(LAYER, SHARE, "share of units", "density_energy_90")


def line(name, color, control, values, reference=(), **ends):
    values = np.asarray(values, dtype=float)
    return Line(
        name, color, control, pd.DataFrame({"x": np.arange(len(values)), "y": values} | ends), reference
    )


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_pairs_share_a_color_and_controls_are_dashed():
    figure = compare_lines(
        [
            line("A", 0, False, [0.1, 0.2], low=[0.05, 0.15], high=[0.15, 0.25]),
            line("A shuffled", 0, True, [0.4, 0.5]),
            line("B", 1, False, [0.6, 0.7]),
        ],
        AXES,
        title="Density",
    )
    check_figure(figure)
    a, control, b = (named(figure, name) for name in ("A", "A shuffled", "B"))
    assert a.line.color == control.line.color == theme.CATEGORIES["light"][0] != b.line.color
    assert (a.line.dash, control.line.dash, b.line.dash) == ("solid", "dash", "solid")
    assert a.marker.symbol != b.marker.symbol and control.marker.symbol == f"{a.marker.symbol}-open"
    assert sum(trace.fill == "toself" for trace in figure.data) == 1
    title = figure.layout.title.text.replace("<br>", " ").replace("\N{NO-BREAK SPACE}", " ")
    assert "lowest in A (10 % to 20 %), highest in B (60 % to 70 %)" in title
    assert "A shuffled 40 % to 50 %" in figure.layout.meta["alt"]
    assert "dashed: controls; bands: intervals" in figure.layout.title.subtitle.text


def test_a_reference_that_all_share_is_one_line():
    one = compare_lines(
        [line("A", 0, False, [0.1, 0.2], (0.44, 0.4401)), line("B", 1, False, [0.3], (0.44,))],
        AXES,
        title="t",
    )
    assert [trace.name for trace in one.data].count("reference") == 1
    two = compare_lines(
        [line("A", 0, False, [0.1, 0.2], (0.4, 0.4)), line("B", 1, False, [0.3], (0.5,))], AXES, title="t"
    )
    assert [trace.name for trace in two.data].count("reference") == 2


def test_a_measure_that_is_no_share_is_not_given_in_percent():
    axes = Axes(LAYER, SHARE, "Gini", "gini", relative=True, log_y=True)
    figure = compare_lines([line("A", 0, False, [0.5]), line("B", 1, False, [0.6123])], axes, title="t")
    check_figure(figure)
    assert "%" not in figure.layout.title.text and "0.612" in figure.layout.meta["alt"]
    assert figure.layout.yaxis.type == "log" and "relative" in figure.layout.xaxis.title.text


def test_nothing_to_draw_and_a_subject_without_numbers():
    empty = compare_lines([line("A", 0, False, [np.nan])], AXES, title="Density")
    assert "no subject has a finite number" in empty.layout.meta["alt"]
    one = compare_lines([line("A", 0, False, [np.nan]), line("B", 1, False, [0.5])], AXES, title="Density")
    assert (
        "1 without a finite number" in one.layout.title.subtitle.text and "Density" in one.layout.title.text
    )


def test_foreign_names_are_made_harmless():
    text = "<b>x</b>%{y}"
    figure = compare_lines([line(text, 0, False, [0.1]), line("B", 1, False, [0.2])], AXES, title=text)
    check_figure(figure)
    assert "<b>x</b>" not in figure.to_json().replace("\\u003c", "<")
