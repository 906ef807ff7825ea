"""Figures of benchmarks."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.tokens import display


def ratios(result: Result) -> go.Figure:
    """Horizontal bars of the median ratio with quartiles, the reference first."""
    frame = result.tables["variants"].iloc[::-1]
    figure = _bars(frame, "variant", "ratio")
    figure.update_xaxes(title="time / time of the bare forward pass", rangemode="tozero")
    figure.update_yaxes(title="variant", automargin=True)
    worst = frame.loc[frame["ratio"].idxmax()]
    return fig.describe(
        figure,
        title="Time relative to the bare forward pass",
        subtitle=f"{result.provenance.get('subject', {}).get('id', '')}, median of "
        f"{int(frame['repeats'].iloc[0])} repeats",
        alt=f"Bars for {len(frame)} variants; the slowest is {worst['variant']} at {worst['ratio']:.2f} "
        "times the bare forward pass.",
    )


def pruning(result: Result) -> go.Figure:
    """Horizontal bars of the time to prune over that of a forward pass with logits."""
    frame = result.tables["variants"].iloc[:0:-1]
    figure = _bars(frame, "variant", "ratio")
    figure.update_xaxes(title="time / time of a forward pass with logits", rangemode="tozero")
    figure.update_yaxes(title="criterion", automargin=True)
    parts = [f"{row.variant} {row.ratio:.2f}" for row in frame.iloc[::-1].itertuples()]
    return fig.describe(
        figure,
        title="Time to prune relative to a forward pass with logits",
        subtitle=f"{result.provenance.get('subject', {}).get('id', '')}, calibration included, median of "
        f"{int(frame['repeats'].iloc[0])} repeats",
        alt=f"Bars of time relative to one forward pass: {', '.join(parts)}.",
    )


def speedups(result: Result) -> go.Figure:
    """Horizontal bars of the time of other ways to read the same activations, over ours."""
    frame = result.tables["peers"].iloc[::-1]
    figure = _bars(frame, "peer", "speedup")
    figure.update_xaxes(title="time of the other way / time of capture", rangemode="tozero")
    figure.update_yaxes(title="other way", automargin=True)
    found = [f"{row.peer} {row.speedup:.2f}" for row in frame.iloc[::-1].itertuples()]
    repeats = f", median of {int(frame['repeats'].iloc[0])} repeats" if len(frame) else ""
    return fig.describe(
        figure,
        title="Time of other ways to read the same activations",
        subtitle=f"{result.provenance.get('subject', {}).get('id', '')}{repeats}; 1 is the time of capture",
        alt=f"Bars of time relative to capture: {', '.join(found) or 'no other way could read these sites'}.",
    )


def _bars(frame: pd.DataFrame, label: str, value: str) -> go.Figure:
    """Horizontal bars of a median with its quartiles, and a line at 1."""
    figure = go.Figure(
        go.Bar(
            x=frame[value],
            y=[display(name) for name in frame[label]],
            orientation="h",
            error_x={
                "type": "data",
                "array": frame[f"{value}_q3"] - frame[value],
                "arrayminus": frame[value] - frame[f"{value}_q1"],
            },
            text=[f"{number:.2f}x" for number in frame[value]],
            textposition="inside",
            insidetextanchor="start",
        )
    )
    figure.add_vline(x=1, line_dash="dot")
    return figure
