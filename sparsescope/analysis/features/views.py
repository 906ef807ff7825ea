"""Figures and panels of ``features``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sparsescope.analysis.features.page import feature_list, feature_page
from sparsescope.core.feature_store import KIND, FeatureStore
from sparsescope.core.result import Result
from sparsescope.errors import ArtifactError
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.panel import Panel, tag
from sparsescope.viz.sentences import percent
from sparsescope.viz.tokens import display

_HEIGHT = 320
_MOST_LINES = 8
_LOOKS = {
    "its own label": (theme.BLUE, "circle"),
    "label of another feature as dense": (theme.SLATE, "diamond-open"),
    "random tokens as frequent": (theme.OCHRE, "x-thin-open"),
}


def labels(result: Result) -> fig.Figure:
    """Draw how well labels predict firing, with the controls."""
    table = result.tables["label_scores"]
    names = list(dict.fromkeys(table["dictionary"]))
    figure = fig.panels(height=max(180, 34 * len(names) + 90))
    for predictor, (color, symbol) in _LOOKS.items():
        rows = table[table["predictor"] == predictor]
        at = [display(name, limit=40) for name in rows["dictionary"]]
        texts = [
            f"{row.dictionary}, {predictor}: median {_shown(row.median, row.low, row.high)} of "
            f"{row.features} features; half of them from {row.lower_quarter:.2f} to {row.upper_quarter:.2f}"
            for row in rows.itertuples()
        ]
        middle = rows["median"].to_numpy()
        fig.dots(figure, middle, at, predictor, color=color, symbol=symbol, texts=texts, size=10)
        figure.data[-1].update(error_x=fig.error_bars(middle, rows["lower_quarter"], rows["upper_quarter"]))
    figure.add_vline(x=0.5, line=theme.LEVEL)
    order = [display(name, limit=40) for name in names][::-1]
    figure.update_yaxes(categoryorder="array", categoryarray=order, automargin=True, title_text="dictionary")
    figure.update_xaxes(title_text="area under the ROC curve of firing in other documents")
    fig.legend_below(figure)
    own = table[table["predictor"] == "its own label"]
    parts = [f"{row.dictionary} {row.median:.2f}" for row in own.itertuples()]
    title = f"A label predicts where a feature fires: {', '.join(parts[:4])}"
    rest = table[table["predictor"] != "its own label"]
    beside = [f"{row.dictionary}, {row.predictor} {row.median:.2f}" for row in rest.itertuples()]
    alt = f"Dots of the median area under the curve. {title}. {'; '.join(beside[:6])}."
    documents = int(table["documents"].max()) if len(table) else 0
    subtitle = f"median over features; bars: the middle half; n = {documents} documents that made no label"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _shown(value: float, low: float, high: float) -> str:
    ends = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.3f}{ends}"


def browser(result: Result) -> Panel:
    """List features that were drawn at random, with contexts."""
    return feature_list(result)


def feature(result: Result, value: str) -> Panel:
    """Show one feature."""
    table = result.tables["features"]
    row = next(table[table["name"] == value].itertuples())
    others = result.tables.get("counterparts")
    found = [] if others is None else list(others[others["name"] == value].itertuples())
    return feature_page(result, row, _store(result, str(row.dictionary)), found)


def _store(result: Result, dictionary: str) -> FeatureStore | None:
    """Where the features of a dictionary are active; None where that is not there any more."""
    for artifact in result.artifacts.values():
        if artifact.kind == KIND and artifact.present and artifact.meta.get("dictionary") == dictionary:
            try:
                return FeatureStore.of(artifact)
            except ArtifactError:
                return None
    return None


def densities(result: Result) -> fig.Figure:
    """Draw how the features are spread over densities."""
    table = result.tables["densities"]
    names = list(dict.fromkeys(table["dictionary"]))[:_MOST_LINES]
    figure = fig.panels(height=_HEIGHT)
    hues = theme.CATEGORIES["light"]
    lowest = float(table["density_from"][table["features"] > 0].min()) if table["features"].any() else 0.0
    for number, name in enumerate(names):
        rows = table[(table["dictionary"] == name) & (table["density_from"] >= lowest * 0.999)]
        middle = np.sqrt(rows["density_from"] * rows["density_to"]).to_numpy()
        texts = [
            f"{row.features} features active on {percent(row.density_from)} to {percent(row.density_to)}"
            for row in rows.itertuples()
        ]
        fig.line(
            figure,
            middle,
            rows["share"].to_numpy(),
            str(name),
            color=hues[number % len(hues)],
            dash=theme.DASHES[number % len(theme.DASHES)],
            symbol=theme.MARKERS[number % len(theme.MARKERS)],
            texts=texts,
            legend=True,
        )
    ticks = [10.0**power for power in range(-8, 1)]
    figure.update_xaxes(
        title_text="share of the tokens on which a feature is active",
        type="log",
        tickvals=ticks,
        ticktext=[f"{100 * tick:.3g} %" for tick in ticks],
    )
    fig.y_axes(figure, "share of the features", tickformat=".0%", rangemode="tozero")
    fig.legend_below(figure)
    features = result.tables["features"]
    medians = features.groupby("dictionary", sort=False)["density"].median()
    dead = (features["density"] == 0).groupby(features["dictionary"], sort=False).mean()
    parts = [f"{name} {percent(float(medians[name]))}" for name in names[:3]]
    title = f"The middle feature is active on: {', '.join(parts)} of the tokens"
    never = ", ".join(f"{name} {percent(float(dead[name]))}" for name in names)
    alt = f"Lines of the share of features by density. {title}. Never active: {never}."
    return fig.describe(figure, title=title, subtitle=f"never active here: {never}", alt=alt, result=result)


def domains(result: Result) -> fig.Figure:
    """Draw the share of features of one kind of text, and what chance gives."""
    table = result.tables["domains"]
    names = list(dict.fromkeys(table["dictionary"]))[:_MOST_LINES]
    figure = fig.panels(height=_HEIGHT)
    hues = theme.CATEGORIES["light"]
    for number, domain in enumerate(list(dict.fromkeys(table["domain"]))):
        rows = table[(table["domain"] == domain) & table["dictionary"].isin(names)]
        texts = [
            f"{row.dictionary}: {row.features} features, {percent(row.share)}; by chance "
            f"{percent(row.null_share)}"
            for row in rows.itertuples()
        ]
        at = [display(name, limit=40) for name in rows["dictionary"]]
        color = hues[number % len(hues)]
        fig.bars(figure, at, rows["share"].to_numpy(), str(domain), color=color, texts=texts)
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="dictionary")
    fig.y_axes(figure, "share of the features that fire", tickformat=".0%", range=[0, 1])
    fig.legend_below(figure)
    sums = table.groupby("dictionary", sort=False)[["share", "null_share"]].sum()
    parts = [f"{name} {percent(float(sums.loc[name, 'share']))}" for name in names[:3]]
    chance = percent(float(sums["null_share"].max()))
    title = f"Features of one kind of text: {', '.join(parts)}; by chance at most {chance}"
    alt = f"Stacked bars by domain. {title}."
    documents = int(table.drop_duplicates("domain")["documents"].sum())
    subtitle = f"false discovery rate 5 %; domains dealt to {documents} whole documents as the null"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def retrieval(result: Result) -> fig.Figure:
    """Draw how well features and BM25 find the right window."""
    table = result.tables["retrieval"]
    tasks = list(dict.fromkeys(table["task"]))
    figure = fig.panels(
        1, len(tasks), titles=[task[0].upper() + task[1:] for task in tasks], height=240, share_y=True
    )
    for column, task in enumerate(tasks, 1):
        rows = table[table["task"] == task]
        for index, color in (("features", theme.BLUE), ("BM25 of tokens", theme.OCHRE)):
            part = rows[rows["index"] == index]
            texts = [
                f"{row.dictionary}, {index}: {_shown(row.mrr, row.low, row.high)}, first answer right for "
                f"{percent(row.first)} of {row.queries} queries"
                for row in part.itertuples()
            ]
            at = [display(name, limit=40) for name in part["dictionary"]]
            values = part["mrr"].to_numpy()
            bars = fig.error_bars(values, part["low"], part["high"])
            fig.bars(figure, at, values, index, color=color, texts=texts, row=1, column=column, error_y=bars)
        figure.update_xaxes(title_text="dictionary", row=1, col=column)
    fig.y_axes(figure, "mean reciprocal rank", range=[0, 1.05])
    fig.legend_below(figure)
    parts = [
        f"{row.dictionary} {row.mrr:.2f}"
        for row in table[(table["task"] == tasks[0]) & (table["index"] == "features")].itertuples()
    ]
    beside = table[(table["task"] == tasks[0]) & (table["index"] != "features")]["mrr"]
    title = f"Features find {tasks[0]}: {', '.join(parts)}; BM25 {float(beside.iloc[0]):.2f}"
    alt = f"Bars of mean reciprocal rank. {title}."
    row = table.iloc[0]
    subtitle = (
        f"{int(row['queries'])} queries of {int(row['documents'])} documents; {int(row['windows']):,} windows"
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def pruning(result: Result) -> fig.Figure:
    """Draw recall against the share of the postings that are read."""
    table = result.tables["pruning"]
    figure = fig.panels(height=_HEIGHT)
    hues = theme.CATEGORIES["light"]
    lines = list(table.groupby(["dictionary", "unit"], sort=False))
    for number, ((name, unit), rows) in enumerate(lines):
        texts = [
            f"{name}, {unit}s, alpha {row.alpha:g}: recall {percent(row.recall)}, {percent(row.read)} read"
            for row in rows.itertuples()
        ]
        fig.line(
            figure,
            rows["read"].to_numpy(),
            rows["recall"].to_numpy(),
            f"{name}, {unit}s",
            color=hues[number % len(hues)],
            dash=theme.DASHES[number % len(theme.DASHES)],
            symbol=theme.MARKERS[number % len(theme.MARKERS)],
            texts=texts,
            legend=True,
        )
    figure.update_xaxes(title_text="share of the postings that are read", tickformat=".0%", range=[0, 1.02])
    fig.y_axes(figure, "recall of the ten best", tickformat=".0%", range=[0, 1.05])
    fig.legend_below(figure)
    safe = table[table["alpha"] == 1]
    parts = [f"{row.dictionary}, {row.unit}s {percent(row.read)}" for row in safe.itertuples()]
    title = f"Read without a loss: {', '.join(parts[:3])}"
    alt = f"Lines of recall against postings read. {title}."
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted(table["alpha"].unique(), reverse=True))
    subtitle = f"alpha {alphas} from right to left; {int(table['tokens'].max()):,} tokens"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def map(result: Result, value: str) -> fig.Figure:
    """Draw the directions of a dictionary in two dimensions."""
    table = result.tables["map"]
    rows = table[table["dictionary"] == value]
    figure = fig.panels(height=460)
    hues = theme.CATEGORIES["light"]
    linked = rows["domain"].notna()
    kinds = [("no domain", rows[~linked], theme.SLATE)]
    for number, domain in enumerate(sorted(rows["domain"][linked].unique())):
        kinds.append((f"more in {domain}", rows[rows["domain"] == domain], hues[number % len(hues)]))
    for name, part, color in kinds:
        part = part.head(fig.MAX_MARKS // len(kinds))
        texts = [f"{row.name}: {row.label or 'no label'}" for row in part.itertuples()]
        x, y, size = part["x"].to_numpy(), part["y"].to_numpy(), 8 if len(rows) < 500 else 4
        if len(part):
            fig.dots(figure, x, y, name, color=color, texts=texts, size=size)
    figure.update_xaxes(showticklabels=False, title_text="t-SNE, first axis")
    figure.update_yaxes(showticklabels=False, title_text="t-SNE, second axis")
    fig.legend_below(figure)
    title = f"{len(rows):,} features of {value} by direction"
    near = rows["nearest_cosine"].median()
    alt = f"Dots in two dimensions. {title}; median cosine with the nearest feature {near:.2f}."
    subtitle = f"point at a dot for its label; median cosine with the nearest: {near:.2f}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def sharing(result: Result) -> fig.Figure:
    """Draw how many neurons are used by how many features, beside chance."""
    table = result.tables["sharing"]
    name = str(table["dictionary"].iloc[0])
    rows = table[table["dictionary"] == name]
    figure = fig.panels(height=_HEIGHT)
    texts = [f"{row.neurons} neurons are used by {row.used_by} features" for row in rows.itertuples()]
    x = rows["used_by"].to_numpy()
    fig.bars(figure, x, rows["neurons"].to_numpy(), name, color=theme.BLUE, texts=texts)
    chance = [f"by chance {row.expected:.3g} neurons are used by {row.used_by}" for row in rows.itertuples()]
    fig.line(
        figure, x, rows["expected"].to_numpy(), "by chance", color=theme.VERMILION, texts=chance, legend=True
    )
    figure.update_xaxes(title_text="features that use a neuron")
    fig.y_axes(figure, "neurons", rangemode="tozero")
    fig.legend_below(figure)
    pairs = result.tables.get("shared_pairs")
    many = int(rows["used_by"][rows["neurons"] > 0].max())
    title = f"One neuron of {name} is used by {many} features"
    found = 0 if pairs is None else len(pairs)
    alt = f"Bars of neurons by the number of features that use them. {title}."
    more = (
        f"; {found}{' or more' if found >= 40 else ''} pairs share more neurons than chance gives (FDR 5 %)"
    )
    return fig.describe(figure, title=title, subtitle=f"line: chance{more}", alt=alt, result=result)


def tree(result: Result) -> Panel:
    """List the components of each level with their heaviest children."""
    table = result.tables["tree"]
    levels = result.tables["levels"]
    items = []
    top = int(table["level"].max())
    for parent, part in table[table["level"] == top].groupby("parent", sort=False):
        items.append(_node(table, str(parent), part, 0.0))
    shares = ", ".join(
        f"{int(row.components)} components {percent(row.explained)}" for row in levels.itertuples()
    )
    return Panel(
        title=f"{len(items)} components of level {top}, made of features below",
        subtitle=f"explained variance of the activations: {shares}",
        alt=f"A tree of {len(items)} components. Explained variance: {shares}.",
        body=(tag("div", *items, class_="items"),),
        caption="Numbers are weights; components without a label stand above features.",
        rows=2 * len(items),
        most_rows=22,
    )


def _node(table: Any, name: str, children: Any, weight: float) -> Any:
    """A component with its children, which can be opened."""
    parts: list[Any] = []
    for row in children.itertuples():
        below = table[(table["parent"] == row.child) & (table["level"] == row.level - 1)]
        if len(below):
            parts.append(_node(table, str(row.child), below, float(row.weight)))
        else:
            parts.append(tag("p", tag("b", str(row.child)), f" {row.weight:.2f} {row.label}"))
    holds = ", ".join(f"{row.child} {row.weight:.2f}" for row in children.head(3).itertuples())
    head = tag(
        "summary",
        tag("b", name),
        f" {weight:.2f}" if weight else "",
        f" = {holds}",
        *([" ..."] if len(children) > 3 else []),
    )
    return tag("details", head, *parts)
