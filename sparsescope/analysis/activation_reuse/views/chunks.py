"""Unions over consecutive tokens: ``union_density``, ``aggregated`` and ``upper_bounds``."""

from __future__ import annotations

from sparsescope.analysis.activation_reuse.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.bounds import draw_bounds
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades
from sparsescope.viz.sentences import percent

_LINES = {
    "mean": ("observed", theme.INK["light"], "solid", 3.0),
    "marginal": ("independent tokens, each unit at its rate", theme.VERMILION, "dash", 2.0),
    "independent": ("independent tokens, all units alike", theme.SLATE, "dot", 2.0),
}
_CHUNK = 8


def union_density(result: Result) -> fig.Figure:
    """Draw the union density against the chunk length, one panel for each rule that says something."""
    table, rules = result.tables["union_density"], parts.rules(result)
    if table.empty or not rules:
        return fig.empty("Units needed by a chunk of tokens", "no chunk was measured")
    figure = _curves(result, "union_density", "chunk", "tokens")
    parts.log_axis(figure, table["chunk"], "consecutive tokens in a chunk, k (log scale)")
    figure.update_yaxes(title_text="share of units active on any token", col=1)
    main = parts.main_rows(table)
    main = main[main["rule"] == rules[0]]
    at = _CHUNK if (main["chunk"] == _CHUNK).any() else int(main["chunk"].max())
    rows = main[main["chunk"] == at].median(numeric_only=True)
    single = main[main["chunk"] == 1]["mean"].median()
    seen, null = percent(rows["mean"]), percent(rows["marginal"])
    title = (
        f"{at} consecutive tokens need {seen} of the units, independent ones {null}, a single "
        f"one {percent(single)}"
    )
    alt = (
        f"Lines of union density against chunk length, by layer. In the median layer {title} "
        f"({parts.RULES[rules[0]]})."
    )
    return parts.describe(figure, result, title=title, subtitle=_subtitle(rules), alt=alt)


def aggregated(result: Result) -> fig.Figure:
    """Draw the share of units that the first t tokens of a window leave unused."""
    table, rules = result.tables["aggregated"], parts.rules(result)
    if table.empty or not rules:
        return fig.empty("Units that a text never uses", "no window was measured")
    figure = _curves(result, "aggregated", "tokens", "first tokens")
    parts.log_axis(figure, table["tokens"], "first t tokens of a window (log scale)")
    figure.update_yaxes(title_text="share of units unused so far", col=1)
    main = parts.main_rows(table)
    main = main[main["rule"] == rules[0]]
    last = int(main["tokens"].max())
    rows = main[main["tokens"] == last].median(numeric_only=True)
    title = f"After {last} tokens {percent(rows['mean'])} of the units are unused; independent tokens: "
    title += percent(rows["marginal"])
    alt = f"Lines of the unused share against the number of tokens, by layer. In the median layer: {title}."
    return parts.describe(figure, result, title=title, subtitle=_subtitle(rules), alt=alt)


def _curves(result: Result, name: str, x: str, unit: str) -> fig.Figure:
    """Draw the layers of a table thin, the median layer and its nulls in front, one panel for each rule."""
    table = parts.main_rows(result.tables[name])
    figure, shades = parts.panels(result), layer_shades(table)
    for column, rule in enumerate(parts.rules(result), 1):
        rows = table[table["rule"] == rule]
        layers = rows.groupby(["layer", x], as_index=False)["mean"].median()
        layer_lines(
            figure,
            layers,
            x,
            "mean",
            lambda at, share: f"layer {at.layer:g}, {getattr(at, x)} {unit}: {share}",
            shades=shades,
            width=1.1,
            opacity=0.7,
            column=column,
        )
        medians = rows.groupby(x, as_index=False)[list(_LINES)].median()
        for line, (text, color, dash, width) in _LINES.items():
            curve(
                figure,
                medians,
                line,
                f"{text}, median layer",
                x=x,
                color=color,
                dash=dash,
                width=width,
                symbol=None,
                text=lambda at, share: f"{getattr(at, x)} {unit}: {share}",
                legend=True,
                column=column,
            )
    figure.update_yaxes(range=[0, 1.03], tickformat=".0~%")
    figure.update_layout(showlegend=True)
    layer_bar(figure, shades)
    return figure


def _subtitle(rules: list[str]) -> str:
    return "thin: layers; thick, and in the title: median layer; active: " + parts.RULES[rules[0]]


def upper_bounds(result: Result) -> fig.Figure:
    """Draw the bounds on weight bytes against the number of tokens decoded together."""
    table = result.tables["upper_bounds"]
    rules = parts.rules(result)
    names = list(dict.fromkeys(table["rule"]))
    wanted = [name for name in names if (name == "nonzero") == (bool(rules) and rules[0] == "nonzero")]
    rows = table[table["rule"].isin(wanted[:1])]
    rows = rows.assign(group=[f"{k} token{'s' if k > 1 else ''}" for k in rows["together"]])
    return draw_bounds(
        rows, result, group="group", group_name="consecutive tokens for one reading of the weights"
    )
