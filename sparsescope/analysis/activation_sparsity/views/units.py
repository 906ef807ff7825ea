"""How the units of a layer share the work: ``frequency`` (sorted use) and ``unit_use`` (never ... always).

A unit is in use on a token if it is in the energy set of that token. On the log axis of ``frequency``, units
that were never in use are drawn on a line of their own at the foot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.activation_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import Series, series

if TYPE_CHECKING:
    import plotly.graph_objects as go

_RULES = {"in_use": "in use (in the energy set)", "nonzero": "not exactly zero"}
_CLASSES = {
    "below_0.1%": "under 0.1 %",
    "below_1%": "0.1–1 %",
    "below_10%": "1–10 %",
    "below_50%": "10–50 %",
}


def frequency(result: Result) -> go.Figure:
    """Draw the sorted frequency of use on a log axis, one line for each layer."""
    table = result.tables["frequency"]
    flat = parts.nonzero_says_nothing(result)
    rules = {rule: text for rule, text in _RULES.items() if not (rule == "nonzero" and flat)}
    found = {rule: series(table, ["rank"], value=rule) for rule in rules}
    main = found["in_use"]
    layers = sorted(main.frame["layer"].unique())
    if not layers:
        return fig.empty("Sorted frequency of use", "the table has no rows")
    titles = parts.panel_titles(main, list(rules.values()))
    figure = fig.panels(len(main.roles), len(rules), titles=titles, height=360, share_y="all")
    decade = _lowest_decade(table[list(rules)])
    most = fig.MAX_MARKS // (len(layers) * len(main.roles) * len(rules)) - 1
    colors = dict(zip(layers, theme.ramp(len(layers)), strict=True))
    for column, (rule, text) in enumerate(rules.items(), 1):
        for (role, layer), rows in found[rule].frame.groupby(["role", "layer"], sort=True):
            rows = rows.sort_values("rank").iloc[fig.thin(len(rows), most)]
            texts = [
                f"layer {layer:g}, unit at {parts.percent(rank)}: {text} on {parts.percent(use)} of tokens"
                for rank, use in zip(rows["rank"], rows["mean"], strict=True)
            ]
            look: dict[str, Any] = {"color": colors[layer], "symbol": None, "width": 1.4}
            place: dict[str, Any] = {"row": main.roles.index(role) + 1, "column": column}
            y = _on_log_axis(rows["mean"].to_numpy(), decade)
            fig.line(figure, rows["rank"], y, f"layer {layer:g}", texts=texts, **look, **place)
    _log_axes(figure, decade)
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    busiest, rarest = (parts.percent(value) for value in _edge_use(main))
    title = f"The busiest tenth of units is in use on {busiest} of tokens, the rarest on {rarest}"
    alt = (
        f"Curves of sorted unit use, one for each of {len(layers)} layers. In the median layer the "
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


def _log_axes(figure: go.Figure, decade: int) -> None:
    ticks = [10.0**power for power in range(decade, 1)]
    figure.update_yaxes(
        type="log",
        range=[decade - 0.7, 0.08],
        tickvals=[10.0 ** (decade - 0.5), *ticks],
        ticktext=["never", *(f"{100 * tick:g} %" for tick in ticks)],
    )
    figure.update_yaxes(title_text="share of tokens (log scale)", col=1)
    figure.update_xaxes(title_text="share of the layer's units, most used first", tickformat=".0%", range=[0, 1])


def _edge_use(found: Series) -> tuple[float, float]:
    """Median over layers of the mean use of the first and of the last tenth of the units."""
    frame = found.frame
    edges = (frame[frame["rank"] <= 0.1], frame[frame["rank"] >= 0.9])
    first, last = (float(edge.groupby("layer")["mean"].mean().median()) for edge in edges)
    return first, last


def unit_use(result: Result) -> go.Figure:
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
    figure = fig.panels(1, len(rules), titles=[f"firing = {rule}" for rule in rules], height=340, share_y=True)
    for column, rule in enumerate(rules, 1):
        _stack(figure, sums[sums["rule"] == rule].sort_values("layer"), classes, column)
    legend = {
        "traceorder": "normal",
        "title": {"text": "share of tokens on which a unit fires", "side": "top"},
    }
    figure.update_layout(barmode="stack", bargap=0.12, legend=legend)
    figure.update_yaxes(range=[0, 1], tickformat=".0%", showgrid=False)
    figure.update_yaxes(title_text="share of the layer's units", col=1)
    fig.integer_axis(figure, table["layer"], parts.LAYER)
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


def _stack(figure: go.Figure, rows: pd.DataFrame, classes: dict[str, str], column: int) -> None:
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
        figure.add_bar(
            x=rows["layer"],
            y=height,
            name=name,
            legendgroup=name,
            showlegend=column == 1,
            marker={"color": color, "line": {"width": 0}},
            customdata=[
                f"layer {at:g}: {name}: {parts.percent(share)} of {count:,.0f} units"
                for at, share, count in zip(rows["layer"], height, rows["units"], strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            row=1,
            col=column,
        )


def _unit_texts(rows: pd.DataFrame) -> tuple[str, str]:
    """Title and alt text from the numbers of one rule."""
    total, dead, always = (float(rows[name].sum()) for name in ("units", "dead", "always_on"))
    if not total:
        return "Dead and always-on units", "Stacked bars of unit use by layer; no units."
    rule = "in use" if rows["rule"].iloc[0] == "in use" else "non-zero"
    part = parts.percent(dead / total)
    first = f"{dead:,.0f} of {total:,.0f} units ({part}) never {rule}" if dead else f"No unit was never {rule}"
    second = f"{always:,.0f} ({parts.percent(always / total)})" if always else "none"
    alt = f"Stacked bars of unit use by layer. {dead:,.0f} of {total:,.0f} units never {rule}"
    alt += f", {always:,.0f} always."
    if dead:
        worst = rows.loc[(rows["dead"] / rows["units"]).idxmax()]
        alt += f" Most in layer {worst['layer']:g}: {worst['dead']:,.0f}."
    return f"{first}; {second} {rule} on over 99 % of tokens", alt
