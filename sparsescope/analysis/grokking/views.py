"""Figures of ``grokking``: the timeline with its phases, measures aligned at t_gen,
leads, correlations, frequencies.
"""

from __future__ import annotations

import math

import pandas as pd

from sparsescope.analysis.grokking import MEASURES
from sparsescope.analysis.grokking.frequency_views import checkpoint_slider as checkpoint_slider
from sparsescope.analysis.grokking.frequency_views import neurons as neurons
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import leads, theme
from sparsescope.viz.curves import curve
from sparsescope.viz.leads import correlations as correlations
from sparsescope.viz.leads import lead_times as lead_times
from sparsescope.viz.leads import words
from sparsescope.viz.sentences import percent

_UNITS = {column.name: column.unit for column in MEASURES}
_PHASE_COLORS = {
    "memorization": theme.VERMILION,
    "circuit formation": theme.BLUE,
    "cleanup": theme.GREEN,
    "after": theme.SLATE,
    "memorized": theme.SLATE,
    "not memorized": theme.SLATE,
}
_ALIGNED = (
    "test_accuracy",
    "restricted_loss",
    "excluded_loss",
    "neurons_explained",
    "gini_embedding",
    "rank_embedding",
    "weight_norm",
    "subnetwork",
)
_PANEL = 200


def timeline(result: Result) -> fig.Figure:
    """Draw losses, accuracies, shares and ranks over log steps, with the phases behind them."""
    curves, table = result.tables["curves"], result.tables["checkpoints"]
    curves, table = curves[curves["step"] > 0], table[table["step"] > 0]
    fourier = bool(table["restricted_loss"].notna().any())
    titles = [
        "loss",
        "accuracy",
        "shares and concentration",
        "ranks and norm, relative to the first checkpoint drawn",
    ]
    figure = fig.panels(4, 1, titles=titles, height=_PANEL)
    steps = curves["step"]
    for row, what in ((1, "loss"), (2, "accuracy")):
        for split, color, dash in (("train", theme.VERMILION, "dash"), ("test", theme.BLUE, "solid")):
            text = f"step {{0.step}}: {split} {what} {{1}}".format
            curve(
                figure,
                curves,
                f"{split}_{what}",
                split,
                x="step",
                color=color,
                dash=dash,
                show="{:.4g}".format,
                text=text,
                symbol=None,
                row=row,
            )
    if fourier:
        _measure_line(figure, table, "restricted_loss", 1, theme.GREEN, "circle")
        _measure_line(figure, table, "excluded_loss", 1, theme.PURPLE, "square")
    shares = ("neurons_explained", "explained_variance", "gini_embedding", "gini_neuron_logit", "subnetwork")
    colors = (theme.BLUE, theme.GREEN, theme.VERMILION, theme.PURPLE, theme.OCHRE)
    for name, color, symbol in zip(shares, colors, theme.MARKERS, strict=False):
        _measure_line(figure, table, name, 3, color, symbol)
    for name, color, symbol in zip(
        ("rank_embedding", "rank_mlp_out", "weight_norm"), colors[2:], theme.MARKERS[5:], strict=True
    ):
        _measure_line(figure, table, name, 4, color, symbol, relative=True)
    _arrange(figure)
    _phases(figure, result)
    low, high = float(steps.min()), float(steps.max())
    ticks = [m * 10**e for e in range(9) for m in (1, 2, 5) if low <= m * 10**e <= high]
    figure.update_xaxes(
        type="log",
        range=[math.log10(low), math.log10(high * 1.02)],
        tickvals=ticks,
        ticktext=[f"{tick:,}" for tick in ticks],
    )
    figure.update_xaxes(title_text="optimizer step (logarithmic)", row=4, col=1)
    figure.update_yaxes(type="log", exponentformat="power", title_text="loss, nats", row=1, col=1)
    figure.update_yaxes(title_text="accuracy", tickformat=".0%", range=[-0.03, 1.05], row=2, col=1)
    figure.update_yaxes(title_text="share or Gini", range=[-0.03, 1.05], row=3, col=1)
    figure.update_yaxes(title_text="relative to first", rangemode="tozero", row=4, col=1)
    title = _what_happened(result)
    alt = (
        f"Four stacked line charts over training steps: loss, accuracy, shares and ranks. {title}. "
        f"{_phase_text(result)}"
    )
    return fig.describe(figure, title=title, subtitle=_phase_text(result), alt=alt, result=result)


def _arrange(figure: fig.Figure) -> None:
    """Set the panels close together, the losses higher than the rest, each with a legend at its right."""
    tops, heights = (1.0, 0.62, 0.405, 0.19), (0.31, 0.155, 0.155, 0.19)
    for row, (top, height) in enumerate(zip(tops, heights, strict=True)):
        axis = "y" if row == 0 else f"y{row + 1}"
        figure.layout[axis.replace("y", "yaxis")].domain = [top - height, top]
        figure.layout.annotations[row].y = top
        name = "legend" if row == 0 else f"legend{row + 1}"
        place = {
            "x": 1.01,
            "xanchor": "left",
            "y": top,
            "yanchor": "top",
            "orientation": "v",
            "font": {"size": 12},
        }
        figure.update_layout({name: place})
        figure.update_traces(legend=name, showlegend=True, selector={"yaxis": axis})
    figure.update_layout(showlegend=True, margin={"r": 150})


def _measure_line(
    figure: fig.Figure,
    table: pd.DataFrame,
    name: str,
    row: int,
    color: str,
    symbol: str,
    *,
    relative: bool = False,
) -> None:
    """One measure over the checkpoints, where it is defined."""
    first = table[name].bfill().iloc[0] if relative and len(table) else 1.0
    unit = f" {_UNITS.get(name, '')}".rstrip()
    curve(
        figure,
        table.assign(drawn=table[name] / first),
        "drawn",
        words(name),
        x="step",
        color=color,
        symbol=symbol,
        row=row,
        text=f"step {{0.step}}: {words(name)} {{0.{name}:.4g}}{unit}".format,
        width=1.6,
    )


def _phases(figure: fig.Figure, result: Result) -> None:
    """Shade the phases behind every panel and name them in the first."""
    table = result.tables["phases"]
    least = max(1.0, float(result.tables["curves"].query("step > 0")["step"].min()))
    for phase, begin, end in table[["phase", "begin", "end"]].itertuples(index=False):
        if end <= least:
            continue
        begin = max(float(begin), least)
        shade = theme.rgba(_PHASE_COLORS[phase], 0.1)
        figure.add_vrect(
            x0=begin, x1=float(end), fillcolor=shade, line_width=0, layer="below", row="all", col=1
        )
        if math.log10(end / begin) > 0.12:  # wide enough for its name
            middle = (math.log10(begin) + math.log10(end)) / 2
            look = {"yref": "y domain", "yanchor": "bottom", "showarrow": False, "font": {"size": 11}}
            figure.add_annotation(x=middle, y=1, text=phase, row=1, col=1, **look)
    # the panel's title makes room for the names of the phases
    for annotation in figure.layout.annotations[:1]:
        annotation.update(yshift=16)


def _phase_text(result: Result) -> str:
    parts = [
        f"{p} {b:,} to {e:,}"
        for p, b, e in result.tables["phases"][["phase", "begin", "end"]].itertuples(index=False)
    ]
    return "steps: " + ", ".join(parts)


def _what_happened(result: Result) -> str:
    """The title: when it memorized, when it generalized."""
    own = result.tables["onsets"].iloc[0]
    if not math.isfinite(own["memorized"]):
        return f"The run did not hold its training accuracy within {own['last_step']:,.0f} steps"
    memorized = f"memorized at step {own['memorized']:,.0f}"
    if not math.isfinite(own["generalized"]):
        share = result.scalars["final_test_accuracy"].value
        return (
            f"The run {memorized} and did not generalize within {own['last_step']:,.0f} steps (test "
            f"accuracy {percent(share)})"
        )
    late = f", {own['ratio']:.3g} times later" if math.isfinite(own["ratio"]) else ""
    return f"The run {memorized} and generalized at step {own['generalized']:,.0f}{late}"


def onset_aligned(result: Result) -> fig.Figure:
    """Draw each measure over step - t_gen, one line for each series."""
    return leads.onset_aligned(result, _ALIGNED, _UNITS)
