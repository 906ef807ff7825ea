"""What the views of ``activation_reuse`` share: which rules are drawn, their panels, and the
texts of a figure.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.layers import role

RULES = {
    "nonzero": "not exactly zero",
    "in use": "in the energy set",
    "routed": "experts that a token is sent to",
}
_ALMOST_ALL = 0.98
_EXPERTS = "mlp.experts.hook_post"


def rules(result: Result) -> list[str]:
    """The rules that say something about this model, the most telling first; experts as units come last."""
    table = main_rows(result.tables["union_density"])
    single = table[table["chunk"] == 1].groupby("rule")["mean"].mean()
    found = [rule for rule in RULES if rule in single.index and np.isfinite(single[rule])]
    experts = [rule for rule in found if rule == "routed"]
    units = [rule for rule in found if rule != "routed"]
    # Of a mixture, more than the units of the experts of a token cannot be active.
    most = _ALMOST_ALL * (single["routed"] if experts else 1.0)
    return ([rule for rule in units if single[rule] <= most] or units[-1:]) + experts


def main_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are drawn together: of a mixture those of experts, without shared ones."""
    roles = table["site"].map(role)
    if not (roles == _EXPERTS).any():
        return table
    return table[(roles == _EXPERTS) | (table["rule"] == "routed")]


def panels(result: Result, *, height: int = 380) -> fig.Figure:
    """An empty figure with one panel for each rule."""
    names = [RULES[rule] if rule == "routed" else f"active: {RULES[rule]}" for rule in rules(result)]
    return fig.panels(1, len(names), titles=names, height=height, share_y=True)


def describe(figure: fig.Figure, result: Result, *, title: str, subtitle: str, alt: str) -> fig.Figure:
    """Set the texts; the subtitle ends with what was not drawn."""
    table = result.tables["union_density"]
    mixture = bool((table["rule"] == "routed").any())
    if mixture:
        subtitle += "; units: those of all experts of a layer, active where a token was sent"
        others = sorted(set(table["site"].map(role)) - set(main_rows(table)["site"].map(role)))
        subtitle += f"; only in the table: {', '.join(others)}" if others else ""
    left_out = [rule for rule in RULES if rule not in rules(result) and rule in set(table["rule"])]
    if left_out:
        which = "unit of these experts" if mixture else "unit"
        subtitle += f"; not drawn: {RULES[left_out[0]]} (almost every {which} on almost every token)"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def log_axis(figure: fig.Figure, values: pd.Series, title: str) -> None:
    """Set an x axis of powers of two."""
    ticks = sorted({int(v) for v in values})
    figure.update_xaxes(title_text=title, type="log", tickvals=ticks, ticktext=[str(t) for t in ticks])
