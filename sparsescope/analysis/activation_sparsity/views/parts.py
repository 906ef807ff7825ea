"""What the views of ``activation_sparsity`` share: metric ids, sentences, number formats for sentences.

A density is a share in [0, 1]; sentences give it in percent, with three digits, never rounded to 0 or 100 %.
"""

from __future__ import annotations

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.layers import Series, dropped_text, layer_axis
from sparsescope.viz.sentences import level_of, percent

_ALMOST_ALL = 0.98  # above this density, exact zeros say nothing


def describe(
    figure: fig.Figure,
    result: Result,
    found: Series,
    *,
    title: str,
    subtitle: str,
    alt: str,
    bands: bool = True,
) -> fig.Figure:
    """Set the texts; the subtitle gets, with ``bands``, what the bands mean, and what was not drawn."""
    if bands:
        subtitle += f"; {found.band_text(level_of(result) or 0.95)}"
    return fig.describe(figure, title=title, subtitle=subtitle + dropped_text(found), alt=alt, result=result)


def shares(frame: pd.DataFrame, norm: str) -> list[str]:
    """Shares p of the metrics ``density_<norm>_<p>`` that are there, rising."""
    prefix = f"density_{norm}_"
    found = {str(m).removeprefix(prefix) for m in frame["metric"] if str(m).startswith(prefix)}
    return sorted(found, key=float)


def main_share(frame: pd.DataFrame) -> str | None:
    """The energy share that stands for all: 90, or the nearest to it."""
    return min(shares(frame, "energy"), key=lambda share: abs(float(share) - 90), default=None)


def panel_titles(found: Series, columns: list[str]) -> list[str]:
    """Titles of the panels; the role is named only where there are several."""
    if len(found.roles) <= 1:
        return columns
    return [f"{role}: {column}" if column else role for role in found.roles for column in columns]


def percent_axes(
    figure: fig.Figure,
    found: Series,
    title: str,
    *,
    y_range: tuple[float, float] | None = None,
    ticks: int = 16,
) -> None:
    """Set a layer axis and a percent axis from zero on every panel."""
    layer_axis(figure, found.frame, ticks=ticks)
    fig.y_axes(figure, title, tickformat=".0~%", range=list(y_range) if y_range else None, rangemode="tozero")


def label(measure: str) -> str:
    """Name of a concentration measure in sentences and on axes."""
    return measure.upper() if measure in ("pr2", "pr4") else measure.replace("_", " ").capitalize()


def between(values: pd.Series) -> str:
    """Say the range of shares, for example ``11.6–21.3 %``."""
    low, high = percent(values.min()), percent(values.max())
    if low.startswith("over"):
        return low
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def nonzero_says_nothing(result: Result) -> bool:
    """Whether (almost) every unit is non-zero on (almost) every token, as in SwiGLU and GELU layers."""
    values = _nonzero(result)
    return values.empty or bool(values.min() > _ALMOST_ALL)


def nonzero_text(result: Result) -> str:
    """Say how many units are not exactly zero."""
    values = _nonzero(result)
    return (
        "exact zeros were not measured"
        if values.empty
        else f"exactly non-zero: {between(values)} of the units"
    )


def _nonzero(result: Result) -> pd.Series:
    table = result.tables["per_layer"]
    return table.loc[table["metric"] == "density_nonzero", "mean"].astype(float).dropna()
