"""Figures of ``sparsity_over_training``: functions of the stored result that say their
finding in the title.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sparsescope.core.columns import Column
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, interval_of
from sparsescope.viz.layers import layer_bar, layer_lines, layer_shades, role
from sparsescope.viz.sentences import NO_INTERVALS, percent
from sparsescope.viz.steps import StepAxis

_STEP = "layer {0.layer:g}, step {0.step:,}: {1}".format
_LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": ("model", {"color": theme.BLUE}),
    "validation": (
        "model, all validation windows",
        {"color": theme.GREEN, "dash": "dot", "symbol": "circle-open", "width": 1},
    ),
    "unigram": (
        "unigram model of the domain",
        {"color": theme.SLATE, "dash": "dot", "symbol": None, "width": 1.6},
    ),
    "trigram": (
        "trigram model of the domain",
        {"color": theme.VERMILION, "dash": "dash", "symbol": None, "width": 1.6},
    ),
}


def _names(result: Result) -> tuple[str, str]:
    """The two densities that are drawn: exact zeros, energy set."""
    metrics = list(dict.fromkeys(result.tables["per_checkpoint"]["metric"]))
    return metrics[0], next(name for name in metrics if name.startswith("density_energy_"))


def _title_of(metric: str) -> str:
    return "exactly nonzero" if metric == "density_nonzero" else f"{metric.rsplit('_', 1)[1]} % of the energy"


def _layers(table: pd.DataFrame, value: str, columns: Sequence[Column]) -> pd.DataFrame:
    """One row for each step and layer: the sites of a layer (its experts) as their median,
    without an interval.
    """
    groups = table.groupby(["step", "layer"], as_index=False)
    frame = groups[value].median()
    for end in interval_of(columns, value) or ():
        frame[end] = groups[end].first()[end].where(groups.size()["size"] == 1)
    return frame


def _band_text(ends: pd.Series) -> str:
    return "bands: document-cluster bootstrap intervals" if ends.notna().any() else NO_INTERVALS


def _experts_text(table: pd.DataFrame) -> str:
    """Say that a line is a median over experts, where it is."""
    several = table.groupby(["step", "layer"])["site"].nunique().max() if len(table) else 1
    return (
        f"; a layer is the median of its {several} sites ({role(table['site'].iloc[0])})"
        if several > 1
        else ""
    )


def density(result: Result) -> fig.Figure:
    """Draw both densities over training: layers, their mean, the shuffled controls."""
    whole, table = result.tables["per_checkpoint"], result.tables["per_layer"]
    exact, energy = _names(result)
    axis = StepAxis.of(whole["step"])
    figure = fig.panels(1, 2, titles=[_title_of(exact), _title_of(energy)], height=380, gap=0.1)
    shades, columns = layer_shades(table), result.columns["per_layer"]
    controlled = bool(whole["control"].notna().any())
    for column, metric in enumerate((exact, energy), 1):
        layer_lines(
            figure,
            axis.place(_layers(table[table["metric"] == metric], "mean", columns)),
            "at",
            "mean",
            _STEP,
            shades=shades,
            columns=columns,
            alpha=0.15,
            width=1.2,
            column=column,
        )
        rows = axis.place(whole[whole["metric"] == metric])
        look: dict[str, Any] = {"x": "at", "legend": True, "column": column}
        text = "mean over sites, step {0.step:,}: {1}".format
        curve(figure, rows, "mean", "mean over sites", color=theme.VERMILION, width=3, text=text, **look)
        look |= {
            "dash": "dash",
            "symbol": "circle-open",
            "text": "shuffled control, step {0.step:,}: {1}".format,
        }
        curve(figure, rows, "control", "shuffled control", color=theme.SLATE, **look)
    axis.arrange(figure, columns=2)
    fig.y_axes(figure, "density (share of units)", tickformat=".0%", rangemode="tozero")
    fig.legend_below(figure)
    layer_bar(figure, shades)
    title = f"{_course(whole, exact, 'Exact density')}; {_course(whole, energy, 'energy density')}"
    control = "; dashed: shuffled MLP input weights, zero biases" if controlled else ""
    subtitle = f"{_band_text(table['low'])}{_experts_text(table)}{control}"
    alt = (
        f"Two line charts of density over training steps, one line for each of {len(shades)} layers. {title}."
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _course(whole: pd.DataFrame, metric: str, name: str) -> str:
    """Say how a density ran: from the first checkpoint to the last, and where it was lowest in between."""
    rows = whole[whole["metric"] == metric].sort_values("step")
    first, last = rows.iloc[0], rows.iloc[-1]
    lowest = rows.loc[rows["mean"].idxmin()]
    if percent(first["mean"]) == percent(last["mean"]) == percent(lowest["mean"]):
        return f"{name} stays at {percent(first['mean'])}"
    between = ""
    if lowest["mean"] < 0.95 * min(first["mean"], last["mean"]):
        between = f", lowest {percent(lowest['mean'])} at step {lowest['step']:,}"
    return (
        f"{name} {percent(first['mean'])} at step {first['step']:,}, {percent(last['mean'])} at step "
        f"{last['step']:,}{between}"
    )


def change(result: Result) -> fig.Figure:
    """Draw the paired differences from the first checkpoint."""
    whole = result.tables["per_checkpoint"]
    axis = StepAxis.of(whole["step"])
    figure = fig.panels(height=340)
    for metric, color, symbol in zip(
        _names(result), (theme.BLUE, theme.VERMILION), theme.MARKERS, strict=False
    ):
        rows = axis.place(whole[whole["metric"] == metric])
        curve(
            figure,
            rows,
            "change",
            _title_of(metric),
            x="at",
            color=color,
            symbol=symbol,
            show=_points,
            legend=True,
            text="step {0.step:,}: {1} points".format,
            columns=result.columns["per_checkpoint"],
        )
    figure.add_hline(y=0, line=theme.LEVEL)
    axis.arrange(figure)
    figure.update_yaxes(tickformat="+.0%", title_text="density minus that of the first checkpoint")
    fig.legend_below(figure)
    said = []
    for metric in _names(result):
        row = whole[whole["metric"] == metric].iloc[-1]
        said.append(f"{_title_of(metric)} {100 * row['change']:+.1f} points")
    title = f"From the first to the last checkpoint: {', '.join(said)}"
    documents = int(whole["documents"].max())
    bands = (
        f"bands: intervals of the paired difference, n = {documents} documents"
        if documents > 1
        else NO_INTERVALS
    )
    alt = f"Two lines of the change of density over training steps. {title}."
    return fig.describe(figure, title=title, subtitle=f"{bands}; one training run", alt=alt, result=result)


def _points(change: float) -> str:
    return f"{100 * change:+.2f}"


def losses(result: Result) -> fig.Figure:
    """Draw the loss by domain, with the n-gram models."""
    table = result.tables["losses"]
    if table.empty:
        return fig.empty("Loss over training", "these models have no loss of the next token")
    domains = [name for name in dict.fromkeys(table["domain"]) if name != "all"]
    axis = StepAxis.of(table["step"])
    columns = min(len(domains), 4)
    rows = -(-len(domains) // columns)
    figure = fig.panels(rows, columns, titles=domains, height=320 * rows, share_y="all", gap=0.05)
    for index, domain in enumerate(domains):
        part = axis.place(table[table["domain"] == domain])
        for y, (name, look) in _LOSSES.items():
            curve(
                figure,
                part,
                y,
                name,
                x="at",
                columns=result.columns["losses"] if y == "loss" else (),
                legend=True,
                show="{:.3f}".format,
                text="{0.domain}, step {0.step:,}: {1} nats".format,
                **fig.place_of(index, columns),
                **look,
            )
    axis.arrange(figure, columns=columns)
    fig.y_axes(figure, "loss, nats a token", rangemode="tozero")
    fig.legend_below(figure)
    last = table[table["step"] == table["step"].max()]
    total = last[last["domain"] == "all"].iloc[0]
    own = last[last["domain"] != "all"]
    title = f"The last checkpoint has a loss of {total['loss']:.3f} nats on this text"
    if own["trigram"].notna().all():
        below = int((own["validation"] < own["trigram"]).sum())
        title += f"; on all validation windows it is below a trigram model in {below} of {len(own)} domains"
    alt = f"Lines of the loss over training steps, one panel for each domain. {title}."
    text = (result.provenance.get("corpus") or {}).get("name", "text")
    return fig.describe(
        figure, title=title, subtitle=f"{text}; {_band_text(table['low'])}", alt=alt, result=result
    )


def unit_use(result: Result) -> fig.Figure:
    """Draw the shares of dead and always-on units."""
    table = result.tables["unit_use"]
    axis = StepAxis.of(table["step"])
    shades = layer_shades(table)
    kinds = (
        ("dead_share", "never nonzero", "nonzero"),
        ("always_on_share", "nonzero on over 99 % of tokens", "nonzero"),
        ("dead_share", "never in use", "in use"),
    )
    figure = fig.panels(1, 3, titles=[text for _, text, _ in kinds], height=330, gap=0.07)
    for column, (name, text, rule) in enumerate(kinds, 1):
        part = _layers(table[table["rule"] == rule], name, ())
        layer_lines(
            figure,
            axis.place(part),
            "at",
            name,
            f"layer {{0.layer:g}}, step {{0.step:,}}: {{1}} {text}".format,
            shades=shades,
            width=1.6,
            column=column,
        )
    axis.arrange(figure, columns=len(kinds))
    fig.y_axes(figure, "share of units", tickformat=".3~%", rangemode="tozero")
    layer_bar(figure, shades)
    last = result.scalars["dead_last"].value
    tokens = int(table["tokens"].max())
    title = (
        f"At the last checkpoint {percent(last)} of the units are never nonzero on up to {tokens:,} tokens"
    )
    alt = f"Three line charts of shares of units over training steps, a line for each layer. {title}."
    subtitle = f"in use: in the smallest set that holds the stated share of the energy{_experts_text(table)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def push(result: Result) -> fig.Figure:
    """Draw the normalized mean of sign(a) dL/da by layer."""
    table = result.tables["push"]
    if table.empty:
        message = "gradients are measured at dense layers of causal models, if asked"
        return fig.empty("Does the loss shrink active units?", message)
    axis, shades, columns = StepAxis.of(table["step"]), layer_shades(table), result.columns["push"]
    figure = fig.panels(height=340)
    layer_lines(
        figure,
        axis.place(_layers(table, "relative", columns)),
        "at",
        "relative",
        _STEP,
        shades=shades,
        columns=columns,
        show="{:+.4f}".format,
        symbol="circle",
        width=2,
    )
    figure.add_hline(y=0, line=theme.LEVEL)
    axis.arrange(figure)
    fig.y_axes(figure, "mean(sign(a) g) / rms(g)")
    layer_bar(figure, shades)
    first = table[table["step"] == table["step"].min()]
    known = bool(first["relative_low"].notna().any())
    low, high = (
        (first["relative_low"], first["relative_high"]) if known else (first["relative"], first["relative"])
    )
    title = (
        f"At step {first['step'].iloc[0]:,} the loss shrinks active units in {int((low > 0).sum())} of "
        f"{len(first)} sites and grows them in {int((high < 0).sum())} "
        f"({'whole interval on one side of zero' if known else 'no intervals'})"
    )
    alt = f"Lines of the normalized push on active units over training steps, one for each layer. {title}."
    subtitle = f"above zero: descent shrinks |a|; {_band_text(table['relative_low'])}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
