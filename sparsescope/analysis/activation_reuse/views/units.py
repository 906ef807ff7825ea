"""Overlap of neighbouring tokens and inequality of units: ``neighbors`` and ``lorenz``."""

from __future__ import annotations

from typing import Any

from sparsescope.analysis.activation_reuse.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, dotted
from sparsescope.viz.layers import Series, layer_axis, layer_bar, layer_lines, layer_shades, rows_of, series
from sparsescope.viz.sentences import band_text, percent, with_interval


def neighbors(result: Result) -> fig.Figure:
    """Draw the Jaccard index of consecutive tokens by layer, with both nulls."""
    table, columns, rules = result.tables["neighbors"], result.columns["neighbors"], parts.rules(result)
    table = parts.main_rows(table[table["rule"].isin(rules)])
    if table["mean"].notna().sum() == 0:
        return fig.empty("Overlap of consecutive tokens", "no pair of tokens was measured")
    figure = parts.panels(result, height=350)
    kept = ("within", "within_low", "within_high", "across", "excess", "excess_low", "excess_high")
    found = series(table, ["rule"], keep=kept)
    by_rule = {rule: _first_role(found, rule) for rule in rules}
    for column, rule in enumerate(rules, 1):
        rows = rows_of(found, by_rule[rule], rule=rule)
        look: dict[str, Any] = {"columns": columns, "show": "{:.4f}".format, "legend": True, "column": column}
        curve(figure, rows, "mean", "consecutive tokens", color=theme.BLUE, text=_order_adds, **look)
        look |= {"color": theme.VERMILION, "dash": "dash", "symbol": "square"}
        curve(figure, rows, "within", "same document, random order", **look)
        look |= {"color": theme.SLATE, "dash": "dot", "symbol": "diamond", "columns": ()}
        curve(figure, rows, "across", "different documents", **look)
    layer_axis(figure, found.frame)
    fig.y_axes(figure, "Jaccard index of two tokens", rangemode="tozero")
    figure.update_layout(showlegend=True)
    main = rows_of(found, by_rule[rules[0]], rule=rules[0]).median(numeric_only=True)
    title = (
        f"Consecutive tokens share {main['mean']:.2f} of their units, random ones of the document "
        f"{main['within']:.2f}, "
    )
    title += f"of different documents {main['across']:.2f}"
    alt = f"Lines of the Jaccard index by layer. In the median layer: {title}."
    subtitle = f"|A and B| / |A or B|; title: median layer, {parts.RULES[rules[0]]}; {band_text(result)}"
    if len(found.roles) > len(set(by_rule.values())):
        subtitle += f"; drawn: {by_rule[rules[0]]}, further kinds of site are in the table"
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)


def _first_role(found: Series, rule: str) -> str:
    """The kind of site that is drawn for a rule: experts as units have one of their own."""
    there = set(found.frame.loc[found.frame["rule"] == rule, "role"])
    return next((role for role in found.roles if role in there), found.roles[0])


def _order_adds(row: Any, shown: str) -> str:
    """Hover text of the overlap of consecutive tokens: what their order adds."""
    return (
        f"layer {row.layer:g}: {shown}; order adds "
        f"{with_interval(row.excess, row.excess_low, row.excess_high, '{:.4f}'.format)}"
    )


def lorenz(result: Result) -> fig.Figure:
    """Draw the Lorenz curves of unit use, one line for each layer."""
    table, rules = result.tables["lorenz"], parts.rules(result)
    table = parts.main_rows(table[table["rule"].isin(rules)]).dropna(subset=["firings_share"])
    if table.empty:
        return fig.empty("Hot and cold units", "no unit ever fired")
    figure, shades = parts.panels(result), layer_shades(table)
    most = fig.MAX_MARKS // (table["site"].nunique() * len(rules)) - 1
    for column, rule in enumerate(rules, 1):
        layer_lines(
            figure,
            table[table["rule"] == rule],
            "units_share",
            "firings_share",
            lambda at, share: (
                f"layer {at.layer:g}: {percent(at.units_share)} of the units have {share} of all firings"
            ),
            shades=shades,
            split=("site",),
            most=most,
            width=1.3,
            column=column,
        )
        dotted(figure, [0, 1], [0, 1], "all units alike", column=column)
    figure.update_xaxes(
        title_text="share of the layer's units, most used first", tickformat=".0%", range=[0, 1]
    )
    fig.y_axes(figure, "share of all firings", tickformat=".0%", range=[0, 1.02])
    layer_bar(figure, shades)
    use = parts.main_rows(result.tables["concentration"])
    use = use[use["rule"] == rules[0]]
    hot, low, high = (
        percent(v) for v in (use["hot_share"].median(), use["hot_share"].min(), use["hot_share"].max())
    )
    title = f"{hot} of the units have 80 % of all firings in the median layer ({low} to {high})"
    alt = (
        f"Lorenz curves, one for each of {len(shades)} layers. {title}; median Gini "
        f"{use['gini'].median():.2f}."
    )
    subtitle = (
        f"one line for each layer; dotted: all units fire equally often; title: {parts.RULES[rules[0]]}"
    )
    return parts.describe(figure, result, title=title, subtitle=subtitle, alt=alt)
