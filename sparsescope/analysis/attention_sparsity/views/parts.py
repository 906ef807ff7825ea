"""What the views of ``attention_sparsity`` share: rows of a measure, lines over layers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_axis
from sparsescope.viz.sentences import percent


def rows_of(result: Result, metric: str) -> pd.DataFrame:
    """Rows of one measure, by layer."""
    frame = result.tables["per_layer"]
    return frame[frame["metric"] == metric].sort_values("layer")


def shares(result: Result, prefix: str) -> list[str]:
    """What follows ``prefix`` in the measures that are there, rising."""
    found = {
        str(m).removeprefix(prefix) for m in result.tables["per_layer"]["metric"] if str(m).startswith(prefix)
    }
    return sorted(found, key=float)


def main_share(shares: list[str]) -> str:
    """The share that stands for all: 90, or the nearest to it."""
    return min(shares, key=lambda share: abs(float(share) - 90))


def layer_line(
    figure: fig.Figure,
    result: Result,
    metric: str,
    name: str,
    color: str,
    *,
    reference: str = "null",
    **place: Any,
) -> float:
    """Draw a measure over layers with its band and (dotted) a reference column; return its last value."""
    return curve(
        figure,
        rows_of(result, metric),
        "mean",
        name,
        color=color,
        columns=result.columns["per_layer"],
        reference=reference,
        text=lambda at, mean: (
            f"layer {at.layer:g}: {mean}; uniform {percent(at.uniform)}, null {percent(at.null)}"
        ),
        **place,
    )


def layer_axes(figure: fig.Figure, result: Result, title: str, *, ticks: int = 16) -> None:
    """Set a layer axis and a percent axis on every panel."""
    layer_axis(figure, result.tables["per_layer"], ticks=ticks)
    fig.y_axes(figure, title, tickformat=".0~%", rangemode="tozero")


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
