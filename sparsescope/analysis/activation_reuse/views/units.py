"""Overlap of neighbouring tokens and inequality of units: ``neighbors`` and ``lorenz``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsescope.analysis.activation_reuse.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import series
from sparsescope.viz.sentences import percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LAYER = "layer (0 at the input)"
_NULLS = {
    "within": ("same document, random order", theme.VERMILION, "dash", "square"),
    "across": ("different documents", theme.SLATE, "dot", "diamond"),
}


def neighbors(result: Result) -> go.Figure:
    """Draw the Jaccard index of consecutive tokens by layer, with both nulls."""
    table = result.tables["neighbors"]
    rules = parts.rules(result)
    table = table[table["rule"].isin(rules)]
    if table["mean"].notna().sum() == 0:
        return fig.empty("Overlap of consecutive tokens", "no pair of tokens was measured")
    figure = fig.panels(1, len(rules), titles=[f"active: {parts.RULES[rule]}" for rule in rules], height=350, share_y=True)
    kept = ("within", "within_low", "within_high", "across", "excess", "excess_low", "excess_high")
    found = series(table, ["rule"], keep=kept)
    role = found.roles[0]
    for column, rule in enumerate(rules, 1):
        rows = found.frame[(found.frame["role"] == role) & (found.frame["rule"] == rule)].sort_values("layer")
        layer = rows["layer"]
        place: dict[str, Any] = {"column": column}
        fig.band(figure, layer, rows["low"], rows["high"], color=theme.BLUE, **place)
        fig.band(figure, layer, rows["within_low"], rows["within_high"], color=theme.VERMILION, **place)
        texts = [
            f"layer {at:g}: {v:.4f}; order adds {e:.4f} [{low:.4f}, {high:.4f}]"
            for at, v, e, low, high in rows[["layer", "mean", "excess", "excess_low", "excess_high"]].itertuples(index=False)
        ]
        legend = {"legend": column == 1, **place}
        fig.line(figure, layer, rows["mean"], "consecutive tokens", color=theme.BLUE, texts=texts, **legend)
        for name, (text, color, dash, symbol) in _NULLS.items():
            texts = [f"layer {at:g}: {v:.4f}" for at, v in zip(layer, rows[name], strict=True)]
            fig.line(figure, layer, rows[name], text, color=color, dash=dash, symbol=symbol, texts=texts, **legend)
    fig.integer_axis(figure, found.frame["layer"], _LAYER)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="Jaccard index of two tokens", col=1)
    figure.update_layout(showlegend=True)
    main = found.frame[(found.frame["role"] == role) & (found.frame["rule"] == rules[0])].median(numeric_only=True)
    title = f"Consecutive tokens share {main['mean']:.2f} of their units, random ones of the document {main['within']:.2f}, "
    title += f"of different documents {main['across']:.2f}"
    alt = f"Lines of the Jaccard index by layer. In the median layer: {title}."
    subtitle = f"|A and B| / |A or B|; title: median layer, {parts.RULES[rules[0]]}; {parts.level_text(result)}"
    if len(found.roles) > 1:
        subtitle += f"; drawn: {role}, further kinds of site are in the table"
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)


def lorenz(result: Result) -> go.Figure:
    """Draw the Lorenz curves of unit use, one line for each layer."""
    table = result.tables["lorenz"]
    rules = parts.rules(result)
    table = table[table["rule"].isin(rules)].dropna(subset=["firings_share"])
    if table.empty:
        return fig.empty("Hot and cold units", "no unit ever fired")
    figure = fig.panels(1, len(rules), titles=[f"active: {parts.RULES[rule]}" for rule in rules], height=380, share_y=True)
    layers = parts.layers(table)
    most = fig.MAX_MARKS // (table["site"].nunique() * len(rules)) - 1
    colors = dict(zip(layers, theme.ramp(len(layers)), strict=True))
    for column, rule in enumerate(rules, 1):
        for (layer, _), rows in table[table["rule"] == rule].groupby(["layer", "site"], sort=True):
            rows = rows.sort_values("units_share").iloc[fig.thin(len(rows), most)]
            pairs = zip(rows["units_share"], rows["firings_share"], strict=True)
            texts = [f"layer {layer:g}: {percent(u)} of the units have {percent(f)} of all firings" for u, f in pairs]
            look: dict[str, Any] = {"color": colors[layer], "symbol": None, "width": 1.3, "column": column}
            fig.line(figure, rows["units_share"], rows["firings_share"], f"layer {layer:g}", texts=texts, **look)
        even: dict[str, Any] = {"color": theme.SLATE, "dash": "dot", "symbol": None, "width": 1.5}
        fig.line(figure, [0, 1], [0, 1], "all units alike", column=column, **even)
    figure.update_xaxes(title_text="share of the layer's units, most used first", tickformat=".0%", range=[0, 1])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(title_text="share of all firings", col=1)
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    use = result.tables["concentration"]
    use = use[use["rule"] == rules[0]]
    hot, low, high = (percent(v) for v in (use["hot_share"].median(), use["hot_share"].min(), use["hot_share"].max()))
    title = f"{hot} of the units have 80 % of all firings in the median layer ({low} to {high})"
    alt = f"Lorenz curves, one for each of {len(layers)} layers. {title}; median Gini {use['gini'].median():.2f}."
    subtitle = f"one line for each layer; dotted: all units fire equally often; title: {parts.RULES[rules[0]]}"
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)
