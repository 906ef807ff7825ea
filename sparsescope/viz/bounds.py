"""Bars of upper bounds on FLOPs and weight bytes saved; shared by the analyses whose tables
have these columns.

Bars show ``saved_model``, their whiskers the interval, the dotted line what would be saved if the MLPs cost
nothing. Nothing here is a speed, and no text may call it one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent

_SCHEMES = {
    "down only": "last matrix",
    "first matrix computed": "all after the first matrix",
    "ideal predictor": "all, active units known beforehand",
}


def draw_bounds(
    table: pd.DataFrame, result: Result, *, group: str = "rule", group_name: str = "active units"
) -> go.Figure:
    """Draw the table of bounds: one panel for each quantity, one group of bars for each value of ``group``.

    Args:
        table: Rows with the columns of ``activations.bound_table``.
        result: What the table is from, for the subtitle.
        group: Column on the x axis.
        group_name: Title of the x axis.
    """
    title = "Upper bounds on what sparsity saves"
    table = table[np.isfinite(table["saved_model"].astype(float))]
    if table.empty:
        return fig.empty(title, "no hidden layer of an MLP was measured")
    quantities = list(dict.fromkeys(table["quantity"]))
    schemes = [scheme for scheme in _SCHEMES if scheme in set(table["scheme"])]
    groups = list(dict.fromkeys(table[group]))
    figure = fig.panels(
        1, len(quantities), titles=[f"{q} of a decoded token" for q in quantities], height=340, share_y=True
    )
    for column, quantity in enumerate(quantities, 1):
        for index, scheme in enumerate(schemes):
            rows = (
                table[(table["quantity"] == quantity) & (table["scheme"] == scheme)]
                .set_index(group)
                .reindex(groups)
            )
            _bars(figure, rows, groups, scheme, theme.CATEGORIES["light"][index], column)
        share = float(table.loc[table["quantity"] == quantity, "mlp_share"].max())
        look = {"color": theme.SLATE, "width": 1.5, "dash": "dot"}
        note = f"all of the MLPs: {percent(share)}"
        figure.add_hline(
            y=share, line=look, annotation_text=note, annotation_position="top left", row=1, col=column
        )
    figure.update_layout(
        barmode="group",
        bargap=0.3,
        showlegend=True,
        legend={"title": {"text": "skipped for inactive units:"}},
    )
    top = 1.12 * float(table[["mlp_share", "saved_model"]].max().max())
    lowest = min(float(table["saved_model"].min()), 0.0)
    figure.update_yaxes(tickformat=".0~%", range=[lowest, top])
    figure.update_yaxes(title_text="upper bound on the share saved", col=1)
    figure.update_xaxes(title_text=group_name, type="category")
    best = table.loc[table["saved_model"].idxmax()]
    safe = table[table["rule"] == "nonzero"]
    sentence = f"At most {percent(best['saved_model'])} of the {best['quantity']} could be saved"
    if group == "rule":
        sentence += f" (active: {best['rule']}; skipped: {_SCHEMES[best['scheme']]})"
        sentence += (
            f"; by exact zeros {percent(safe['saved_model'].max())}"
            if len(safe) and best["rule"] != "nonzero"
            else ""
        )
    else:
        rest = table[(table["scheme"] == best["scheme"]) & (table[group] != best[group])]
        sentence += f" for {best[group]}"
        sentence += "".join(
            f", {percent(row['saved_model'])} for {row[group]} together" for _, row in rest.iterrows()
        )
        sentence += f" (active: {best['rule']})"
    subtitle = "share of the whole model; whiskers: document-cluster bootstrap; not a speed"
    alt = f"Bars of upper bounds. {sentence}. Dotted lines show the share of the MLPs."
    return fig.describe(figure, title=sentence, subtitle=subtitle, alt=alt, result=result)


def _bars(
    figure: go.Figure, rows: pd.DataFrame, groups: list[object], scheme: str, color: str, column: int
) -> None:
    """Add the bars of one scheme to one panel."""
    saved = rows["saved_model"].astype(float)
    texts = [
        (
            f"{name}: density {percent(d)}, at most {percent(s)} saved ({percent(m)} of the MLPs); count "
            f"{a:.3g} times smaller"
        )
        for name, d, s, m, a in zip(
            groups, rows["density"], saved, rows["saved_mlp"], rows["amdahl"], strict=True
        )
    ]
    spread = {
        "array": (rows["high"].astype(float) - saved).clip(lower=0).fillna(0.0),
        "arrayminus": (saved - rows["low"].astype(float)).clip(lower=0).fillna(0.0),
    }
    error = {"type": "data", "thickness": 1.2, "width": 3, "color": theme.INK["light"], **spread}
    x = [str(g) for g in groups]
    fig.bars(figure, x, saved, _SCHEMES[scheme], color=color, texts=texts, column=column, error_y=error)
