"""The axis of training steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.viz import figure as fig
from sparsescope.viz.steps import StepAxis


def drawn(steps, columns=1):
    figure = fig.panels(1, columns)
    axis = StepAxis.of(steps)
    axis.arrange(figure, columns=columns)
    return axis, figure.layout.xaxis


def test_step_zero_has_a_place_left_of_the_others():
    axis, shown = drawn([0, 50, 150, 1500])
    x = axis.x([0, 50, 1500])
    assert x[0] == pytest.approx(50 / 3) and list(x[1:]) == [50, 1500]
    assert shown.type == "log" and list(shown.ticktext) == ["0", "50", "150", "1,500"]
    assert shown.range[0] < math.log10(x[0]) and shown.range[1] > math.log10(1500)
    assert "0 set apart" in shown.title.text
    assert "0 set apart" not in drawn([1, 10, 1000])[1].title.text


def test_a_short_range_is_linear():
    axis, shown = drawn([0, 100, 200, 300])
    assert not axis.log and shown.type != "log" and list(axis.x([0, 300])) == [0, 300]
    assert drawn([0])[1].type != "log" and drawn([7])[1].type != "log"


@pytest.mark.parametrize("columns", [1, 2, 4])
@pytest.mark.parametrize(
    "steps", [list(range(0, 5001, 25)), [0, *(2**k for k in range(10)), 1000, 143000], [10, 11, 12, 5000]]
)
def test_labels_have_room_and_both_ends_are_among_them(steps, columns):
    axis, shown = drawn(steps, columns)
    labels = [int(text.replace(",", "")) for text in shown.ticktext]
    assert labels == sorted(set(labels)) and labels[0] == steps[0] and labels[-1] == steps[-1]
    places = np.log10(shown.tickvals)
    if len(places) > 2:
        assert np.diff(places).min() > 0.1 * (places[-1] - places[0])
    np.testing.assert_allclose(shown.tickvals, axis.x(labels))
