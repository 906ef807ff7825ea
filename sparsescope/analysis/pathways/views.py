"""Figures of ``pathways``: functions of the stored result that say their finding in the title."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.pathways.flow_view import flow as flow
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import leads, theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades
from sparsescope.viz.leads import correlations as correlations
from sparsescope.viz.leads import lead_times as lead_times
from sparsescope.viz.leads import words
from sparsescope.viz.sentences import band_text, percent
from sparsescope.viz.steps import StepAxis

_ALIGNED = (
    "test_accuracy", "distance_expert_softmax", "distance_expert_mass", "excess", "contrast_unseen",
    "smoothness", "dimension", "weight_norm", "rank_embedding",
)  # fmt: skip
_UNITS = {"test_accuracy": "share right"}
_GROUPS = {"train": theme.VERMILION, "test": theme.BLUE, "text": theme.BLUE}
EXACT = 7  # with more series scores are dealt at random


def _number(value: float) -> str:
    return f"{value:.3g}"


def _own(result: Result, table: str) -> pd.DataFrame:
    """The rows of the series under study, the first of the table."""
    rows = result.tables[table]
    return rows[rows["series"] == rows["series"].iloc[0]] if len(rows) else rows


def _marks(figure: fig.Figure, result: Result, axis: StepAxis) -> None:
    """Draw t_mem and t_gen in every panel."""
    onsets = result.tables["onsets"].iloc[0]
    for name in ("memorized", "generalized"):
        if np.isfinite(onsets[name]):
            figure.add_vline(x=float(axis.x([onsets[name]])[0]), line=theme.LEVEL, row="all", col="all")


def over_training(result: Result) -> fig.Figure:
    """Draw distance, smoothness and dimension beside their nulls, and the loss."""
    table, columns = _own(result, "checkpoints"), result.columns["checkpoints"]
    axis = StepAxis.of(table["step"])
    panels = (
        ("distance", "distance_null", "edit distance of two pathways"),
        ("smoothness", "smoothness_null", "smoothness (higher is smoother)"),
        ("dimension", "dimension_null", "effective dimension of the routing"),
        ("loss", "", "loss, nats"),
    )
    figure = fig.panels(2, 2, titles=[title for *_, title in panels], height=270, gap=0.1)
    for index, (name, null, _) in enumerate(panels):
        place = fig.place_of(index, 2)
        for group, part in axis.place(table).groupby("group", sort=False):
            color = _GROUPS.get(str(group), theme.GREEN)
            curve(
                figure, part, name, str(group), columns=columns, x="at", color=color, show=_number,
                legend=True,
                text="{0.group}, step {0.step:,}: {1}".format, reference=null, symbol=None,
                reference_name=f"{group}, by chance", **place,
            )  # fmt: skip
        at = {"row": place["row"], "col": place["column"]}
        figure.update_yaxes(rangemode="tozero", title_text="", **at)
        if name == "loss":
            figure.update_yaxes(type="log", exponentformat="power", rangemode="normal", **at)
        if table[name].isna().all():
            figure.add_annotation(
                text="not defined", x=0.5, y=0.5, xref="x domain", yref="y domain", showarrow=False, **at
            )
    axis.arrange(figure, columns=2)
    figure.update_yaxes(title_text="edits", row=1, col=1)
    figure.update_yaxes(title_text="mean cosine", row=1, col=2)
    figure.update_yaxes(title_text="dimensions", row=2, col=1)
    figure.update_yaxes(title_text="nats (logarithmic)", row=2, col=2)
    _marks(figure, result, axis)
    fig.legend_below(figure)
    rows = table[table["group"] == table["group"].iloc[0]]
    first, last = rows.iloc[0], rows.iloc[-1]
    title = (
        f"Two pathways differ by {last['distance']:.3g} edits at step {last['step']:,.0f}, "
        f"{_closer(last['excess'])} at these loads ({_closer(first['excess'])} at step {first['step']:,.0f})"
    )
    subtitle = (
        f"{int(last['samples'])} samples a group; dotted: nulls; dotted upright: t_mem, t_gen; "
        f"{band_text(result, 'interval over units of samples')}"
    )
    alt = f"Four line charts over training steps: distance, smoothness, effective dimension, loss. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _closer(excess: float) -> str:
    return f"{percent(abs(excess))} {'less' if excess >= 0 else 'more'} than by chance"


def swap(result: Result, value: Any) -> fig.Figure:
    """Draw the correlations with the own score and with that of other seeds, over ``all`` checkpoints or
    over ``steady`` ones.
    """
    table = result.tables["swap"]
    table = table[(table["score"] == "test accuracy") & (table["over"] == value)]
    if table.empty:
        return fig.empty(
            "No swap test", "It needs several series with the same checkpoints: give further seeds."
        )
    names = table[table["of"] == "values"].sort_values("own")["measure"].tolist()
    places = {name: index for index, name in enumerate(names)}
    figure = fig.panels(height=max(240, 24 * len(names)))
    for of, color, symbol in (("values", theme.BLUE, "circle"), ("differences", theme.VERMILION, "diamond")):
        part = table[(table["of"] == of) & table["measure"].isin(names)]
        at = [places[name] for name in part["measure"]]
        for column, whose, shape in (
            ("own", "own score", symbol),
            ("other", "other seeds", f"{symbol}-open"),
        ):
            texts = [
                f"{words(row.measure)}, {of}: own {row.own:.2f}, others {row.other:.2f}, p {row.p:.3g}"
                for row in part.itertuples()
            ]
            fig.dots(figure, part[column], at, f"{of}, {whose}", color=color, texts=texts, symbol=shape)
    figure.add_vline(x=0, line=theme.LEVEL)
    figure.update_xaxes(title_text="mean correlation with the test accuracy", range=[-1.04, 1.04])
    figure.update_yaxes(
        title_text="measure", tickvals=list(places.values()), ticktext=[words(name) for name in names],
        range=[-0.6, len(names) - 0.4],
    )  # fmt: skip
    fig.legend_below(figure)
    series, n = int(table["series"].max()), int(table["n"].max())
    values = table[table["of"] == "values"]
    own, least = int((values["p"] < 0.05).sum()), 1 / math.factorial(min(series, EXACT))
    title = (
        f"{own} of {len(values)} measures go with the score of their own run more than with that of any run"
        if least < 0.05
        else f"{series} series are too few to tell the own score from that of any run (p >= {least:.2g})"
    )
    kind = "checkpoints" if value == "all" else "checkpoints without leaps"
    subtitle = (
        f"n = {series} series, {n} {kind} in common; p < 0.05 of the permutation of scores, not corrected"
    )
    return fig.describe(
        figure,
        title=title,
        subtitle=subtitle,
        alt=f"Dot plot of correlations by measure. {title}.",
        result=result,
    )


def power(result: Result, value: Any) -> fig.Figure:
    """Draw the power of both tests over the strength of a planted link, with ``all`` checkpoints or with
    ``steady`` ones.
    """
    table = result.tables["power"]
    table = table[table["over"] == value]
    if table.empty:
        return fig.empty("No power to speak of", "Fewer than four checkpoints from t_mem on.")
    figure = fig.panels(
        1, 2, titles=["correlation of the differences", "beyond monotone surrogates"], height=320, gap=0.1
    )
    names = list(dict.fromkeys(table["measure"]))
    palette = theme.CATEGORIES["light"]
    for number, name in enumerate(names):
        for column, what in ((1, "differences"), (2, "beyond_trend")):
            curve(
                figure, table[table["measure"] == name], what, words(name), x="strength", column=column,
                color=palette[number % len(palette)], dash=theme.DASHES[number % len(theme.DASHES)],
                legend=True, text=(words(name) + ", planted {0.strength:g}: found in {1}").format,
            )  # fmt: skip
    figure.add_hline(y=0.05, line=theme.LEVEL)
    figure.update_xaxes(title_text="planted correlation of the increments", range=[0.25, 0.95])
    fig.y_axes(figure, "share of links found", tickformat=".0%", range=[-0.03, 1.05])
    fig.legend_below(figure)
    half = table[table["strength"] == 0.5]
    n = int(table["n"].max())
    title = (
        f"With {n} checkpoints a link of 0.5 is found in {percent(half['differences'].min())} to "
        f"{percent(half['differences'].max())} of cases by differences, in at most "
        f"{percent(half['beyond_trend'].max())} by its place among trends"
    )
    subtitle = "planted scores with the drift of the observed one; dotted: 5 %"
    alt = f"Two line charts of power over the strength of a planted link. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def labels(result: Result) -> fig.Figure:
    """Draw the difference of distances of pairs of two labels and of one."""
    table, columns = _own(result, "labels"), result.columns["labels"]
    axis = StepAxis.of(table["step"])
    panels = {"distance": "edit distance", "weighted_jaccard": "weighted Jaccard distance"}
    figure = fig.panels(1, 2, titles=list(panels.values()), height=320, gap=0.1)
    for column, name in enumerate(panels, 1):
        for group, part in axis.place(table[table["measure"] == name]).groupby("group", sort=False):
            curve(
                figure, part, "difference", str(group), columns=columns, x="at", show=_number, legend=True,
                color=_GROUPS.get(str(group), theme.GREEN), column=column,
                text="{0.group}, step {0.step:,}: {1}, p {0.p:.3g}".format,
            )  # fmt: skip
    figure.add_hline(y=0, line=theme.LEVEL)
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "two labels − one label")
    _marks(figure, result, axis)
    fig.legend_below(figure)
    final = table[(table["measure"] == "weighted_jaccard") & (table["step"] == table["step"].max())]
    if final["difference"].isna().all():
        return fig.empty("One label", "All samples have one label: there are no pairs of two to compare.")
    parts = [
        f"{row.group} {'closer' if row.low > 0 else 'farther' if row.high < 0 else 'not told apart'}"
        for row in final.itertuples()
    ]
    title = f"Pairs of one label against pairs of two at the last checkpoint: {', '.join(parts)}"
    subtitle = f"{band_text(result, 'bootstrap interval over units')}; label: the answer, or the domain"
    alt = f"Two line charts of the difference of distances over training steps. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def layers(result: Result) -> fig.Figure:
    """Draw distance, effective experts and participation of each layer over training."""
    table = result.tables["layers"]
    table = table[table["group"] == table["group"].iloc[0]]
    axis, shades = StepAxis.of(table["step"]), layer_shades(table)
    panels = {
        "distance": "edit distance",
        "effective_experts": "effective experts",
        "participation": "participation",
    }
    figure = fig.panels(1, 3, titles=list(panels.values()), height=320, gap=0.07)
    text = "layer {0.layer:g}, step {0.step:,}: {1}".format
    for column, name in enumerate(panels, 1):
        look: dict[str, Any] = {"show": _number, "column": column, "width": 2}
        layer_lines(figure, axis.place(table), "at", name, text, shades=shades, **look)
    axis.arrange(figure, columns=3)
    fig.y_axes(figure, "by layer", rangemode="tozero")
    _marks(figure, result, axis)
    layer_bar(figure, shades)
    last, first = (table[table["step"] == step] for step in (table["step"].max(), table["step"].min()))
    change = last.set_index("layer")["distance"] - first.set_index("layer")["distance"]
    most = change.abs().idxmax()
    title = f"The distance of layer {most:g} changes most over training, by {change[most]:+.3g} edits"
    subtitle = f"group {table['group'].iloc[0]}; dotted upright: t_mem, t_gen; no intervals by layer"
    alt = f"Three line charts over training steps, one line for each of {len(shades)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def memorized(result: Result) -> fig.Figure:
    """Draw distances of groups of training samples around the step of memorizing."""
    table = result.tables["memorized"]
    if table.empty:
        return fig.empty(
            "No groups of memorized samples",
            "What was trained on is not known, or too few samples are memorized at one checkpoint; the notes "
            "say which.",
        )
    figure = fig.panels(1, 2, titles=["edit distance", "closer than at these loads"], height=320, gap=0.1)
    palette = theme.CATEGORIES["light"]
    for number, (at, part) in enumerate(table.groupby("memorized_at")):
        name = f"from step {at:,.0f} (n = {part['samples'].iloc[0]})"
        for column, (what, show) in enumerate((("distance", _number), ("excess", percent)), 1):
            curve(
                figure, part, what, name, x="relative", color=palette[number % len(palette)], show=show,
                dash=theme.DASHES[number % len(theme.DASHES)], legend=True, column=column,
                text="step {0.step:,}: {1}".format,
            )  # fmt: skip
    figure.add_vline(x=0, line=theme.LEVEL)
    figure.update_xaxes(title_text="step − t*")
    fig.y_axes(figure, "edits, or share")
    fig.legend_below(figure)
    groups = table.drop_duplicates("memorized_at")
    title = f"{len(groups)} groups of training samples around the step from which they are memorized"
    subtitle = f"loss at most {table['eps'].iloc[0]:.3g} nats and near its last value; dotted: t*"
    alt = f"Two line charts of distances over the step minus t*. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def onset_aligned(result: Result) -> fig.Figure:
    """Draw measures over step - t_gen, one line for each series."""
    return leads.onset_aligned(result, _ALIGNED, _UNITS)


def random_partitions(result: Result) -> fig.Figure:
    """Draw measures of blocks of alike neurons and of random blocks."""
    table = _own(result, "random_partitions")
    if table.empty:
        return fig.empty(
            "No random partitions", "A mixture has experts and is not divided; or none were asked for."
        )
    names = list(dict.fromkeys(table["measure"]))
    axis = StepAxis.of(table["step"])
    rows = -(-len(names) // 2)
    figure = fig.panels(rows, 2, titles=[words(name) for name in names], height=190)
    table = axis.place(table).assign(
        low=table["random_mean"] - 2 * table["random_sd"], high=table["random_mean"] + 2 * table["random_sd"]
    )
    for index, name in enumerate(names):
        part, place = table[table["measure"] == name], fig.place_of(index, 2)
        fig.band(figure, part["at"], part["low"], part["high"], color=theme.SLATE, **place)
        look: dict[str, Any] = {"x": "at", "show": _number, "symbol": None, "legend": True, "band": False}
        for column, label, color, dash in (
            ("value", "blocks of the run", theme.BLUE, "solid"),
            ("random_mean", "random blocks", theme.SLATE, "dot"),
        ):
            text = (label + ", step {0.step:,}: {1}").format
            curve(figure, part, column, label, color=color, dash=dash, text=text, **look, **place)
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "value")
    fig.legend_below(figure)
    final = table[(table["step"] == table["step"].max()) & (table["measure"] == "excess")].iloc[0]
    title = (
        f"At the last checkpoint pathways are {percent(final['value'])} closer than by chance with the "
        f"blocks "
        f"of the run, {percent(final['random_mean'])} with random ones"
    )
    subtitle = "gray: random blocks of equal sizes, two standard deviations of their draws"
    alt = f"Line charts of {len(names)} measures over training steps. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
