"""One measured column against another: the band of its interval, its line, and dotted what it is
to be compared with.

Tables are frames with one row for each point. Which columns hold an interval is what their declarations say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.core.columns import Column
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent, with_interval
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    import pandas as pd


def interval_of(columns: Sequence[Column], name: str) -> tuple[str, str] | None:
    """Find the columns with the lower and the upper end of the interval of a column; None where
    it has no interval.

    Columns say which one they belong to. In a table where none does, as in runs of before, names decide:
    ``<name>_low`` and ``<name>_high``, else ``low`` and ``high``, of the kind of the column.
    """
    if any(column.low_of or column.high_of for column in columns):
        low = next((column.name for column in columns if column.low_of == name), "")
        high = next((column.name for column in columns if column.high_of == name), "")
        return (low, high) if low and high else None
    kinds = {column.name: column.kind for column in columns}
    pairs = ((f"{name}_low", f"{name}_high"), ("low", "high"))
    return next(
        (pair for pair in pairs if name in kinds and all(kinds.get(end) == kinds[name] for end in pair)), None
    )


def curve(
    figure: fig.Figure,
    rows: pd.DataFrame,
    y: str,
    name: str,
    *,
    color: str,
    columns: Sequence[Column] = (),
    x: str = "layer",
    show: Callable[[float], str] = percent,
    text: Callable[[Any, str], str] | None = None,
    reference: str = "",
    reference_name: str = "",
    reference_color: str = "",
    band: bool = True,
    alpha: float = 0.18,
    legend: bool = False,
    row: int = 1,
    column: int = 1,
    **look: Any,
) -> float:
    """Draw one column of a table with its band and, dotted, its reference; nothing where no value is finite.

    Args:
        figure: Target.
        rows: One row for each point, in the order of the line.
        y: The column that is drawn.
        name: Name of the line.
        color: Hex color of line and band.
        columns: Declarations of the columns of the table, which say where the interval is; none for no band.
        x: The column with the positions.
        show: Format of a value in hover texts.
        text: Makes the hover text from a row and the formatted value with its interval.
        reference: The column that is drawn dotted, where it has values; empty for none.
        reference_name: Name of the dotted line.
        reference_color: Its color; that of the line when empty.
        band: Whether the interval is drawn; hover texts have it in any case.
        alpha: Opacity of the band.
        legend: Whether the line is in the legend, once for all lines of this name.
        row: Panel row, from 1.
        column: Panel column, from 1.
        **look: Further options of ``figure.line``.

    Returns:
        The last finite value, for a name at the end of the line; NaN where nothing is drawn.
    """
    values = rows[y].to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return math.nan
    place: dict[str, Any] = {"row": row, "column": column}
    ends = interval_of(columns, y)
    if ends is not None and band:
        fig.band(figure, rows[x], rows[ends[0]], rows[ends[1]], color=color, alpha=alpha, **place)
    low, high = (rows[end] for end in ends) if ends is not None else (values * math.nan,) * 2
    shown = [with_interval(*ends_of, show=show) for ends_of in zip(values.tolist(), low, high, strict=True)]
    text = text or (lambda point, value: f"{x} {getattr(point, x):g}: {value}")
    texts = [text(point, value) for point, value in zip(rows.itertuples(index=False), shown, strict=True)]
    legend = legend and display(name, limit=60) not in {
        trace.name for trace in figure.data if trace.showlegend
    }
    fig.line(figure, rows[x], values, name, color=color, texts=texts, legend=legend, **place, **look)
    if reference and rows[reference].notna().any():
        dotted: dict[str, Any] = {"color": reference_color or color, "width": 1.5 if reference_color else 1.2}
        dotted |= {"dash": "dot", "symbol": None} | ({} if reference_color else {"opacity": 0.8})
        fig.line(
            figure, rows[x], rows[reference], reference_name or f"{name}, {reference}", **dotted, **place
        )
    return float(finite[-1])


def dotted(
    figure: fig.Figure, x: Sequence[Any], y: Sequence[Any], name: str, *, width: float = 1.5, **options: Any
) -> None:
    """Draw a gray dotted line: what would be seen if there were nothing to see."""
    fig.line(figure, x, y, name, color=theme.SLATE, dash="dot", symbol=None, width=width, **options)
