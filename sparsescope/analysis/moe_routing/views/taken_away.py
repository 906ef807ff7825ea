"""Losses without experts: ``ablation_matrix`` and ``pruning``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.moe_routing.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent

_RANDOM = "random"
_LOSS = "Without its own specialists the loss of"
_MORE = "more than without experts of like load"
_MOST_NUMBERS = 10  # domains up to which numbers fit into the cells


def ablation_matrix(result: Result) -> fig.Figure:
    """Draw what the specialists of a domain are for each domain, beside experts of like load."""
    table = result.tables["ablation_matrix"]
    if table.empty or not np.isfinite(table["effect"]).any():
        return fig.empty("Does a domain need its specialists", "no expert was taken away")
    names = list(dict.fromkeys([*table["chosen_for"], *table["domain"]]))
    grid = table.set_index(["chosen_for", "domain"])
    z = grid["effect"].unstack("domain").reindex(index=names, columns=names).to_numpy(float)
    texts = [[_cell(grid, row, column) for column in names] for row in names]
    look: dict[str, Any] = {}
    if len(names) <= _MOST_NUMBERS:
        written = [[_written(grid, row, column) for column in names] for row in names]
        look = {
            "text": written,
            "texttemplate": "%{text}",
            "textfont": {"size": 12 if len(names) <= 6 else 11},
        }
    figure = fig.panels(height=max(200, 42 * len(names)))
    parts.heat(figure, z, texts, **look)
    parts.diverging(figure, float(np.nanmax(np.abs(z))), "nats", tickformat="+.2~f")
    ends = [-0.5, len(names) - 0.5]
    figure.update_xaxes(
        title_text="domain on which the loss is measured", range=ends, **parts.places(names, 24)
    )
    figure.update_yaxes(
        title_text="without the specialists of", range=ends[::-1], automargin=True, **parts.places(names, 24)
    )
    figure.update_layout(plot_bgcolor=theme.GRID["light"])
    own = table[table["chosen_for"] == table["domain"]]
    title = _needs(own)
    each = [f"{row.domain} {_effect(row)}" for row in own.itertuples()]
    alt = f"Heat map of {len(names)} by {len(names)} domains of the effect of specialists. {title}. "
    alt += f"On the diagonal: {'; '.join(each)}."
    subtitle = (
        f"change of the loss minus that without experts of like load, mean over layers; {_fewest(table)}; "
    )
    known = parts.clear(table)[2]
    method = f"{parts.level(result)}paired {parts.BOOTSTRAP}"
    subtitle += f"in brackets: the {method} interval holds 0" if known else "no intervals"
    effect = result.scalars.get("specialist_effect")
    if effect is not None and math.isfinite(effect.value):
        low, high = (effect.interval.low, effect.interval.high) if effect.interval else (math.nan, math.nan)
        subtitle += f"; own domain minus the others: {parts.nats_within(effect.value, low, high)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _cell(grid: pd.DataFrame, row: str, column: str) -> str:
    if (row, column) not in grid.index:
        return f"without specialists of {row}, on {column}: not measured"
    found = grid.loc[(row, column)]
    effect = parts.nats_within(found["effect"], found["low"], found["high"])
    return f"without specialists of {row}, on {column}: {effect}; n = {int(found['documents'])} documents"


def _written(grid: pd.DataFrame, row: str, column: str) -> str:
    """The number of a cell; in brackets where its interval holds 0."""
    if (row, column) not in grid.index:
        return ""
    found = grid.loc[(row, column)]
    if not math.isfinite(found["effect"]):
        return ""
    said = f"{found['effect']:+.3f}"
    return f"({said})" if found["low"] <= 0 <= found["high"] else said


def _effect(row: Any) -> str:
    return parts.nats_within(row.effect, row.low, row.high)


def _fewest(table: pd.DataFrame) -> str:
    low, high = int(table["documents"].min()), int(table["documents"].max())
    return f"n = {low}{'' if low == high else f' to {high}'} documents of a domain"


def _needs(own: pd.DataFrame) -> str:
    """The title: which domains lose more without their own specialists."""
    own = own[np.isfinite(own["effect"])]
    if own.empty:
        return "No domain was read without its own specialists"
    known = own[np.isfinite(own["low"]) & np.isfinite(own["high"])]
    if known.empty:
        worse = own[own["effect"] > 0]
        return f"{_LOSS} {parts.out_of(len(worse), len(own), 'domain')} rises {_MORE}; no intervals"
    need, spare = known[known["low"] > 0], known[known["high"] < 0]
    title = f"{_LOSS} {parts.out_of(len(need), len(own), 'domain')} rises {_MORE}"
    said = [f"{row.domain} ({row.effect:+.3g} nats)" for row in need.itertuples()]
    title += f": {parts.listed(said[:3])}" if said else ""
    title += f"; less: {parts.listed(list(spare['domain'])[:3])}" if len(spare) else ""
    open_ = len(own) - len(need) - len(spare)
    return title + (f"; {open_} not resolved" if open_ else "")


def pruning(result: Result) -> fig.Figure:
    """Draw the loss without the least salient experts, by criterion, beside random orders."""
    table, columns = result.tables["pruning"], result.columns["pruning"]
    table = table[np.isfinite(table["change"].astype(float))]
    if table.empty:
        return fig.empty("How many experts can go", "no expert was taken away")
    names = list(dict.fromkeys(map(str, table["criterion"])))
    chance = [name for name in names if name.startswith(_RANDOM)]
    criteria = [name for name in names if name not in chance]
    top = _near(table, criteria)
    titles = ["all", "near zero"] if top else []
    figure = fig.panels(1, len(titles) or 1, titles=titles, height=parts.HEIGHT + 20)
    hues = [color for color in theme.CATEGORIES["light"] if color != theme.SLATE]
    for column in range(1, (len(titles) or 1) + 1):
        for name in chance:
            look: dict[str, Any] = {"color": theme.SLATE, "dash": "dash", "symbol": None, "width": 1.2}
            _line(figure, table, name, "random orders", column=column, **look)
        for number, name in enumerate(criteria):
            look = {"color": hues[number % len(hues)], "symbol": theme.MARKERS[number % len(theme.MARKERS)]}
            _line(figure, table, name, name, columns=columns, alpha=0.14, column=column, **look)
    most = float(table["removed"].max())
    figure.update_xaxes(
        title_text="share of the experts of every layer gone", tickformat=".3~%",
        tickvals=[0, *sorted(set(table["removed"]))], range=[-0.02 * most, 1.03 * most],
    )  # fmt: skip
    if top:
        low = min(0.0, float(table["change"].min()))
        figure.update_yaxes(range=[1.1 * low - 0.04 * top, top], row=1, col=2)
    fig.y_axes(figure, "rise of the loss, nats")
    fig.legend_below(figure)
    title, more = _cheapest(table, criteria, chance)
    alt = f"Lines of the rise of the loss against the share of experts gone. {title}. {more}"
    bands = parts.intervals(result, "bands", f"paired {parts.BOOTSTRAP}", table["low"], table["high"])
    subtitle = f"{parts.sample(table)}; {bands}; "
    subtitle += f"dashed: {parts.count(len(chance), 'random order')}; " if chance else ""
    subtitle += "criteria are ranked on the text that the loss is measured on"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _near(table: pd.DataFrame, criteria: list[str]) -> float:
    """Where the second panel ends: what the best criteria lose; 0 where the first one shows it."""
    last = table[(table["removed"] == table["removed"].max()) & table["criterion"].isin(criteria)]["change"]
    top = 1.5 * float(last.min()) if len(last) else 0.0
    return top if 0 < top < 0.4 * float(table["change"].max()) else 0.0


def _line(figure: fig.Figure, table: pd.DataFrame, name: str, words: str, **look: Any) -> None:
    """One criterion, from the whole model on."""
    rows = table[table["criterion"] == name].sort_values("removed")
    start = {"removed": 0.0, "change": 0.0, "low": 0.0, "high": 0.0, "super_removed": 0}
    rows = pd.concat([pd.DataFrame([start]), rows[list(start)]], ignore_index=True)

    def text(at: Any, shown: str) -> str:
        return f"{name}, {percent(at.removed)} gone: {shown}; super experts among them: {at.super_removed:g}"

    curve(figure, rows, "change", words, x="removed", legend=True, show=parts.nats, text=text, **look)


def _cheapest(table: pd.DataFrame, criteria: list[str], chance: list[str]) -> tuple[str, str]:
    """The title, and what else the alt text says."""
    shares = sorted(table["removed"].unique())
    share = min(shares, key=lambda each: abs(each - 0.25))
    here = table[(table["removed"] == share) & np.isfinite(table["change"])]
    own = here[here["criterion"].isin(criteria)].sort_values("change", kind="stable")
    random = here[here["criterion"].isin(chance)]
    title = f"Without {percent(share)} of the experts the loss rises by "
    if len(own):
        best = own.iloc[0]
        title += f"{parts.nats_within(best['change'], best['low'], best['high'])} by {best['criterion']}"
    if len(random):
        low, high = float(random["change"].min()), float(random["change"].max())
        title += ", " if len(own) else ""
        title += f"{low:+.3g} to {parts.nats(high)}" if len(random) > 1 else parts.nats(high)
        title += " in random order"
    if len(own) and len(random) and not own.iloc[0]["high"] < random["low"].min():
        known = np.isfinite(own.iloc[0]["high"]) and random["low"].notna().all()
        title += "; not clearly less" if known else "; no intervals"
    said = [f"{row.criterion} {parts.nats(row.change)}" for row in own.itertuples()]
    last = table[(table["removed"] == shares[-1]) & table["criterion"].isin(criteria)]
    ends = [f"{row.criterion} {parts.nats(row.change)}" for row in last.itertuples()]
    return title, f"At {percent(share)}: {', '.join(said)}. At {percent(shares[-1])}: {', '.join(ends)}."
