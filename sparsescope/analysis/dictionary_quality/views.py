"""Figures of ``dictionary_quality``: the frontier, losses, comparisons, densities, probes and seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent
from sparsescope.viz.tokens import display

_HEIGHT = 360
_MOST_LINES = 8
_BASE = {
    "pca": (theme.SLATE, "circle-open"),
    "pca_topk": (theme.SLATE, "square-open"),
    "neurons": (theme.OCHRE, "diamond-open"),
    "random": (theme.SLATE, "x-thin-open"),
}
_ABLATION = "ablation"


def _looks(result: Result) -> dict[str, dict[str, Any]]:
    """Color, marker and dash of everything, the same in all figures; what nobody trained is open and gray."""
    table = result.tables["quality"]
    hues = [color for color in theme.CATEGORIES["light"] if color not in (theme.SLATE, theme.OCHRE)]
    looks: dict[str, dict[str, Any]] = {}
    number = 0
    for row in table.itertuples():
        if row.kind == "dictionary":
            looks[row.dictionary] = {
                "color": hues[number % len(hues)],
                "symbol": theme.MARKERS[number % len(theme.MARKERS)],
                "dash": theme.DASHES[number // len(hues) % len(theme.DASHES)],
            }
            number += 1
        else:
            color, symbol = _BASE.get(row.architecture, (theme.SLATE, "circle-open"))
            looks[row.dictionary] = {"color": color, "symbol": symbol, "dash": "dot"}
    return looks


def _layers(table: pd.DataFrame) -> str:
    """Which sites a table is about."""
    sites = list(dict.fromkeys(table["site"]))
    return str(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"


def _documents(table: pd.DataFrame) -> str:
    return f"n = {int(table['documents'].max())} documents"


def _shown(value: float, low: float, high: float, form: str = "{:.3g}") -> str:
    ends = f" [{form.format(low)}, {form.format(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return form.format(value) + ends if math.isfinite(value) else "not defined"


def _kind(row: Any) -> str:
    """What a baseline is called without its number of features: ``Neurons, largest``."""
    return str(row.dictionary).partition(" (")[0].rstrip("0123456789 ")


def frontier(result: Result) -> fig.Figure:
    """Draw FVU against L0 of dictionaries and of what nobody trained."""
    table, looks = result.tables["quality"], _looks(result)
    figure = fig.panels(height=_HEIGHT)
    own = table[table["kind"] == "dictionary"]
    for row in own.itertuples():
        look = looks[row.dictionary]
        color, symbol, texts = look["color"], look["symbol"], [_frontier_text(row)]
        name = str(row.dictionary)
        fig.dots(figure, [row.l0], [row.fvu], name, color=color, symbol=symbol, texts=texts, size=11)
        figure.data[-1].update(error_y=fig.error_bars([row.fvu], [row.low], [row.high]))
    base = table[table["kind"] == "baseline"]
    kinds = base.assign(group=[_kind(row) for row in base.itertuples()])
    for (name, _), rows in kinds.groupby(["group", "site"], sort=False):
        rows = rows.sort_values("l0")
        look = looks[rows["dictionary"].iloc[0]]
        texts = [_frontier_text(row) for row in rows.itertuples()]
        shown = {"color": look["color"], "symbol": look["symbol"]}
        x, y = rows["l0"].to_numpy(), rows["fvu"].to_numpy()
        fig.dots(figure, x, y, str(name), texts=texts, size=9, **shown)
        figure.data[-1].update(
            mode="lines+markers",
            line={"color": look["color"], "dash": "dot", "width": 1},
            error_y=fig.error_bars(y, rows["low"], rows["high"]),
            showlegend=str(name) not in {trace.name for trace in figure.data[:-1]},
        )
    positive = table["l0"][table["l0"] > 0]
    wide = len(positive) and positive.max() > 8 * positive.min()
    figure.update_xaxes(title_text="active features of a token (L0)", type="log" if wide else "linear")
    if not wide:
        figure.update_xaxes(rangemode="tozero")
    top = float(np.nanmax([*table["high"], *table["fvu"], 0.1]))
    figure.update_yaxes(range=[0, 1.05 * min(top, 2.0)])
    figure.add_hline(y=1, line=theme.LEVEL)
    fig.y_axes(figure, "fraction of variance unexplained (FVU)")
    fig.legend_below(figure)
    own = own.sort_values("fvu")
    parts = [f"{row.dictionary} {percent(row.fvu)} at L0 {row.l0:.3g}" for row in own.head(3).itertuples()]
    title = f"Left unexplained: {', '.join(parts)}"
    beside = "; ".join(
        f"{row.dictionary} {percent(row.fvu)}" for row in base.sort_values("fvu").head(6).itertuples()
    )
    alt = f"Dots of variance unexplained against active features. {title}."
    alt += f" Beside them: {beside}." if beside else ""
    subtitle = (
        f"{_layers(table)}; bars: intervals, {_documents(table)}; open: never trained; line: the mean alone"
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _frontier_text(row: Any) -> str:
    return f"{row.dictionary}: FVU {_shown(row.fvu, row.low, row.high)}, L0 {row.l0:.3g} of {row.width}"


def splice(result: Result) -> fig.Figure:
    """Draw the rise of the loss against FVU, with the ablations as lines."""
    table, looks = result.tables["splice"], _looks(result)
    figure = fig.panels(height=_HEIGHT)
    dots = table[(table["kind"] != _ABLATION) & np.isfinite(table["fvu"])]
    for row in dots.itertuples():
        look = looks[row.dictionary]
        rise = _shown(row.rise, row.rise_low, row.rise_high, "{:+.3g}")
        text = (
            f"{row.dictionary}: {rise} nats, FVU {row.fvu:.3g}, L0 {row.l0:.3g}, KL {row.divergence:.3g} nats"
        )
        fig.dots(
            figure,
            [row.fvu],
            [row.rise],
            str(row.dictionary),
            color=look["color"],
            symbol=look["symbol"],
            texts=[text],
            size=11 if row.kind == "dictionary" else 9,
        )
        figure.data[-1].update(error_y=fig.error_bars([row.rise], [row.rise_low], [row.rise_high]))
    lines = table[table["kind"] == _ABLATION]
    for row in lines.head(4).itertuples():
        figure.add_hline(
            y=row.rise,
            line=theme.LEVEL,
            annotation={"text": f"{row.dictionary}: {row.rise:+.3g}", "font": {"size": 11}},
            annotation_position="top left",
        )
    figure.add_hline(y=0, line={**theme.LEVEL, "dash": "solid"})
    figure.update_xaxes(title_text="fraction of variance unexplained (FVU)", rangemode="tozero")
    fig.y_axes(figure, "rise of the loss, nats")
    values = [*table["rise"], *dots["rise_low"], *dots["rise_high"], 0.0]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0.08 * (high - low or 1.0)
    figure.update_yaxes(range=[low - room, high + 2 * room])
    fig.legend_below(figure)
    own = table[table["kind"] == "dictionary"].sort_values("rise")
    parts = [f"{row.dictionary} {row.rise:+.3g} nats" for row in own.head(3).itertuples()]
    title = f"Spliced in: {', '.join(parts)}"
    scale = ", ".join(f"{row.dictionary.lower()} {row.rise:+.3g}" for row in lines.head(4).itertuples())
    alt = f"Dots of the rise of the loss against variance unexplained. {title}; scale: {scale}."
    subtitle = f"{_layers(table)}; {int(table['tokens'].max()):,} targets, {_documents(table)}, paired"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def comparisons(result: Result, value: str) -> fig.Figure:
    """Draw paired differences of one measure."""
    table = result.tables["comparisons"]
    table = table[table["measure"] == value].head(40)
    labels = [_pair(row) for row in table.itertuples()]
    figure = fig.panels(height=max(200, 26 * len(table) + 60))
    unequal = (table["equal_l0"] != "yes").to_numpy()
    verdict = table["verdict"].to_numpy()
    for name, color, which in (
        ("the first is better", theme.GREEN, verdict == "first is better"),
        ("the second is better", theme.VERMILION, verdict == "second is better"),
        ("not distinguishable", theme.SLATE, verdict == "not distinguishable"),
        ("better, with more active features", theme.PURPLE, verdict == "more active features"),
    ):
        rows = table[which].sort_values(
            "equal_l0", ascending=False, kind="stable"
        )  # the legend shows the first
        if rows.empty:
            continue
        texts = [
            f"{row.first} - {row.second}: {_shown(row.difference, row.low, row.high, '{:+.3g}')}, L0 "
            f"{row.first_l0:.3g} and {row.second_l0:.3g}"
            for row in rows.itertuples()
        ]
        symbol = ["circle-open" if row.equal_l0 != "yes" else "circle" for row in rows.itertuples()]
        at = [_pair(row) for row in rows.itertuples()]
        fig.dots(
            figure, rows["difference"].to_numpy(), at, name, color=color, symbol=symbol, texts=texts, size=8
        )
        figure.data[-1].update(
            error_x=fig.error_bars(rows["difference"].to_numpy(), rows["low"], rows["high"])
        )
    figure.add_vline(x=0, line=theme.LEVEL)
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True, title_text="pair")
    unit = "FVU" if value == "FVU" else "loss when spliced in, nats"
    figure.update_xaxes(title_text=f"{unit}: first minus second")
    fig.legend_below(figure)
    equal = table[~unequal]
    resolved = int((equal["verdict"] != "not distinguishable").sum())
    title = f"{resolved} of {len(equal)} pairs with equal L0 are told apart by {value}"
    parts = [f"{row.first} against {row.second} {row.difference:+.3g}" for row in equal.head(8).itertuples()]
    alt = f"Dots with intervals of paired differences. {title}. {'; '.join(parts)}."
    subtitle = f"paired by document, {_documents(table)}; left of zero the first is better; open: L0 differs"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _pair(row: Any) -> str:
    """A pair as a label of an axis, which renders markup."""
    return display(f"{row.first} against {row.second}", limit=70)


def rules(result: Result) -> fig.Figure:
    """Draw differences of rules over seeds."""
    table = result.tables["rules"].head(40)
    figure = fig.panels(height=max(200, 32 * len(table) + 80))
    at = [_pair(row) for row in table.itertuples()]
    told = [
        f"{row.first} - {row.second}: {_shown(row.difference, row.low, row.high, '{:+.3g}')}, one seed "
        f"{row.least:+.3g} to {row.most:+.3g}; {row.seeds} seeds: {row.verdict}"
        for row in table.itertuples()
    ]
    mean = table["difference"].to_numpy()
    fig.dots(figure, mean, at, "mean over seeds", color=theme.BLUE, texts=told, size=10)
    figure.data[-1].update(error_x=fig.error_bars(mean, table["low"], table["high"]))
    ends = [*table["least"], *table["most"]]
    fig.dots(
        figure, ends, at * 2, "one seed", color=theme.VERMILION, texts=told * 2, symbol="line-ns-open", size=9
    )
    figure.add_vline(x=0, line=theme.LEVEL)
    figure.update_yaxes(categoryorder="array", categoryarray=at[::-1], automargin=True, title_text="pair")
    figure.update_xaxes(title_text="FVU: first minus second")
    fig.legend_below(figure)
    clear = int(table["verdict"].isin(["first is better", "second is better"]).sum())
    title = f"{clear} of {len(table)} pairs of rules are told apart in every seed"
    alt = f"Dots with intervals of differences of FVU. {title}. {'; '.join(told[:8])}."
    subtitle = f"paired by document and seed, {_documents(table)}; left of zero the first is better"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def densities(result: Result) -> fig.Figure:
    """Draw how the features are spread over densities."""
    table, looks = result.tables["densities"], _looks(result)
    own = table[table["kind"] == "dictionary"]
    drawn = own if len(own) else table
    names = list(dict.fromkeys(drawn["dictionary"]))[:_MOST_LINES]
    figure = fig.panels(height=_HEIGHT)
    for name in names:
        rows = drawn[drawn["dictionary"] == name]
        middle = np.sqrt(rows["density_from"] * rows["density_to"]).to_numpy()
        texts = [
            f"{row.features} features active on {percent(row.density_from)} to {percent(row.density_to)}"
            for row in rows.itertuples()
        ]
        look = {key: looks[name][key] for key in ("color", "dash", "symbol")}
        fig.line(figure, middle, rows["share"].to_numpy(), str(name), texts=texts, legend=True, **look)
    ticks = [step * 10.0**power for power in range(-8, 1) for step in (1, 3) if step * 10.0**power <= 1]
    figure.update_xaxes(
        title_text="share of the tokens on which a feature is active",
        type="log",
        tickvals=ticks,
        ticktext=[f"{100 * tick:.3g} %" for tick in ticks],
    )
    fig.y_axes(figure, "share of the features", tickformat=".0%", rangemode="tozero")
    fig.legend_below(figure)
    quality = result.tables["quality"].set_index("dictionary")
    parts = [f"{name} {percent(float(quality.loc[name, 'dense_share']))}" for name in names[:3]]
    dead = ", ".join(f"{name} {percent(float(quality.loc[name, 'dead_share']))}" for name in names)
    title = f"Features that are on in more than a tenth of the tokens: {', '.join(parts)}"
    alt = f"Lines of the share of features by density. {title}. Never active here: {dead}."
    subtitle = f"{_layers(quality)}; {int(quality['tokens'].max()):,} tokens; never active on them: {dead}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def dead_curve(result: Result) -> fig.Figure:
    """Draw the dead share against the tokens looked at."""
    table, looks = result.tables["dead_curve"], _looks(result)
    figure = fig.panels(height=_HEIGHT)
    ends = []
    for (name, counted), rows in list(table.groupby(["dictionary", "counted"], sort=False))[
        : 2 * _MOST_LINES
    ]:
        look = looks[str(name)]

        def text(at: Any, shown: str, name: str = str(name), counted: str = str(counted)) -> str:
            return f"{name}, {counted}: {shown} never active on {at.tokens} tokens"

        curve(
            figure,
            rows,
            "dead_share",
            f"{name}, {counted} tokens",
            x="tokens",
            text=text,
            color=look["color"],
            symbol=look["symbol"],
            dash="dash" if counted == "training" else "solid",
            legend=True,
        )
        last = rows.iloc[-1]
        ends.append(
            f"{name} {percent(float(last['dead_share']))} of {int(last['tokens']):,} {counted} tokens"
        )
    figure.update_xaxes(title_text="tokens looked at", type="log")
    fig.y_axes(figure, "features that were never active", tickformat=".0%", range=[0, 1.02])
    fig.legend_below(figure)
    last = table.sort_values("tokens", kind="stable").groupby("dictionary", sort=False).last()
    parts = [
        f"{name} {percent(float(row.dead_share))} of {int(row.tokens):,} tokens"
        for name, row in last.head(3).iterrows()
    ]
    title = f"Never active: {'; '.join(parts)}"
    alt = f"Lines of the share of features never active against tokens. At the end: {'; '.join(ends)}."
    subtitle = "dashed: counted after training, with frozen weights, where that is known"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def probing(result: Result) -> fig.Figure:
    """Draw the balanced accuracy of sparse probes, beside that of single neurons and of permuted labels."""
    table = result.tables["probing"]
    looks = _looks(result)
    group = np.where(table["task"].str.startswith("first letter"), "first letter", table["task"])
    means = (
        table.assign(group=group)
        .groupby(["dictionary", "kind", "group", "features"], sort=False)[["balanced_accuracy", "null"]]
        .mean()
        .reset_index()
    )
    sizes = sorted(means["features"].unique())[:4]
    tasks = list(dict.fromkeys(means["group"]))
    titles = [f"{size} feature{'s' if size > 1 else ''}" for size in sizes]
    figure = fig.panels(1, len(sizes), titles=titles, height=_HEIGHT, share_y=True)
    names = list(dict.fromkeys(means["dictionary"]))[:_MOST_LINES]
    for column, size in enumerate(sizes, 1):
        for name in names:
            rows = means[(means["dictionary"] == name) & (means["features"] == size)]
            rows = rows.set_index("group").reindex(tasks)
            color = looks[name]["color"] if name in looks else theme.OCHRE
            texts = [
                f"{task}: {percent(row.balanced_accuracy)}, permuted labels {percent(row.null)}"
                for task, row in zip(tasks, rows.itertuples(), strict=True)
            ]
            fig.bars(
                figure,
                tasks,
                rows["balanced_accuracy"].to_numpy(),
                str(name),
                color=color,
                texts=texts,
                column=column,
            )
        nulls = means[means["features"] == size].groupby("group")["null"].max().reindex(tasks)
        fig.line(
            figure,
            tasks,
            nulls.to_numpy(),
            "permuted labels",
            color=theme.INK["light"],
            dash="dot",
            symbol="line-ew-open",
            width=1.5,
            column=column,
            legend=column == 1,
        )
    figure.update_layout(barmode="group")
    figure.update_xaxes(title_text="label of the token", tickangle=-35)
    fig.y_axes(figure, "balanced accuracy", tickformat=".0%", range=[0.4, 1.0])
    fig.legend_below(figure)
    figure.update_layout(legend={"y": -0.45})
    last = means[means["features"] == sizes[-1]].groupby("dictionary", sort=False)["balanced_accuracy"].mean()
    parts = [f"{name} {percent(value)}" for name, value in last.items()]
    title = f"With {sizes[-1]} features a probe is right about tokens: {', '.join(parts[:4])}"
    alt = f"Bars of balanced accuracy for {len(tasks)} labels. {title}; chance is 50 %."
    subtitle = (
        f"mean over labels, {int(table['tokens'].max()):,} tokens of documents not fitted on; chance is 50 %"
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def absorption(result: Result) -> fig.Figure:
    """Draw the mean absorption of each dictionary, by either set of parameters."""
    table = result.tables["absorption"]
    means = table[table["letter"] == "mean"]
    names = list(dict.fromkeys(means["dictionary"]))
    figure, shown = fig.panels(height=_HEIGHT), [display(name, limit=40) for name in names]
    for parameters, color in (("paper", theme.BLUE), ("code", theme.VERMILION)):
        for column, name, faded in (("full", "full", ""), ("fraction", "fraction", " open")):
            rows = means[means["parameters"] == parameters].set_index("dictionary").reindex(names)
            texts = [f"{percent(value)} ({parameters}, {name})" for value in rows[column]]
            bar = theme.rgba(color, 0.45) if faded else color
            fig.bars(figure, shown, rows[column].to_numpy(), f"{parameters}, {name}", color=bar, texts=texts)
    figure.update_layout(barmode="group")
    figure.update_xaxes(title_text="dictionary")
    fig.y_axes(figure, "absorbed share, mean over letters", tickformat=".0%", rangemode="tozero")
    fig.legend_below(figure)
    first = means.iloc[0]
    letters = int(means["letters"].max())
    title = (
        f"Absorption of {letters} first letters: {first['dictionary']} {percent(float(first['fraction']))}"
    )
    parts = [
        f"{row.dictionary} ({row.parameters}) full {percent(row.full)}, fraction {percent(row.fraction)}"
        for row in means.itertuples()
    ]
    alt = f"Bars of absorbed shares. {'; '.join(parts)}."
    few = " fewer than the 20 that a mean needs;" if letters < 20 else ""
    subtitle = (
        f"{letters} letters whose linear probe is good enough;{few} title: {first['parameters']}, fraction"
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def seeds(result: Result) -> fig.Figure:
    """Draw the agreement of pairs of dictionaries beside what random directions agree by."""
    table = result.tables["seeds"]
    labels = [display(f"{row.first} and {row.second}", limit=60) for row in table.itertuples()]
    figure = fig.panels(height=max(200, 34 * len(table) + 60))
    for column, name, color, symbol in (
        ("mcc", "dictionaries", theme.BLUE, "circle"),
        ("chance", "random directions", theme.SLATE, "x-thin-open"),
        ("chance_data", "random data directions", theme.SLATE, "circle-open"),
    ):
        values = table[column].to_numpy()
        known = np.isfinite(values)
        if known.any():
            at = [label for label, good in zip(labels, known, strict=True) if good]
            texts = [f"{label}: {value:.3f} ({name})" for label, value in zip(at, values[known], strict=True)]
            fig.dots(figure, values[known], at, name, color=color, symbol=symbol, texts=texts)
    figure.update_xaxes(title_text="mean cosine of matched directions (MCC)", range=[0, 1.02])
    figure.update_yaxes(categoryorder="array", categoryarray=labels[::-1], automargin=True, title_text="pair")
    fig.legend_below(figure)
    row = table.iloc[0]
    title = f"Matched features have a mean cosine of {row['mcc']:.2f}"
    title += (
        f", no more than random data directions ({row['chance_data']:.2f})"
        if row["mcc"] <= row["chance_data"]
        else f"; random directions have {row['chance']:.2f}"
    )
    parts = [f"{label} {row.mcc:.2f}" for label, row in zip(labels, table.itertuples(), strict=True)]
    alt = f"Dots of agreement for {len(table)} pairs. {title}. {'; '.join(parts[:6])}."
    subtitle = f"cosine 0.7 or more: {percent(float(row['stable_70']))} of the pairs of features"
    subtitle += (
        f", {percent(float(row['used_70']))} by how often they are active"
        if row["used_70"] == row["used_70"]
        else ""
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
