"""Figures of the benchmark of dictionaries."""

from __future__ import annotations

import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.tokens import display


def steps(result: Result) -> go.Figure:
    """Bars of activations a second."""
    frame = result.tables["steps"].iloc[::-1]
    figure = go.Figure(
        go.Bar(
            x=frame["rate"],
            y=[display(name) for name in frame["variant"]],
            orientation="h",
            text=[f"{row.rate:,.0f} ({row.speedup:.2f}x)" for row in frame.itertuples()],
            textposition="auto",
            textangle=0,
            insidetextanchor="start",
            cliponaxis=False,
        )
    )
    figure.update_xaxes(title="activations a second", rangemode="tozero")
    figure.update_yaxes(title="implementation", automargin=True)
    named = ", ".join(f"{row.variant} {row.rate:,.0f}" for row in frame.iloc[::-1].itertuples())
    return fig.describe(
        figure,
        title="Activations a second of a training step",
        subtitle="in brackets: speed relative to the dense step",
        alt=f"Bars of activations a second: {named}.",
    )


def errors(result: Result) -> go.Figure:
    """Lines of the error against time."""
    frame = result.tables["errors"]
    figure = go.Figure()
    for name, part in frame.groupby("variant", sort=False):
        figure.add_scatter(x=part["seconds"], y=part["error"], mode="lines+markers", name=display(str(name)))
    figure.update_xaxes(title="seconds", type="log")
    figure.update_yaxes(title="squared error / squared norm")
    ends = ", ".join(
        f"{name} {part['error'].iloc[-1]:.4f} after {part['seconds'].iloc[-1]:.2f} s"
        for name, part in frame.groupby("variant", sort=False)
    )
    return fig.describe(
        figure,
        title="Error of the factorization against time",
        subtitle="all begin with the same codes; errors are computed outside the timer",
        alt=f"Lines of the error against time: {ends}.",
    )
