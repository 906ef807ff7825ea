"""Figures of ``activation_interventions``: loss against k, calibration with its null, robustness
to corrupted input.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, dotted, interval_of
from sparsescope.viz.sentences import paired_text, percent
from sparsescope.viz.tokens import display

_LOOKS: dict[str, dict[str, Any]] = {
    "dense": {"color": theme.SLATE, "symbol": "diamond"},
    "top-k": {"color": theme.BLUE, "symbol": "circle"},
    "random-k": {"color": theme.VERMILION, "symbol": "square"},
}
_KEPT = "share k / f of the hidden units kept"
_HEIGHT = 340
_NATS = "{:+.4f}".format


def loss_curve(result: Result) -> fig.Figure:
    """Draw the rise of the loss against k for the largest and for random units."""
    table = result.tables["loss_curve"]
    figure = fig.panels(height=_HEIGHT)
    for model in ("top-k", "random-k"):
        curve(
            figure,
            table[table["model"].isin([model, "dense"])].sort_values("kept"),
            "loss_rise",
            model,
            x="kept",
            show=_NATS,
            text=lambda at, rise: (
                f"{at.model}, {percent(at.kept)} kept: {rise} nats, accuracy {percent(at.accuracy)}"
            ),
            columns=result.columns["loss_curve"],
            legend=True,
            **_LOOKS[model],
        )
    figure.add_hline(y=0, line=theme.LEVEL)
    ticks = sorted({float(kept) for kept in table["kept"]})
    figure.update_xaxes(
        type="log", title_text=_KEPT, tickvals=ticks, ticktext=[percent(kept) for kept in ticks]
    )
    fig.y_axes(figure, "loss - dense loss (nats)")
    fig.legend_below(figure)
    top, other = (result.scalars[f"loss_rise_{name}"].value for name in ("top_k", "random_k"))
    kept = percent(_robust_density(result))
    title = (
        f"With {kept} of the units the loss changes by {top:+.3f} nats for the largest and "
        f"{other:+.3f} for random ones"
    )
    alt = f"Line chart of the rise of the loss against the share of hidden units kept. {title}."
    subtitle = f"frozen model, the same k in every layer; {paired_text(table)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def calibration(result: Result) -> fig.Figure:
    """Draw the calibration error with its null, and the reliability curve."""
    table, bins = result.tables["calibration"], result.tables["reliability"]
    kept = percent(_robust_density(result))
    figure = fig.panels(
        1, 2, titles=["calibration error", f"reliability: dense and top-k at {kept}"], height=_HEIGHT
    )
    _error_bars(figure, result)
    for model in ("dense", "top-k"):
        curve(
            figure,
            bins[bins["model"] == model].sort_values("confidence"),
            "accuracy",
            model,
            x="confidence",
            text=lambda at, right: (
                f"{at.model}: confidence {percent(at.confidence)}, right {right} of {at.tokens}"
            ),
            columns=result.columns["reliability"],
            legend=True,
            column=2,
            **_LOOKS[model],
        )
    dotted(figure, [0, 1], [0, 1], "calibrated", width=1.2, column=2)
    figure.update_yaxes(
        title_text="expected calibration error", tickformat=".1%", rangemode="tozero", row=1, col=1
    )
    figure.update_xaxes(title_text="units kept", row=1, col=1)
    figure.update_xaxes(title_text="confidence", tickformat=".0%", range=[0, 1.02], row=1, col=2)
    figure.update_yaxes(title_text="share that is right", tickformat=".0%", range=[0, 1.02], row=1, col=2)
    figure.update_layout(barmode="group")
    fig.legend_below(figure)
    dense, sparse = result.scalars["ece_dense"].value, result.scalars["ece_top_k"].value
    null = float(table.loc[table["model"] == "dense", "null"].iloc[0])
    title = f"Calibration error: {percent(dense)} dense, {percent(sparse)} with {kept} of the units"
    alt = (
        f"Bar chart and reliability curve. {title}; a calibrated model would show "
        f"{percent(null)} on as many tokens."
    )
    subtitle = f"a calibrated model shows {percent(null)} on as many tokens; whiskers: document bootstrap"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _error_bars(figure: fig.Figure, result: Result) -> None:
    """The calibration error of each model with its interval, beside what a calibrated
    model rarely exceeds.
    """
    rows = result.tables["calibration"].sort_values("kept")
    names = [
        "dense" if model == "dense" else f"top {percent(at)}"
        for model, at in zip(rows["model"], rows["kept"], strict=True)
    ]
    whiskers: dict[str, Any] = {}
    ends = interval_of(result.columns["calibration"], "ece")
    if ends is not None and rows[ends[0]].notna().any():
        down, up = (
            (sign * (rows[end] - rows["ece"])).clip(lower=0) for sign, end in zip((-1, 1), ends, strict=True)
        )
        whiskers = {
            "error_y": {
                "type": "data",
                "array": up,
                "arrayminus": down,
                "color": theme.SLATE,
                "thickness": 1.2,
            }
        }
    for column, name, color, options in (
        ("null_high", "calibrated model, 95th percentile", theme.SLATE, {"opacity": 0.45}),
        ("ece", "measured", theme.BLUE, whiskers),
    ):
        texts = [f"{label}: {value:.4f}" for label, value in zip(names, rows[column], strict=True)]
        fig.bars(
            figure,
            [display(label) for label in names],
            rows[column],
            name,
            color=color,
            texts=texts,
            **options,
        )


def robustness(result: Result) -> fig.Figure:
    """Draw the rise of the loss under corruption, and the excess of the sparse model."""
    table = result.tables["robustness"]
    if table.empty:
        return fig.empty("Robustness to corrupted input", "no corruption was asked for")
    kept = percent(_robust_density(result))
    figure = fig.panels(
        1, 2, titles=["rise of the loss", f"top-k ({kept}) - dense"], height=_HEIGHT, gap=0.12
    )
    rows = table.sort_values("corrupted")
    options: dict[str, Any] = {"x": "corrupted", "show": _NATS, "columns": result.columns["robustness"]}
    for model in ("dense", "top-k"):
        curve(
            figure, rows[rows["model"] == model], "loss_rise", model,
            text=lambda at, rise: f"{at.model}, {percent(at.corrupted)} replaced: {rise} nats",
            legend=True, **options, **_LOOKS[model],
        )  # fmt: skip
    rows = rows[rows["model"] == "top-k"]
    curve(
        figure,
        rows,
        "excess",
        "top-k - dense",
        text=lambda at, excess: f"{percent(at.corrupted)} replaced: {excess} nats",
        column=2,
        **options,
        **_LOOKS["top-k"],
    )
    figure.add_hline(y=0, line=theme.LEVEL, row=1, col=2)
    figure.update_xaxes(title_text="share of input tokens replaced", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(title_text="loss - clean loss (nats)", row=1, col=1)
    figure.update_yaxes(title_text="excess (nats)", row=1, col=2)
    fig.legend_below(figure)
    last = rows.iloc[-1]
    title = f"With {percent(last['corrupted'])} of the tokens replaced, {_verdict(last)}"
    alt = (
        f"Two line charts of the rise of the loss under corruption. {title}: excess "
        f"{last['excess']:+.4f} nats."
    )
    subtitle = f"both models read the same corrupted tokens; {paired_text(result.tables['loss_curve'])}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _verdict(row: pd.Series) -> str:
    """What the interval of the excess says."""
    if not math.isfinite(row["excess_low"]):
        return "one document decides nothing about the sparse model"
    if row["excess_low"] > 0:
        return "the sparse model loses more than the dense one"
    if row["excess_high"] < 0:
        return "the sparse model loses less than the dense one"
    return "dense and sparse model lose equally, as far as these documents tell"


def _robust_density(result: Result) -> float:
    """Share of units kept by the sparse model of the calibration and robustness figures."""
    bins = result.tables["reliability"]
    return float(bins.loc[bins["model"] == "top-k", "kept"].iloc[0])
