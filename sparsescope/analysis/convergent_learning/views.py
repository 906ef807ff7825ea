"""Figures of ``convergent_learning``."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent
from sparsescope.viz.tokens import display

_MOST = 24
_HUES = (theme.BLUE, theme.GREEN, theme.OCHRE, theme.VERMILION, theme.SLATE)


def _where(row: Any, layers: bool) -> str:
    return display(f"{row.pair}, layer {row.layer}" if layers else str(row.pair), limit=60)


def classes(result: Result) -> fig.Figure:
    """Draw the shares of the classes of every pair, with what shifted rows give for one-to-one."""
    table = result.tables["classes"]
    layers = table["layer"].nunique() > 1
    places = list(dict.fromkeys(_where(row, layers) for row in table.itertuples()))[:_MOST]
    figure = fig.panels(height=max(180, 26 * len(places) + 60))
    for name, color in zip(dict.fromkeys(table["class"]), _HUES, strict=False):
        part = table[table["class"] == name]
        at = [_where(row, layers) for row in part.itertuples()]
        texts = [
            f"{row.pair}, layer {row.layer}, {name}: {percent(row.share)} "
            f"[{percent(row.low)}, {percent(row.high)}]; shifted {percent(row.null_share)}"
            for row in part.itertuples()
        ]
        kept = [place for place, where in enumerate(at) if where in places]
        fig.bars(
            figure,
            part["share"].to_numpy()[kept],
            [at[place] for place in kept],
            str(name),
            color=color,
            texts=[texts[place] for place in kept],
            orientation="h",
        )
    figure.update_layout(barmode="stack")
    figure.update_yaxes(categoryorder="array", categoryarray=places[::-1], automargin=True, title_text="pair")
    figure.update_xaxes(title_text="share of the units of the second", tickformat=".0%", range=[0, 1])
    fig.legend_below(figure)
    parts = []
    for kind in dict.fromkeys(table["kind"]):
        of_it = table[(table["kind"] == kind) & (table["class"] == "one-to-one")]
        parts.append(
            f"{kind} {percent(of_it['share'].mean())} (rows shifted {percent(of_it['null_share'].mean())})"
        )
    title = f"Units with a one-to-one partner: {', '.join(parts)}"
    alt = f"Stacked bars of classes by pair. {title}."
    subtitle = f"{int(table['units'].max())} units of a layer at most"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def matched(result: Result, value: str) -> fig.Figure:
    """Draw sorted correlations of one pair."""
    table = result.tables["matched"]
    table = table[table["pair"] == value]
    figure = fig.panels(height=320)
    layers = list(dict.fromkeys(table["layer"]))
    for number, layer in enumerate(layers):
        rows = table[table["layer"] == layer]
        color = theme.CATEGORIES["light"][number % len(theme.CATEGORIES["light"])]
        suffix = f", layer {layer}" if len(layers) > 1 else ""
        for name, column, dash in (
            ("best match", "best", "solid"),
            ("one-to-one", "partner", "dash"),
            ("rows shifted", "null", "dot"),
        ):
            texts = [
                f"{name}{suffix}: {y:.2f} at {percent(x)}"
                for x, y in zip(rows["rank"], rows[column], strict=True)
            ]
            look = theme.SLATE if column == "null" else color
            x, y = rows["rank"].to_numpy(), rows[column].to_numpy()
            label = f"{name}{suffix}"
            fig.line(figure, x, y, label, color=look, dash=dash, symbol=None, texts=texts, legend=True)
    figure.update_xaxes(title_text="units, best first", tickformat=".0%")
    fig.y_axes(figure, "absolute correlation", range=[0, 1.02])
    fig.legend_below(figure)
    best, partner = np.median(table["best"]), np.median(table["partner"])
    title = f"The middle unit of {value}: best match {best:.2f}, one-to-one {partner:.2f}"
    alt = f"Falling lines of matched correlations. {title}; shifted {np.median(table['null']):.2f}."
    return fig.describe(figure, title=title, subtitle="sorted over units", alt=alt, result=result)


def predictors(result: Result) -> fig.Figure:
    """Draw R^2 by the number of units that may be used."""
    table = result.tables["predictors"]
    figure = fig.panels(height=320)
    groups = list(table.groupby(["kind"], sort=False))
    for number, ((kind,), rows) in enumerate(groups):
        mean = rows.groupby("predictors")[["explained", "null"]].mean()
        color = _HUES[number % len(_HUES)]
        texts = [f"{kind}, {size} units: {percent(value)}" for size, value in mean["explained"].items()]
        fig.line(
            figure,
            mean.index.to_numpy(),
            mean["explained"].to_numpy(),
            str(kind),
            color=color,
            texts=texts,
            legend=True,
        )
        x, y, label = mean.index.to_numpy(), mean["null"].to_numpy(), f"{kind}, rows shifted"
        said = [f"{label}, {size} units: {percent(value)}" for size, value in mean["null"].items()]
        fig.line(figure, x, y, label, color=color, dash="dot", symbol=None, texts=said, legend=True)
    figure.update_xaxes(title_text="units of the first that may be used")
    fig.y_axes(figure, "R^2 on other rows, mean over units", tickformat=".0%", rangemode="tozero")
    fig.legend_below(figure)
    one = [
        f"{kind} {percent(float(rows[rows['predictors'] == 1]['explained'].mean()))}"
        for (kind,), rows in groups
    ]
    title = f"One unit says of a unit of the other: {', '.join(one)}"
    alt = f"Rising lines of R^2. {title}."
    return fig.describe(
        figure, title=title, subtitle="means over pairs, layers and units", alt=alt, result=result
    )


def blocks(result: Result) -> fig.Figure:
    """Draw mean correlations within and between blocks."""
    table = result.tables["blocks"].head(_MOST)
    layers = table["layer"].nunique() > 1
    at = [_where(row, layers) for row in table.itertuples()]
    figure = fig.panels(height=max(180, 26 * len(table) + 60))
    for name, column, color, symbol in (
        ("within blocks", "within", theme.BLUE, "circle"),
        ("between blocks", "between", theme.VERMILION, "diamond"),
        ("within, rows shifted", "within_null", theme.SLATE, "x-thin-open"),
    ):
        texts = [
            f"{row.pair}, layer {row.layer}, {name}: {getattr(row, column):.3f}" for row in table.itertuples()
        ]
        fig.dots(figure, table[column].to_numpy(), at, name, color=color, symbol=symbol, texts=texts)
    figure.update_yaxes(categoryorder="array", categoryarray=at[::-1], automargin=True, title_text="pair")
    figure.update_xaxes(title_text="mean absolute correlation", rangemode="tozero")
    fig.legend_below(figure)
    within, between = table["within"].mean(), table["between"].mean()
    title = f"Within blocks units correlate by {within:.2f}, between by {between:.2f}"
    known = table.dropna(subset=["truth_second"])
    truth = (
        f"; blocks and frequencies share {known['truth_second'].mean():.2f} (0: chance)" if len(known) else ""
    )
    alt = f"Dots of mean correlations by pair. {title}{truth}."
    return fig.describe(
        figure, title=title, subtitle=f"{int(table['blocks'].iloc[0])} blocks{truth}", alt=alt, result=result
    )


def dictionaries(result: Result) -> fig.Figure:
    """Draw how alike features of factorizations are."""
    table = result.tables["dictionaries"].head(2 * _MOST)
    layers = table["layer"].nunique() > 1
    figure = fig.panels(height=max(180, 26 * table["pair"].nunique() * table["layer"].nunique() + 60))
    places: list[str] = []
    for number, (way, rows) in enumerate(table.groupby("way", sort=False)):
        at = [_where(row, layers) for row in rows.itertuples()]
        places += [where for where in at if where not in places]
        texts = [
            f"{row.pair}, {way}: correlation {row.correlation:.2f}, {percent(row.same)} the same; shifted "
            f"{row.null:.2f}"
            for row in rows.itertuples()
        ]
        color = _HUES[number % len(_HUES)]
        fig.dots(figure, rows["correlation"].to_numpy(), at, str(way), color=color, texts=texts)
        fig.dots(
            figure,
            rows["null"].to_numpy(),
            at,
            f"{way}, rows shifted",
            color=color,
            symbol="x-thin-open",
            texts=texts,
        )
    figure.update_yaxes(categoryorder="array", categoryarray=places[::-1], automargin=True, title_text="pair")
    figure.update_xaxes(title_text="mean correlation of counterparts")
    fig.legend_below(figure)
    means = table.groupby("way", sort=False)["correlation"].mean()
    title = (
        f"Features and their counterparts: {', '.join(f'{way} {value:.2f}' for way, value in means.items())}"
    )
    alt = f"Dots of mean correlations. {title}."
    subtitle = f"SNMF of {int(table['components'].max())} features"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
