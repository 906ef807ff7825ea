"""Tokens in their order: ``repetition``, ``cache``, ``chunk_sparsity`` and ``token_experts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.moe_routing.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_shades
from sparsescope.viz.sentences import percent
from sparsescope.viz.token_strip import token_strip

if TYPE_CHECKING:
    from sparsescope.viz.panel import Panel

_SHARED = "shared"
_FAR = "tokens far from each other in a document"
_LOADS = "independent tokens with these loads"
_RULES = {
    "fixed": ("best fixed group", theme.SLATE, "diamond"),
    "Belady": ("best cache (Belady)", theme.BLUE, "circle"),
    "LRU": ("least recently used (LRU)", theme.VERMILION, "square"),
}
_GIVEN = "|"


def repetition(result: Result) -> fig.Figure:
    """Draw what two tokens have in common against their distance."""
    table, columns = result.tables["repetition"], result.columns["repetition"]
    if table.empty or not np.isfinite(table["mean"]).any():
        return fig.empty("Do neighbors choose the same experts", "no two tokens were compared")
    measures = list(dict.fromkeys(table["measure"]))
    titles = [
        "share of experts in common" if name == _SHARED else "first choice: both have the same"
        for name in measures
    ]
    figure = fig.panels(1, len(measures), titles=titles, height=parts.HEIGHT, share_y=True)
    shades = layer_shades(table)
    for column, name in enumerate(measures, 1):
        rows = table[table["measure"] == name]
        nulls = [("shifted", _FAR, "dash"), ("load_chance", _LOADS, "dot")]
        parts.layered(figure, rows, "lag", "mean", _lag, nulls, columns=columns, shades=shades, column=column)
    fig.integer_axis(figure, table["lag"], "distance of two tokens, in tokens")
    fig.y_axes(figure, "share of pairs, or of experts", tickformat=".0~%")
    fig.legend_below(figure)
    rows = table[
        (table["measure"] == (_SHARED if _SHARED in measures else measures[-1])) & (table["lag"] == 1)
    ]
    means = rows[["mean", "shifted", "load_chance"]].mean()
    title = f"Two tokens in a row share {percent(means['mean'])} of their experts, tokens far apart "
    title += f"{percent(means['shifted'])}, independent ones {percent(means['load_chance'])}"
    above, _, known = parts.clear(
        rows.assign(low=rows["low"] - rows["shifted"], high=rows["high"] - rows["shifted"])
    )
    said = f"The interval lies above tokens far apart in {parts.out_of(above, known, 'layer')} at distance 1."
    alt = f"Lines of experts in common against distance, by layer. {title}. "
    alt += said if known else "No intervals."
    last = table[(table["measure"] == rows["measure"].iloc[0]) & (table["lag"] == table["lag"].max())][
        "mean"
    ].mean()
    alt += f" At distance {int(table['lag'].max())} it is {percent(last)}."
    subtitle = f"{parts.drawn(table)}; {parts.sample(table)}; "
    subtitle += parts.intervals(result, "hover texts", parts.BOOTSTRAP, table["low"], table["high"])
    subtitle += (
        f"; above tokens far apart in {parts.out_of(above, known, 'layer')} at distance 1" if known else ""
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _lag(at: Any, shown: str) -> str:
    return (
        f"layer {at.layer:g}, distance {at.lag:g}: {shown}; far apart {percent(at.shifted)}, independent "
        f"{percent(at.load_chance)}"
    )


def cache(result: Result) -> fig.Figure:
    """Draw which share of the requests a cache of experts serves, against its size."""
    table = result.tables["cache"]
    if table.empty or not np.isfinite(table["hits"]).any():
        return fig.empty("What a cache of experts would serve", "no window is as long as a segment")
    means = table.groupby(["rule", "size"])["hits"].agg(["mean", "min", "max"])
    means = means.rename(columns={"mean": "served", "min": "least", "max": "most"})
    means = means.join(table.groupby(["rule", "size"])["chance"].mean()).reset_index()
    figure = fig.panels(height=parts.HEIGHT)
    for rule in (name for name in _RULES if name in set(means["rule"])):
        words, color, symbol = _RULES[rule]
        rows = means[means["rule"] == rule].sort_values("size")
        curve(
            figure, rows, "served", words, x="size", color=color, symbol=symbol, legend=True,
            text=_served,
        )  # fmt: skip
        curve(
            figure, rows, "chance", f"{words}, random order", x="size", color=color, dash="dot", width=1.2,
            symbol=None, text=lambda at, shown: f"random order, {at.size:g} experts: {shown}",
        )  # fmt: skip
    total = _experts(result)
    of_all = f" (of {total} of a layer)" if total else ""
    fig.integer_axis(figure, table["size"], f"experts in the cache, or in the group{of_all}")
    fig.y_axes(figure, "share of the requests served", tickformat=".0~%", range=[0, 1.03])
    fig.legend_below(figure)
    sizes = sorted(map(int, table["size"].unique()))
    at = min(sizes, key=lambda size: abs(size - 2 * sizes[0]))
    here = means[means["size"] == at].set_index("rule")
    said = {
        row.Index: f"{percent(row.served)} {lead} ({percent(row.chance)} in random order)"
        for row in here.itertuples()
        if (lead := {"LRU": "by LRU", "Belady": "at best", "fixed": "of the requests"}.get(str(row.Index)))
    }
    found = parts.listed([said[rule] for rule in ("LRU", "Belady") if rule in said] or list(said.values()))
    title = f"Requests that a cache of {at} experts serves: {found}"
    alt = f"Lines of the share of requests served against the size of a cache. {title}."
    alt += f" The best group that is there from the start: {said['fixed']}." if "fixed" in said else ""
    layers, segments = parts.count(table["layer"].nunique(), "layer"), int(table["segments"].max())
    subtitle = f"mean over {layers}, {segments:,} segments, no intervals; dotted: tokens in random order; "
    subtitle += "a cache begins empty, so that first requests miss; a fixed group does not"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _served(at: Any, shown: str) -> str:
    return (
        f"{at.size:g} experts: {shown} of the requests, layers {percent(at.least)} to {percent(at.most)}; "
        f"random order {percent(at.chance)}"
    )


def _experts(result: Result) -> int:
    shares = result.tables.get("domain_shares")
    return int(shares["expert"].nunique()) if shares is not None else 0


def chunk_sparsity(result: Result) -> fig.Figure:
    """Draw which share of the experts no token of a chunk uses."""
    table, columns = result.tables["chunk_sparsity"], result.columns["chunk_sparsity"]
    if table.empty or not np.isfinite(table["sparsity"]).any():
        return fig.empty("Experts that a chunk of tokens never needs", "no chunk was measured")
    figure = fig.panels(height=parts.HEIGHT + 20)
    nulls = [
        ("independent", "independent tokens, each expert at its rate", "dash"),
        ("alike", "independent tokens, all experts alike", "dot"),
    ]
    parts.layered(figure, table, "chunk", "sparsity", _chunk, nulls, columns=columns)
    ticks = sorted({int(each) for each in table["chunk"]})
    figure.update_xaxes(
        title_text="consecutive tokens, n (log scale)", type="log", tickvals=ticks,
        ticktext=[str(tick) for tick in ticks],
    )  # fmt: skip
    fig.y_axes(figure, "share of experts unused", tickformat=".0%", range=[0, 1.02])
    fig.legend_below(figure)
    rows = table[table["chunk"] == ticks[-1]]
    means = rows[["sparsity", "independent"]].mean()
    what = f"{ticks[-1]} tokens in a row leave" if ticks[-1] > 1 else "A token leaves"
    title = f"{what} {percent(means['sparsity'])} of the experts unused"
    title += f", independent ones {percent(means['independent'])}" if ticks[-1] > 1 else ""
    apart = rows.assign(low=rows["low"] - rows["independent"], high=rows["high"] - rows["independent"])
    above, below, known = parts.clear(apart)
    alt = f"Lines of the share of unused experts against the length of a chunk, by layer. {title}."
    each = table.groupby("chunk")["sparsity"].mean()
    means_of = [f"{parts.count(int(n), 'token')} {percent(share)}" for n, share in each.items()]
    alt += f" Means over layers: {', '.join(means_of)}."
    subtitle = f"{parts.drawn(table)}; {parts.sample(rows)}; "
    subtitle += parts.intervals(result, "hover texts", parts.BOOTSTRAP, table["low"], table["high"])
    if known and ticks[-1] > 1:
        subtitle += f"; at n = {ticks[-1]} above the dashed null in {parts.out_of(above, known, 'layer')}"
        subtitle += f", below it in {below}" if below else ""
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _chunk(at: Any, shown: str) -> str:
    return (
        f"layer {at.layer:g}, {at.chunk:g} tokens: {shown} unused; independent {percent(at.independent)}, "
        f"all experts alike {percent(at.alike)}"
    )


def token_experts(result: Result, document: Any) -> Panel:
    """Show a document, each token colored by its first choice in the layer that tells most about
    the domain.
    """
    table = result.tables["tokens"]
    layer, remark = _telling(result, table)
    rows = table[(table["document"] == document) & (table["layer"] == layer)]
    shares = rows["expert"].dropna().astype(int).value_counts(normalize=True, sort=True)
    title = f"Layer {layer}: no expert is known"
    if len(shares):
        said = [f"expert {expert} ({percent(share)})" for expert, share in shares.head(3).items()]
        title = f"First choice of the tokens of this text in layer {layer}: {parts.listed(said)}"
    caption = (
        "The expert with the largest weight on each token; colors are the same in all documents of the run."
    )
    return token_strip(
        result, "tokens", value="expert", document=document, where={"layer": layer}, title=title,
        caption=caption, remark=remark,
    )  # fmt: skip


def _telling(result: Result, table: pd.DataFrame) -> tuple[int, str]:
    """The layer that is shown, and why."""
    there = sorted(map(int, table["layer"].unique()))
    found = result.tables.get("specialization")
    if found is not None and len(found):
        given = found[
            found["measure"].astype(str).str.contains(_GIVEN, regex=False) & found["layer"].isin(there)
        ]
        given = given[np.isfinite(given["excess"])]
        if len(given):
            top = given.loc[given["excess"].idxmax()]
            excess = parts.nats_within(top["excess"], top["low"], top["high"])
            return int(
                top["layer"]
            ), f"the layer whose experts tell most about the domain ({excess}, token known)"
    return there[0], "the first layer with a router"
