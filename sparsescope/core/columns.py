"""What the columns of a table mean, and frames that have the columns that were declared.

Columns have a *kind* from a closed vocabulary (``COLUMN_KINDS``): the kind drives default figures, number
format, units, alignment in comparisons and CSV headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from sparsescope.errors import SpecError, unknown_name

ColumnKind = Literal[
    "layer", "head", "neuron", "feature", "expert", "token", "token_text", "position", "document", "domain",
    "step", "checkpoint", "site", "metric", "value", "count", "fraction", "bytes", "seconds", "flops",
    "threshold", "label", "group",
]  # fmt: skip
COLUMN_KINDS: tuple[str, ...] = get_args(ColumnKind)
TEXT_KINDS = frozenset({"token_text", "document", "domain", "checkpoint", "site", "metric", "label", "group"})
INDEX_KINDS = frozenset({"layer", "head", "neuron", "feature", "expert", "token", "position", "step"})
# In a stored record an unknown field is refused, and NaN is a string, because JSON has none.
STRICT = {"extra": "forbid", "ser_json_inf_nan": "strings"}


@dataclass(frozen=True, slots=True)
class Column:
    """What a table column means.

    Args:
        name: Column name in the frame.
        kind: One of ``COLUMN_KINDS``.
        description: One sentence with the formula where there is one.
        unit: Unit of the values; empty for counts, fractions and labels.
        low_of: Of the lower end of an interval, the column that it belongs to.
        high_of: Of the upper end.

    Raises:
        SpecError: If ``kind`` is not in the vocabulary.
    """

    __pydantic_config__ = STRICT

    name: str
    kind: str
    description: str
    unit: str = ""
    low_of: str = ""
    high_of: str = ""

    def __post_init__(self) -> None:
        if self.kind not in COLUMN_KINDS:
            raise unknown_name("column kind", self.kind, COLUMN_KINDS, next_step="see core/columns.py")


def declared_frame(
    name: str, columns: Sequence[Column], table: pd.DataFrame | Iterable[Any], where: str
) -> pd.DataFrame:
    """A table in the declared order; without rows its types are those of the kinds of its columns.

    Args:
        name: Of the table, for messages.
        columns: As declared.
        table: A frame with these columns in any order, or rows: mappings with these keys, or
            sequences in this order.
        where: For messages.

    Raises:
        SpecError: If a column is missing, or one is not declared.
    """
    names = [column.name for column in columns]
    if isinstance(table, pd.DataFrame):
        frame = table
    else:
        rows = list(table)
        in_order = not rows or (
            not isinstance(rows[0], Mapping) and {len(row) for row in rows} == {len(names)}
        )
        frame = pd.DataFrame(rows, columns=names if in_order else None)
    if sorted(map(str, frame.columns)) != sorted(names):
        raise SpecError(
            f"table {name!r} does not have the columns that are declared",
            where=where,
            allowed=names,
            got=list(map(str, frame.columns)),
            next_step="give a value for each declared column, and declare each column",
        )
    frame = frame[names]
    return frame if len(frame) else frame.astype({column.name: _dtype(column.kind) for column in columns})


def _dtype(kind: str) -> Any:
    """The type of a column that no row tells."""
    if kind in TEXT_KINDS:
        return pd.Series(["text"]).dtype
    return np.dtype(np.int64 if kind in INDEX_KINDS or kind == "count" else np.float64)
