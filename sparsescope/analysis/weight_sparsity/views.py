"""Figures of ``weight_sparsity``: curves, drop points, comparisons, zeros and masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.core.numbers import format_number
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import LAYER, layer_axis
from sparsescope.viz.sentences import paired_text, percent

_HEIGHT = 360
_SPARSITY = "share of block weights set to zero"


def _colors(result: Result) -> dict[str, dict[str, Any]]:
    """Color, marker and dash of every curve, the same in all figures; the null is gray."""
    names = list(dict.fromkeys(result.tables["curve"]["curve"]))
    base = [name for name in names if ":" not in name]
    hues = [color for color in theme.CATEGORIES["light"] if color != theme.SLATE]
    looks: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(name for name in base if name != "Random"):
        looks[name] = {
            "color": hues[number % len(hues)],
            "symbol": theme.MARKERS[number % len(theme.MARKERS)],
            "dash": theme.DASHES[number // len(hues) % len(theme.DASHES)],
        }
    looks["Random"] = {"color": theme.SLATE, "symbol": "x", "dash": "dash"}
    for name in names:
        parent = looks.get(name.rpartition(", ")[0], looks["Random"])
        looks.setdefault(name, {**parent, "symbol": f"{parent['symbol']}-open"})
    return looks


def _nats(value: float) -> str:
    return f"{value:+.4f} nats" if math.isfinite(value) else "\N{EN DASH}"


def _tolerances(result: Result) -> list[float]:
    return sorted(float(value) for value in result.tables["drop_points"]["tolerance"].unique())


def curves(result: Result) -> fig.Figure:
    """Draw damage against sparsity, whole and near the tolerances."""
    return _curves(result, "curve", "zero-shot")


def finetuned(result: Result) -> fig.Figure:
    """Draw the same of curves that were trained on with the mask fixed."""
    return _curves(result, "finetuned", "fine-tuned")


def _curves(result: Result, table_name: str, kind: str) -> fig.Figure:
    table = result.tables[table_name]
    looks, wanted = _colors(result), _tolerances(result)
    top = 3 * max(wanted)
    figure = fig.panels(1, 2, titles=["whole curve (logarithmic)", f"up to +{top:g} nats"], height=_HEIGHT)
    floor = min(wanted) / 3
    for column in (1, 2):
        for name, rows in table.groupby("curve", sort=False):
            rows = rows.sort_values("sparsity")
            look = dict(looks[str(name)])
            single = not (rows["sparsity"] == 0).any()
            if column == 1:  # what is not above zero has no place on a logarithmic axis
                rows = rows[rows["damage"] > floor].assign(damage_low=rows["damage_low"].clip(lower=floor))
            curve(
                figure,
                rows,
                "damage",
                str(name),
                x="sparsity",
                show=_nats,
                text=lambda at, value: (
                    f"{percent(at.sparsity)} zeros: {value}, perplexity {at.perplexity:.4g}"
                ),
                columns=result.columns[table_name],
                legend=True,
                column=column,
                band=not single,
                **({**look, "width": 0} if single else look),
            )
        for tolerance in wanted:
            figure.add_hline(y=tolerance, line=theme.LEVEL, row=1, col=column)
    figure.update_yaxes(type="log", row=1, col=1)
    near = table[table["damage"] <= top]["sparsity"].max()
    lowest = min(float(table["damage"].min()), -0.1 * top)
    figure.update_yaxes(range=[1.1 * lowest, top], row=1, col=2)
    figure.update_xaxes(title_text=_SPARSITY, tickformat=".0%", rangemode="tozero")
    figure.update_xaxes(range=[0, min(1.0, float(near) + 0.15)], row=1, col=2)
    fig.y_axes(figure, "rise of the loss, nats")
    fig.legend_below(figure)
    tolerance = min(wanted, key=lambda value: abs(value - 0.05))
    drops = _drops(result, tolerance, kind)
    said = [f"{row.curve} {_bound(row)}{percent(row.sparsity)}" for row in drops[:3]]
    title = f"At +{tolerance:g} nats: {', '.join(said)} of the weights can go" if said else "No drop point"
    alt = f"Two line charts of the rise of the loss against the share of zeros. {title}."
    subtitle = f"{kind}; dotted: {', '.join(f'+{value:g}' for value in wanted)} nats; "
    subtitle += paired_text(table.rename(columns={"damage_low": "low"}).iloc[1:])
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _drops(result: Result, tolerance: float, kind: str) -> list[Any]:
    table = result.tables["drop_points"]
    table = table[(table["tolerance"] == tolerance) & (table["kind"] == kind)]
    found = [row for row in table.itertuples() if math.isfinite(row.sparsity)]
    return sorted(found, key=lambda row: -row.sparsity)


def _bound(row: Any) -> str:
    return "at least " if str(row.censored).startswith("at least") else ""


def drop_points(result: Result) -> fig.Figure:
    """Draw the drop point of each curve with its interval, one panel for each tolerance."""
    table = result.tables["drop_points"]
    wanted, looks = _tolerances(result), _colors(result)
    labels = [
        f"{row.curve}{' (fine-tuned)' if row.kind == 'fine-tuned' else ''}" for row in table.itertuples()
    ]
    table = table.assign(label=labels)
    order = list(dict.fromkeys(table["label"]))[::-1]
    figure = fig.panels(
        1,
        len(wanted),
        titles=[f"+{value:g} nats" for value in wanted],
        height=max(200, 34 * len(order) + 60),
        share_y=True,
    )
    for column, tolerance in enumerate(wanted, 1):
        part = table[table["tolerance"] == tolerance]
        for row in part.itertuples():
            known = math.isfinite(row.low) and math.isfinite(row.high)
            look = looks[row.curve]
            text = f"{row.label}: {_bound(row)}{percent(row.sparsity)}"
            text += f" [{percent(row.low)}, {percent(row.high)}]" if known else ""
            text += f"; least detectable {row.detectable:.3g} nats" if math.isfinite(row.detectable) else ""
            figure.add_scatter(
                x=[row.sparsity],
                y=[row.label],
                mode="markers",
                marker={"color": look["color"], "size": 9, "symbol": look["symbol"]},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [row.high - row.sparsity if known else 0],
                    "arrayminus": [row.sparsity - row.low if known else 0],
                    "thickness": 1.5,
                    "width": 4,
                },
                showlegend=False,
                customdata=[text],
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title_text=_SPARSITY, tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(categoryorder="array", categoryarray=order)
    figure.update_yaxes(title_text="how it was pruned", row=1, col=1)
    tolerance = min(wanted, key=lambda value: abs(value - 0.05))
    drops = _drops(result, tolerance, "zero-shot")
    title = (
        f"Quality breaks (+{tolerance:g} nats) between {percent(drops[-1].sparsity)} zeros "
        f"({drops[-1].curve}) and {percent(drops[0].sparsity)} ({drops[0].curve})"
        if drops
        else "No drop point: the dense model is not better than chance on this text"
    )
    alt = (
        f"Dots with intervals of the drop point of {len(order)} curves at {len(wanted)} tolerances. {title}."
    )
    n = int(table["documents"].max())
    subtitle = f"bars: intervals over {n} documents (inverted studentized bootstrap test)"
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def comparisons(result: Result) -> fig.Figure:
    """Draw the paired differences that were fixed beforehand."""
    table = result.tables["comparisons"]
    labels = [f"{row.question}, {percent(row.asked)}" for row in table.itertuples()]
    figure = fig.panels(height=max(200, 26 * len(table) + 60))
    for kind, color in (
        ("first is better", theme.GREEN),
        ("second is better", theme.VERMILION),
        ("not resolved", theme.SLATE),
    ):
        rows = table[table["verdict"] == kind]
        if rows.empty:
            continue
        texts = [
            f"{row.first} - {row.second}: {_nats(row.difference)} [{row.low:+.4f}, {row.high:+.4f}]"
            for row in rows.itertuples()
        ]
        names = {"first is better": "the first loses less", "second is better": "the second loses less"}
        figure.add_scatter(
            x=rows["difference"],
            y=[labels[index] for index in np.flatnonzero(table["verdict"] == kind)],
            mode="markers",
            name=names.get(kind, kind),
            marker={"color": color, "size": 8},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": rows["high"] - rows["difference"],
                "arrayminus": rows["difference"] - rows["low"],
                "thickness": 1.5,
                "width": 3,
            },
            customdata=texts,
            hovertemplate="%{customdata}<extra></extra>",
        )
    figure.add_vline(x=0, line=theme.LEVEL)
    figure.update_yaxes(
        categoryorder="array", categoryarray=labels[::-1], automargin=True, title_text="comparison"
    )
    figure.update_xaxes(title_text="loss of the first minus loss of the second, nats")
    fig.legend_below(figure)
    resolved = int((table["verdict"] != "not resolved").sum())
    title = f"{resolved} of {len(table)} comparisons are resolved on this text"
    parts = [f"{row.question}: {_nats(row.difference)}" for row in table.itertuples()]
    alt = f"Dots with intervals of paired differences of the loss. {title}. {'; '.join(parts)[:380]}."
    subtitle = f"paired by document, n = {int(table['documents'].max())}; left of zero the first loses less"
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def cost(result: Result) -> fig.Figure:
    """Draw damage against the time to prune, at the level of comparison."""
    table = result.tables["cost"]
    asked = _compared_at(result)
    rows = table[np.isclose(table["asked"], asked)]
    figure, looks = fig.panels(height=_HEIGHT), _colors(result)
    for row in rows.itertuples():
        memory = format_number(float(row.memory), "bytes")
        text = f"{row.curve}: {row.seconds:.3g} s, {memory} of statistics, {_nats(row.damage)}"
        look = looks[row.curve]
        fig.dots(
            figure,
            [row.seconds],
            [row.damage],
            row.curve,
            color=look["color"],
            symbol=look["symbol"],
            texts=[text],
        )
    figure.update_xaxes(title_text="seconds to prune, calibration included", type="log")
    figure.update_yaxes(type="log")
    fig.y_axes(figure, "rise of the loss, nats")
    fig.legend_below(figure)
    least = rows.loc[rows["damage"].idxmin()]
    quick = rows.loc[rows["seconds"].idxmin()]
    title = f"At {percent(asked)} zeros {least['curve']} loses least, in {least['seconds']:.3g} s"
    alt = f"Dots of damage against seconds for {len(rows)} ways to prune. {title}; the quickest is "
    alt += f"{quick['curve']} with {quick['seconds']:.3g} s."
    subtitle = f"{percent(asked)} zeros, on this machine; lower and further left is better"
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def zeros(result: Result, value: str) -> fig.Figure:
    """Draw the share of zeros of each matrix of one curve, layer by role."""
    table = result.tables["zeros"]
    grid = table[table["curve"] == value].pivot_table(index="role", columns="layer", values="sparsity")
    figure = fig.panels(height=max(160, 30 * len(grid) + 60))
    texts = [
        [f"{role}, layer {layer:g}: {percent(cell)} zeros" for layer, cell in grid.loc[role].items()]
        for role in grid.index
    ]
    figure.add_heatmap(
        x=grid.columns.to_numpy(),
        y=grid.index.to_numpy(),
        z=grid.to_numpy(),
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorscale=theme.HEATMAP,
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={
            "title": {"text": "zeros", "font": {"size": 12}},
            "thickness": 12,
            "outlinewidth": 0,
            "tickformat": ".0%",
        },
    )
    fig.integer_axis(figure, grid.columns, LAYER, pad=0.5, ticks=32)
    figure.update_yaxes(title_text="matrix", autorange="reversed", showgrid=False)
    values = grid.to_numpy()
    role, layer = np.unravel_index(np.nanargmax(values), values.shape)
    place = f"{grid.index[role]} of layer {grid.columns[layer]:g}"
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    title = f"{value}: matrices lose {percent(low)} to {percent(high)}, {place} the most"
    alt = f"Heat map of the share of zeros of {table[table['curve'] == value].shape[0]} matrices. {title}."
    subtitle = f"{percent(_compared_at(result))} zeros asked for; mean over experts where a layer has them"
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def retained(result: Result) -> fig.Figure:
    """Draw the retained energy by layer, with the most that is possible."""
    table, looks = result.tables["per_matrix"], _colors(result)
    figure, labels = fig.panels(height=_HEIGHT), []
    for name in dict.fromkeys(table["curve"]):
        rows = table[table["curve"] == name].groupby("layer")[["retained", "oracle"]].mean().reset_index()
        look = looks[name]
        last = curve(
            figure, rows, "retained", name, color=look["color"], dash=look["dash"], reference="oracle",
            text=lambda at, shown: f"layer {at.layer:g}: {shown} of the energy",
        )  # fmt: skip
        labels.append((last, name))
    layer_axis(figure, table)
    fig.y_axes(figure, "energy retained", tickformat=".0%")
    low = float(table.groupby(["curve", "layer"])["retained"].mean().min())
    figure.update_yaxes(range=[max(0.0, low - 0.05), 1.0])
    fig.end_labels(
        figure,
        labels,
        x=float(table["layer"].max()),
        y_range=(max(0.0, low - 0.05), 1.0),
        panel_height=_HEIGHT,
    )
    figure.update_layout(margin={"r": 130})
    mean = table.groupby("curve", sort=False)["retained"].mean()
    parts = ", ".join(f"{name} {percent(value)}" for name, value in mean.items())
    title = f"Of the energy of the weights {parts} are left"
    alt = f"Line chart of retained energy by layer. {title}."
    subtitle = (
        f"{percent(_compared_at(result))} zeros; dotted: the most that any mask of these sparsities keeps"
    )
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def overlap(result: Result) -> fig.Figure:
    """Draw kappa between the masks of every two curves."""
    table = result.tables["overlap"]
    pairs = table[~table["first"].astype(str).str.contains(" at ")]
    if pairs.empty:
        return fig.empty("Do criteria agree", "only one way to prune was measured")
    names = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    grid = pd.DataFrame(np.nan, index=names, columns=names)
    for row in pairs.itertuples():
        grid.loc[row.first, row.second] = grid.loc[row.second, row.first] = row.kappa
    figure = fig.panels(height=max(220, 40 * len(names) + 40))
    texts = [
        ["the same masks" if a == b else f"{a} and {b}: kappa {grid.loc[a, b]:.3f}" for b in names]
        for a in names
    ]
    values = grid.to_numpy()
    figure.add_heatmap(
        x=names,
        y=names,
        z=values,
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorscale=theme.HEATMAP,
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={"title": {"text": "kappa", "font": {"size": 12}}, "thickness": 12, "outlinewidth": 0},
    )
    for a in names:
        for b in names:
            if a != b:
                value = float(grid.loc[a, b])
                ink = "#000000" if value > 0.5 else "#ffffff"
                figure.add_annotation(
                    x=b,
                    y=a,
                    text=f"{value:.2f}".replace("-0.00", "0.00"),
                    showarrow=False,
                    font={"size": 12, "color": ink},
                )
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False, title_text="masks")
    figure.update_xaxes(title_text="masks that they are compared with")
    best = pairs.loc[pairs["kappa"].idxmax()]
    title = f"{best['first']} and {best['second']} agree most: kappa {best['kappa']:.2f}"
    steps = table[table["first"].astype(str).str.contains(" at ")]
    alt = f"Grid of Cohen's kappa between {len(names)} masks. {title}."
    subtitle = f"{percent(_compared_at(result))} zeros; 0: independent masks, 1: the same masks"
    if len(steps):
        row = steps.loc[steps["kappa"].idxmin()]
        subtitle += f"; neighboring levels are in the table ({row['first']}: kappa {row['kappa']:.2f})"
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def reconstruction(result: Result) -> fig.Figure:
    """Draw the error of SparseGPT by layer between that of its mask alone and the least-squares floor."""
    table = result.tables["reconstruction"]
    rows = table.groupby("layer")[["masked", "error", "floor"]].mean().reset_index()
    figure, labels = fig.panels(height=_HEIGHT), []
    looks = (
        ("masked", "mask alone", theme.SLATE),
        ("error", "SparseGPT", theme.BLUE),
        ("floor", "least squares", theme.GREEN),
    )
    for column, name, color in looks:

        def text(at: Any, shown: str, name: str = name) -> str:
            return f"layer {at.layer:g}, {name}: {shown}"

        last = curve(figure, rows, column, name, color=color, text=text)
        labels.append((math.log10(last) if last > 0 else math.nan, name))
    layer_axis(figure, table)
    fig.y_axes(figure, "relative squared error of the output", tickformat=".1%", type="log")
    cells = rows[["masked", "error", "floor"]].to_numpy()
    ends = (float(np.log10(cells[cells > 0].min())) - 0.1, float(np.log10(cells.max())) + 0.1)
    figure.update_yaxes(range=ends)
    fig.end_labels(figure, labels, x=float(table["layer"].max()), y_range=ends, panel_height=_HEIGHT)
    figure.update_layout(margin={"r": 110})
    total = table[["masked", "error", "floor"]].mean()
    ratio = float(total["error"] / total["floor"]) if total["floor"] else math.nan
    title = f"SparseGPT's error is {ratio:.2f} times the least that its masks allow"
    alt = (
        f"Line chart by layer: mask alone {percent(float(total['masked']))}, SparseGPT "
        f"{percent(float(total['error']))}, least squares {percent(float(total['floor']))} on average. "
        f"{title}."
    )
    subtitle = f"{percent(_compared_at(result))} zeros, calibration text; "
    subtitle += f"{int(table['rows'].max())} rows of each matrix"
    return _described(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _described(figure: fig.Figure, *, title: str, subtitle: str, alt: str, result: Result) -> fig.Figure:
    """Set the words of a figure; weights that were quantized before are named in each."""
    origin = str((result.provenance.get("subject") or {}).get("origin_precision", ""))
    if "gguf:" in origin:
        subtitle += f"; weights stored as {origin.rpartition('gguf:')[2].rstrip(')')}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _compared_at(result: Result) -> float:
    params = result.provenance.get("params") or {}
    return float(params.get("compare_at", 0.5))
