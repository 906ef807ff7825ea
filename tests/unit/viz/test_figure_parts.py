"""Building blocks of figures: labels that never overlap, bands with gaps, counted marks, safe texts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.viz import figure as fig
from sparsescope.viz import theme


def test_spread_leaves_values_that_are_far_apart():
    assert fig.spread([3.0, 1.0, 2.0], 0.5) == pytest.approx([3.0, 1.0, 2.0])


def test_spread_moves_a_pair_apart_by_the_same_amount():
    assert fig.spread([1.0, 1.0], 1.0) == pytest.approx([0.5, 1.5])


def test_spread_stays_above_the_floor():
    assert fig.spread([0.0, 0.0, 0.0], 1.0, low=0.0) == pytest.approx([0.0, 1.0, 2.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0.001, 0.09))
def test_spread_keeps_order_distance_and_limits(values, gap):
    placed = fig.spread(values, gap, 0.0, 1.0)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for first, second in itertools.pairwise(order):
        assert placed[second] - placed[first] >= gap - 1e-9
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9


def test_band_leaves_gaps_and_draws_single_points_as_boxes():
    figure = fig.panels()
    nan = float("nan")
    assert fig.band(figure, [0, 1, 2, 3], [0, 0, nan, 0], [1, 1, 1, 1], color=theme.BLUE)
    xs = list(figure.data[0].x)
    assert xs.count(None) == 2, "two polygons"
    assert 2 not in xs
    assert min(x for x in xs[5:] if x is not None) == pytest.approx(2.85)


def test_band_without_a_finite_interval_draws_nothing():
    figure = fig.panels()
    assert not fig.band(figure, [0, 1], [np.nan] * 2, [np.nan] * 2, color=theme.BLUE)
    assert len(figure.data) == 0


def test_line_drops_infinite_values():
    figure = fig.panels()
    fig.line(figure, [0, 1, 2], [1, np.inf, 2], "n", color=theme.BLUE)
    assert np.isnan(figure.data[0].y[1])


def test_describe_escapes_every_text_and_makes_room_for_long_titles():
    figure = fig.describe(
        fig.panels(), title="<i>" + "word " * 25, subtitle="<b>" * 5, alt="<script>", caption="c"
    )
    assert "<i>" not in figure.layout.title.text.removeprefix("<b>")
    assert figure.layout.title.text.count("<br>") == 1
    assert "<b>" not in figure.layout.title.subtitle.text
    assert figure.layout.meta["alt"] == "<script>", "alt text is escaped by whoever writes HTML"
    short = fig.describe(fig.panels(), title="short", subtitle="", alt="")
    assert figure.layout.margin.t > short.layout.margin.t


@pytest.mark.parametrize(("count", "step"), [(2, 1), (16, 1), (30, 2), (80, 5), (500, 50)])
def test_layer_ticks_are_whole_numbers_and_few(count, step):
    figure = fig.panels()
    fig.integer_axis(figure, range(count), "layer")
    assert figure.layout.xaxis.dtick == step


def test_thin_keeps_the_ends():
    assert list(fig.thin(5, 10)) == [0, 1, 2, 3, 4]
    kept = fig.thin(100_000, 100)
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert len(kept) <= 100


def test_marks_are_counted_for_lines_and_heat_maps():
    figure = fig.panels()
    fig.line(figure, [0, 1, 2], [1, 2, 3], "n", color=theme.BLUE)
    figure.add_heatmap(z=[[1, 2], [3, 4]])
    assert fig.mark_count(figure) == 7
