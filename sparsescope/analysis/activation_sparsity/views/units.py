"""How the units of a layer share the work: ``frequency`` (sorted use) and ``unit_use`` (never ... always).

A unit is in use on a token if it is in the energy set of that token. On the log axis of ``frequency``, units
that were never in use are drawn on a line of their own at the foot.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.analysis.activation_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import Series, layer_axis, layer_bar, layer_lines, layer_shades, series
from sparsescope.viz.sentences import percent

_RULES = {"in_use": "in use (in the energy set)", "nonzero": "not exactly zero"}
_CLASSES = {
    "below_0.1%": "under 0.1 %",
    "below_1%": "0.1–1 %",
    "below_10%": "1–10 %",
    "below_50%": "10–50 %",
}


def frequency(result: Result) -> fig.Figure:
    """Draw the sorted frequency of use on a log axis, one line for each layer."""
    table = result.tables["frequency"]
    flat = parts.nonzero_says_nothing(result)
    rules = {rule: text for rule, text in _RULES.items() if not (rule == "nonzero" and flat)}
    found = {rule: series(table, ["rank"], value=rule) for rule in rules}
    main = found["in_use"]
    shades = layer_shades(main.frame)
    if not shades:
        return fig.empty("Sorted frequency of use", "the table has no rows")
    titles = parts.panel_titles(main, list(rules.values()))
    figure = fig.panels(len(main.roles), len(rules), titles=titles, height=360, share_y="all")
    decade = _lowest_decade(table[list(rules)])
    most = fig.MAX_MARKS // (len(shades) * len(main.roles) * len(rules)) - 1
    for column, (rule, words) in enumerate(rules.items(), 1):
        frame = found[rule].frame
        placed = frame.assign(rule=words, drawn=_on_log_axis(frame["mean"].to_numpy(), decade))
        for row, role in enumerate(main.roles, 1):
            layer_lines(
                figure,
                placed[placed["role"] == role],
                "rank",
                "drawn",
                lambda at, _: (
                    f"layer {at.layer:g}, unit at {percent(at.rank)}: {at.rule} on "
                    f"{percent(at.mean)} of tokens"
                ),
                shades=shades,
                most=most,
                width=1.4,
                row=row,
                column=column,
            )
    _log_axes(figure, decade)
    layer_bar(figure, shades)
    busiest, rarest = (percent(value) for value in _edge_use(main))
    title = f"The busiest tenth of units is in use on {busiest} of tokens, the rarest on {rarest}"
    alt = (
        f"Curves of sorted unit use, one for each of {len(shades)} layers. In the median layer the "
        f"busiest tenth of units is in use on {busiest} of tokens and the rarest tenth on {rarest}."
    )
    subtitle = "one line for each layer; title: median layer"
    subtitle += f"; not drawn: {parts.nonzero_text(result)}" if flat else ""
    return parts.describe(figure, result, main, title=title, subtitle=subtitle, alt=alt, bands=main.sites > 1)


def _lowest_decade(values: pd.DataFrame) -> int:
    """Exponent of the lowest power of ten on the axis, from -6 to -1."""
    numbers = values.to_numpy(dtype=float)
    positive = numbers[np.isfinite(numbers) & (numbers > 0)]
    return max(min(int(np.floor(np.log10(positive.min()))), -1), -6) if positive.size else -3


def _on_log_axis(use: np.ndarray, decade: int) -> np.ndarray:
    """Place shares on a log axis: zero goes to the foot, half a decade below the lowest tick."""
    placed = np.where(use > 0, np.maximum(use, 10.0**decade), 10.0 ** (decade - 0.5))
    return np.where(np.isnan(use), np.nan, placed)


def _log_axes(figure: fig.Figure, decade: int) -> None:
    ticks = [10.0**power for power in range(decade, 1)]
    names = ["never", *(f"{100 * tick:g} %" for tick in ticks)]
    fig.y_axes(
        figure, "share of tokens (log scale)", type="log", range=[decade - 0.7, 0.08],
        tickvals=[10.0 ** (decade - 0.5), *ticks], ticktext=names,
    )  # fmt: skip
    figure.update_xaxes(
        title_text="share of the layer's units, most used first", tickformat=".0%", range=[0, 1]
    )


def _edge_use(found: Series) -> tuple[float, float]:
    """Median over layers of the mean use of the first and of the last tenth of the units."""
    frame = found.frame
    edges = (frame[frame["rank"] <= 0.1], frame[frame["rank"] >= 0.9])
    first, last = (float(edge.groupby("layer")["mean"].mean().median()) for edge in edges)
    return first, last


def unit_use(result: Result) -> fig.Figure:
    """Draw how the units of each layer divide into never, rarely, often and always firing."""
    table = result.tables["unit_use"]
    table = table[table["tokens"] > 0]  # an expert that got no token has no units that could have fired
    if table.empty:
        return fig.empty("Dead and always-on units", "the table has no rows")
    classes = {name: text for name, text in _CLASSES.items() if name in table}
    rules = sorted(set(table["rule"]), key=lambda rule: (rule != "in use", rule))
    if len(rules) > 1 and parts.nonzero_says_nothing(result):
        rules = [rule for rule in rules if rule != "nonzero"]
    sums = _add_up(table, list(classes))
    figure = fig.panels(
        1, len(rules), titles=[f"firing = {rule}" for rule in rules], height=340, share_y=True
    )
    for column, rule in enumerate(rules, 1):
        _stack(figure, sums[sums["rule"] == rule].sort_values("layer"), classes, column)
    legend = {
        "traceorder": "normal",
        "title": {"text": "share of tokens on which a unit fires", "side": "top"},
    }
    figure.update_layout(barmode="stack", bargap=0.12, legend=legend)
    fig.y_axes(figure, "share of the layer's units", range=[0, 1], tickformat=".0%", showgrid=False)
    layer_axis(figure, table)
    main = sums[sums["rule"] == rules[0]]
    title, alt = _unit_texts(main)
    found = series(table.assign(mean=0.0))
    subtitle = "units of each layer by how often they fire"
    if found.sites > table["rule"].nunique():
        subtitle += "; experts of a layer added up"
    if "nonzero" not in rules:
        subtitle += f"; not drawn: {parts.nonzero_text(result)}"
    return parts.describe(figure, result, found, title=title, subtitle=subtitle, alt=alt, bands=False)


def _add_up(table: pd.DataFrame, shares: list[str]) -> pd.DataFrame:
    """Number of units below each limit, added over the sites of a layer."""
    units = table["units"].astype(float)
    counts = table.assign(**{name: table[name].astype(float) * units for name in shares})
    return counts.groupby(["rule", "layer"])[["units", "dead", "always_on", *shares]].sum().reset_index()


def _stack(figure: fig.Figure, rows: pd.DataFrame, classes: dict[str, str], column: int) -> None:
    """Add one bar segment for each class; the classes are cumulative in the table."""
    never, *between, always = theme.CLASSES["light"]
    names = ["never", *classes.values(), "50–99 %", "always (over 99 %)"]
    colors = [never, *between[-len(classes) - 1 :], always]
    units = rows["units"].where(rows["units"] > 0)
    edges = [rows["dead"], *(rows[name] for name in classes), units - rows["always_on"], units]
    below = pd.Series(0.0, index=rows.index)
    for name, edge, color in zip(names, edges, colors, strict=True):
        height = ((edge - below) / units).clip(lower=0)
        below = below.where(below > edge, edge)
        shares = zip(rows["layer"], height, rows["units"], strict=True)
        texts = [f"layer {at:g}: {percent(share)} of {count:,.0f} units" for at, share, count in shares]
        fig.bars(figure, rows["layer"], height, name, color=color, texts=texts, column=column)


def _unit_texts(rows: pd.DataFrame) -> tuple[str, str]:
    """Title and alt text from the numbers of one rule."""
    total, dead, always = (float(rows[name].sum()) for name in ("units", "dead", "always_on"))
    if not total:
        return "Dead and always-on units", "Stacked bars of unit use by layer; no units."
    rule = "in use" if rows["rule"].iloc[0] == "in use" else "non-zero"
    part = percent(dead / total)
    first = (
        f"{dead:,.0f} of {total:,.0f} units ({part}) never {rule}" if dead else f"No unit was never {rule}"
    )
    second = f"{always:,.0f} ({percent(always / total)})" if always else "none"
    alt = f"Stacked bars of unit use by layer. {dead:,.0f} of {total:,.0f} units never {rule}"
    alt += f", {always:,.0f} always."
    if dead:
        worst = rows.loc[(rows["dead"] / rows["units"]).idxmax()]
        alt += f" Most in layer {worst['layer']:g}: {worst['dead']:,.0f}."
    return f"{first}; {second} {rule} on over 99 % of tokens", alt
