"""Figures of ``effective_density``: what switching units off costs, where, and what is
left of the accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.bounds import draw_bounds
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_axis, series
from sparsescope.viz.sentences import paired_text, percent

_LOOKS: dict[str, dict[str, Any]] = {
    "CETT": {"color": theme.BLUE, "symbol": "circle"},
    "top-p": {"color": theme.VERMILION, "symbol": "square"},
}
_DENSITY = "share of hidden units kept, mean over layers"
_HEIGHT = 340


def loss_curve(result: Result) -> fig.Figure:
    """Draw the rise of perplexity against density for both rules, on a logarithmic and on a linear axis."""
    wanted = _wanted(result)
    figure = fig.panels(1, 2, titles=["whole curve", f"up to +{1.6 * max(wanted):g} %"], height=_HEIGHT)
    for column in (1, 2):
        _by_rule(figure, result, "perplexity_rise", _signed, "{} kept: perplexity {}", column)
        for percentage in wanted:
            figure.add_hline(y=percentage / 100, line=theme.LEVEL, row=1, col=column)
    top = 1.6 * max(wanted) / 100
    lowest = min(float(result.tables["curve"]["perplexity_rise"].min()), 0.0)
    figure.update_yaxes(range=[1.1 * lowest - 0.05 * top, top], row=1, col=2)
    fig.y_axes(figure, "rise of perplexity", tickformat="+.3~%")
    at = _nearest_to_one(wanted)
    rows = _criterion(result, f"perplexity +{at:g} %")
    parts = [
        f"{'at most ' if row.censored != 'no' else ''}{percent(row.density)} by {row.rule}" for row in rows
    ]
    title = f"At +{at:g} % perplexity the model needs {' and '.join(parts)} of its hidden units"
    alt = f"Two line charts of the rise of perplexity against the share of hidden units kept. {title}."
    dotted = ", ".join(f"+{value:g} %" for value in wanted)
    subtitle = f"units off in all layers; dotted: {dotted}; {paired_text(result.tables['effective'])}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _by_rule(
    figure: fig.Figure, result: Result, y: str, show: Callable[[float], str], text: str, column: int = 1
) -> None:
    """Draw a column of the curve against density, one line for each rule."""
    table = result.tables["curve"]
    for rule, look in _LOOKS.items():
        curve(
            figure,
            table[table["rule"] == rule].sort_values("density"),
            y,
            f"{rule} rule",
            x="density",
            show=show,
            text=lambda at, shown: text.format(percent(at.density), shown),
            columns=result.columns["curve"],
            legend=True,
            column=column,
            **look,
        )
    figure.update_xaxes(title_text=_DENSITY, tickformat=".0%", range=[0, 1.02])
    fig.legend_below(figure)


def _criterion(result: Result, criterion: str) -> list[Any]:
    """The rows of a criterion in the order of the rules."""
    table = result.tables["effective"]
    rows = table[table["criterion"] == criterion]
    return sorted(rows.itertuples(index=False), key=lambda row: list(_LOOKS).index(row.rule))


def per_layer(result: Result) -> fig.Figure:
    """Draw the density of each layer at each wanted rise of perplexity."""
    table, columns, wanted = result.tables["per_layer"], result.columns["per_layer"], _wanted(result)
    figure, found = fig.panels(height=_HEIGHT), series(table, ["percent"], value="density")
    drawn = found.frame[found.frame["role"] == found.roles[0]].rename(columns={"mean": "density"})
    labels = []
    for percentage, color in zip(wanted, theme.ramp(len(wanted)), strict=True):
        rows, name = drawn[drawn["percent"] == percentage].sort_values("layer"), f"+{percentage:g} %"
        labels.append((curve(figure, rows, "density", name, color=color, columns=columns), name))
    layer_axis(figure, drawn)
    fig.y_axes(figure, "share of hidden units kept", tickformat=".0%", range=[0, 1.04])
    fig.end_labels(figure, labels, x=float(drawn["layer"].max()), y_range=(0, 1.04), panel_height=_HEIGHT)
    figure.update_layout(margin={"r": 70})
    at = _nearest_to_one(wanted)
    rows = drawn[drawn["percent"] == at]
    least, most = (rows.loc[where(rows["density"])] for where in (pd.Series.idxmin, pd.Series.idxmax))
    who = "the median expert of layer" if found.sites > 1 else "layer"
    title = f"At +{at:g} % perplexity {who} {least['layer']} keeps {percent(least['density'])} of its units, "
    title += f"{'that of layer' if found.sites > 1 else 'layer'} {most['layer']} {percent(most['density'])}"
    alt = (
        "Line chart of the share of hidden units kept by layer, one line for each rise "
        f"of perplexity. {title}."
    )
    bands = paired_text(result.tables["effective"])
    if found.sites > 1:
        bands = f"lines: median over up to {found.sites} experts of a layer; bands: 5–95 % of the experts"
    other = f"; drawn: {found.roles[0]}, further kinds of site are in the table" if found.roles[1:] else ""
    subtitle = f"one CETT level for all layers; {bands}{other}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def accuracy_curve(result: Result) -> fig.Figure:
    """Draw relative accuracy against density, with the level that critical sparsity keeps."""
    figure = fig.panels(height=_HEIGHT)
    _by_rule(
        figure,
        result,
        "relative_accuracy",
        lambda score: f"{100 * score:.2f} %",
        "{} kept: {} of the dense accuracy",
    )
    criterion = next(name for name in result.tables["effective"]["criterion"] if "accuracy" in name)
    level = float(criterion.split()[0])
    figure.add_hline(y=level, line=theme.LEVEL)
    fig.y_axes(figure, "accuracy / dense accuracy", tickformat=".1%")
    rows = _criterion(result, criterion)
    parts = [
        f"{'at least ' if row.censored != 'no' else ''}{percent(row.sparsity)} by {row.rule}" for row in rows
    ]
    title = f"Critical sparsity at {level:.4g} of the dense accuracy: {' and '.join(parts)}"
    alt = f"Line chart of relative next-token accuracy against the share of hidden units kept. {title}."
    subtitle = f"dotted: {level:.4g} of the dense accuracy"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def bounds(result: Result) -> fig.Figure:
    """Draw the upper bounds on FLOPs and weight bytes."""
    return draw_bounds(result.tables["bounds"], result, group_name="rise of perplexity")


def _wanted(result: Result) -> list[float]:
    return sorted(float(value) for value in result.tables["per_layer"]["percent"].unique())


def _nearest_to_one(wanted: list[float]) -> float:
    """The rise that stands for all: 1 %, or the nearest to it."""
    return min(wanted, key=lambda value: abs(math.log(value)))


def _signed(rise: float) -> str:
    return f"{100 * rise:+.2f} %" if math.isfinite(rise) else "\N{EN DASH}"
