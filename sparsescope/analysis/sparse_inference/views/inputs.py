"""Inputs one by one: ``per_matrix``, ``atlas``, ``unions`` and ``tokens``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.sparse_inference.statements import params_of
from sparsescope.analysis.sparse_inference.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import layer_axis
from sparsescope.viz.sentences import percent
from sparsescope.viz.token_strip import token_strip

if TYPE_CHECKING:
    from sparsescope.viz.panel import Panel


def per_matrix(result: Result, value: str) -> fig.Figure:
    """Draw the output error of the matrices of one role by layer."""
    table = result.tables["per_matrix"]
    table = table[table["role"] == value].sort_values("layer")
    looks = parts.looks(result)
    names = parts.methods_of(table, result)
    figure = fig.panels(height=parts.HEIGHT)
    for name in reversed(names):
        rows = table[table["method"] == name]

        def text(at: Any, shown: str) -> str:
            return (
                f"layer {at.layer:g}: error {shown}, without correlations {percent(at.diagonal)}, "
                f"{percent(at.sparsity)} of the inputs dropped"
            )

        curve(figure, rows, "error", name, text=text, legend=True, reference="diagonal", **looks[name])
    layer_axis(figure, table)
    fig.y_axes(figure, "relative squared error of the output", tickformat=".3~%", rangemode="tozero")
    figure.update_layout(legend={"traceorder": "reversed"})
    parts.legend_below(figure)
    means = table.groupby("method")[["error", "sparsity"]].mean().reindex(names).sort_values("error")
    said = [
        f"{name} {percent(row['error'])} ({percent(row['sparsity'])} dropped)"
        for name, row in means.iterrows()
    ]
    title = f"{value}, mean output error of the layers: {', '.join(said)}"
    alt = f"Lines of the relative output error by layer, {table['layer'].nunique()} layers. {title}."
    subtitle = f"{_asked(result)}; {int(table['tokens'].max()):,} tokens, no intervals; dotted: without "
    subtitle += "correlations between inputs"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _asked(result: Result) -> str:
    at = params_of(result).get("detail_at")
    return "at one target" if at is None else f"{percent(float(at))} of the block bytes to be left unread"


def atlas(result: Result, value: str) -> fig.Figure:
    """Draw which share of the inputs one method keeps by layer, and what the next token keeps as well."""
    table = result.tables["atlas"]
    table = table[table["method"] == value].sort_values("layer")
    roles = parts.roles_of(table)
    looks = parts.role_looks(roles)
    figure = fig.panels(
        1, 2, titles=["inputs that a token keeps", "of these, kept by the next token"], height=parts.HEIGHT,
        share_y=True,
    )  # fmt: skip
    for role in roles:
        rows = table[table["role"] == role]
        rows = rows.assign(low=rows["density"] - rows["spread"], high=rows["density"] + rows["spread"])
        name = parts.role_words(role)

        def kept(at: Any, shown: str) -> str:
            return (
                f"layer {at.layer:g}: {shown} kept, \N{PLUS-MINUS SIGN} {percent(at.spread)} between tokens; "
                f"{percent(at.persistent)} of the channels kept by 90 % of the tokens"
            )

        def again(at: Any, shown: str) -> str:
            return f"layer {at.layer:g}: {shown} kept again, by chance {percent(at.reuse_by_chance)}"

        curve(figure, rows, "density", name, text=kept, legend=True, **looks[role])
        curve(figure, rows, "reuse", name, text=again, column=2, reference="reuse_by_chance", **looks[role])
    layer_axis(figure, table)
    most = float(np.nanmax(table[["density", "reuse", "reuse_by_chance"]].to_numpy(float)))
    fig.y_axes(figure, "share of the inputs", tickformat=".0%", range=[0, min(1.02, 1.08 * most)])
    parts.legend_below(figure)
    means = table.groupby("role")[["density", "reuse", "reuse_by_chance"]].mean()
    low, high = means["density"].idxmin(), means["density"].idxmax()
    title = f"{value} keeps {percent(means.loc[low, 'density'])} of the inputs of {parts.role_words(low)}"
    if high != low:
        title += f" and {percent(means.loc[high, 'density'])} of those of {parts.role_words(high)}"
    reuse, chance = (float(table[name].mean()) for name in ("reuse", "reuse_by_chance"))
    title += f"; the next token keeps {percent(reuse)} of them, by chance {percent(chance)}"
    each = [
        f"{parts.role_words(role)} {percent(means.loc[role, 'density'])} (the next token keeps "
        f"{percent(means.loc[role, 'reuse'])}, by chance {percent(means.loc[role, 'reuse_by_chance'])})"
        for role in roles
    ]
    alt = f"Lines by layer of the share of inputs kept and of its reuse. {title}. {'; '.join(each)}."
    subtitle = f"{_asked(result)}; {int(table['tokens'].max()):,} tokens; title: means over layers; dotted: "
    subtitle += "masks drawn channel by channel from their own frequency"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def unions(result: Result, value: str) -> fig.Figure:
    """Draw which inputs at least one of L consecutive tokens keeps."""
    table = result.tables["unions"]
    table = table[table["method"] == value].sort_values("together")
    roles = parts.roles_of(table)
    looks = parts.role_looks(roles)
    figure = fig.panels(height=parts.HEIGHT)
    for role in roles:

        def text(at: Any, shown: str) -> str:
            return (
                f"{at.together:g} tokens: {shown}, by chance {percent(at.by_chance)}, independent entries "
                f"{percent(at.independent)}"
            )

        curve(
            figure, table[table["role"] == role], "union", parts.role_words(role), x="together", text=text,
            legend=True, reference="by_chance", **looks[role],
        )  # fmt: skip
    ticks = sorted({int(each) for each in table["together"]})
    figure.update_xaxes(
        title_text="consecutive tokens that read the weights together, L", type="log", tickvals=ticks,
        ticktext=[str(tick) for tick in ticks],
    )  # fmt: skip
    fig.y_axes(figure, "share of the inputs kept by one of them", tickformat=".0%", range=[0, 1.03])
    parts.legend_below(figure)
    several = table[table["together"] > 1]
    if several.empty:
        title = f"{value} keeps {percent(float(table['union'].mean()))} of the inputs of a token"
    else:
        at = 4 if (several["together"] == 4).any() else int(several["together"].max())
        mean = table[table["together"] == at][["union", "by_chance"]].mean()
        single = float(table[table["together"] == 1]["union"].mean())
        title = f"{value}: {at} tokens together read {percent(mean['union'])} of the inputs, one reads "
        title += f"{percent(single)}; by chance they would read {percent(mean['by_chance'])}"
    last = table[table["together"] == table["together"].max()]
    said = [f"{parts.role_words(row.role)} {percent(row.union)}" for row in last.itertuples()]
    alt = f"Lines of the union against the number of tokens. {title}. With {ticks[-1]}: {', '.join(said)}."
    subtitle = (
        f"{_asked(result)}; {int(table['tokens'].max()):,} tokens; title: mean over the kinds of input; "
    )
    subtitle += "dotted: masks drawn channel by channel from their own frequency"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def tokens(result: Result, value: Any) -> Panel:
    """Show a document, each token colored by the share of the bytes that it reads."""
    table = result.tables["tokens"]
    kept = table[table["document"] == value]["kept"].astype(float)
    low, high, mean = (percent(float(each)) for each in (kept.min(), kept.max(), kept.mean()))
    title = f"Tokens of this text read {low} to {high} of the block bytes, {mean} on average"
    caption = f"Thresholds give every token the share that it asks for; {_asked(result)}."
    return token_strip(result, "tokens", value="kept", document=value, title=title, caption=caption)
