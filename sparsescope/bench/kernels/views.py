"""Figures of the benchmark of kernels."""

from __future__ import annotations

import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.tokens import display


def speedups(result: Result, shape: str | None) -> go.Figure:
    """Lines of the speed against sparsity, one for each stored type."""
    title = "Speed of one token against sparsity"
    table = result.tables["products"]
    part = table[(table["shape"] == shape) & (table["cache"] == "cold")]
    if part.empty:
        return fig.empty(title, "No product was timed.")
    figure = go.Figure()
    limit = sorted({float(value) for value in part["sparsity"]})
    figure.add_scatter(
        x=limit,
        y=[1 / (1 - value) for value in limit],
        mode="lines",
        line={"dash": "dot"},
        name="byte limit, float32",
    )
    for stored, rows in part.groupby("stored", sort=False):
        figure.add_scatter(
            x=rows["sparsity"],
            y=rows["speedup"],
            mode="lines+markers",
            name=display(str(stored)),
            error_y=fig.error_bars(rows["speedup"], rows["speedup_q1"], rows["speedup_q3"]),
        )
    figure.add_hline(y=1, line_dash="dash", line_width=1)
    figure.update_xaxes(title="share of the inputs that is dropped", tickformat=".0%")
    figure.update_yaxes(title="speed / best dense float32", type="log", dtick="D2")
    fig.legend_below(figure)
    ends = ", ".join(
        f"{row.stored} {row.speedup:.2f} at {row.sparsity:.0%}"
        for row in part.groupby("stored").tail(1).itertuples()
    )
    processor = result.provenance.get("environment", {}).get("processor", "")
    return fig.describe(
        figure,
        title=title,
        subtitle=f"{shape} (outputs x inputs), {processor}",
        alt=f"Lines of speed relative to the best dense float32 product against sparsity: {ends}.",
    )


def several_tokens(result: Result, tokens: int | None) -> go.Figure:
    """Lines of the speed of a shared mask against the sparsity that thresholds were set for."""
    title = "Tokens that share a mask"
    table = result.tables["several"]
    part = table[table["tokens"] == tokens]
    if part.empty:
        return fig.empty(title, "No product of several tokens was timed.")
    figure = go.Figure()
    for (stored, rule), rows in part.groupby(["stored", "rule"], sort=False):
        figure.add_scatter(
            x=rows["target"],
            y=rows["speedup"],
            mode="lines+markers",
            name=display(f"{stored}, {rule}"),
            error_y=fig.error_bars(rows["speedup"], rows["speedup_q1"], rows["speedup_q3"]),
            customdata=rows["sparsity"],
            hovertemplate="%{y:.2f} times, %{customdata:.1%} of the rows unread"
            "<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(y=1, line_dash="dash", line_width=1)
    figure.update_xaxes(title="sparsity of a token that thresholds were set for", tickformat=".0%")
    figure.update_yaxes(title="speed / best dense float32")
    fig.legend_below(figure)
    best = part.loc[part["speedup"].idxmax()]
    return fig.describe(
        figure,
        title=title,
        subtitle=f"{tokens} tokens, against the best dense product of as many",
        alt=f"Lines for {len(part.groupby(['stored', 'rule']))} variants; the fastest is {best['stored']}, "
        f"{best['rule']} mask, {best['speedup']:.2f} times as fast at {best['target']:.0%}.",
    )
