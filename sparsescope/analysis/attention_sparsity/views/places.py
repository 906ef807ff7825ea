"""Where the mass is: ``mass_profile`` (sinks, neighbours, the rest) and ``structure`` (lines and blocks)."""

from __future__ import annotations

from sparsescope.analysis.attention_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import dotted
from sparsescope.viz.sentences import band_text, percent

_HEIGHT = 340


def mass_profile(result: Result) -> fig.Figure:
    """Draw stacked bars of the mass by place, by layer."""
    wide = result.tables["per_layer"].pivot_table(
        index="layer", columns="metric", values="mean", dropna=False
    )
    near = (
        wide["share_local_16"] if "share_local_16" in wide else wide["share_previous"] + wide["share_local_1"]
    )
    places = {
        "first key": wide["share_first"],
        "keys 2–4": wide["share_first_4"] - wide["share_first"],
        "previous key": wide["share_previous"],
        "query itself": wide["share_local_1"],
        "rest less than 16 away": (near - wide["share_previous"] - wide["share_local_1"]).clip(lower=0),
    }
    places["elsewhere"] = (1 - sum(places.values())).clip(lower=0)
    figure = fig.panels(height=_HEIGHT)
    for (name, values), color in zip(
        places.items(), (*theme.CATEGORIES["light"][:5], theme.CLASSES["light"][1]), strict=True
    ):
        texts = [f"layer {layer:g}: {percent(v)}" for layer, v in values.items()]
        fig.bars(figure, values.index, values, name, color=color, texts=texts)
    figure.update_layout(barmode="stack", bargap=0.15, showlegend=True, legend={"traceorder": "normal"})
    parts.layer_axes(figure, result, "share of the mass")
    figure.update_yaxes(range=[0, 1])
    means = {name: float(values.mean()) for name, values in places.items()}
    top = max((name for name in means if name != "elsewhere"), key=lambda name: means[name])
    first, last = percent(means["first key"]), percent(float(near.mean()))
    title = f"The first key gets {first} of the mass, keys less than 16 away {last}"
    alt = (
        f"Stacked bars by layer. {title}, the previous key {percent(means['previous key'])}; the "
        f"largest named part: {top}."
    )
    uniform = parts.rows_of(result, "share_first")["uniform"].mean()
    subtitle = f"mean over heads and rows; a uniform row would give the first key {percent(uniform)}"
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)


def structure(result: Result) -> fig.Figure:
    """Draw the mass on the heaviest columns and diagonals, and the blocks needed, by layer,
    each with its null.
    """
    blocks = parts.shares(result, "density_blocks_")
    figure = fig.panels(
        1, 2, titles=["mass on the top 1 % of lines", "share of the blocks needed"], height=_HEIGHT, gap=0.1
    )
    left = {"share_columns": "columns (vertical)", "share_diagonals": "diagonals (slash)"}
    for index, (metric, name) in enumerate(left.items()):
        color, dash = theme.CATEGORIES["light"][index], theme.DASHES[index]
        parts.layer_line(
            figure, result, metric, name, color, legend=True, dash=dash, symbol=theme.MARKERS[index]
        )
    for index, block in enumerate(blocks, 2):
        color, symbol = theme.CATEGORIES["light"][index], theme.MARKERS[index]
        parts.layer_line(
            figure,
            result,
            f"density_blocks_{block}",
            f"blocks of {block}",
            color,
            legend=True,
            column=2,
            symbol=symbol,
        )
    dotted(figure, [None], [None], "null: weights dealt at random to the keys", width=2, legend=True)
    parts.layer_axes(figure, result, "share", ticks=8)
    figure.update_yaxes(range=[0, 1.02])
    figure.update_layout(showlegend=True)
    columns, slash = (float(parts.rows_of(result, metric)["mean"].mean()) for metric in left)
    dealt = float(parts.rows_of(result, "share_columns")["null"].mean())
    needed = parts.rows_of(result, f"density_blocks_{blocks[0]}")["mean"].mean()
    title = f"The heaviest 1 % of the keys get {percent(columns)} of the mass, "
    title += f"the heaviest 1 % of the distances {percent(slash)}"
    alt = (
        f"Two line charts by layer. {title}; dealt at random 1 % of the keys would get {percent(dealt)}. "
        f"Blocks of {blocks[0]}: {percent(float(needed))} are needed for 95 % of the mass."
    )
    subtitle = f"per window, mean over heads; {band_text(result)}"
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)
