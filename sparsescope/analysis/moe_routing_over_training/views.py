"""Figures of ``moe_routing_over_training``: functions of the stored result that say their finding in the
title.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades
from sparsescope.viz.sentences import NO_INTERVALS, percent
from sparsescope.viz.steps import StepAxis

_GIVEN = "I(E; D | token)"
_TEXT = "layer {0.layer:g}, step {0.step:,}: {1}".format


def _nats(value: float) -> str:
    return f"{value:.4f} nats"


def _means(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Means over layers, one row for each step."""
    return table.groupby("step", as_index=False)[list(columns)].mean()


def saturation(result: Result) -> fig.Figure:
    """Draw the share of experts in common with the last checkpoint, and the churn between checkpoints."""
    table = result.tables["saturation"]
    axis, shades = StepAxis.of(table["step"]), layer_shades(table)
    figure = fig.panels(
        1, 2, titles=["experts in common with the last checkpoint", "changed since the checkpoint before"],
        height=380, gap=0.1,
    )  # fmt: skip
    whole = axis.place(_means(table, "saturation", "churn", "load_chance", "token_chance"))
    for column, y in ((1, "saturation"), (2, "churn")):
        layer_lines(
            figure, axis.place(table), "at", y, _TEXT,
            shades=shades, columns=result.columns["saturation"], alpha=0.15, width=1.2, column=column,
        )  # fmt: skip
        look: dict[str, Any] = {"x": "at", "legend": True, "column": column}
        curve(
            figure, whole, y, "mean over layers", color=theme.VERMILION, width=3,
            text="mean over layers, step {0.step:,}: {1}".format, **look,
        )  # fmt: skip
    look = {"x": "at", "legend": True, "color": theme.SLATE, "symbol": None}
    text = "{1} by chance at these loads, step {0.step:,}".format
    curve(figure, whole, "load_chance", "chance at these loads", dash="dot", text=text, **look)
    if table["token_chance"].notna().all():
        text = "{1} by chance where the token id is known, step {0.step:,}".format
        curve(figure, whole, "token_chance", "chance, token id known", dash="dash", text=text, **look)
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "share of the experts of a token", tickformat=".0%", range=[0, 1.03])
    fig.legend_below(figure)
    layer_bar(figure, shades)
    rows = whole[whole["step"] < whole["step"].max()]
    if rows.empty:
        title = "One checkpoint: there is nothing to settle"
    else:
        half = rows[rows["saturation"] >= (1 + whole["load_chance"].iloc[0]) / 2]
        first = rows.iloc[0]
        title = (
            f"At step {first['step']:,.0f} a checkpoint shares {percent(first['saturation'])} of its "
            f"experts with the "
            f"last one, {percent(first['load_chance'])} by chance"
        )
        if len(half):
            title += f"; half of the rest is settled by step {half['step'].iloc[0]:,.0f}"
    documents = int(table["documents"].max())
    subtitle = f"n = {documents} documents; bands by layer: document-cluster bootstrap intervals"
    alt = f"Two line charts over training steps, one line for each of {len(shades)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def specialization(result: Result) -> fig.Figure:
    """Draw the information beyond chance over training, by layer, with the shuffled routers."""
    table = result.tables["specialization"]
    if table.empty:
        return fig.empty("Specialization over training", "the text has one domain")
    table = table[table["measure"] == _GIVEN]
    axis, shades = StepAxis.of(table["step"]), layer_shades(table)
    figure = fig.panels(1, 2, titles=["learned routers", "minus the first checkpoint"], height=380, gap=0.12)
    whole = axis.place(_means(table, "excess", "shuffled", "since_start"))
    for column, y in ((1, "excess"), (2, "since_start")):
        layer_lines(
            figure, axis.place(table), "at", y, _TEXT, show=_nats,
            shades=shades, columns=result.columns["specialization"], alpha=0.15, width=1.2, column=column,
        )  # fmt: skip
        curve(
            figure, whole, y, "mean over layers", color=theme.VERMILION, width=3, show=_nats,
            text="mean over layers, step {0.step:,}: {1}".format, x="at", legend=True, column=column,
        )  # fmt: skip
    if table["shuffled"].notna().any():
        curve(
            figure, whole, "shuffled", "shuffled "
            "routers", color=theme.SLATE, dash="dash", symbol="circle-open",
            show=_nats, text="shuffled routers, step {0.step:,}: {1}".format, x="at", legend=True,
        )  # fmt: skip
    figure.add_hline(y=0, line=theme.LEVEL)
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "nats beyond chance")
    fig.legend_below(figure)
    layer_bar(figure, shades)
    first, last = whole.iloc[0], whole.iloc[-1]
    title = (
        f"Beyond chance the expert tells {_nats(first['excess'])} about the domain at step "
        f"{first['step']:,.0f} and "
        f"{_nats(last['excess'])} at step {last['step']:,.0f}"
    )
    if pd.notna(last["shuffled"]):
        title += f"; {_nats(last['shuffled'])} with shuffled routers"
    bands = "bands: jackknife intervals" if table["low"].notna().any() else NO_INTERVALS
    subtitle = (
        f"I(E; D | token) minus permuted labels, n = {int(table['documents'].max())} documents; {bands}"
    )
    alt = f"Two line charts over training steps, one line for each of {len(shades)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def load(result: Result) -> fig.Figure:
    """Draw how even the load is, over training."""
    table = result.tables["load"]
    axis, shades = StepAxis.of(table["step"]), layer_shades(table)
    figure = fig.panels(1, 2, titles=["coefficient of variation", "entropy over ln E"], height=340, gap=0.12)
    whole = axis.place(_means(table, "cv", "normalized_entropy"))
    for column, y in ((1, "cv"), (2, "normalized_entropy")):
        look: dict[str, Any] = {"show": "{:.3f}".format, "column": column}
        layer_lines(figure, axis.place(table), "at", y, _TEXT, shades=shades, width=1.2, **look)
        curve(
            figure, whole, y, "mean over layers", color=theme.VERMILION, width=3, x="at", legend=True,
            text="mean over layers, step {0.step:,}: {1}".format, **look,
        )  # fmt: skip
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "load of the experts", rangemode="tozero")
    fig.legend_below(figure)
    layer_bar(figure, shades)
    first, last = whole.iloc[0], whole.iloc[-1]
    title = (
        f"The load varies by {first['cv']:.2f} of its mean at the start and by {last['cv']:.2f} at the end"
    )
    subtitle = f"experts of a layer, {int(table['tokens'].max()):,} tokens; 0 and 1 are balanced"
    alt = f"Two line charts over training steps, one line for each of {len(shades)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
