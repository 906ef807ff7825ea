"""Figures of ``grokking`` by frequency: the share of units of one frequency over steps, and a
slider over checkpoints.

The slider hides and shows traces that are all in the figure: it needs no script of its own, no
frames and no request.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent

_NO_MODULUS = "This series is no modular addition: its checkpoints have no frequencies."


def neurons(result: Result) -> fig.Figure:
    """Draw the share of hidden units that one frequency explains, in all and for each key frequency."""
    table, whole = result.tables["spectrum"], result.tables["checkpoints"]
    shares = whole.dropna(subset=["neurons_explained"])
    if table.empty or shares.empty:
        message = _NO_MODULUS if table.empty else "The hidden units of this model cannot be read."
        return fig.empty("No units by frequency", message)
    total = _units(result)
    figure = fig.panels(height=340)
    curve(
        figure,
        shares,
        "neurons_explained",
        "all",
        x="step",
        color=theme.INK["light"],
        width=2.4,
        legend=True,
        text="step {0.step}: {1} of the units".format,
    )
    keys = sorted(table.loc[table["key"] == "yes", "frequency"].unique())
    served = table.assign(share=table["units"] / total)
    for index, k in enumerate(keys, 1):
        curve(
            figure,
            served[served["frequency"] == k],
            "share",
            f"k = {k:g}",
            x="step",
            width=1.5,
            legend=True,
            text=f"step {{0.step}}: {{0.units}} of {total} units at k = {{0.frequency:g}}".format,
            color=theme.CATEGORIES["light"][(index - 1) % 8],
            dash=theme.DASHES[index % 8],
            symbol=theme.MARKERS[index % 8],
        )
    for name in ("memorized_step", "generalized_step"):
        if math.isfinite(result.scalars[name].value):
            figure.add_vline(x=result.scalars[name].value, line=theme.LEVEL)
    figure.update_xaxes(title_text="optimizer step")
    fig.y_axes(figure, "share of hidden units", tickformat=".0%", range=[0, 1.04])
    fig.legend_below(figure)
    last = percent(float(shares["neurons_explained"].iloc[-1]))
    title = f"At the last checkpoint {last} of the hidden units serve one frequency"
    alt = f"Line chart of the share of hidden units that one frequency explains, over steps. {title}; "
    alt += f"{len(keys)} key frequencies."
    return fig.describe(figure, title=title, subtitle="dotted: t_mem and t_gen", alt=alt, result=result)


def _units(result: Result) -> int:
    """Hidden units, from a share of them and a count."""
    table, whole = (
        result.tables["spectrum"],
        result.tables["checkpoints"].set_index("step")["neurons_explained"],
    )
    counts = table.groupby("step")["units"].sum()
    step = counts.idxmax()
    return max(1, round(float(counts[step]) / float(whole[step]))) if whole[step] > 0 else 1


def checkpoint_slider(result: Result) -> fig.Figure:
    """Draw units and embedding norms by frequency for one checkpoint at a time; the last
    one is shown first.
    """
    table = result.tables["spectrum"]
    if table.empty:
        return fig.empty("No frequencies", _NO_MODULUS)
    steps = [int(s) for s in table["step"].unique()]
    steps = [
        steps[i]
        for i in fig.thin(len(steps), max(2, fig.MAX_MARKS // (2 * int(table["frequency"].nunique()))))
    ]
    figure = fig.panels(
        2, 1, titles=["hidden units of one frequency", "embedding of the residues"], height=220
    )
    for step in steps:
        part = table[table["step"] == step]
        for row, column in ((1, "units"), (2, "embedding_norm")):
            figure.add_trace(_bars(part, column, step, step == steps[-1]), row=row, col=1)
    # The axes stay as they are from checkpoint to checkpoint: only the bars move.
    figure.update_yaxes(
        title_text="units", range=[0, 1.08 * max(1.0, float(table["units"].max()))], row=1, col=1
    )
    figure.update_yaxes(
        title_text="norm", range=[0, 1.08 * float(table["embedding_norm"].max())], row=2, col=1
    )
    figure.update_xaxes(title_text="frequency k", row=2, col=1)
    shown = [[at == index // 2 for index in range(2 * len(steps))] for at in range(len(steps))]
    figure.update_layout(
        showlegend=False,
        bargap=0.15,
        sliders=[
            {
                "active": len(steps) - 1,
                "currentvalue": {"prefix": "step ", "font": {"color": theme.INK["light"], "size": 13}},
                "font": {"color": theme.MUTED["light"], "size": 10},
                "bgcolor": theme.GRID["light"],
                "activebgcolor": theme.BLUE,
                "bordercolor": theme.AXIS["light"],
                "tickcolor": theme.AXIS["light"],
                "pad": {"t": 56, "b": 8},
                "steps": [
                    {"label": str(step), "method": "restyle", "args": [{"visible": visible}]}
                    for step, visible in zip(steps, shown, strict=True)
                ],
            }
        ],
    )
    last = table[table["step"] == steps[-1]]
    keys = [f"{k:g}" for k in last.loc[last["key"] == "yes", "frequency"]]
    named = f"key frequencies {', '.join(keys)}" if keys else "no key frequency"
    title = f"Frequencies of {len(steps)} checkpoints; the last one has {named}"
    alt = (
        f"Bar charts of hidden units and of embedding norms by frequency, with a slider over {len(steps)} "
        f"checkpoints. {title}."
    )
    figure = fig.describe(
        figure, title=title, subtitle="outlined bars: key frequencies", alt=alt, result=result
    )
    return figure.update_layout(margin={"b": 130}, height=figure.layout.height + 70)


def _bars(part: pd.DataFrame, column: str, step: int, visible: bool) -> go.Bar:
    """Bars of one checkpoint; key frequencies in another color and, for any color vision, with an edge."""
    key = (part["key"] == "yes").tolist()
    marker: dict[str, Any] = {
        "color": [theme.BLUE if k else theme.CLASSES["light"][3] for k in key],
        "line": {"color": theme.INK["light"], "width": [1 if k else 0 for k in key]},
    }
    return go.Bar(
        x=part["frequency"], y=part[column], name=f"step {step}", visible=visible, marker=marker,
        hovertemplate=f"step {step}, k = %{{x}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
