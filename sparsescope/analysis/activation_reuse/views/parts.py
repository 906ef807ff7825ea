"""What the views of ``activation_reuse`` share: which rules are drawn, and the texts of a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.sentences import subject_prefix

if TYPE_CHECKING:
    import plotly.graph_objects as go

RULES = {"nonzero": "not exactly zero", "in use": "in the energy set"}
_ALMOST_ALL = 0.98


def rules(result: Result) -> list[str]:
    """The rules that say something about this model, the most telling first."""
    table = result.tables["union_density"]
    single = table[table["chunk"] == 1].groupby("rule")["mean"].mean()
    found = [rule for rule in RULES if rule in single.index and np.isfinite(single[rule])]
    return [rule for rule in found if single[rule] <= _ALMOST_ALL] or found[-1:]


def layers(table: pd.DataFrame) -> list[float]:
    """Layers of a table, rising."""
    return sorted(table["layer"].unique())


def describe(figure: go.Figure, result: Result, *, title: str, subtitle: str, alt: str) -> go.Figure:
    """Set the texts; the subtitle begins with the subject and ends with what was not drawn."""
    table = result.tables["union_density"]
    left_out = [rule for rule in RULES if rule not in rules(result) and rule in set(table["rule"])]
    if left_out:
        subtitle += f"; not drawn: {RULES[left_out[0]]} (almost every unit on almost every token)"
    return fig.describe(figure, title=title, subtitle=subject_prefix(result) + subtitle, alt=alt)


def level_text(result: Result) -> str:
    """Say what the bands are."""
    level = next((s.interval.level for s in result.scalars.values() if s.interval is not None), None)
    if level is None:
        return "no intervals: they need two documents or more"
    return f"bands: {100 * level:g} % document-cluster bootstrap interval"


def log_axis(figure: go.Figure, values: pd.Series, title: str, **place: Any) -> None:
    """Set an x axis of powers of two."""
    ticks = sorted({int(v) for v in values})
    figure.update_xaxes(title_text=title, type="log", tickvals=ticks, ticktext=[str(t) for t in ticks], **place)
