"""Figures of benchmarks."""

from __future__ import annotations

import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.tokens import display


def ratios(result: Result) -> go.Figure:
    """Horizontal bars of the median ratio with quartiles, the reference first."""
    frame = result.tables["variants"].iloc[::-1]
    names = [display(name) for name in frame["variant"]]
    figure = go.Figure(
        go.Bar(
            x=frame["ratio"],
            y=names,
            orientation="h",
            error_x={
                "type": "data",
                "array": frame["ratio_q3"] - frame["ratio"],
                "arrayminus": frame["ratio"] - frame["ratio_q1"],
            },
            text=[f"{ratio:.2f}x" for ratio in frame["ratio"]],
            textposition="inside",
            insidetextanchor="start",
        )
    )
    figure.add_vline(x=1, line_dash="dot")
    figure.update_xaxes(title="time / time of the bare forward pass", rangemode="tozero")
    figure.update_yaxes(title="variant", automargin=True)
    worst = frame.loc[frame["ratio"].idxmax()]
    return fig.describe(
        figure,
        title="Time relative to the bare forward pass",
        subtitle=f"{result.provenance.get('subject', {}).get('id', '')}, median of {int(frame['repeats'].iloc[0])} repeats",
        alt=f"Bars for {len(frame)} variants; the slowest is {worst['variant']} at {worst['ratio']:.2f} times the bare "
        "forward pass.",
    )
