"""What the views of ``activation_reuse`` share: which rules are drawn, their panels, and the
texts of a figure.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig

RULES = {"nonzero": "not exactly zero", "in use": "in the energy set"}
_ALMOST_ALL = 0.98


def rules(result: Result) -> list[str]:
    """The rules that say something about this model, the most telling first."""
    table = result.tables["union_density"]
    single = table[table["chunk"] == 1].groupby("rule")["mean"].mean()
    found = [rule for rule in RULES if rule in single.index and np.isfinite(single[rule])]
    return [rule for rule in found if single[rule] <= _ALMOST_ALL] or found[-1:]


def panels(result: Result, *, height: int = 380) -> fig.Figure:
    """An empty figure with one panel for each rule."""
    names = [f"active: {RULES[rule]}" for rule in rules(result)]
    return fig.panels(1, len(names), titles=names, height=height, share_y=True)


def describe(figure: fig.Figure, result: Result, *, title: str, subtitle: str, alt: str) -> fig.Figure:
    """Set the texts; the subtitle ends with what was not drawn."""
    table = result.tables["union_density"]
    left_out = [rule for rule in RULES if rule not in rules(result) and rule in set(table["rule"])]
    if left_out:
        subtitle += f"; not drawn: {RULES[left_out[0]]} (almost every unit on almost every token)"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def log_axis(figure: fig.Figure, values: pd.Series, title: str) -> None:
    """Set an x axis of powers of two."""
    ticks = sorted({int(v) for v in values})
    figure.update_xaxes(title_text=title, type="log", tickvals=ticks, ticktext=[str(t) for t in ticks])
