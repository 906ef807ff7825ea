"""Tables for people and for spreadsheets: number formats by column kind, alignment, CSV.

One place decides how a cell looks, so that report, explorer and notebooks agree. CSV text cells that a
spreadsheet would run as a formula (first character ``= + - @``, also full-width or after blanks, or a tab,
line feed or carriage return) get a leading ``'``; numbers are written as they are.
"""

from __future__ import annotations

import csv as csv_module
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.core.columns import INDEX_KINDS, TEXT_KINDS, Column
from sparsescope.core.escaping import well_formed
from sparsescope.core.numbers import format_number
from sparsescope.viz.tokens import display

# Some spreadsheets drop blanks in front and treat full-width forms as the ASCII characters.
_FORMULA = re.compile(r"[\t\r\n]|[\s\0\ufeff\u200b-\u200f\u2060]*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_MISSING = "–"
# In a table with a metric column, a fraction is a share of units only on rows of these metrics; a Gini
# coefficient of 0.61 is not "61 %".
_SHARE_METRICS = ("density", "sparsity", "share", "fraction", "rate")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def numeric(column: Column) -> bool:
    """Whether the cells of a column are aligned as numbers."""
    return column.kind not in TEXT_KINDS


def is_share(metric: object) -> bool:
    """Whether values of this metric are shares, to be shown in percent."""
    return str(metric).startswith(_SHARE_METRICS)


def missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, NaT or pandas' NA."""
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float | np.floating) and math.isnan(value))
    )


def format_cell(value: Any, column: Column, metric: object = None) -> str:
    """Format one cell by the kind of its column.

    Args:
        value: The cell.
        column: Meaning of the column.
        metric: Cell of the metric column of the same row, where there is one.

    Returns:
        Text with markup left as it is (the caller escapes it), control characters made visible.
    """
    if missing(value):
        return _MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if column.kind == "metric":
        value = str(value).replace("_", " ")  # an identifier in the data, words to a reader
    if column.kind in TEXT_KINDS or not isinstance(value, int | float | np.integer | np.floating):
        return display(value, spaces=column.kind == "token_text", limit=160, markup=False)
    if isinstance(value, float | np.floating) and math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if column.kind in INDEX_KINDS:
        return f"{int(value)}" if _whole(value) else f"{value:g}"
    if column.kind == "count":
        return f"{int(value):,}" if _whole(value) else f"{value:,.4g}"
    if column.kind == "fraction":
        return (
            format_number(float(value), "fraction") if metric is None or is_share(metric) else f"{value:.4f}"
        )
    if column.kind == "bytes":
        return format_bytes(float(value))
    if column.kind == "seconds":
        return f"{value:.3g} s"
    return f"{value:,.4g}"


def _whole(value: Any) -> bool:
    """Whether a number is shown with all its digits; from 10^15 on they fill the cell and mean nothing."""
    return abs(value) < 1e15 and float(value).is_integer()


def format_bytes(value: float) -> str:
    """Format a size with binary units, for example ``1.50 MiB``."""
    power = 0
    while abs(value) >= 1024 and power < len(_SIZES) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.0f} B" if power == 0 else f"{value:.2f} {_SIZES[power]}"


def heading(column: Column) -> str:
    """Return the column heading in words with its unit, for example ``mean magnitude (activation)``."""
    name = column.name.replace("_", " ")
    return f"{name} ({column.unit})" if column.unit else name


def format_rows(frame: pd.DataFrame, columns: Sequence[Column], limit: int | None = None) -> list[list[str]]:
    """Format the first ``limit`` rows of a table, one list of cell texts for each row."""
    shown = frame if limit is None else frame.head(limit)
    metric = next((c.name for c in columns if c.kind == "metric"), None)
    metrics = list(shown[metric]) if metric else [None] * len(shown)
    by_column = [[format_cell(v, c, m) for v, m in zip(shown[c.name], metrics, strict=True)] for c in columns]
    return [list(row) for row in zip(*by_column, strict=True)]


def guard(value: Any) -> Any:
    """Return a text cell that no spreadsheet takes for a formula; other values unchanged."""
    return "'" + value if isinstance(value, str) and _FORMULA.match(value) else value


def csv(frame: pd.DataFrame, columns: Sequence[Column], *, comments: Sequence[str] = ()) -> str:
    """Write a table as CSV (RFC 4180) with comment lines above the header.

    Args:
        frame: The table.
        columns: Meaning of its columns; their kinds and units are written as a comment.
        comments: Lines for the head, for example the id of the run.

    Returns:
        Text with line feeds. To read it back, skip the leading lines that start with ``#``.
    """
    buffer = _Lines()
    units = "; ".join(f"{c.name} [{c.kind}{', ' + c.unit if c.unit else ''}]" for c in columns)
    for comment in (*comments, units):
        buffer.write("# " + display(comment, limit=2000, markup=False).replace('"', "'") + "\n")
    writer = csv_module.writer(buffer, lineterminator="\r\n")
    # A heading that begins with '#' would be skipped as a comment.
    writer.writerow([_encodable("'" + c.name if c.name.startswith("#") else guard(c.name)) for c in columns])
    for row in frame[[c.name for c in columns]].itertuples(index=False, name=None):
        writer.writerow(["" if missing(v) else _encodable(guard(v)) for v in row])
    return buffer.getvalue()


class _Lines(io.StringIO):
    """Ends rows with a line feed alone. The writer is told both characters: it quotes cells
    that hold one of them.
    """

    def write(self, text: str) -> int:
        return super().write(text.removesuffix("\r\n") + "\n" if text.endswith("\r\n") else text)


def _encodable(value: Any) -> Any:
    """Replace lone surrogates, which no UTF-8 file can hold."""
    return well_formed(value) if isinstance(value, str) else value
