"""Figures of ``effective_density``: what switching units off costs, where, and what is left of the accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.bounds import draw_bounds
from sparsescope.viz.sentences import percent, subject_prefix

if TYPE_CHECKING:
    import plotly.graph_objects as go

_COLORS = {"CETT": theme.BLUE, "top-p": theme.VERMILION}
_SYMBOLS = {"CETT": "circle", "top-p": "square"}
_DENSITY = "share of hidden units kept, mean over layers"
_HEIGHT = 340


def loss_curve(result: Result) -> go.Figure:
    """Draw the rise of perplexity against density for both rules, on a logarithmic and on a linear axis."""
    curve = result.tables["curve"]
    wanted = _wanted(result)
    figure = fig.panels(1, 2, titles=["whole curve", f"up to +{1.6 * max(wanted):g} %"], height=_HEIGHT)
    for column in (1, 2):
        for rule in _COLORS:
            rows = curve[curve["rule"] == rule].sort_values("density")
            low, high = rows["perplexity_rise_low"], rows["perplexity_rise_high"]
            fig.band(figure, rows["density"], low, high, color=_COLORS[rule], row=1, column=column)
            texts = [
                f"{percent(at)} kept: perplexity {_signed(rise)} [{_signed(a)}, {_signed(b)}]"
                for at, rise, a, b in zip(rows["density"], rows["perplexity_rise"], low, high, strict=True)
            ]
            name = f"{rule} rule"
            fig.line(
                figure, rows["density"], rows["perplexity_rise"], name, color=_COLORS[rule], texts=texts,
                symbol=_SYMBOLS[rule], legend=column == 1, row=1, column=column,
            )  # fmt: skip
        for percentage in wanted:
            figure.add_hline(y=percentage / 100, line={"color": theme.SLATE, "dash": "dot", "width": 1}, row=1, col=column)
    top = 1.6 * max(wanted) / 100
    lowest = min(float(curve["perplexity_rise"].min()), 0.0)
    figure.update_yaxes(range=[1.1 * lowest - 0.05 * top, top], row=1, col=2)
    figure.update_yaxes(tickformat="+.3~%")
    figure.update_yaxes(title_text="rise of perplexity", col=1)
    figure.update_xaxes(title_text=_DENSITY, tickformat=".0%", range=[0, 1.02])
    fig.legend_below(figure)
    table = result.tables["effective"]
    at = _nearest_to_one(wanted)
    rows = table[table["criterion"] == f"perplexity +{at:g} %"].set_index("rule")
    parts = [
        _at_most(rows.loc[rule]) + f"{percent(rows.loc[rule, 'density'])} by {rule}" for rule in _COLORS if rule in rows.index
    ]
    title = f"At +{at:g} % perplexity the model needs {' and '.join(parts)} of its hidden units"
    alt = f"Two line charts of the rise of perplexity against the share of hidden units kept. {title}."
    subtitle = f"{subject_prefix(result)}units off in all layers; dotted: {_listed(wanted)}; {_bands(result)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def per_layer(result: Result) -> go.Figure:
    """Draw the density of each layer at each wanted rise of perplexity."""
    table = result.tables["per_layer"]
    wanted = sorted(table["percent"].unique())
    figure = fig.panels(1, 1, height=_HEIGHT)
    labels = []
    for percentage, color in zip(wanted, theme.ramp(len(wanted)), strict=True):
        rows = table[table["percent"] == percentage].sort_values("layer")
        fig.band(figure, rows["layer"], rows["low"], rows["high"], color=color)
        texts = [
            f"layer {layer}: {percent(at)} [{percent(low)}, {percent(high)}]"
            for layer, at, low, high in rows[["layer", "density", "low", "high"]].itertuples(index=False)
        ]
        name = f"+{percentage:g} %"
        fig.line(figure, rows["layer"], rows["density"], name, color=color, texts=texts)
        labels.append((float(rows["density"].iloc[-1]), name))
    fig.integer_axis(figure, table["layer"], "layer (0 at the input)")
    figure.update_yaxes(title_text="share of hidden units kept", tickformat=".0%", range=[0, 1.04])
    end = float(table["layer"].max())
    fig.end_labels(figure, labels, x=end, y_range=(0, 1.04), panel_height=_HEIGHT)
    figure.update_layout(margin={"r": 70})
    at = _nearest_to_one(wanted)
    rows = table[table["percent"] == at]
    least, most = rows.loc[rows["density"].idxmin()], rows.loc[rows["density"].idxmax()]
    title = (
        f"At +{at:g} % perplexity layer {least['layer']} keeps {percent(least['density'])} of its units, "
        f"layer {most['layer']} {percent(most['density'])}"
    )
    alt = f"Line chart of the share of hidden units kept by layer, one line for each rise of perplexity. {title}."
    subtitle = f"{subject_prefix(result)}one CETT level for all layers; {_bands(result)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def accuracy_curve(result: Result) -> go.Figure:
    """Draw relative accuracy against density, with the level that critical sparsity keeps."""
    curve, table = result.tables["curve"], result.tables["effective"]
    figure = fig.panels(1, 1, height=_HEIGHT)
    for rule, color in _COLORS.items():
        rows = curve[curve["rule"] == rule].sort_values("density")
        texts = [
            f"{percent(at)} kept: {100 * score:.2f} % of the dense accuracy"
            for at, score in rows[["density", "relative_accuracy"]].itertuples(index=False)
        ]
        fig.line(
            figure, rows["density"], rows["relative_accuracy"], f"{rule} rule", color=color, texts=texts,
            symbol=_SYMBOLS[rule], legend=True,
        )  # fmt: skip
    criterion = next(name for name in table["criterion"] if "accuracy" in name)
    level = float(criterion.split()[0])
    figure.add_hline(y=level, line={"color": theme.SLATE, "dash": "dot", "width": 1})
    figure.update_xaxes(title_text=_DENSITY, tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(title_text="accuracy / dense accuracy", tickformat=".1%")
    fig.legend_below(figure)
    rows = table[table["criterion"] == criterion].set_index("rule")
    parts = [
        ("at least " if _at_most(rows.loc[rule]) else "") + f"{percent(rows.loc[rule, 'sparsity'])} by {rule}"
        for rule in _COLORS
        if rule in rows.index
    ]
    title = f"Critical sparsity at {level:.4g} of the dense accuracy: {' and '.join(parts)}"
    alt = f"Line chart of relative next-token accuracy against the share of hidden units kept. {title}."
    subtitle = f"{subject_prefix(result)}dotted: {level:.4g} of the dense accuracy"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def bounds(result: Result) -> go.Figure:
    """Draw the upper bounds on FLOPs and weight bytes."""
    subject = subject_prefix(result).removesuffix(": ")
    return draw_bounds(result.tables["bounds"], subject=subject, group_name="rise of perplexity")


def _at_most(row: pd.Series) -> str:
    """Mark a density that is only a bound, because the grid ended before the criterion was met."""
    return "" if row["censored"] == "no" else "at most "


def _wanted(result: Result) -> list[float]:
    return sorted(float(value) for value in result.tables["per_layer"]["percent"].unique())


def _nearest_to_one(wanted: list[float]) -> float:
    """The rise that stands for all: 1 %, or the nearest to it."""
    return min(wanted, key=lambda value: abs(math.log(value)))


def _listed(wanted: list[float]) -> str:
    return ", ".join(f"+{value:g} %" for value in wanted)


def _signed(rise: float) -> str:
    return f"{100 * rise:+.2f} %" if math.isfinite(rise) else "\N{EN DASH}"


def _bands(result: Result) -> str:
    table: pd.DataFrame = result.tables["effective"]
    documents = int(table["documents"].max())
    if table["low"].isna().all():
        return "no intervals: they need two documents or more"
    return f"bands: paired document-cluster bootstrap, {documents} documents"
