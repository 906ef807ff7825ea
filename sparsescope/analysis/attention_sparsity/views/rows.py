"""How concentrated rows are: ``entropy_by_length``, ``coverage``, ``output_error``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.attention_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEIGHT = 340


def entropy_by_length(result: Result) -> go.Figure:
    """Draw entropy against the number of keys: one line for each layer, with uniform rows and the null."""
    frame = result.tables["by_length"]
    frame = frame[frame["metric"] == "entropy"].copy()
    if frame.empty:
        return fig.empty("Entropy against the number of keys", "no row has two keys")
    # The middle of a bin on the logarithmic axis.
    frame["t"] = np.sqrt(frame["position"].astype(float) * frame["position_end"])
    layers = sorted(frame["layer"].unique())
    figure = fig.panels(height=380)
    for layer, color in zip(layers, theme.ramp(len(layers)), strict=True):
        rows = frame[frame["layer"] == layer].sort_values("t")
        texts = [
            f"layer {layer:g}, {a:g}–{b:g} keys: {mean:.2f} nats [{low:.2f}, {high:.2f}]; uniform {even:.2f}, null {null:.2f}"
            for a, b, mean, low, high, even, null in rows[
                ["position", "position_end", "mean", "low", "high", "uniform", "null"]
            ].itertuples(index=False)
        ]
        fig.line(
            figure, rows["t"], rows["mean"], f"layer {layer:g}", color=color, texts=texts, width=1.3, symbol=None, opacity=0.8
        )
    middle = frame.groupby("t")[["mean", "uniform", "null"]].mean()
    ink = theme.INK["light"]
    fig.line(figure, middle.index, middle["mean"], "mean over layers", color=ink, width=3.5, legend=True)
    fig.line(figure, middle.index, middle["uniform"], "uniform rows", color=theme.SLATE, dash="dash", symbol=None, legend=True)
    null = middle["null"].dropna()
    fig.line(figure, null.index, null, "null: normal scores", color=theme.VERMILION, dash="dot", symbol=None, legend=True)
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    figure.update_xaxes(type="log", title_text="keys that a row may see, t", dtick=float(np.log10(2)), tickformat="d")
    figure.update_yaxes(title_text="entropy (nats)", rangemode="tozero")
    figure.update_layout(showlegend=True)
    widest = frame["position_end"].max()
    last = frame[frame["rows"] >= 0.1 * frame["rows"].max()]["position"].max()
    end = frame[frame["position"] == last]
    mean, even, chance = end["mean"].mean(), end["uniform"].mean(), end["null"].mean()
    title = f"With about {end['t'].mean():.0f} keys a row spreads as if over {np.exp(mean):.0f}"
    alt = (
        f"Entropy against the number of keys up to {widest:g}, a line for each of {parts.count(len(layers), 'layer')}. Near "
        f"{end['t'].mean():.0f} keys the mean is {mean:.2f} nats, uniform {even:.2f}, null {chance:.2f}."
    )
    subtitle = f"mean entropy {mean:.2f} nats, uniform rows {even:.2f}, null {chance:.2f}; thin: layers; bins of t double"
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)


def coverage(result: Result) -> go.Figure:
    """Draw the share of keys that holds each share of the mass, by layer."""
    tops = parts.shares(result, "density_top_")
    figure = fig.panels(height=_HEIGHT)
    labels = []
    for share, color in zip(tops, theme.ramp(len(tops))[::-1], strict=True):
        rows = parts.layer_line(figure, result, f"density_top_{share}", f"{share} %", color)
        if rows["mean"].notna().any():
            labels.append((float(rows["mean"].dropna().iloc[-1]), f"{share} %"))
    parts.layer_axes(figure, result, "share of the keys")
    figure.update_yaxes(range=[0, 1.02])
    end = float(result.tables["per_layer"]["layer"].max())
    fig.end_labels(figure, labels, x=end, y_range=(0.02, 1.0), panel_height=_HEIGHT)
    parts.dotted(figure, "null: normal scores with the same variance")
    figure.update_layout(margin={"r": 56}, showlegend=True)
    main = min(tops, key=lambda share: abs(float(share) - 90))
    rows = parts.rows_of(result, f"density_top_{main}")
    low, high = parts.percent(rows["mean"].min()), parts.percent(rows["mean"].max())
    title = f"{main} % of a row is on {low} to {high} of its keys, depending on the layer"
    null, even = parts.percent(rows["null"].median()), parts.percent(rows["uniform"].median())
    alt = f"Line chart by layer. {title}; null {null}, uniform {even}."
    return parts.describe(figure, result, title=title, subtitle=f"mean over heads and rows; {parts.bands(result)}", alt=alt)


def output_error(result: Result) -> go.Figure:
    """Draw the output errors of top-p sets, and the keys needed for an error level, by layer."""
    tops, levels = parts.shares(result, "error_top_"), parts.shares(result, "density_output_")
    titles = ["error of the output when top-p is kept", "share of the keys to keep"]
    figure = fig.panels(1, 2, titles=titles, height=_HEIGHT, gap=0.12)
    end = float(result.tables["per_layer"]["layer"].max())
    largest = 0.0
    for column, (names, prefix, word) in enumerate(((tops, "error_top_", "p = "), (levels, "density_output_", "error ")), 1):
        labels = []
        for share, color in zip(names, theme.ramp(len(names))[::-1], strict=True):
            place: dict[str, Any] = {"column": column, "reference": ""}
            rows = parts.layer_line(figure, result, prefix + share, f"{word}{share} %", color, **place)
            if rows["mean"].notna().any():
                labels.append((float(rows["mean"].dropna().iloc[-1]), f"{share} %"))
                largest = max(largest, float(rows["high"].fillna(rows["mean"]).max())) if column == 1 else largest
        span = (0.0, 1.05 * largest) if column == 1 else (0.0, 1.02)
        fig.end_labels(figure, labels, x=end, y_range=span, panel_height=_HEIGHT, column=column)
        figure.update_yaxes(range=list(span), col=column)
    parts.layer_axes(figure, result, "relative error", ticks=8)
    figure.update_layout(margin={"r": 56})
    main = min(tops, key=lambda share: abs(float(share) - 90))
    error, keys = parts.rows_of(result, f"error_top_{main}"), parts.rows_of(result, f"density_output_{levels[0]}")
    mean, most = parts.percent(error["mean"].mean()), parts.percent(error["mean"].max())
    title = (
        f"Dropping the last {100 - float(main):g} % of the mass changes a head's output by {mean}, by {most} at most in a layer"
    )
    kept = parts.percent(keys["mean"].mean())
    alt = f"Two line charts by layer. {title}. For an error of {levels[0]} %, {kept} of the keys must be kept."
    subtitle = f"||dropped part|| / ||output||, mean over heads and rows; {parts.bands(result)}"
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)
