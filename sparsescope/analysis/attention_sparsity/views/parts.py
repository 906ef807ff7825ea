"""What the views of ``attention_sparsity`` share: rows of a measure, lines over layers, texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent as percent
from sparsescope.viz.sentences import subject_prefix

if TYPE_CHECKING:
    import plotly.graph_objects as go

LAYER = "layer (0 at the input)"


def describe(figure: go.Figure, result: Result, *, title: str, subtitle: str, alt: str) -> go.Figure:
    """Set the texts; the subtitle gets the subject."""
    return fig.describe(figure, title=title, subtitle=subject_prefix(result) + subtitle, alt=alt)


def bands(result: Result) -> str:
    """Say what the bands are."""
    levels = [s.interval.level for s in result.scalars.values() if s.interval is not None]
    return (
        f"bands: {100 * levels[0]:g} % document-cluster bootstrap interval" if levels else "no intervals: they need two documents"
    )


def rows_of(result: Result, metric: str, table: str = "per_layer") -> pd.DataFrame:
    """Rows of one measure, by layer."""
    frame = result.tables[table]
    return frame[frame["metric"] == metric].sort_values("layer")


def shares(result: Result, prefix: str) -> list[str]:
    """What follows ``prefix`` in the measures that are there, rising."""
    found = {str(m).removeprefix(prefix) for m in result.tables["per_layer"]["metric"] if str(m).startswith(prefix)}
    return sorted(found, key=float)


def layer_line(
    figure: go.Figure, result: Result, metric: str, name: str, color: str, *, reference: str = "null", **place: Any
) -> pd.DataFrame:
    """Draw a measure over layers with its band and (dotted) a reference column; return its rows."""
    rows = rows_of(result, metric)
    if rows["mean"].notna().any():
        panel = {key: value for key, value in place.items() if key in {"row", "column"}}
        fig.band(figure, rows["layer"], rows["low"], rows["high"], color=color, **panel)
        texts = [
            f"layer {at:g}: {percent(mean)} [{percent(low)}, {percent(high)}]; uniform {percent(even)}, null {percent(null)}"
            for at, mean, low, high, even, null in rows[["layer", "mean", "low", "high", "uniform", "null"]].itertuples(
                index=False
            )
        ]
        fig.line(figure, rows["layer"], rows["mean"], name, color=color, texts=texts, **place)
        if reference and rows[reference].notna().any():
            look: dict[str, Any] = {"dash": "dot", "symbol": None, "width": 1.4, "opacity": 0.85}
            fig.line(figure, rows["layer"], rows[reference], f"{name}, {reference}", color=color, **look, **panel)
    return rows


def layer_axes(figure: go.Figure, result: Result, title: str, *, ticks: int = 16) -> None:
    """Set a layer axis and a percent axis on every panel."""
    fig.integer_axis(figure, result.tables["per_layer"]["layer"], LAYER, ticks=ticks)
    figure.update_yaxes(tickformat=".0~%", rangemode="tozero")
    figure.update_yaxes(title_text=title, col=1)


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def dotted(figure: go.Figure, name: str, *, dash: str = "dot", row: int = 1, column: int = 1) -> None:
    """Add a legend entry for what the dotted lines are."""
    fig.line(figure, [None], [np.nan], name, color=theme.SLATE, dash=dash, symbol=None, legend=True, row=row, column=column)
