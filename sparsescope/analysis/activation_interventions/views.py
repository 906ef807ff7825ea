"""Figures of ``activation_interventions``: loss against k, calibration with its null, robustness to corrupted input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go_  # bars have no helper in viz.figure

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent, subject_prefix
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_COLORS = {"dense": theme.SLATE, "top-k": theme.BLUE, "random-k": theme.VERMILION}
_SYMBOLS = {"dense": "diamond", "top-k": "circle", "random-k": "square"}
_KEPT = "share k / f of the hidden units kept"
_HEIGHT = 340


def loss_curve(result: Result) -> go.Figure:
    """Draw the rise of the loss against k for the largest and for random units."""
    table = result.tables["loss_curve"]
    figure = fig.panels(1, 1, height=_HEIGHT)
    for model in ("top-k", "random-k"):
        rows = _with_dense(table, model)
        fig.band(figure, rows["kept"], rows["low"], rows["high"], color=_COLORS[model])
        texts = [
            f"{model}, {percent(kept)} kept: {rise:+.4f} nats [{low:+.4f}, {high:+.4f}], accuracy {percent(accuracy)}"
            for kept, rise, low, high, accuracy in rows[["kept", "loss_rise", "low", "high", "accuracy"]].itertuples(index=False)
        ]
        _line(figure, rows["kept"], rows["loss_rise"], model, texts)
    figure.add_hline(y=0, line={"color": theme.SLATE, "dash": "dot", "width": 1})
    ticks = sorted({float(kept) for kept in table["kept"]})
    figure.update_xaxes(type="log", title_text=_KEPT, tickvals=ticks, ticktext=[percent(kept) for kept in ticks])
    figure.update_yaxes(title_text="loss - dense loss (nats)")
    fig.legend_below(figure)
    top, other = (result.scalars[f"loss_rise_{name}"].value for name in ("top_k", "random_k"))
    kept = percent(_robust_density(result))
    title = f"With {kept} of the units the loss changes by {top:+.3f} nats for the largest and {other:+.3f} for random ones"
    alt = f"Line chart of the rise of the loss against the share of hidden units kept. {title}."
    subtitle = f"{subject_prefix(result)}frozen model, the same k in every layer; {_bands(result)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def calibration(result: Result) -> go.Figure:
    """Draw the calibration error with its null, and the reliability curve."""
    table, bins = result.tables["calibration"], result.tables["reliability"]
    kept = percent(_robust_density(result))
    figure = fig.panels(1, 2, titles=["calibration error", f"reliability: dense and top-k at {kept}"], height=_HEIGHT)
    rows = table.sort_values("kept")
    names = [
        ("dense" if model == "dense" else f"top {percent(at)}") for model, at in rows[["model", "kept"]].itertuples(index=False)
    ]
    for column, name, color in (("null_high", "calibrated model, 95th percentile", theme.SLATE), ("ece", "measured", theme.BLUE)):
        error: dict[str, Any] = {}
        if column == "ece" and rows["low"].notna().any():
            up, down = (rows["high"] - rows["ece"]).clip(lower=0), (rows["ece"] - rows["low"]).clip(lower=0)
            error = {"error_y": {"type": "data", "array": up, "arrayminus": down, "color": theme.SLATE, "thickness": 1.2}}
        texts = [f"{label}, {name}: {value:.4f}" for label, value in zip(names, rows[column], strict=True)]
        figure.add_trace(
            go_.Bar(
                x=[display(label) for label in names], y=rows[column], name=name, marker={"color": color},
                opacity=0.45 if column == "null_high" else 1.0, customdata=[display(text) for text in texts],
                hovertemplate="%{customdata}<extra></extra>", **error,
            ),
            row=1,
            col=1,
        )  # fmt: skip
    for model in ("dense", "top-k"):
        part = bins[bins["model"] == model].sort_values("confidence")
        fig.band(figure, part["confidence"], part["low"], part["high"], color=_COLORS[model], row=1, column=2)
        texts = [
            f"{model}: confidence {percent(at)}, right {percent(share)} of {count}"
            for at, share, count in part[["confidence", "accuracy", "tokens"]].itertuples(index=False)
        ]
        _line(figure, part["confidence"], part["accuracy"], model, texts, column=2)
    diagonal: dict[str, Any] = {"color": theme.SLATE, "dash": "dot", "symbol": None, "width": 1.2}
    fig.line(figure, [0, 1], [0, 1], "calibrated", row=1, column=2, **diagonal)
    figure.update_yaxes(title_text="expected calibration error", tickformat=".1%", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="units kept", row=1, col=1)
    figure.update_xaxes(title_text="confidence", tickformat=".0%", range=[0, 1.02], row=1, col=2)
    figure.update_yaxes(title_text="share that is right", tickformat=".0%", range=[0, 1.02], row=1, col=2)
    figure.update_layout(barmode="group")
    fig.legend_below(figure)
    dense, sparse = result.scalars["ece_dense"].value, result.scalars["ece_top_k"].value
    null = float(table.loc[table["model"] == "dense", "null"].iloc[0])
    title = f"Calibration error: {percent(dense)} dense, {percent(sparse)} with {kept} of the units"
    alt = f"Bar chart and reliability curve. {title}; a calibrated model would show {percent(null)} on as many tokens."
    subtitle = f"{subject_prefix(result)}a calibrated model shows {percent(null)} on as many tokens; whiskers: document bootstrap"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def robustness(result: Result) -> go.Figure:
    """Draw the rise of the loss under corruption, and the excess of the sparse model."""
    table = result.tables["robustness"]
    if table.empty:
        return fig.empty("Robustness to corrupted input", "no corruption was asked for")
    kept = percent(_robust_density(result))
    figure = fig.panels(1, 2, titles=["rise of the loss", f"top-k ({kept}) - dense"], height=_HEIGHT, gap=0.12)
    for model in ("dense", "top-k"):
        rows = table[table["model"] == model].sort_values("corrupted")
        fig.band(figure, rows["corrupted"], rows["low"], rows["high"], color=_COLORS[model], row=1, column=1)
        texts = [
            f"{model}, {percent(at)} replaced: {rise:+.4f} nats"
            for at, rise in rows[["corrupted", "loss_rise"]].itertuples(index=False)
        ]
        _line(figure, rows["corrupted"], rows["loss_rise"], model, texts)
    rows = table[table["model"] == "top-k"].sort_values("corrupted")
    fig.band(figure, rows["corrupted"], rows["excess_low"], rows["excess_high"], color=_COLORS["top-k"], row=1, column=2)
    texts = [
        f"{percent(at)} replaced: {excess:+.4f} [{low:+.4f}, {high:+.4f}] nats"
        for at, excess, low, high in rows[["corrupted", "excess", "excess_low", "excess_high"]].itertuples(index=False)
    ]
    fig.line(figure, rows["corrupted"], rows["excess"], "top-k - dense", color=_COLORS["top-k"], texts=texts, row=1, column=2)
    figure.add_hline(y=0, line={"color": theme.SLATE, "dash": "dot", "width": 1}, row=1, col=2)
    figure.update_xaxes(title_text="share of input tokens replaced", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(title_text="loss - clean loss (nats)", row=1, col=1)
    figure.update_yaxes(title_text="excess (nats)", row=1, col=2)
    fig.legend_below(figure)
    last = rows.iloc[-1]
    title = f"With {percent(last['corrupted'])} of the tokens replaced, {_verdict(last)}"
    alt = f"Two line charts of the rise of the loss under corruption. {title}: excess {last['excess']:+.4f} nats."
    subtitle = f"{subject_prefix(result)}both models read the same corrupted tokens; {_bands(result)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def _verdict(row: pd.Series) -> str:
    """What the interval of the excess says."""
    if not math.isfinite(row["excess_low"]):
        return "one document decides nothing about the sparse model"
    if row["excess_low"] > 0:
        return "the sparse model loses more than the dense one"
    if row["excess_high"] < 0:
        return "the sparse model loses less than the dense one"
    return "dense and sparse model lose equally, as far as these documents tell"


def _with_dense(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """The rows of a model, ending in the dense one."""
    return table[table["model"].isin([model, "dense"])].sort_values("kept")


def _line(figure: go.Figure, x: Any, y: Any, model: str, texts: list[str], column: int = 1) -> None:
    shown = {trace.name for trace in figure.data if trace.showlegend}
    fig.line(
        figure, x, y, model, color=_COLORS[model], symbol=_SYMBOLS[model], texts=texts, row=1, column=column,
        legend=model not in shown,
    )  # fmt: skip


def _robust_density(result: Result) -> float:
    """Share of units kept by the sparse model of the calibration and robustness figures."""
    bins = result.tables["reliability"]
    return float(bins.loc[bins["model"] == "top-k", "kept"].iloc[0])


def _bands(result: Result) -> str:
    table = result.tables["loss_curve"]
    if table["low"].isna().all():
        return "no intervals: they need two documents or more"
    return f"bands: paired document-cluster bootstrap, {int(table['documents'].max())} documents"
