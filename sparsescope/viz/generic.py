"""A default figure for any table, from the kinds of its columns.

Used for analyses that declare no views and for tables without one. The first index column (layer, step,
position, ...) goes on x, the first measured column on y; a text column with few values gives the colors; two
index columns give a heat map; without an index there are bars by label, or a histogram. Tokens in the order
of a text are shown as that text (``token_strip``). Never more than ``figure.MAX_MARKS`` marks: what is
thinned or summarized is said in the subtitle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.columns import Column
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz import token_strip as strip
from sparsescope.viz.curves import interval_of
from sparsescope.viz.tables import format_cell, heading, is_share, missing
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from sparsescope.core.result import Result
    from sparsescope.viz.panel import Panel

_X_ORDER = ("layer", "step", "position", "threshold", "head", "expert", "feature", "neuron", "token")
_Y_KINDS = ("fraction", "value", "seconds", "bytes", "flops", "count")
_COLOR_ORDER = ("metric", "label", "group", "domain", "checkpoint", "site", "document", "token_text")
_MAX_LINES, _MAX_BARS, _MAX_CELLS_AXIS = 8, 30, 90
_Y_NAMES = ("mean", "value", "median", "rate")


def draw(result: Result, table: str, value: Any = None) -> go.Figure | Panel:
    """Draw the default figure of one table of a result; of a table of tokens in order, the text.

    Args:
        result: What is drawn.
        table: Name of the table.
        value: Value of the column ``select_column``, where there is one; the first when None.
    """
    if strip.is_text(result.tables[table], result.columns[table]):
        return strip.token_strip(result, table, document=value)
    return draw_table(table, result.tables[table], result.columns[table])


def select_column(result: Result, table: str) -> str:
    """The column of which the default figure shows one value: the document of a table of tokens. Empty
    where it shows all.
    """
    frame, columns = result.tables[table], result.columns[table]
    documents = [column.name for column in columns if column.kind == "document"]
    return documents[0] if documents and strip.is_text(frame, columns) else ""


def draw_table(name: str, frame: pd.DataFrame, columns: Sequence[Column]) -> go.Figure:
    """Draw the default figure of a table.

    Args:
        name: Name of the table, for the title.
        frame: The table; it may be empty and may hold NaN and infinities.
        columns: Meaning of its columns.

    Returns:
        A figure with title, axis titles and alt text.
    """
    title = name.replace("_", " ")
    if frame.empty or not columns:
        return fig.empty(title, "the table has no rows" if frame.empty else "the table has no columns")
    numbers = {c.name: _numbers(frame[c.name]) for c in columns if c.kind in {*_Y_KINDS, *_X_ORDER}}
    y = _measured(columns, numbers)
    if y is None:
        return fig.empty(title, "the table has no finite number to draw")
    indices = [
        c
        for kind in _X_ORDER
        for c in columns
        if c.kind == kind and c is not y and np.isfinite(numbers[c.name]).any()
    ]
    color = _grouping(frame, columns, numbers[indices[0].name] if indices else None)
    if len(indices) > 1 and color is None and _grid_like(numbers, indices[:2]):
        return _heatmap(title, numbers, indices[0], indices[1], y)
    if indices:
        return _lines(title, frame, columns, numbers, indices[0], y, color)
    labels = [c for kind in _COLOR_ORDER for c in columns if c.kind == kind]
    if labels:
        return _bars(title, frame, labels[0], y, numbers[y.name])
    return _histogram(title, y, numbers[y.name])


def _numbers(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


def _measured(columns: Sequence[Column], numbers: dict[str, np.ndarray]) -> Column | None:
    """Choose what goes on y: a column called mean or value first, else by kind, else any index."""
    usable = [c for c in columns if c.name in numbers and np.isfinite(numbers[c.name]).any()]
    for name in _Y_NAMES:
        for column in usable:
            if column.name == name and column.kind in _Y_KINDS:
                return column
    for kind in _Y_KINDS:
        for column in usable:
            if column.kind == kind:
                return column
    return usable[-1] if usable else None


def _grouping(frame: pd.DataFrame, columns: Sequence[Column], x: np.ndarray | None) -> Column | None:
    """Choose the column that gives colors: the first text column whose values repeat along ``x``.

    A site name that belongs to one layer only would give one line of one point for each layer.
    """
    for kind in _COLOR_ORDER:
        for column in columns:
            if column.kind == kind:
                groups = pd.Series(_texts(frame[column.name]), index=frame.index)
                along = x is None or pd.Series(x).groupby(groups.to_numpy()).nunique().max() > 1
                if 2 <= groups.nunique() < len(frame) and along:
                    return column
    return None


def _texts(values: pd.Series) -> list[str]:
    """Names as they are drawn. Two that look alike once they are cut and made safe are
    numbered, never merged.
    """
    shown: dict[str | None, str] = {}
    taken: set[str] = set()
    for value in values:
        key = None if missing(value) else str(value)
        if key not in shown:
            text = name = "(none)" if key is None else display(key, limit=60)
            number = 1
            while name in taken:
                number += 1
                name = f"{text} ({number})"
            taken.add(name)
            shown[key] = name
    return [shown[None if missing(value) else str(value)] for value in values]


def _grid_like(numbers: dict[str, np.ndarray], pair: Sequence[Column]) -> bool:
    sizes = [len(np.unique(numbers[c.name][np.isfinite(numbers[c.name])])) for c in pair]
    return min(sizes) > 1 and max(sizes) <= _MAX_CELLS_AXIS


def _y_axis(figure: go.Figure, y: Column, percent: bool) -> None:
    figure.update_yaxes(
        title_text=display(heading(y)) + (" (%)" if percent else ""), tickformat=".4~%" if percent else None
    )


def _alt(what: str, y: Column, values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    low, high = (format_cell(float(v), y) for v in (finite.min(), finite.max()))
    return f"{what}. {y.name} lies between {low} and {high} over {len(finite):,} values."


def _lines(
    title: str,
    frame: pd.DataFrame,
    columns: Sequence[Column],
    numbers: dict[str, np.ndarray],
    x: Column,
    y: Column,
    color: Column | None,
) -> go.Figure:
    """Draw one line for each value of the grouping column: the median where several rows share a position."""
    work = pd.DataFrame({"x": numbers[x.name], "y": numbers[y.name]})
    work["group"] = _texts(frame[color.name]) if color else y.name
    ends = interval_of(columns, y.name) or ()
    if bands := bool(ends) and all(end in numbers for end in ends):
        work["low"], work["high"] = (numbers[end] for end in ends)
    work = work[np.isfinite(work["x"])]
    names = list(dict.fromkeys(work["group"]))
    drawn = names[:_MAX_LINES]
    figure = fig.panels(height=320)
    grouped_by = color.name if color else ""
    repeated = False
    most = fig.MAX_MARKS // (3 * max(len(drawn), 1))
    percent = y.kind == "fraction" and (
        color is None or color.kind != "metric" or all(is_share(n) for n in drawn)
    )
    for index, name in enumerate(drawn):
        part = work[work["group"] == name]
        repeated |= bool(part["x"].duplicated().any())
        line = part.groupby("x", sort=True).median(numeric_only=True).reset_index()
        line = line.iloc[fig.thin(len(line), most)]
        shade = theme.CATEGORIES["light"][index % len(theme.CATEGORIES["light"])]
        if bands:
            fig.band(figure, line["x"], line["low"], line["high"], color=shade)
        texts = [
            f"{x.name} {a:g}: {format_cell(b, y, None if percent else '')}"
            for a, b in zip(line["x"], line["y"], strict=True)
        ]
        fig.line(
            figure,
            line["x"].to_numpy(),
            line["y"],
            name,
            color=shade,
            dash=theme.DASHES[index],
            symbol=theme.MARKERS[index],
            legend=len(drawn) > 1,
            texts=texts,
        )
    if x.kind in {"layer", "head", "expert"}:
        fig.integer_axis(figure, work["x"], heading(x))
    figure.update_xaxes(title_text=display(heading(x)))
    _y_axis(figure, y, percent)
    remarks = [f"median over rows with the same {x.name}"] if repeated else []
    if len(names) > len(drawn):
        remarks.append(f"the first {len(drawn)} of {len(names)} values of {grouped_by}; all are in the table")
    what = f"Line chart of {y.name} against {x.name}" + (f", one line for each {color.name}" if color else "")
    return fig.describe(
        figure,
        title=title,
        subtitle="; ".join([y.description, *remarks]),
        alt=_alt(what, y, numbers[y.name]),
        caption=y.description,
    )


def _heatmap(
    title: str, numbers: dict[str, np.ndarray], first: Column, second: Column, y: Column
) -> go.Figure:
    work = pd.DataFrame({"x": numbers[second.name], "y": numbers[first.name], "z": numbers[y.name]}).replace(
        [np.inf, -np.inf], np.nan
    )
    grid = work.dropna(subset=["x", "y"]).pivot_table(
        index="y", columns="x", values="z", aggfunc="median", dropna=False
    )
    figure = fig.panels(height=320)
    figure.add_heatmap(
        x=grid.columns.to_numpy(),
        y=grid.index.to_numpy(),
        z=grid.to_numpy(),
        colorscale=theme.HEATMAP,
        colorbar={
            "title": {"text": display(heading(y))},
            "thickness": 12,
            "outlinewidth": 0,
            "tickformat": ".4~%" if y.kind == "fraction" else None,
        },
    )
    figure.update_xaxes(title_text=display(heading(second)))
    figure.update_yaxes(title_text=display(heading(first)))
    what = f"Heat map of {y.name} by {first.name} and {second.name}"
    return fig.describe(
        figure, title=title, subtitle=y.description, alt=_alt(what, y, numbers[y.name]), caption=y.description
    )


def _bars(title: str, frame: pd.DataFrame, label: Column, y: Column, values: np.ndarray) -> go.Figure:
    work = pd.DataFrame({"label": _texts(frame[label.name]), "value": values}).replace(
        [np.inf, -np.inf], np.nan
    )
    bars = work.groupby("label", sort=False)["value"].median().dropna().sort_values(ascending=False)
    shown = bars.head(_MAX_BARS)
    figure = fig.panels(height=max(120, 22 * len(shown)))
    figure.add_bar(
        x=shown.to_numpy(),
        y=list(shown.index),
        orientation="h",
        marker={"color": theme.BLUE},
        customdata=[format_cell(float(v), y) for v in shown],
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
    figure.update_xaxes(
        title_text=display(heading(y)), tickformat=".4~%" if y.kind == "fraction" else None, showgrid=True
    )
    figure.update_yaxes(
        title_text=display(heading(label)), type="category", autorange="reversed", showgrid=False
    )
    remark = f"; the largest {len(shown)} of {len(bars)}" if len(bars) > len(shown) else ""
    alt = _alt(f"Bar chart of {y.name} by {label.name}", y, values)
    return fig.describe(figure, title=title, subtitle=y.description + remark, alt=alt, caption=y.description)


def _histogram(title: str, y: Column, values: np.ndarray) -> go.Figure:
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        span = float(finite.max()) - float(finite.min())
    if not np.isfinite(span) or span <= 1e-9 * max(abs(float(finite.max())), 1e-300):
        counts, edges = np.array([len(finite)]), None
        # A mean of two numbers near 1e308 overflows
        x, width = [float(np.sort(finite)[len(finite) // 2])], None
    else:
        counts, edges = np.histogram(finite, bins=min(40, max(5, int(np.sqrt(len(finite))))))
        x, width = ((edges[:-1] + edges[1:]) / 2).tolist(), np.diff(edges).tolist()
    figure = fig.panels(height=280)
    figure.add_bar(
        x=x,
        y=counts,
        width=width,
        marker={"color": theme.BLUE},
        hovertemplate="%{x:.4g}: %{y:,}<extra></extra>",
    )
    figure.update_xaxes(title_text=display(heading(y)), tickformat=".4~%" if y.kind == "fraction" else None)
    figure.update_yaxes(title_text="rows")
    return fig.describe(
        figure,
        title=title,
        subtitle=y.description,
        alt=_alt(f"Histogram of {y.name}", y, values),
        caption=y.description,
    )
