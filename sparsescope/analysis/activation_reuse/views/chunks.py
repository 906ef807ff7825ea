"""Unions over consecutive tokens: ``union_density``, ``aggregated`` and ``upper_bounds``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from sparsescope.analysis.activation_reuse.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.bounds import draw_bounds
from sparsescope.viz.sentences import percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LINES = {
    "mean": ("observed", theme.INK["light"], "solid", 3.0),
    "marginal": ("independent tokens, each unit at its rate", theme.VERMILION, "dash", 2.0),
    "independent": ("independent tokens, all units alike", theme.SLATE, "dot", 2.0),
}
_CHUNK = 8


def union_density(result: Result) -> go.Figure:
    """Draw the union density against the chunk length, one panel for each rule that says something."""
    table = result.tables["union_density"]
    rules = parts.rules(result)
    if table.empty or not rules:
        return fig.empty("Units needed by a chunk of tokens", "no chunk was measured")
    figure = fig.panels(1, len(rules), titles=[f"active: {parts.RULES[rule]}" for rule in rules], height=380, share_y=True)
    for column, rule in enumerate(rules, 1):
        _curves(figure, table[table["rule"] == rule], "chunk", "tokens", column)
    parts.log_axis(figure, table["chunk"], "consecutive tokens in a chunk, k (log scale)")
    figure.update_yaxes(range=[0, 1.03], tickformat=".0~%")
    figure.update_yaxes(title_text="share of units active on any token", col=1)
    figure.update_layout(showlegend=True)
    fig.color_bar(figure, *_ends(table), "layer")
    main = table[table["rule"] == rules[0]]
    at = _CHUNK if (main["chunk"] == _CHUNK).any() else int(main["chunk"].max())
    rows = main[main["chunk"] == at].median(numeric_only=True)
    single = main[main["chunk"] == 1]["mean"].median()
    seen, null = percent(rows["mean"]), percent(rows["marginal"])
    title = f"{at} consecutive tokens need {seen} of the units, independent ones {null}, a single one {percent(single)}"
    alt = f"Lines of union density against chunk length, by layer. In the median layer {title} ({parts.RULES[rules[0]]})."
    subtitle = "thin: layers; thick, and in the title: median layer; active: " + parts.RULES[rules[0]]
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)


def aggregated(result: Result) -> go.Figure:
    """Draw the share of units that the first t tokens of a window leave unused."""
    table = result.tables["aggregated"]
    rules = parts.rules(result)
    if table.empty or not rules:
        return fig.empty("Units that a text never uses", "no window was measured")
    figure = fig.panels(1, len(rules), titles=[f"active: {parts.RULES[rule]}" for rule in rules], height=380, share_y=True)
    for column, rule in enumerate(rules, 1):
        _curves(figure, table[table["rule"] == rule], "tokens", "first tokens", column)
    parts.log_axis(figure, table["tokens"], "first t tokens of a window (log scale)")
    figure.update_yaxes(range=[0, 1.03], tickformat=".0~%")
    figure.update_yaxes(title_text="share of units unused so far", col=1)
    figure.update_layout(showlegend=True)
    fig.color_bar(figure, *_ends(table), "layer")
    main = table[table["rule"] == rules[0]]
    last = int(main["tokens"].max())
    rows = main[main["tokens"] == last].median(numeric_only=True)
    title = f"After {last} tokens {percent(rows['mean'])} of the units are unused; independent tokens: "
    title += percent(rows["marginal"])
    alt = f"Lines of the unused share against the number of tokens, by layer. In the median layer: {title}."
    subtitle = "thin: layers; thick, and in the title: median layer; active: " + parts.RULES[rules[0]]
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)


def _curves(figure: go.Figure, table: pd.DataFrame, x: str, unit: str, column: int) -> None:
    """Draw the layers thin, the median layer and its nulls in front."""
    layers = parts.layers(table)
    for layer, color in zip(layers, theme.ramp(len(layers)), strict=True):
        rows = table[table["layer"] == layer].groupby(x)["mean"].median()
        texts = [f"layer {layer:g}, {k} {unit}: {percent(v)}" for k, v in rows.items()]
        look: dict[str, Any] = {"color": color, "symbol": None, "width": 1.1, "opacity": 0.7}
        fig.line(figure, rows.index, rows, f"layer {layer:g}", texts=texts, column=column, **look)
    medians = table.groupby(x)[list(_LINES)].median()
    for name, (text, color, dash, width) in _LINES.items():
        look = {"color": color, "dash": dash, "width": width, "symbol": None, "legend": column == 1}
        texts = [f"{k} {unit}: {percent(v)}" for k, v in medians[name].items()]
        fig.line(figure, medians.index, medians[name], f"{text}, median layer", texts=texts, column=column, **look)


def _ends(table: pd.DataFrame) -> tuple[float, float]:
    return float(table["layer"].min()), float(table["layer"].max())


def upper_bounds(result: Result) -> go.Figure:
    """Draw the bounds on weight bytes against the number of tokens decoded together."""
    table = result.tables["upper_bounds"]
    rules = parts.rules(result)
    names = list(dict.fromkeys(table["rule"]))
    wanted = [name for name in names if (name == "nonzero") == (bool(rules) and rules[0] == "nonzero")]
    rows = table[table["rule"].isin(wanted[:1])]
    rows = rows.assign(group=[f"{k} token{'s' if k > 1 else ''}" for k in rows["together"]])
    subject = str(result.provenance.get("subject", {}).get("id", ""))
    return draw_bounds(rows, subject=subject, group="group", group_name="consecutive tokens for one reading of the weights")
