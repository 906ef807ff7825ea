"""``accounting``: which bytes of a decoded token are left to read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.sparse_inference.statements import (
    first_policy,
    middle_target,
    policy_words,
    reference_of,
)
from sparsescope.analysis.sparse_inference.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent
from sparsescope.viz.tables import format_bytes


def accounting(result: Result) -> fig.Figure:
    """Draw block and model share, the bound, and what adapters add, against the target."""
    table = result.tables["accounting"]
    policy = first_policy(table)
    table = table[table["prefix"] == policy].sort_values("target")
    table = table.assign(added=table["adapters"] / table["read"])
    names, looks, apart = parts.methods_of(table, result), parts.looks(result), parts.beside(result)
    figure = fig.panels(
        1, 3, titles=["not read", "dense bytes / bytes read", "adapters"], height=parts.HEIGHT, gap=0.085
    )
    for name in reversed(names):
        rows = table[table["method"] == name]
        look = {**looks[name], "x": "target", "text": _text}
        look |= {"width": 0} if name in apart or len(rows) == 1 else {}
        curve(figure, rows, "model", name, legend=True, **look)
        curve(figure, rows, "bound", name, column=2, show="{:.3g} times".format, **look)
        curve(figure, rows, "added", name, column=3, **look)
    mean = table.groupby("target")["block"].mean()
    fig.line(
        figure,
        mean.index.to_numpy(),
        mean.to_numpy(),
        "of the block matrices, mean",
        color=theme.SLATE,
        dash="dash",
        symbol=None,
        legend=True,
        texts=[f"{percent(at)} asked for: {percent(share)} of the block bytes" for at, share in mean.items()],
    )
    _axes(figure, table)
    figure.update_layout(legend={"traceorder": "reversed"})
    parts.legend_below(figure)
    title, alt = _found(result, table)
    subtitle = f"{policy_words(policy)}; colored: of all weight bytes of a decoded token; adapters (factors, "
    subtitle += "rotations, thresholds, biases) count as read; a bound by bytes, no speed was measured"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _axes(figure: fig.Figure, table: pd.DataFrame) -> None:
    most = 1.05 * float(table["target"].max())
    figure.update_xaxes(title_text="share asked for", tickformat=".0%", range=[0, most])
    shares = table[["block", "model"]].to_numpy(float)
    low, high = min(0.0, float(np.nanmin(shares))), max(0.1, float(np.nanmax(shares)))
    look: dict[str, Any] = {"row": 1, "tickformat": ".0%", "range": [low, 1.05 * high]}
    figure.update_yaxes(title_text="share of the bytes", col=1, **look)
    bounds = table["bound"][np.isfinite(table["bound"])]
    ends = [min(0.95, float(bounds.min())), 1.05 * float(bounds.max())] if len(bounds) else [0, 2]
    figure.update_yaxes(title_text="bound on the gain, times", range=ends, row=1, col=2)
    added = float(table["added"].max()) or 0.01
    look |= {"tickformat": ".2~%", "range": [-0.05 * added, 1.1 * added]}
    figure.update_yaxes(title_text="share of the bytes read", col=3, **look)


def _text(at: Any, shown: str) -> str:
    return (
        f"{percent(at.target)} asked for: {percent(at.block)} of the block bytes, {percent(at.model)} of the "
        f"model not read; {format_bytes(at.read)} left, {format_bytes(at.adapters)} of them adapters; "
        f"bound {at.bound:.3g}"
    )


def _found(result: Result, table: pd.DataFrame) -> tuple[str, str]:
    """The title and the alt text, about the reference where it is there."""
    target = middle_target(result, table)
    here = table[table["target"] == target]
    own = here[here["method"] == reference_of(result)]
    row = next((own if len(own) else here).itertuples())
    title = (
        f"At {percent(target)} asked for {row.method} leaves {percent(row.block)} of the block bytes unread, "
    )
    title += f"{percent(row.model)} of the model: at best {row.bound:.3g} times fewer bytes"
    most = here.loc[here["adapters"].idxmax()]
    alt = f"Lines against the share asked for: bytes not read, bound, adapters. {title}. The most adapters "
    alt += f"there: {most['method']}, {format_bytes(float(most['adapters']))} "
    alt += f"({percent(float(most['added']))} of what is read). Of the model: "
    alt += ", ".join(f"{row.method} {percent(row.model)}" for row in here.itertuples()) + "."
    return title, alt
