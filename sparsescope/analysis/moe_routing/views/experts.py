"""Experts of a layer beside each other: ``load``, ``coactivation`` and ``similarity``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.moe_routing.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, dotted
from sparsescope.viz.layers import layer_axis, layer_bar, layer_lines, layer_shades
from sparsescope.viz.sentences import percent, with_interval
from sparsescope.viz.tokens import display

_MOST_EXPERTS = 64  # in a map of pairs
_FARTHEST = 4.0  # colors end at a lift of 16 and 1 / 16
_SPREAD = (0.05, 0.95)


def load(result: Result) -> fig.Figure:
    """Draw tokens of each expert over the mean of its layer, sorted, and the effective number of experts."""
    table = result.tables["load"]
    table = table[table["domain"] == "all"].sort_values("layer")
    if table.empty or "domain_shares" not in result.tables:
        return fig.empty("How even the load is", "no token was read")
    rows = _sorted(parts.tokens_of_experts(result))
    count = int(rows["rank"].max())
    figure = fig.panels(
        1, 2, titles=["tokens of an expert, the busiest first", "experts that would do, evenly used"],
        height=parts.HEIGHT, gap=0.1,
    )  # fmt: skip
    shades = layer_shades(rows)
    layer_lines(
        figure, rows, "rank", "load", shades=shades, columns=(), width=1.6, symbol="circle",
        show=parts.number, text=_rank,
    )  # fmt: skip
    dotted(figure, [1, count], [1, 1], "balanced")
    fig.integer_axis(figure, rows["rank"], "rank of the expert in its layer", row=1, col=1)
    figure.update_yaxes(title_text="tokens / mean of the layer", rangemode="tozero", row=1, col=1)
    look: dict[str, Any] = {"color": theme.BLUE, "show": parts.number, "text": _even, "column": 2}
    curve(figure, table, "effective_experts", "effective experts", **look)
    layers = table["layer"].to_numpy(float)
    dotted(figure, [layers.min() - 0.4, layers.max() + 0.4], [count, count], "balanced", column=2)
    layer_axis(figure, table, row=1, col=2)
    figure.update_yaxes(title_text="exp of the entropy of the load", range=[0, 1.08 * count], row=1, col=2)
    if len(shades) > 1:
        layer_bar(figure, shades)
    title, more = _balance(table, rows, count)
    alt = "Lines of the sorted load of experts by layer, and of the effective number of experts. "
    alt += f"{title}. {more}"
    subtitle = (
        f"{parts.sample(table)}; dotted: balanced; intervals of the coefficient of variation in the hover "
    )
    subtitle += "texts" if table["low"].notna().any() else "texts: none"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _rank(at: Any, shown: str) -> str:
    return f"layer {at.layer:g}, expert {at.expert:g}: {shown} times the mean, {at.tokens:,.0f} tokens"


def _even(at: Any, shown: str) -> str:
    variation = with_interval(at.cv, at.low, at.high, parts.number)
    return (
        f"layer {at.layer:g}: {shown} effective experts; coefficient of variation {variation}; the busiest "
        f"gets {percent(at.max_token_share)} of the tokens"
    )


def _sorted(tokens: pd.DataFrame) -> pd.DataFrame:
    """One row for each layer and rank."""
    frames = []
    for layer, row in tokens.iterrows():
        own = row.sort_values(ascending=False, kind="stable")
        mean = float(own.mean())
        frames.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "rank": np.arange(1, len(own) + 1),
                    "expert": own.index,
                    "tokens": own.to_numpy(float),
                    "load": own.to_numpy(float) / mean if mean > 0 else math.nan,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _balance(table: pd.DataFrame, rows: pd.DataFrame, count: int) -> tuple[str, str]:
    """The title, and what else the alt text says."""
    worst = table.loc[table["max_violation"].idxmax()]
    low, high = parts.number(table["effective_experts"].min()), parts.number(table["effective_experts"].max())
    span = low if low == high else f"{low} to {high}"
    title = f"The busiest expert has {1 + worst['max_violation']:.2g} times the mean load (layer "
    title += f"{worst['layer']}); {span} of {count} experts, evenly used, would have the same entropy"
    idle = int((rows["tokens"] == 0).sum())
    said = f"{parts.out_of(idle, len(rows), 'expert')} got no token." if idle else "Every expert got a token."
    shares = table["max_token_share"]
    busiest = " to ".join(dict.fromkeys((percent(shares.min()), percent(shares.max()))))
    return title, f"{said} The busiest expert of a layer gets {busiest} of the tokens."


def coactivation(result: Result, layer: int) -> fig.Figure:
    """Draw the lift of every pair of experts of one layer."""
    table = result.tables["coactivation"]
    rows = table[table["layer"] == layer]
    if rows.empty or not np.isfinite(rows["lift"]).any():
        return fig.empty("Experts that are chosen together", "no token is sent to two experts here")
    rows = rows.assign(expert=rows["expert"].astype(int), other=rows["other"].astype(int))
    experts, left_out = _busiest(rows)
    grid = rows.pivot_table(index="expert", columns="other", values="lift", dropna=False)
    lift = grid.reindex(index=experts, columns=experts).to_numpy(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(lift > 0, np.log2(lift), math.nan)
    figure = fig.panels(height=max(260, min(540, 26 * len(experts))))
    known = {(row.expert, row.other): row for row in rows.itertuples()}
    texts = [[_pair(known.get((one, other)), one) for other in experts] for one in experts]
    parts.heat(figure, z, texts)
    never = np.argwhere(lift == 0)
    if len(never):
        marker: dict[str, Any] = {"symbol": "x-thin", "size": 6 if len(experts) > 24 else 10}
        marker["line"] = {"color": theme.MUTED["light"], "width": 1.2}
        figure.add_scatter(
            x=never[:, 1], y=never[:, 0], mode="markers", marker=marker, name="never together",
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    most = float(np.clip(np.nanmax(np.abs(z), initial=1.0), 1.0, _FARTHEST))
    ticks = range(-math.floor(most), math.floor(most) + 1)
    names = [f"{2**power}" if power >= 0 else f"1/{2**-power}" for power in ticks]
    parts.diverging(figure, most, "lift (log)", tickvals=list(ticks), ticktext=names)
    ends = [-0.5, len(experts) - 0.5]
    figure.update_xaxes(title_text="expert", range=ends, **parts.places(experts, 20))
    figure.update_yaxes(title_text="other expert", range=ends[::-1], **parts.places(experts, 22))
    figure.update_layout(plot_bgcolor=theme.GRID["light"])
    title, alt = _together(rows, layer)
    subtitle = "N_ij N / (N_i N_j), no color: independent; blue: more often together; "
    subtitle += (
        f"{parts.intervals(result, 'hover texts', parts.JACKKNIFE, rows['low'], rows['high'])}, each by "
    )
    subtitle += "itself; gray: not defined" + ("; crosses: never together" if len(never) else "")
    if left_out:
        subtitle += f"; the {len(experts)} busiest of {len(experts) + left_out} experts"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _busiest(rows: pd.DataFrame) -> tuple[list[int], int]:
    """The experts that are drawn, in order, and how many are not."""
    experts = sorted(set(rows["expert"]))
    if len(experts) <= _MOST_EXPERTS:
        return experts, 0
    together = rows.groupby("expert")["together"].sum().sort_values(ascending=False, kind="stable")
    return sorted(map(int, together.index[:_MOST_EXPERTS])), len(experts) - _MOST_EXPERTS


def _pair(row: Any, expert: int) -> str:
    """Hover text of a pair; without a row it is one expert and itself."""
    if row is None:
        return f"expert {expert}"
    pair = f"experts {row.expert} and {row.other}"
    if not math.isfinite(row.lift):
        return f"{pair}: one of them has no token"
    said = f"{row.together:,.0f} tokens"
    said += f" (independent: {row.expected:,.3g})" if math.isfinite(row.expected) else ""
    if row.lift == 0:
        return f"{pair}: never together, {said}"
    lift = with_interval(row.lift, row.low, row.high, parts.number)
    return (
        f"{pair}: lift {lift}, {said}; {percent(row.share)} of the tokens of {row.expert} choose "
        f"{row.other} as well, by chance {percent(row.chance)}"
    )


def _together(rows: pd.DataFrame, layer: int) -> tuple[str, str]:
    pairs = rows[(rows["expert"] < rows["other"]) & np.isfinite(rows["lift"])]
    met = pairs[pairs["together"] > 0]
    more, less, known = parts.clear(met, at=1.0)
    never = len(pairs) - len(met)
    # The surest one: rare experts have the largest lifts, and the widest intervals
    key = "low" if known else "lift"
    title = f"Layer {layer}: "
    if known:
        title += (
            f"{more} of {len(pairs)} pairs are chosen together more often than independent choices would, "
        )
        title += f"{less} less often"
    else:
        title += f"{len(pairs)} pairs, without intervals"
    title += f", {never} never" if never else ""
    if len(met):
        top = met.loc[met[key].idxmax()]
        lift = with_interval(top["lift"], top["low"], top["high"], parts.number)
        if more or not known:
            title += f"; most clearly {top['expert']:.0f} and {top['other']:.0f}: {lift} times"
    alt = f"Heat map of the lift of {len(pairs)} pairs of experts, on a logarithmic scale around 1. {title}. "
    if len(met):
        alt += (
            f"Lifts lie between {parts.number(pairs['lift'].min())} and {parts.number(pairs['lift'].max())}."
        )
    return title, alt


def similarity(result: Result) -> fig.Figure:
    """Draw how alike the pairs of each layer are: in what they say, and in their weights."""
    table = result.tables["similarity"]
    table = table[np.isfinite(table["cka"]) | np.isfinite(table["weights"])]
    if table.empty:
        return fig.empty("How alike experts are", "no two experts were compared")
    figure = fig.panels(
        1, 2, titles=["what they say on the same tokens", "their weights, hidden units matched"],
        height=parts.HEIGHT, gap=0.1,
    )  # fmt: skip
    _spread_of(figure, table, "cka", "experts", theme.BLUE, "circle", 1, 0.0)
    _spread_of(figure, table, "weights", "experts", theme.BLUE, "circle", 2, 0.0)
    _spread_of(
        figure, table, "weights_random", "one with its entries permuted", theme.SLATE, "diamond", 2, 0.15
    )
    layer_axis(figure, table)
    figure.update_yaxes(title_text="linear CKA", range=[0, 1.02], row=1, col=1)
    figure.update_yaxes(title_text="cosine of the weights", rangemode="tozero", row=1, col=2)
    fig.legend_below(figure)
    medians = table[["cka", "weights", "weights_random"]].median()
    title = f"The median pair of a layer has CKA {parts.number(medians['cka'])}"
    if np.isfinite(table["cka"]).any():
        top = table.loc[table["cka"].idxmax()]
        title += f", the most alike {parts.number(top['cka'])} "
        title += f"({top['expert']} and {top['other']} of layer {top['layer']})"
    title += f"; weights match at cosine {parts.number(medians['weights'])}, permuted ones at "
    title += parts.number(medians["weights_random"])
    pairs = table.groupby("layer").size()
    alt = f"Dots by layer of the similarity of pairs of experts. {title}. CKA of all pairs lies between "
    alt += f"{parts.number(table['cka'].min())} and {parts.number(table['cka'].max())}."
    subtitle = (
        f"dots: median of {int(pairs.max())} pairs of a layer; bars: 5 to 95 % of the pairs, no intervals; "
    )
    subtitle += "triangles: the most alike pair; CKA has no null here"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _spread_of(
    figure: fig.Figure,
    table: pd.DataFrame,
    name: str,
    words: str,
    color: str,
    symbol: str,
    column: int,
    shift: float,
) -> None:
    """Draw median, range and, of what is measured, the largest value of each layer."""
    groups = table.dropna(subset=[name]).groupby("layer")
    if not len(groups):
        return
    middle = groups[name].median()
    low, high = (groups[name].quantile(share) for share in _SPREAD)
    x = middle.index.to_numpy(float) + shift
    texts = [
        f"layer {layer:g}, {words}: median {parts.number(m)}, 5 to 95 % of the pairs {parts.number(a)} to "
        f"{parts.number(b)}"
        for layer, m, a, b in zip(middle.index, middle, low, high, strict=True)
    ]
    bars = fig.error_bars(middle, low, high, thickness=1.3, color=color)
    _dots(
        figure, x, middle, words, texts, {"color": color, "size": 8, "symbol": symbol}, column, error_y=bars
    )
    if color == theme.SLATE:
        return
    top = table.loc[groups[name].idxmax()]
    texts = [
        f"layer {at.layer:g}: {at.expert} and {at.other}, {parts.number(getattr(at, name))}"
        for at in top.itertuples()
    ]
    marker = {"color": color, "size": 8, "symbol": "triangle-up-open"}
    _dots(figure, x, top[name], "most alike pair", texts, marker, column)


def _dots(
    figure: fig.Figure,
    x: Any,
    y: Any,
    name: str,
    texts: list[str],
    marker: dict[str, Any],
    column: int,
    **more: Any,
) -> None:
    """Add markers to a panel; the legend names them once."""
    figure.add_scatter(
        x=x, y=y, name=name, mode="markers", marker=marker, legendgroup=name,
        customdata=[display(text, limit=200) for text in texts],
        hovertemplate="%{customdata}<extra></extra>", row=1, col=column,
        showlegend=name not in {trace.name for trace in figure.data}, **more,
    )  # fmt: skip
