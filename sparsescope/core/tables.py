"""How tables are declared and filled: columns that many tables share, intervals, and frames of
the declared types.

An interval is two columns that name the column they belong to, so that generic figures and
comparisons find it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd

from sparsescope.core.columns import Column

LAYER = Column("layer", "layer", "Layer, counted from 0 at the input.")
SITE = Column("site", "site", "Where in the model, by its TransformerLens name.")
PLACE = (LAYER, SITE)
#: How most intervals are made.
BOOTSTRAPPED = "the document-cluster bootstrap interval"
JACKKNIFED = "the jackknife interval over folds of documents"


class Placed(Protocol):
    """What has a place in a model, such as a site."""

    @property
    def layer(self) -> int:
        """Block number, from 0."""

    @property
    def name(self) -> str:
        """Its TransformerLens name."""


def places(sites: Iterable[Placed]) -> dict[str, list[Any]]:
    """The columns of ``PLACE`` for some sites."""
    found = list(sites)
    return {"layer": [site.layer for site in found], "site": [site.name for site in found]}


def ends_of(
    column: Column, interval: str = BOOTSTRAPPED, prefix: str = "", clause: str = ""
) -> tuple[Column, Column]:
    """The columns ``low`` and ``high`` of an interval.

    Args:
        column: What the interval is of.
        interval: What it is called in the descriptions.
        prefix: Put before both names where a table has several intervals.
        clause: Put at the end of both descriptions.
    """
    low = replace(
        column, name=f"{prefix}low", description=f"Lower end of {interval}{clause}.", low_of=column.name
    )
    high = replace(
        column, name=f"{prefix}high", description=f"Upper end of {interval}{clause}.", high_of=column.name
    )
    return low, high


def with_interval(
    column: Column, interval: str = BOOTSTRAPPED, prefix: str = "", clause: str = ""
) -> tuple[Column, Column, Column]:
    """A column and the two of its interval; see ``ends_of`` for the arguments."""
    return column, *ends_of(column, interval, prefix, clause)


def grid(axes: Sequence[Mapping[str, Any]], **values: Any) -> pd.DataFrame:
    """A long frame from arrays: one row for each cell, the last axis fastest.

    Args:
        axes: For each axis the columns that name its steps, for example ``{"layer": [0, 1]}``.
        values: Columns: arrays [axis, axis, ...], or numbers that are the same in every cell.
    """
    shape = tuple(len(next(iter(axis.values()))) for axis in axes)
    columns: dict[str, Any] = {}
    for place, axis in enumerate(axes):
        after = int(np.prod(shape[place + 1 :]))
        before = int(np.prod(shape[:place]))
        columns |= {
            name: np.tile(np.repeat(np.asarray(steps), after), before) for name, steps in axis.items()
        }
    columns |= {name: np.broadcast_to(cells, shape).reshape(-1) for name, cells in values.items()}
    return pd.DataFrame(columns)
