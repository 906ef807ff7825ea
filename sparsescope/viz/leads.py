"""Figures of the tables of ``core.onset_tables``: lead times over series, correlations beside their trend
null, measures around the step of generalization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent

_ROW = 24


def words(name: str) -> str:
    """Name of a measure for people."""
    return name.replace("_", " ").replace("mlp", "MLP").replace("gini", "Gini")


def lead_times(result: Result) -> fig.Figure:
    """Draw the half-way lead of each measure: a point for each series, the median with its interval."""
    table, summary = result.tables["leads"], result.tables["lead_summary"]
    table = table[np.isfinite(table["lead_half_way"])]
    summary = summary[summary["rule"] == "half way"].sort_values("median")
    if table.empty:
        return fig.empty("No lead times", "No series generalized, or no measure moved.")
    names = summary["measure"].tolist()
    places = {name: index for index, name in enumerate(names)}
    figure = fig.panels(height=max(220, _ROW * len(names)))
    for number, label in enumerate(dict.fromkeys(table["series"])):
        part = table[table["series"] == label]
        pairs = part[["measure", "lead_half_way"]].itertuples(index=False)
        texts = [f"{label}: {words(n)} {v:+,.0f} steps before t_gen" for n, v in pairs]
        at = [places[name] for name in part["measure"]]
        color, symbol = theme.CATEGORIES["light"][number % 8], theme.MARKERS[number % 8]
        fig.dots(figure, part["lead_half_way"], at, label, color=color, texts=texts, symbol=symbol)
    series = int(summary["series"].max())
    if series > 1:
        _intervals(figure, summary, "interval of the median")
        texts = [
            f"{words(n)}: median {v:+,.0f} steps"
            for n, v in summary[["measure", "median"]].itertuples(index=False)
        ]
        ink, at = theme.INK["light"], list(places.values())
        fig.dots(figure, summary["median"], at, "median", color=ink, texts=texts, symbol="line-ns-open")
    _rows(figure, names)
    figure.update_xaxes(title_text="steps before t_gen at which half of the way is made")
    ahead = int((summary["low"] > 0).sum())
    whose = f"in the range of {series} series" if series > 1 else "in one run"
    title = f"{ahead} of {len(names)} measures are half way before generalization, {whose}"
    coverage = f"lines: interval of the median, coverage {percent(float(summary['coverage'].max()))}"
    subtitle = f"dotted: t_gen; {coverage if series > 1 else 'one run, no interval'}"
    alt = f"Dot plot of lead times by measure. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def correlations(result: Result) -> fig.Figure:
    """Draw each measure's correlation with the test accuracy and that of the differences; open where a
    trend does as much.
    """
    table = result.tables["correlations"]
    table = table[(table["score"] == "test accuracy") & np.isfinite(table["pearson"])].sort_values("pearson")
    if table.empty:
        return fig.empty(
            "No correlations", "Fewer than three checkpoints from t_mem on, or nothing that moves."
        )
    figure = fig.panels(height=max(220, _ROW * len(table)))
    at = list(range(len(table)))
    _intervals(figure, table, "Fisher interval")
    texts = [
        f"{words(row.measure)}: r {row.pearson:.3f} [{row.low:.3f}, {row.high:.3f}], n {row.n}, "
        f"effective n {row.n_effective:.1f}, above {row.trend_percentile:.0f} % of trends"
        for row in table.itertuples()
    ]
    beyond = table["reading"] == "beyond trend"
    filled = ["circle" if b else "circle-open" for b in beyond]
    fig.dots(figure, table["pearson"], at, "correlation", color=theme.BLUE, texts=texts, symbol=filled)
    texts = [
        f"{words(row.measure)}: r of the differences {row.differenced:.3f}" for row in table.itertuples()
    ]
    fig.dots(
        figure,
        table["differenced"],
        at,
        "of the differences",
        color=theme.VERMILION,
        texts=texts,
        symbol="diamond",
    )
    _rows(figure, table["measure"].tolist())
    figure.update_xaxes(title_text="Pearson correlation with the test accuracy", range=[-1.04, 1.04])
    many, count, strong = len(table), int(table["n"].max()), int((table["pearson"].abs() > 0.9).sum())
    title = (
        f"{strong} of {many} measures correlate above 0.9 with the test accuracy, {int(beyond.sum())} "
        f"of {many} beyond trend"
    )
    subtitle = f"n = {count} checkpoints of one run; filled: above 95 % of monotone surrogates"
    alt = f"Dot plot of correlations by measure. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def onset_aligned(result: Result, measures: Sequence[str], units: Mapping[str, str]) -> fig.Figure:
    """Draw measures over step - t_gen, one line for each series.

    Args:
        result: With the table ``aligned``.
        measures: Measures to draw, where the table has them.
        units: Unit by measure.
    """
    table = result.tables["aligned"]
    names = [name for name in measures if (table["measure"] == name).any()]
    if not names:
        return fig.empty("No series generalized", "Measures are aligned at t_gen, which no series reached.")
    columns = 2
    rows = -(-len(names) // columns)
    figure = fig.panels(rows, columns, titles=[words(name) for name in names], height=190)
    series = list(dict.fromkeys(table["series"]))
    palette = theme.CATEGORIES["light"]
    for index, name in enumerate(names):
        place = fig.place_of(index, columns)
        for number, label in enumerate(series):
            curve(
                figure,
                table[(table["measure"] == name) & (table["series"] == label)],
                "value",
                label,
                x="relative",
                color=palette[number % len(palette)],
                dash=theme.DASHES[number % len(theme.DASHES)],
                show="{:.4g}".format,
                symbol=theme.MARKERS[number % len(theme.MARKERS)],
                text="{0.series}: {0.relative:+,.0f} steps, {1}".format,
                legend=len(series) > 1,
                width=1.6,
                **place,
            )
        at = {"row": place["row"], "col": place["column"]}
        figure.add_vline(x=0, line=theme.LEVEL, **at)
        if name.endswith("_loss"):
            figure.update_yaxes(type="log", exponentformat="power", **at)
        figure.update_yaxes(title_text=units.get(name) or "value", **at)
    figure.update_xaxes(title_text="step − t_gen", row=rows)
    if len(series) > 1:
        fig.legend_below(figure)
        figure.update_layout(legend={"y": -0.1})
    many = "1 series" if len(series) == 1 else f"{len(series)} series"
    title = f"Measures around the step of generalization, {many}"
    alt = f"Line charts of {', '.join(map(words, names))} against step minus t_gen for {many}."
    caution = "one run: nothing is said about other seeds" if len(series) == 1 else "one line for each series"
    return fig.describe(figure, title=title, subtitle=f"dotted: t_gen; {caution}", alt=alt, result=result)


def _intervals(figure: fig.Figure, rows: pd.DataFrame, name: str) -> None:
    """Draw the interval of each row as a line."""
    for y, (low, high) in enumerate(rows[["low", "high"]].itertuples(index=False)):
        fig.line(figure, [low, high], [y, y], name, color=theme.SLATE, symbol=None, width=1.5)


def _rows(figure: fig.Figure, names: Sequence[str]) -> None:
    """Name the rows, draw the line at zero and the legend."""
    figure.add_vline(x=0, line=theme.LEVEL)
    places = list(range(len(names)))
    figure.update_yaxes(
        title_text="measure",
        tickvals=places,
        ticktext=[words(n) for n in names],
        range=[-0.6, len(names) - 0.4],
    )
    fig.legend_below(figure)
