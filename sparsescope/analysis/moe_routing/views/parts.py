"""What the views of ``moe_routing`` share: heat maps around a middle, bars of intervals, and pieces
of their texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades
from sparsescope.viz.sentences import NO_INTERVALS, with_interval
from sparsescope.viz.tokens import display

HEIGHT = 340
JACKKNIFE = "jackknife over folds of documents"
BOOTSTRAP = "document-cluster bootstrap"
# Each has a dark twin, so that a finished figure can be turned around
DIVERGING = [[0.0, theme.VERMILION], [0.5, theme.BACKGROUND["light"]], [1.0, theme.BLUE]]


def nats(value: float) -> str:
    """A difference of losses or an information, with its sign."""
    return f"{value:+.3g} nats" if math.isfinite(value) else "\N{EN DASH}"


def nats_within(value: float, low: float, high: float) -> str:
    """The same with its interval, where there is one: ``+0.02 [+0.01, +0.03] nats``."""
    return (
        with_interval(value, low, high, "{:+.3g}".format) + " nats" if math.isfinite(value) else nats(value)
    )


def number(value: float) -> str:
    """A number without a unit."""
    return f"{value:.3g}" if math.isfinite(value) else "\N{EN DASH}"


def listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def count(number: int, noun: str) -> str:
    """``4 layers``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def out_of(some: int, total: int, noun: str) -> str:
    """``3 of 4 layers``."""
    return f"{some:,} of {count(total, noun)}"


def level(result: Result) -> str:
    """Coverage of the intervals, ``95 % ``; empty where it is not known."""
    value = result.provenance.get("params", {}).get("level")
    return "" if value is None else f"{100 * float(value):g} % "


def intervals(result: Result, drawn_as: str, method: str, low: pd.Series, high: pd.Series) -> str:
    """Say what the intervals are, or that there are none."""
    if not (np.isfinite(_floats(low)) & np.isfinite(_floats(high))).any():
        return NO_INTERVALS.partition(":")[0]
    return f"{drawn_as}: {level(result)}{method}"


def sample(table: pd.DataFrame) -> str:
    """On how many documents, and tokens where they are known, a table rests."""
    said = f"n = {int(table['documents'].max()):,} documents"
    return said + (f", {int(table['tokens'].max()):,} tokens" if "tokens" in table else "")


def clear(rows: pd.DataFrame, low: str = "low", high: str = "high", at: float = 0.0) -> tuple[int, int, int]:
    """How many intervals lie above a number, below it, and how many there are."""
    ends = _floats(rows[low]), _floats(rows[high])
    known = np.isfinite(ends[0]) & np.isfinite(ends[1])
    return int((ends[0][known] > at).sum()), int((ends[1][known] < at).sum()), int(known.sum())


def tokens_of_experts(result: Result) -> pd.DataFrame:
    """Tokens that choose an expert: layers by experts."""
    table = result.tables["domain_shares"]
    return table.assign(n=table["share"] * table["tokens"]).pivot_table(
        index="layer", columns="expert", values="n", aggfunc="sum"
    )


def heat(
    figure: fig.Figure,
    z: np.ndarray,
    texts: Sequence[Sequence[str]],
    *,
    row: int = 1,
    column: int = 1,
    **look: Any,
) -> None:
    """Add a heat map around zero, with row 0 at the top; ``diverging`` gives it its colors.

    Args:
        figure: Target.
        z: Values, [row, column]; NaN shows the background of the panel.
        texts: Hover texts, [row][column].
        row: Panel row, from 1.
        column: Panel column, from 1.
        **look: Further plotly trace options.
    """
    gap = 1 if max(z.shape) <= 70 else 0
    figure.add_heatmap(
        z=z,
        customdata=[[display(text, limit=300) for text in line] for line in texts],
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=True,
        coloraxis="coloraxis",
        xgap=gap,
        ygap=gap,
        row=row,
        col=column,
        **look,
    )


def diverging(figure: fig.Figure, most: float, title: str, **ticks: Any) -> None:
    """Give all heat maps of a figure one scale from -most to most, vermilion to blue."""
    most = most if math.isfinite(most) and most > 0 else 1.0
    bar = {
        "title": {"text": display(title), "font": {"size": 12}},
        "thickness": 12,
        "outlinewidth": 0,
        **ticks,
    }
    figure.update_layout(coloraxis={"cmin": -most, "cmax": most, "colorscale": DIVERGING, "colorbar": bar})


def places(names: Sequence[object], most: int) -> dict[str, Any]:
    """Options of an axis whose positions 0, 1, 2, ... have names; at most about ``most`` are written."""
    step = next((s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50) if len(names) <= s * most), 100)
    shown = range(0, len(names), step)
    return {
        "tickvals": list(shown),
        "ticktext": [display(names[n], limit=24) for n in shown],
        "tickangle": 0,
        "showgrid": False,
    }


def stack(figure: fig.Figure, rows: int, panel: int, gap: int) -> None:
    """Give the rows of a finished figure a height and a distance in pixels.

    Args:
        figure: Made by ``figure.panels`` and ``figure.describe``; changed in place.
        rows: Rows of panels.
        panel: Height of a panel.
        gap: Between two rows, for ticks, axis title and the title of the next panel.
    """
    whole = rows * panel + (rows - 1) * gap
    many = sum(str(name).startswith("yaxis") for name in figure.layout)  # not in their order
    axes = [figure.layout[f"yaxis{n if n > 1 else ''}"] for n in range(1, many + 1)]
    columns = len(axes) // rows
    for index, axis in enumerate(axes):
        top = whole - (index // columns) * (panel + gap)
        axis.domain = [(top - panel) / whole, top / whole]
    for index, title in enumerate(figure.layout.annotations):
        title.y = (whole - (index // columns) * (panel + gap)) / whole
    figure.update_layout(height=whole + figure.layout.margin.t + 64, margin={"b": 64})


def layered(
    figure: fig.Figure,
    table: pd.DataFrame,
    x: str,
    y: str,
    text: Callable[[Any, str], str],
    nulls: Sequence[tuple[str, str, str]],
    *,
    columns: Any = (),
    shades: dict[float, str] | None = None,
    column: int = 1,
) -> None:
    """Draw the layers of a table thin, their mean thick, and the means of nulls dashed or dotted.

    Args:
        figure: Target.
        table: One row for each layer and x.
        x: Column with the positions.
        y: Column that is drawn.
        text: Makes the hover text of a layer from a row and the formatted value.
        nulls: Column, name and dash of each null.
        columns: Declarations of the columns, which say where the interval is.
        shades: Colors of the layers; made of the table when None.
        column: Panel column, from 1.
    """
    shades = layer_shades(table) if shades is None else shades
    single = len(shades) == 1
    if not single:
        look: dict[str, Any] = {"columns": columns, "band": len(shades) <= 4, "alpha": 0.1, "width": 1.2}
        layer_lines(figure, table, x, y, text, shades=shades, opacity=0.8, column=column, **look)
    means = table.groupby(x, as_index=False)[[y, *(name for name, _, _ in nulls)]].mean()
    place: dict[str, Any] = {"x": x, "legend": True, "column": column}
    for name, words, dash in nulls:
        null = {"color": theme.SLATE, "dash": dash, "symbol": None, **place}
        curve(figure, means, name, words, text=_mean(x, words), **null)
    thick = {"color": theme.INK["light"], "width": 3, **place}
    if single:
        curve(figure, table.sort_values(x), y, "observed", columns=columns, text=text, **thick)
    else:
        curve(figure, means, y, "mean over layers", text=_mean(x, "mean over layers"), **thick)
    if not single and column == 1:
        layer_bar(figure, shades)


def _mean(x: str, words: str) -> Callable[[Any, str], str]:
    return lambda at, shown: f"{words}, {getattr(at, x):g}: {shown}"


def drawn(table: pd.DataFrame) -> str:
    """What the lines of ``layered`` are."""
    return (
        "thin: layers; thick, and in the title: their mean" if table["layer"].nunique() > 1 else "one layer"
    )


def _floats(values: pd.Series) -> np.ndarray:
    return np.asarray(values, dtype=float)
