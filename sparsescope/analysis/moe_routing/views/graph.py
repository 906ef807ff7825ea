"""The graph of experts that are chosen together."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import level_of

_MOST_EDGES, _WIDTHS, _WIDEST = 120, 6, 9.0


def coactivation_graph(result: Result, layer: int) -> fig.Figure:
    """Draw the experts of a layer on a circle, joined where two are chosen together more often than
    independent choices at their loads would: where the whole interval of the lift is above 1.
    """
    table = result.tables["coactivation"]
    rows = table[table["layer"] == layer]
    if rows.empty or not np.isfinite(rows["lift"]).any():
        return fig.empty("Groups of experts", "no token is sent to two experts here")
    rows = rows.assign(expert=rows["expert"].astype(int), other=rows["other"].astype(int))
    experts = sorted(set(rows["expert"]))
    pairs = rows[(rows["expert"] < rows["other"]) & np.isfinite(rows["lift"])]
    known = pairs[np.isfinite(pairs["low"])]
    together = known[known["low"] > 1] if len(known) else pairs[pairs["lift"] > 1]
    joined = together.nlargest(_MOST_EDGES, "lift")
    angle = {expert: 2 * math.pi * place / len(experts) for place, expert in enumerate(experts)}
    figure = fig.panels(height=480)
    level = np.log2(joined["lift"])
    width = np.ceil(_WIDTHS * np.minimum(level / max(float(level.max()), 1e-9), 1)) if len(joined) else level
    for size in range(1, _WIDTHS + 1):  # one trace for each width
        part = joined[width == size]
        x: list[float | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        for row in part.itertuples():
            for expert in (row.expert, row.other):
                x.append(math.cos(angle[expert]))
                y.append(math.sin(angle[expert]))
            x.append(None)
            y.append(None)
            ends = f" [{row.low:.2f}, {row.high:.2f}]" if math.isfinite(row.low) else ""
            text = (
                f"experts {row.expert} and {row.other}: {row.lift:.2f} times as often as by "
                f"chance{ends}, "
                f"{row.together:,.0f} tokens"
            )
            texts += [text, text, ""]
        if len(part):
            fig.line(
                figure, x, np.array(y, float), f"lift {size}", color=theme.BLUE, texts=texts, symbol=None,
                width=_WIDEST * size / _WIDTHS, opacity=0.35 + 0.4 * size / _WIDTHS,
            )  # fmt: skip
    many = {
        expert: int(((together["expert"] == expert) | (together["other"] == expert)).sum())
        for expert in experts
    }
    texts = [f"expert {expert}: joined to {count} others" for expert, count in many.items()]
    places = list(angle.values())
    fig.dots(figure, np.cos(places), np.sin(places), "experts", color=theme.INK["light"], texts=texts, size=9)
    for expert, at in angle.items():
        figure.add_annotation(
            x=1.1 * math.cos(at), y=1.1 * math.sin(at), text=str(expert), showarrow=False, font={"size": 12}
        )
    axis: dict[str, Any] = {"range": [-1.3, 1.3], "showgrid": False, "zeroline": False}
    axis |= {"showticklabels": False, "showline": False, "ticks": ""}
    figure.update_xaxes(title_text="experts of the layer, in the order of their numbers", **axis)
    figure.update_yaxes(title_text="joined: together more often than by chance", scaleanchor="x", **axis)
    figure.update_layout(showlegend=False)
    groups = _groups(experts, together[["expert", "other"]].to_numpy(int))
    title = (
        f"Layer {layer:.0f}: {len(together)} of {len(pairs)} pairs of experts are chosen together more often "
        f"than by "
        f"chance; the largest connected group has {max(map(len, groups))} of {len(experts)} experts"
    )
    coverage = level_of(result) or 0.95
    subtitle = (
        f"joined where the interval of the lift is above 1, each pair by itself, of which chance gives about "
        f"{len(known) * (1 - coverage) / 2:.1f}; wider: larger lift"
        if len(known)
        else "joined where the lift is above 1: no intervals; wider: larger lift"
    )
    if len(joined) < len(together):
        subtitle += f"; the {len(joined)} largest are drawn"
    alt = f"Experts on a circle, joined in pairs. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _groups(experts: list[int], edges: np.ndarray) -> list[set[int]]:
    """Connected groups of experts."""
    group = {expert: {expert} for expert in experts}
    for one, two in edges.tolist():
        if group[one] is not group[two]:
            merged = group[one] | group[two]
            for expert in merged:
                group[expert] = merged
    return [set(found) for found in {id(found): found for found in group.values()}.values()]
