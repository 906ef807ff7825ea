"""Figures of ``sparsity_over_training``: functions of the stored result that say their finding in the title."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import role
from sparsescope.viz.sentences import percent, subject_prefix
from sparsescope.viz.steps import StepAxis

if TYPE_CHECKING:
    import plotly.graph_objects as go

_NO_INTERVAL = "no intervals: they need two documents or more"


def _names(result: Result) -> tuple[str, str]:
    """The two densities that are drawn: exact zeros, energy set."""
    metrics = list(dict.fromkeys(result.tables["per_checkpoint"]["metric"]))
    return metrics[0], next(name for name in metrics if name.startswith("density_energy_"))


def _title_of(metric: str) -> str:
    return "exactly nonzero" if metric == "density_nonzero" else f"{metric.rsplit('_', 1)[1]} % of the energy"


def _layers(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """One row for each step and layer: the sites of a layer (its experts) as their median, without an interval."""
    groups = table.groupby(["step", "layer"], as_index=False)
    frame = groups[value].median().rename(columns={value: "mean"})
    single = groups.size()["size"] == 1
    for end in ("low", "high"):
        frame[end] = groups[end].first()[end].where(single) if end in table else math.nan
    return frame


def _band_text(table: pd.DataFrame) -> str:
    return "bands: document-cluster bootstrap intervals" if table["low"].notna().any() else _NO_INTERVAL


def _experts_text(table: pd.DataFrame) -> str:
    """Say that a line is a median over experts, where it is."""
    several = table.groupby(["step", "layer"])["site"].nunique().max() if len(table) else 1
    return f"; a layer is the median of its {several} sites ({role(table['site'].iloc[0])})" if several > 1 else ""


def density(result: Result) -> go.Figure:
    """Draw both densities over training: layers, their mean, the shuffled controls."""
    whole, table = result.tables["per_checkpoint"], result.tables["per_layer"]
    exact, energy = _names(result)
    axis = StepAxis.of(whole["step"])
    figure = fig.panels(1, 2, titles=[_title_of(exact), _title_of(energy)], height=380, gap=0.1)
    layers = sorted(table["layer"].unique())
    shades = dict(zip(layers, theme.ramp(len(layers)), strict=True))
    controlled = bool(whole["control"].notna().any())
    for column, metric in enumerate((exact, energy), 1):
        part = _layers(table[table["metric"] == metric], "mean")
        place: dict[str, Any] = {"column": column}
        for layer, rows in part.groupby("layer"):
            texts = [
                f"layer {layer}, step {step:,}: {percent(mean)}{_ends_text(low, high)}"
                for step, mean, low, high in rows[["step", "mean", "low", "high"]].itertuples(index=False)
            ]
            x = axis.x(rows["step"])
            fig.band(figure, x, rows["low"], rows["high"], color=shades[layer], alpha=0.15, **place)
            fig.line(figure, x, rows["mean"], f"layer {layer}", color=shades[layer], texts=texts, width=1.2, symbol=None, **place)
        rows = whole[whole["metric"] == metric]
        look: dict[str, Any] = {"width": 3, "legend": column == 1, **place}
        texts = [f"mean over sites, step {s:,}: {percent(m)}" for s, m in zip(rows["step"], rows["mean"], strict=True)]
        fig.line(figure, axis.x(rows["step"]), rows["mean"], "mean over sites", color=theme.VERMILION, texts=texts, **look)
        if controlled:
            texts = [f"shuffled control, step {s:,}: {percent(m)}" for s, m in zip(rows["step"], rows["control"], strict=True)]
            look |= {"width": 2, "dash": "dash", "symbol": "circle-open"}
            fig.line(figure, axis.x(rows["step"]), rows["control"], "shuffled control", color=theme.SLATE, texts=texts, **look)
    axis.arrange(figure, columns=2)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(title_text="density (share of units)", col=1)
    fig.legend_below(figure)
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    title = f"{_course(whole, exact, 'Exact density')}; {_course(whole, energy, 'energy density')}"
    control = "; dashed: shuffled MLP input weights, zero biases" if controlled else ""
    subtitle = f"{subject_prefix(result)}{_band_text(table)}{_experts_text(table)}{control}"
    alt = f"Two line charts of density over training steps, one line for each of {len(layers)} layers. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


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
    return f"{name} {percent(first['mean'])} at step {first['step']:,}, {percent(last['mean'])} at step {last['step']:,}{between}"


def _ends_text(low: float, high: float) -> str:
    return f" [{percent(low)}, {percent(high)}]" if math.isfinite(low) else ""


def change(result: Result) -> go.Figure:
    """Draw the paired differences from the first checkpoint."""
    whole = result.tables["per_checkpoint"]
    axis = StepAxis.of(whole["step"])
    figure = fig.panels(height=340)
    for metric, color, symbol in zip(_names(result), (theme.BLUE, theme.VERMILION), theme.MARKERS, strict=False):
        rows = whole[whole["metric"] == metric]
        x = axis.x(rows["step"])
        texts = [
            f"step {step:,}: {100 * value:+.2f} points"
            + (f" [{100 * low:+.2f}, {100 * high:+.2f}]" if math.isfinite(low) else "")
            for step, value, low, high in rows[["step", "change", "change_low", "change_high"]].itertuples(index=False)
        ]
        fig.band(figure, x, rows["change_low"], rows["change_high"], color=color)
        fig.line(figure, x, rows["change"], _title_of(metric), color=color, texts=texts, symbol=symbol, legend=True)
    figure.add_hline(y=0, line={"color": theme.SLATE, "dash": "dot", "width": 1})
    axis.arrange(figure)
    figure.update_yaxes(tickformat="+.0%", title_text="density minus that of the first checkpoint")
    fig.legend_below(figure)
    said = []
    for metric in _names(result):
        row = whole[whole["metric"] == metric].iloc[-1]
        said.append(f"{_title_of(metric)} {100 * row['change']:+.1f} points")
    title = f"From the first to the last checkpoint: {', '.join(said)}"
    documents = int(whole["documents"].max())
    bands = f"bands: intervals of the paired difference, n = {documents} documents" if documents > 1 else _NO_INTERVAL
    alt = f"Two lines of the change of density over training steps. {title}."
    return fig.describe(figure, title=title, subtitle=f"{subject_prefix(result)}{bands}; one training run", alt=alt)


def losses(result: Result) -> go.Figure:
    """Draw the loss by domain, with the n-gram models."""
    table = result.tables["losses"]
    if table.empty:
        return fig.empty("Loss over training", "these models have no loss of the next token")
    domains = [name for name in dict.fromkeys(table["domain"]) if name != "all"]
    axis = StepAxis.of(table["step"])
    columns = min(len(domains), 4)
    rows_of = -(-len(domains) // columns)
    figure = fig.panels(rows_of, columns, titles=domains, height=320 * rows_of, share_y="all", gap=0.05)
    for index, domain in enumerate(domains):
        part = table[table["domain"] == domain]
        place: dict[str, Any] = {"row": 1 + index // columns, "column": 1 + index % columns}
        x = axis.x(part["step"])
        texts = [f"{domain}, step {s:,}: {v:.3f} nats" for s, v in zip(part["step"], part["loss"], strict=True)]
        fig.band(figure, x, part["low"], part["high"], color=theme.BLUE, **place)
        fig.line(figure, x, part["loss"], "model", color=theme.BLUE, texts=texts, legend=index == 0, **place)
        if part["validation"].notna().any():
            texts = [f"{domain}, step {s:,}, all validation windows: {v:.3f} nats" for s, v in
                     zip(part["step"], part["validation"], strict=True)]  # fmt: skip
            look: dict[str, Any] = {
                "color": theme.GREEN,
                "dash": "dot",
                "symbol": "circle-open",
                "width": 1,
                "legend": index == 0,
            }
            fig.line(figure, x, part["validation"], "model, all validation windows", texts=texts, **look, **place)
        for name, dash, color in (("unigram", "dot", theme.SLATE), ("trigram", "dash", theme.VERMILION)):
            if part[name].notna().any():
                texts = [f"{domain}, {name} model: {v:.3f} nats" for v in part[name]]
                look = {"color": color, "dash": dash, "symbol": None, "width": 1.6, "legend": index == 0}
                fig.line(figure, x, part[name], f"{name} model of the domain", texts=texts, **look, **place)
    axis.arrange(figure, columns=columns)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="loss, nats a token", col=1)
    fig.legend_below(figure)
    last = table[table["step"] == table["step"].max()]
    total = last[last["domain"] == "all"].iloc[0]
    own = last[last["domain"] != "all"]
    title = f"The last checkpoint has a loss of {total['loss']:.3f} nats on this text"
    if own["trigram"].notna().all():
        below = int((own["validation"] < own["trigram"]).sum())
        title += f"; on all validation windows it is below a trigram model in {below} of {len(own)} domains"
    alt = f"Lines of the loss over training steps, one panel for each domain. {title}."
    return fig.describe(figure, title=title, subtitle=f"{subject_prefix(result)}{_text_of(result)}; {_band_text(table)}", alt=alt)


def _text_of(result: Result) -> str:
    """Name of the text that was read."""
    return str((result.provenance.get("corpus") or {}).get("name", "text"))


def unit_use(result: Result) -> go.Figure:
    """Draw the shares of dead and always-on units."""
    table = result.tables["unit_use"]
    axis = StepAxis.of(table["step"])
    layers = sorted(table["layer"].unique())
    shades = dict(zip(layers, theme.ramp(len(layers)), strict=True))
    kinds = (("dead_share", "never nonzero", "nonzero"), ("always_on_share", "nonzero on over 99 % of tokens", "nonzero"),
             ("dead_share", "never in use", "in use"))  # fmt: skip
    figure = fig.panels(1, 3, titles=[text for _, text, _ in kinds], height=330, gap=0.07)
    for column, (name, text, rule) in enumerate(kinds, 1):
        part = _layers(table[table["rule"] == rule], name)
        for layer, rows in part.groupby("layer"):
            pairs = zip(rows["step"], rows["mean"], strict=True)
            texts = [f"layer {layer}, step {step:,}: {percent(share)} {text}" for step, share in pairs]
            look: dict[str, Any] = {"color": shades[layer], "symbol": None, "width": 1.6, "column": column}
            fig.line(figure, axis.x(rows["step"]), rows["mean"], f"layer {layer}", texts=texts, **look)
    axis.arrange(figure, columns=len(kinds))
    figure.update_yaxes(tickformat=".3~%", rangemode="tozero")
    figure.update_yaxes(title_text="share of units", col=1)
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    last = result.scalars["dead_last"].value
    tokens = int(table["tokens"].max())
    title = f"At the last checkpoint {percent(last)} of the units are never nonzero on up to {tokens:,} tokens"
    alt = f"Three line charts of shares of units over training steps, a line for each layer. {title}."
    subtitle = f"{subject_prefix(result)}in use: in the smallest set that holds the stated share of the energy"
    return fig.describe(figure, title=title, subtitle=f"{subtitle}{_experts_text(table)}", alt=alt)


def push(result: Result) -> go.Figure:
    """Draw the normalized mean of sign(a) dL/da by layer."""
    table = result.tables["push"]
    if table.empty:
        return fig.empty(
            "Does the loss shrink active units?", "gradients are measured at dense layers of causal models, if asked"
        )
    axis = StepAxis.of(table["step"])
    layers = sorted(table["layer"].unique())
    shades = dict(zip(layers, theme.ramp(len(layers)), strict=True))
    figure = fig.panels(height=340)
    renamed = table.drop(columns=["low", "high"]).rename(columns={"relative_low": "low", "relative_high": "high"})
    for layer, rows in _layers(renamed, "relative").groupby("layer"):
        x = axis.x(rows["step"])
        texts = [
            f"layer {layer}, step {step:,}: {mean:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else "")
            for step, mean, low, high in rows[["step", "mean", "low", "high"]].itertuples(index=False)
        ]
        fig.band(figure, x, rows["low"], rows["high"], color=shades[layer])
        fig.line(figure, x, rows["mean"], f"layer {layer}", color=shades[layer], texts=texts)
    figure.add_hline(y=0, line={"color": theme.SLATE, "dash": "dot", "width": 1})
    axis.arrange(figure)
    figure.update_yaxes(title_text="mean(sign(a) g) / rms(g)")
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    first = table[table["step"] == table["step"].min()]
    known = bool(first["relative_low"].notna().any())
    low, high = (first["relative_low"], first["relative_high"]) if known else (first["relative"], first["relative"])
    title = (
        f"At step {first['step'].iloc[0]:,} the loss shrinks active units in {int((low > 0).sum())} of {len(first)} sites and "
        f"grows them in {int((high < 0).sum())} ({'whole interval on one side of zero' if known else 'no intervals'})"
    )
    alt = f"Lines of the normalized push on active units over training steps, one for each layer. {title}."
    subtitle = f"{subject_prefix(result)}above zero: descent shrinks |a|; {_band_text(renamed)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)
