"""Layers in figures: one value per layer and measure, also where a layer has many sites; their
axis and their colors.

A mixture-of-experts layer has one site per expert (``blocks.3.mlp.experts.7.hook_post``). Such sites share
a *role* (``mlp.experts.hook_post``); a series over layers then shows the median over the experts, and its
band is the range over experts instead of an interval. Different roles are never mixed: they get a row of
panels each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import NO_INTERVALS

LAYER = "layer (0 at the input)"
_LAYER = re.compile(r"^blocks\.\d+\.")
_EXPERT = re.compile(r"\.experts\.\d+\.")
MAX_ROLES = 3
SPREAD_LOW, SPREAD_HIGH = 0.05, 0.95


def role(site: object) -> str:
    """Return the role of a site: its name without the numbers of layer and expert."""
    return _EXPERT.sub(".experts.", _LAYER.sub("", str(site)))


@dataclass(frozen=True, slots=True)
class Series:
    """Rows over layers with one row for each role, layer and further key.

    Attributes:
        frame: Columns ``role``, ``layer``, the further keys, ``mean``, ``low``, ``high`` and any others kept.
        roles: The roles that are drawn, at most ``MAX_ROLES``.
        dropped: Roles that are only in the table.
        sites: Largest number of sites behind one row; 1 means nothing was aggregated.
    """

    frame: pd.DataFrame
    roles: tuple[str, ...]
    dropped: tuple[str, ...]
    sites: int

    @property
    def intervals(self) -> bool:
        """Whether any row has an interval (or a range over experts)."""
        return bool((self.frame["low"].notna() & self.frame["high"].notna()).any())

    def band_text(self, level: float = 0.95) -> str:
        """Say in words what the band shows; ``level`` is the coverage of the intervals."""
        if self.sites > 1:
            return (
                f"lines: median over up to {self.sites} experts of a layer; bands: 5–95 % of the experts, or "
                f"the {100 * level:g} % document-cluster bootstrap interval where a layer has a single site"
            )
        interval = f"bands: {100 * level:g} % document-cluster bootstrap interval"
        return interval if self.intervals else NO_INTERVALS


def rows_of(found: Series, role: str, **keys: object) -> pd.DataFrame:
    """Rows of one role and, for example, ``metric="gini"``, by layer."""
    frame = found.frame[found.frame["role"] == role]
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    return frame.sort_values("layer")


def series(
    frame: pd.DataFrame, keys: Sequence[str] = (), *, value: str = "mean", keep: Sequence[str] = ()
) -> Series:
    """Bring a table with ``layer`` and ``site`` columns to one row per role, layer and key.

    Args:
        frame: Table with ``layer``, ``site``, the keys, ``value`` and, where present, ``low`` and ``high``.
        keys: Further grouping columns, for example ``("metric",)``.
        value: The column with the numbers.
        keep: Further numeric columns; their median is kept.

    Returns:
        The series, sorted by role, keys and layer.
    """
    work = frame.assign(role=[role(site) for site in frame["site"]])
    work["mean"] = pd.to_numeric(work[value], errors="coerce").astype(float)
    for name in ("low", "high"):
        work[name] = (
            pd.to_numeric(work[name], errors="coerce").astype(float) if name in frame else float("nan")
        )
    by = ["role", *keys, "layer"]
    groups = work.groupby(by, sort=True, dropna=False)
    sites = int(groups.size().max()) if len(work) else 1
    if sites > 1:
        tidy = groups["mean"].median().to_frame()
        # The range over experts where there are several sites, the interval of its own where there is one.
        several = groups.size() > 1
        for name, share in (("low", SPREAD_LOW), ("high", SPREAD_HIGH)):
            tidy[name] = groups["mean"].quantile(share).where(several, groups[name].first())
        for name in keep:
            tidy[name] = groups[name].median()
        tidy = tidy.reset_index()
    else:
        tidy = work[[*by, "mean", "low", "high", *keep]].sort_values(by).reset_index(drop=True)
    roles = tuple(dict.fromkeys(sorted(tidy["role"], key=lambda r: (-(tidy["role"] == r).sum(), r))))
    return Series(tidy[tidy["role"].isin(roles[:MAX_ROLES])], roles[:MAX_ROLES], roles[MAX_ROLES:], sites)


def dropped_text(found: Series) -> str:
    """Say which kinds of site are only in the table, or nothing."""
    return f"; {len(found.dropped)} further kinds of site are in the table" if found.dropped else ""


def layer_axis(figure: fig.Figure, table: pd.DataFrame, *, ticks: int = 16, **place: Any) -> None:
    """Set an x axis of the layers of a table."""
    fig.integer_axis(figure, table["layer"], LAYER, ticks=ticks, **place)


def layer_shades(table: pd.DataFrame) -> dict[float, str]:
    """The color of each layer of a table, dark at the input."""
    layers = sorted(table["layer"].unique())
    return dict(zip(layers, theme.ramp(len(layers)), strict=True))


def layer_lines(
    figure: fig.Figure,
    rows: pd.DataFrame,
    x: str,
    y: str,
    text: Callable[[Any, str], str],
    *,
    shades: dict[float, str],
    split: Sequence[str] = (),
    most: int = fig.MAX_MARKS,
    **look: Any,
) -> None:
    """Draw one thin line for each layer, colored by depth; ``layer_bar`` explains the colors.

    Args:
        figure: Target.
        rows: Table with ``layer``, ``x``, ``y`` and the columns of ``split``.
        x: The column with the positions.
        y: The column that is drawn.
        text: Makes the hover text from a row and the formatted value.
        shades: Colors from ``layer_shades``.
        split: Columns that divide a layer into several lines, for example ``("site",)``.
        most: Largest number of points of a line; evenly spread ones are kept.
        **look: Further options of ``curve``.
    """
    for (layer, *_), part in rows.groupby(["layer", *split], sort=True):
        part = part.sort_values(x).iloc[fig.thin(len(part), most)]
        options = {"symbol": None, **look}
        curve(figure, part, y, f"layer {layer:g}", x=x, color=shades[layer], text=text, **options)


def layer_bar(figure: fig.Figure, shades: dict[float, str]) -> None:
    """Add the color bar of the layers."""
    fig.color_bar(figure, float(min(shades)), float(max(shades)), "layer")
