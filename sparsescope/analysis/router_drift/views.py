"""Figures of ``router_drift``."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades
from sparsescope.viz.steps import StepAxis

_TEXT = "layer {0.layer:g}, step {0.step:,}: {1}".format


def _number(value: float) -> str:
    return f"{value:.3f}"


def drift(result: Result) -> fig.Figure:
    """Draw the cosine of rows with those at the end, and with those of the checkpoint before."""
    table = result.tables["rows"]
    axis, shades = StepAxis.of(table["step"]), layer_shades(table)
    titles = ["with the last checkpoint", "with the checkpoint before"]
    figure = fig.panels(1, 2, titles=titles, height=360, gap=0.1)
    means = axis.place(table.groupby("step", as_index=False)[["cosine", "other", "previous"]].mean())
    for column, y in ((1, "cosine"), (2, "previous")):
        layer_lines(
            figure, axis.place(table), "at", y, _TEXT, show=_number, shades=shades, alpha=0.08, width=1.2,
            columns=result.columns["rows"] if y == "cosine" else (), column=column,
        )  # fmt: skip
        curve(
            figure, means, y, "mean over layers", color=theme.VERMILION, width=3, x="at", legend=True,
            show=_number, text="mean over layers, step {0.step:,}: {1}".format, column=column,
        )  # fmt: skip
    curve(
        figure, means, "other", "nearest other expert", color=theme.SLATE, dash="dot", x="at", legend=True,
        symbol=None, show=_number, text="nearest other expert, step {0.step:,}: {1}".format,
    )  # fmt: skip
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "cosine of router rows", range=[-0.3, 1.03])
    fig.legend_below(figure)
    layer_bar(figure, shades)
    first = means.iloc[0]
    title = (
        f"At step {first['step']:,.0f} the rows of an expert have a cosine of {first['cosine']:.2f} with "
        f"those at "
        f"the end, the nearest other one {first['other']:.2f}"
    )
    subtitle = f"{int(table['experts'].max())} experts a layer; bands: 5 to 95 % of the experts"
    alt = f"Two line charts over training steps, one line for each of {len(shades)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def geometry(result: Result) -> fig.Figure:
    """Draw norm, effective rank and likeness of the rows of each layer."""
    table = result.tables["rows"]
    axis, shades = StepAxis.of(table["step"]), layer_shades(table)
    panels = {"norm": "mean norm", "rank": "effective rank", "alike": "likeness of two experts"}
    figure = fig.panels(1, 3, titles=list(panels.values()), height=320, gap=0.07)
    for column, name in enumerate(panels, 1):
        layer_lines(
            figure, axis.place(table), "at", name, _TEXT, shades=shades, show=_number, column=column, width=2
        )
    axis.arrange(figure, columns=3)
    fig.y_axes(figure, "by layer", rangemode="tozero")
    layer_bar(figure, shades)
    last, experts = table[table["step"] == table["step"].max()], int(table["experts"].max())
    title = (
        f"At the last checkpoint routers have an effective rank of {last['rank'].min():.3g} to "
        f"{last['rank'].max():.3g}, of {experts - 1} at most"
    )
    subtitle = "rows less the mean row of their layer, which softmax does not see"
    alt = f"Three line charts over training steps, one line for each of {len(shades)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
