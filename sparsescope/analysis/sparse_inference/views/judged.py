"""Methods as dots with intervals: ``usable_range``, ``comparisons`` and ``divergence``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.sparse_inference.statements import (
    AT_LEAST,
    first_policy,
    middle_target,
    next_to,
    policy_words,
    spoken,
)
from sparsescope.analysis.sparse_inference.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent, with_interval
from sparsescope.viz.tokens import display

_TOLERANCE = 0.05
_LINE = 20  # pixels of a line of dots
_RATIOS = [digit * 10.0**power for power in range(-3, 3) for digit in (1, 2, 3, 5, 7)]


def usable_range(result: Result, value: str) -> fig.Figure:
    """Draw how far each method goes at each tolerance, under one prefix policy."""
    table = result.tables["usable_range"]
    table = table[table["prefix"] == value]
    names, looks = parts.methods_of(table, result), parts.looks(result)
    wanted = sorted(map(float, table["tolerance"].unique()))
    figure = fig.panels(
        1, len(wanted), titles=[f"perplexity +{100 * each:g} %" for each in wanted],
        height=max(170, 30 * len(names) + 60), share_y=True,
    )  # fmt: skip
    share = result.scalars.get("block_share")
    for column, tolerance in enumerate(wanted, 1):
        for row in table[table["tolerance"] == tolerance].itertuples():
            if not math.isfinite(row.sparsity):
                continue
            bound, look = _bound(row), looks[row.method]
            text = f"{row.method}: {bound}{with_interval(row.sparsity, row.low, row.high)} of the block bytes"
            text += "" if share is None else f", {bound}{percent(share.value * row.sparsity)} of the model"
            text += f"; between points {percent(row.bracket)} apart" if math.isfinite(row.bracket) else ""
            # A bound points to where the true value lies
            symbol = {"": look["symbol"], "at least ": "triangle-right", "at most ": "triangle-left"}[bound]
            parts.marks(
                figure, [row.sparsity], [display(row.method, limit=40)], row.method, texts=[text],
                marker={"color": look["color"], "symbol": symbol, "size": 11 if look["width"] > 2 else 9},
                error_x=fig.error_bars([row.sparsity], [row.low], [row.high]), column=column,
            )  # fmt: skip
    most = float(np.nanmax(table[["sparsity", "high"]].to_numpy(float)))
    title = parts.BLOCK if len(wanted) < 3 else "block bytes not read"  # as far as there is room for words
    figure.update_xaxes(title_text=title, tickformat=".0%", range=[0, 1.06 * most if most > 0 else 1])
    _methods_axis(figure, names)
    tolerance = next_to(wanted, _TOLERANCE)
    found = table[(table["tolerance"] == tolerance) & np.isfinite(table["sparsity"])]
    found = found.sort_values("sparsity", ascending=False)
    said = [f"{spoken(row.method)}, {_bound(row)}{percent(row.sparsity)}" for row in found.itertuples()]
    title = f"Most block bytes unread within {100 * tolerance:g} % perplexity: {'; '.join(said[:3])}"
    alt = f"Dots with intervals of the usable range, {len(names)} methods, {len(wanted)} tolerances. {title}"
    alt += f"; then {'; '.join(said[3:])}." if said[3:] else "."
    subtitle = f"{policy_words(value)}; bars: paired document-cluster bootstrap, {parts.documents(table)}"
    if any(_bound(row) for row in table.itertuples()):
        subtitle += "; triangles: only a bound, it may lie further in their direction"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _bound(row: Any) -> str:
    said = str(row.censored)
    return "" if said == "no" else "at least " if said.startswith(AT_LEAST) else "at most "


def _methods_axis(figure: fig.Figure, names: list[str]) -> None:
    """Names of methods from top to bottom, with room for half a line above and below."""
    shown = [display(name, limit=40) for name in names][::-1]
    figure.update_yaxes(
        categoryorder="array", categoryarray=shown, range=[-0.6, len(shown) - 0.4], automargin=True
    )
    figure.update_yaxes(title_text="method", col=1)


def comparisons(result: Result) -> fig.Figure:
    """Draw ratios of KL at equal bytes, a panel for each prefix policy, groups by target."""
    table = result.tables["comparisons"]
    table = table[np.isfinite(table["ratio"]) & (table["ratio"] > 0)]
    if table.empty:
        return fig.empty("Against every other method at equal bytes", "nothing was compared")
    policies = list(dict.fromkeys(map(str, table["prefix"])))
    order = _order(table)
    lines = max(order.values()) + 1
    figure = fig.panels(
        1, len(policies), titles=[policy_words(each) for each in policies],
        height=int(_LINE * lines) + 70, share_y=True,
    )  # fmt: skip
    looks = parts.looks(result)
    for column, prefix in enumerate(policies, 1):
        for row in table[table["prefix"] == prefix].itertuples():
            look, resolved = looks[row.second], row.verdict != "not resolved"
            symbol = look["symbol"].removesuffix("-open") + ("" if resolved else "-open")
            text = f"{row.first} / {row.second}, {percent(row.target)} asked for: "
            text += f"{with_interval(row.ratio, row.ratio_low, row.ratio_high, '{:.3g}'.format)}; difference "
            text += (
                f"{with_interval(row.difference, row.low, row.high, '{:+.3g}'.format)} nats; {row.verdict}"
            )
            parts.marks(
                figure, [row.ratio], [order[row.target, row.second]], row.second, texts=[text],
                marker={"color": look["color"], "symbol": symbol, "size": 9},
                error_x=fig.error_bars([row.ratio], [row.ratio_low], [row.ratio_high]), column=column,
            )  # fmt: skip
        figure.add_vline(x=1, line={"color": theme.SLATE, "width": 1.2}, row=1, col=column)
    heads = {target: min(n for (at, _), n in order.items() if at == target) - 1 for target, _ in order}
    ticks = {**{place: f"<b>{percent(target)} unread</b>" for target, place in heads.items()}}
    ticks |= {place: display(second, limit=40) for (_, second), place in order.items()}
    figure.update_yaxes(
        tickvals=list(ticks), ticktext=list(ticks.values()), range=[lines - 0.3, -0.7], showgrid=False,
        ticks="", automargin=True,
    )  # fmt: skip
    figure.update_yaxes(title_text="compared with, by share asked for", col=1)
    _ratio_axis(figure, table)
    title, more = _verdict(result, table)
    alt = f"Dots with intervals of {len(table)} ratios of KL divergence at equal bytes. {title}. {more}"
    subtitle = f"left of 1 {table['first'].iloc[0]} is closer to the dense model; bars: paired by document, "
    subtitle += f"{parts.documents(table)}, each interval alone; open: not resolved"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _order(table: pd.DataFrame) -> dict[tuple[float, str], int]:
    """The line of every target and method, the same in all panels; a heading and a gap before each group."""
    found, line = {}, 1
    seconds = list(dict.fromkeys(table["second"]))
    for target in sorted(table["target"].unique()):
        here = set(table[table["target"] == target]["second"])
        for second in (name for name in seconds if name in here):
            found[target, second] = line
            line += 1
        line += 1
    return found


def _ratio_axis(figure: fig.Figure, table: pd.DataFrame) -> None:
    """A logarithmic axis with 1 in it and decimal ticks."""
    ends = table[["ratio", "ratio_low", "ratio_high"]].to_numpy(float)
    ends = ends[np.isfinite(ends) & (ends > 0)]
    # What is far out is cut off at a hundredth and a hundredfold: intervals of hardly measurable damage
    low, high = (
        max(min(float(ends.min()), 0.95) / 1.08, 0.01),
        min(max(float(ends.max()), 1.05) * 1.08, 100.0),
    )
    ticks = [tick for tick in _RATIOS if low <= tick <= high]
    if len(ticks) < 3:
        ticks = sorted({*ticks, *(tick for tick in (0.8, 0.9, 1.1, 1.2) if low <= tick <= high)})
    figure.update_xaxes(
        type="log", range=[math.log10(low), math.log10(high)], tickvals=ticks, showgrid=True,
        ticktext=[f"{tick:g}" for tick in ticks],
        title_text=f"KL of {display(table['first'].iloc[0], limit=30)} / KL of the other (logarithmic)",
    )  # fmt: skip


def _verdict(result: Result, table: pd.DataFrame) -> tuple[str, str]:
    """The title, and what else the alt text says."""
    better = int((table["verdict"] == "first is better").sum())
    worse = int((table["verdict"] == "second is better").sum())
    first = table["first"].iloc[0]
    main = table[table["prefix"] == first_policy(table)]
    target = middle_target(result, main)
    here = main[main["target"] == target].sort_values("ratio", ascending=False)
    said = [f"{row.second} {row.ratio:.2f}" for row in here.itertuples()]
    hardest = next(here.itertuples())
    title = f"{first} is better in {better} of {len(table)} comparisons at equal bytes"
    title += f", worse in {worse}" if worse else ""
    open_ = len(table) - better - worse
    title += f", not resolved in {open_}" if open_ else ""
    title += f"; at {percent(target)} it has {hardest.ratio:.2f} times the KL of {spoken(hardest.second)}"
    return title, f"Ratios at {percent(target)}, {policy_words(hardest.prefix)}: {', '.join(said)}."


def divergence(result: Result) -> fig.Figure:
    """Draw how long continuations are alike, a panel for each policy and target."""
    table = result.tables["divergence"]
    policies = list(dict.fromkeys(map(str, table["prefix"])))
    targets = sorted(table["target"].unique())
    names, looks = parts.methods_of(table, result), parts.looks(result)
    titles = [f"{percent(target)} unread, {policy_words(each)}" for each in policies for target in targets]
    height = max(150, 24 * len(names) + 50)
    figure = fig.panels(len(policies), len(targets), titles=titles, height=height, share_y=True)
    new = int(table["new"].max())
    for row in table.itertuples():
        look = looks[row.method]
        length = with_interval(row.length, row.low, row.high, "{:.3g}".format)
        text = f"{row.method}: {length} of {row.new} tokens alike; {percent(row.never)} of the prompts never "
        text += f"differ; same token at {percent(row.agreement)}"
        parts.marks(
            figure, [row.length], [display(row.method, limit=40)], row.method, texts=[text],
            marker={"color": look["color"], "symbol": look["symbol"], "size": 11 if look["width"] > 2 else 9},
            error_x=fig.error_bars([row.length], [row.low], [row.high]),
            row=policies.index(row.prefix) + 1, column=targets.index(row.target) + 1,
        )  # fmt: skip
    figure.add_vline(x=new, line=theme.LEVEL)
    figure.update_xaxes(range=[-0.02 * new, 1.04 * new], showgrid=True)
    figure.update_xaxes(title_text=f"tokens alike, of {new}", row=len(policies))
    _methods_axis(figure, names)
    main = table[(table["prefix"] == policies[0]) & (table["target"] == targets[0])]
    main = main.sort_values("length", ascending=False, kind="stable")
    said = [f"{row.method} ({row.length:.3g})" for row in main.itertuples()]
    title = f"Alike with {percent(targets[0])} unread, of {new} tokens: {parts.listed(said[:3])}"
    alt = f"Dots with intervals of the tokens before the first that differs, {len(titles)} panels. {title}"
    alt += f"; then {'; '.join(said[3:])}." if said[3:] else "."
    overlap = _unresolved(main)
    subtitle = f"greedy; bars: bootstrap over {int(table['prompts'].max())} prompts; dotted: all of {new}; "
    subtitle += f"title: {policy_words(policies[0])}{overlap}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _unresolved(rows: pd.DataFrame) -> str:
    """Say that intervals do not tell methods apart, where those of the title all overlap."""
    known = rows[np.isfinite(rows["low"]) & np.isfinite(rows["high"])]
    if len(known) < 2 or float(known["low"].max()) > float(known["high"].min()):
        return ""
    return ", intervals overlap"
