"""How concentrated rows are: ``entropy_by_length``, ``coverage``, ``output_error``."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsescope.analysis.attention_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import dotted
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades
from sparsescope.viz.sentences import band_text, percent

_HEIGHT = 340


def entropy_by_length(result: Result) -> fig.Figure:
    """Draw entropy against the number of keys: one line for each layer, with uniform rows and the null."""
    frame = result.tables["by_length"]
    frame = frame[frame["metric"] == "entropy"].copy()
    if frame.empty:
        return fig.empty("Entropy against the number of keys", "no row has two keys")
    # The middle of a bin on the logarithmic axis.
    frame["t"] = np.sqrt(frame["position"].astype(float) * frame["position_end"])
    shades = layer_shades(frame)
    figure = fig.panels(height=380)
    layer_lines(
        figure,
        frame,
        "t",
        "mean",
        _length_text,
        shades=shades,
        columns=result.columns["by_length"],
        band=False,
        show="{:.2f}".format,
        width=1.3,
        opacity=0.8,
    )
    middle = frame.groupby("t")[["mean", "uniform", "null"]].mean()
    ink = theme.INK["light"]
    fig.line(figure, middle.index, middle["mean"], "mean over layers", color=ink, width=3.5, legend=True)
    fig.line(
        figure,
        middle.index,
        middle["uniform"],
        "uniform rows",
        color=theme.SLATE,
        dash="dash",
        symbol=None,
        legend=True,
    )
    null = middle["null"].dropna()
    fig.line(
        figure,
        null.index,
        null,
        "null: normal scores",
        color=theme.VERMILION,
        dash="dot",
        symbol=None,
        legend=True,
    )
    layer_bar(figure, shades)
    figure.update_xaxes(
        type="log", title_text="keys that a row may see, t", dtick=float(np.log10(2)), tickformat="d"
    )
    figure.update_yaxes(title_text="entropy (nats)", rangemode="tozero")
    figure.update_layout(showlegend=True)
    widest = frame["position_end"].max()
    last = frame[frame["rows"] >= 0.1 * frame["rows"].max()]["position"].max()
    end = frame[frame["position"] == last]
    mean, even, chance = end["mean"].mean(), end["uniform"].mean(), end["null"].mean()
    title = f"With about {end['t'].mean():.0f} keys a row spreads as if over {np.exp(mean):.0f}"
    alt = (
        f"Entropy against the number of keys up to {widest:g}, a line for each of "
        f"{parts.count(len(shades), 'layer')}. Near {end['t'].mean():.0f} keys the mean is {mean:.2f} nats, "
        f"uniform {even:.2f}, null {chance:.2f}."
    )
    subtitle = (
        f"mean entropy {mean:.2f} nats, uniform rows {even:.2f}, null {chance:.2f}; thin: "
        "layers; bins of t double"
    )
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)


def _length_text(row: Any, entropy: str) -> str:
    keys = f"layer {row.layer:g}, {row.position:g}–{row.position_end:g} keys"
    return f"{keys}: {entropy} nats; uniform {row.uniform:.2f}, null {row.null:.2f}"


def coverage(result: Result) -> fig.Figure:
    """Draw the share of keys that holds each share of the mass, by layer."""
    tops = parts.shares(result, "density_top_")
    figure = fig.panels(height=_HEIGHT)
    labels = []
    for share, color in zip(tops, theme.ramp(len(tops))[::-1], strict=True):
        labels.append(
            (parts.layer_line(figure, result, f"density_top_{share}", f"{share} %", color), f"{share} %")
        )
    parts.layer_axes(figure, result, "share of the keys")
    figure.update_yaxes(range=[0, 1.02])
    end = float(result.tables["per_layer"]["layer"].max())
    fig.end_labels(figure, labels, x=end, y_range=(0.02, 1.0), panel_height=_HEIGHT)
    dotted(figure, [None], [None], "null: normal scores with the same variance", width=2, legend=True)
    figure.update_layout(margin={"r": 56}, showlegend=True)
    main = parts.main_share(tops)
    rows = parts.rows_of(result, f"density_top_{main}")
    low, high = percent(rows["mean"].min()), percent(rows["mean"].max())
    title = f"{main} % of a row is on {low} to {high} of its keys, depending on the layer"
    null, even = percent(rows["null"].median()), percent(rows["uniform"].median())
    alt = f"Line chart by layer. {title}; null {null}, uniform {even}."
    return fig.describe(
        figure, result=result, title=title, subtitle=f"mean over heads and rows; {band_text(result)}", alt=alt
    )


def output_error(result: Result) -> fig.Figure:
    """Draw the output errors of top-p sets, and the keys needed for an error level, by layer."""
    tops, levels = parts.shares(result, "error_top_"), parts.shares(result, "density_output_")
    titles = ["error of the output when top-p is kept", "share of the keys to keep"]
    figure = fig.panels(1, 2, titles=titles, height=_HEIGHT, gap=0.12)
    end = float(result.tables["per_layer"]["layer"].max())
    errors = result.tables["per_layer"]
    errors = errors[errors["metric"].str.startswith("error_top_")]
    largest = float(errors["high"].fillna(errors["mean"]).max())
    for column, (names, prefix, word) in enumerate(
        ((tops, "error_top_", "p = "), (levels, "density_output_", "error ")), 1
    ):
        labels = []
        for share, color in zip(names, theme.ramp(len(names))[::-1], strict=True):
            name = f"{word}{share} %"
            last = parts.layer_line(figure, result, prefix + share, name, color, reference="", column=column)
            labels.append((last, f"{share} %"))
        span = (0.0, 1.05 * largest) if column == 1 else (0.0, 1.02)
        fig.end_labels(figure, labels, x=end, y_range=span, panel_height=_HEIGHT, column=column)
        figure.update_yaxes(range=list(span), col=column)
    parts.layer_axes(figure, result, "relative error", ticks=8)
    figure.update_layout(margin={"r": 56})
    main = parts.main_share(tops)
    error, keys = (
        parts.rows_of(result, f"error_top_{main}"),
        parts.rows_of(result, f"density_output_{levels[0]}"),
    )
    mean, most = percent(error["mean"].mean()), percent(error["mean"].max())
    title = (
        f"Dropping the last {100 - float(main):g} % of the mass changes a head's output by {mean}, by "
        f"{most} at most in a layer"
    )
    kept = percent(keys["mean"].mean())
    alt = (
        f"Two line charts by layer. {title}. For an error of {levels[0]} %, {kept} of the keys must be kept."
    )
    subtitle = f"||dropped part|| / ||output||, mean over heads and rows; {band_text(result)}"
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)
