"""Figures of ``mixture_gates``: functions of the stored result that say their finding in the title."""

from __future__ import annotations

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import with_interval
from sparsescope.viz.tokens import display

_LOOKS = (("yes", theme.BLUE, "circle", "compared"), ("no", theme.SLATE, "circle-open", "not comparable"))


def loss(result: Result) -> fig.Figure:
    """Draw the loss of each gate, and its difference from the reference."""
    table, reference = result.tables["gates"], _reference(result)
    figure = _panels(result, ["loss", f"minus {reference}, paired by seed"])
    _seeds(figure, result, "loss", 1)
    _means(figure, table, "loss", "", "nats", 1)
    _means(figure, table, "loss_difference", "difference_", "nats", 2)
    figure.add_vline(x=0, line=theme.LEVEL, row=1, col=2)
    figure.update_xaxes(title_text="nats a token", col=1)
    figure.update_xaxes(title_text="nats a token, left is better", col=2)
    compared = table[table["difference_low"].notna()]
    low, high = (
        int(found.sum()) for found in (compared["difference_high"] < 0, compared["difference_low"] > 0)
    )
    title = (
        f"{len(compared)} gates are compared with {reference}: {low} lose less, {high} more, "
        f"{len(compared) - low - high} are not told apart"
        if len(compared)
        else f"No gate has an interval of its difference from {reference}"
    )
    return _described(figure, result, title, "loss", "nats")


def active(result: Result) -> fig.Figure:
    """Draw how many experts a token uses, and how even the load is."""
    table = result.tables["gates"]
    figure = _panels(result, ["active experts of a token", "coefficient of variation of the load"])
    for column, (name, prefix) in enumerate((("active", "active_"), ("load_cv", "cv_")), 1):
        _seeds(figure, result, name, column)
        _means(figure, table, name, prefix, "experts" if column == 1 else "", column)
    params = result.provenance.get("params", {})
    wanted, share = float(params.get("active", 2.0)), float(params.get("tolerance", 0.1))
    figure.add_vrect(
        x0=wanted * (1 - share), x1=wanted * (1 + share),
        fillcolor=theme.rgba(theme.GREEN, 0.12), line_width=0, layer="below", row=1, col=1,
    )  # fmt: skip
    figure.update_xaxes(title_text="experts", col=1)
    figure.update_xaxes(title_text="sd / mean, 0 is balanced", rangemode="tozero", col=2)
    fair = int((table["comparable"] == "yes").sum())
    title = f"{fair} of {len(table)} gates use {wanted:g} experts for a token, within {100 * share:g} %"
    return _described(figure, result, title, "active", "experts")


def _reference(result: Result) -> str:
    return str(result.provenance.get("params", {}).get("reference", "top_k"))


def _names(rows: pd.DataFrame) -> list[str]:
    return [display(str(gate), limit=60) for gate in rows["gate"]]


def _panels(result: Result, titles: list[str]) -> fig.Figure:
    table = result.tables["gates"]
    figure = fig.panels(1, 2, titles=titles, height=max(200, 40 * len(table) + 60), share_y=True, gap=0.06)
    figure.update_yaxes(categoryorder="array", categoryarray=_names(table)[::-1], automargin=True)
    figure.update_yaxes(title_text="gate", col=1)
    return figure


def _seeds(figure: fig.Figure, result: Result, column: str, place: int) -> None:
    """Add the single trainings of a panel."""
    runs = result.tables["runs"]
    texts = [
        f"{row.series}: {getattr(row, column):.4g}, {row.gate}, seed {row.seed}" for row in runs.itertuples()
    ]
    _markers(figure, runs, column, "one training", theme.VERMILION, "line-ns-open", texts, place)


def _means(figure: fig.Figure, table: pd.DataFrame, column: str, prefix: str, unit: str, place: int) -> None:
    """Add the means over seeds of a panel with their intervals, gray where losses are not compared."""
    for comparable, color, symbol, name in _LOOKS:
        rows = table[(table["comparable"] == comparable) & table[column].notna()]
        if rows.empty:
            continue
        low, high = (rows[f"{prefix}{end}"].to_numpy(float) for end in ("low", "high"))
        values = rows[column].to_numpy(float)
        count = "pairs" if column == "loss_difference" else "seeds"
        texts = [
            f"{gate}: {with_interval(*ends, show='{:.4g}'.format)} {unit}, n = {n} seeds"
            for gate, n, ends in zip(
                rows["gate"], rows[count], zip(values, low, high, strict=True), strict=True
            )
        ]
        _markers(figure, rows, column, f"mean over seeds, {name}", color, symbol, texts, place)
        figure.data[-1].update(error_x=fig.error_bars(values, low, high))


def _markers(
    figure: fig.Figure,
    rows: pd.DataFrame,
    column: str,
    name: str,
    color: str,
    symbol: str,
    texts: list[str],
    place: int,
) -> None:
    """Add markers to a panel; the legend names them once."""
    figure.add_scatter(
        x=rows[column].to_numpy(float),
        y=_names(rows),
        name=display(name, limit=60),
        mode="markers",
        marker={"color": color, "size": 9, "symbol": symbol},
        showlegend=name not in {trace.name for trace in figure.data},
        legendgroup=name,
        customdata=[display(text, limit=200) for text in texts],
        hovertemplate="%{customdata}<extra></extra>",
        row=1,
        col=place,
    )


def _described(figure: fig.Figure, result: Result, title: str, column: str, unit: str) -> fig.Figure:
    table = result.tables["gates"]
    fig.legend_below(figure)
    seeds = sorted({int(n) for n in table["seeds"]})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    subtitle = (
        f"n = {n} seeds for each gate, {int(result.tables['runs']['tokens'].max()):,} tokens; whiskers: "
        "Student t over seeds; open and gray: losses are not compared"
    )
    told = "; ".join(f"{row.gate} {getattr(row, column):.4g} {unit}" for row in table.head(10).itertuples())
    alt = f"Dots with intervals, one row for each gate. {title}. {told}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)
