"""Figures of the benchmark of decoding."""

from __future__ import annotations

import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.tokens import display


def speed_and_quality(result: Result, prompt: int | None) -> go.Figure:
    """Dots of tokens a second against the perplexity ratio, sparse ones joined by stored type."""
    title = "Tokens a second against perplexity"
    table = result.tables["variants"]
    part = table[table["prompt"] == prompt]
    if part.empty:
        return fig.empty(title, "Nothing was timed.")
    figure = go.Figure()
    ours = part[part["variant"].str.startswith("our loop")]
    for stored, rows in ours.groupby("stored", sort=False):
        figure.add_scatter(
            x=rows["ratio"],
            y=rows["rate"],
            mode="lines+markers+text",
            name=display(f"our loop, {stored}"),
            text=[f"{sparsity:.0%}" for sparsity in rows["sparsity"]],
            textposition="top center",
            cliponaxis=False,
            error_x=fig.error_bars(rows["ratio"], rows["ratio_low"], rows["ratio_high"]),
        )
    for row in part[~part["variant"].str.startswith("our loop")].itertuples():
        figure.add_scatter(
            x=[row.ratio],
            y=[row.rate],
            mode="markers",
            marker={"symbol": "diamond", "size": 9},
            name=display(row.variant),
        )
    figure.add_vline(x=1, line_dash="dash", line_width=1)
    figure.update_xaxes(title="perplexity / dense float32")
    figure.update_yaxes(title="tokens a second", rangemode="tozero")
    fig.legend_below(figure)
    fastest = part.loc[part["rate"].idxmax()]
    return fig.describe(
        figure,
        title=title,
        subtitle=f"batch 1, prompt of {prompt} tokens; labels: share of the block weights left unread",
        alt=f"Dots for {len(part)} variants; the fastest is {fastest['variant']} with {fastest['rate']:.1f} "
        f"tokens a second at {fastest['ratio']:.3f} times the perplexity.",
    )


def parts(result: Result) -> go.Figure:
    """Stacked bars of the parts of a dense step."""
    table = result.tables["parts"]
    figure = go.Figure()
    for part, rows in table.groupby("part", sort=False):
        figure.add_bar(
            x=1000 * rows["seconds"],
            y=[display(str(stored)) for stored in rows["stored"]],
            name=display(str(part)),
            orientation="h",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title="milliseconds of a dense step")
    figure.update_yaxes(title="stored weights")
    fig.legend_below(figure)
    known = ", ".join(f"{row.stored} {row.part} {1000 * row.seconds:.1f} ms" for row in table.itertuples())
    return fig.describe(
        figure,
        title="What a step consists of",
        subtitle="each part measured alone",
        alt=f"Stacked bars: {known}.",
    )
