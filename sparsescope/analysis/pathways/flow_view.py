"""The figure of paths from layer to layer."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import layer_axis
from sparsescope.viz.sentences import percent

_MOST, _WIDEST, _WIDTHS = 200, 14.0, 8


def flow(result: Result, step: Any) -> fig.Figure:
    """Draw how tokens go from expert to expert at one checkpoint.

    Args:
        result: The result.
        step: The step of the checkpoint.
    """
    table = result.tables["flow"]
    table = table[table["step"] == step]
    if table.empty:
        return fig.empty("No paths from layer to layer", "There is one layer only, or no step is frequent.")
    # Bands lead to the next layer that routes, which need not be the next number
    layers = sorted(set(result.tables["layers"]["layer"]))
    following = dict(pairwise(layers))
    kept = table.nlargest(_MOST, "share")
    figure = fig.panels(height=420)
    widest = float(kept["share"].max())
    width = np.ceil(_WIDTHS * kept["share"] / widest)
    for size in range(1, _WIDTHS + 1):  # one trace for each width: few traces, whatever the bands
        part = kept[width == size]
        if part.empty:
            continue
        x: list[float | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        for row in part.itertuples():
            x += [row.layer, following[row.layer], None]
            y += [row.expert, row.next_expert, None]
            text = (
                f"layer {row.layer}, expert {row.expert} to expert {row.next_expert}: {percent(row.share)} "
                f"of the "
                f"tokens ({row.tokens:,})"
            )
            texts += [text, text, ""]
        fig.line(
            figure, x, np.array(y, float), f"band {size}", color=theme.BLUE, texts=texts, symbol=None,
            width=_WIDEST * size / _WIDTHS, opacity=0.25 + 0.5 * size / _WIDTHS,
        )  # fmt: skip
    loads = table.groupby(["layer", "expert"], as_index=False)["share"].sum()
    ends = table[table["layer"] == max(following)]
    ends = (
        ends.groupby("next_expert", as_index=False)["share"].sum().rename(columns={"next_expert": "expert"})
    )
    loads = pd.concat([loads, ends.assign(layer=layers[-1])], ignore_index=True)
    texts = [
        f"layer {r.layer}, expert {r.expert}: {percent(r.share)} of the tokens" for r in loads.itertuples()
    ]
    fig.dots(
        figure, loads["layer"], loads["expert"], "experts", color=theme.INK["light"], texts=texts, size=7
    )
    layer_axis(figure, result.tables["layers"])
    figure.update_yaxes(
        title_text="expert, or block of neurons", dtick=1 if loads["expert"].max() < 20 else None
    )
    figure.update_layout(showlegend=False)
    shown, top = float(kept["share"].sum()) / max(len(following), 1), kept.iloc[0]
    title = (
        f"At step {step:,}, {percent(top['share'])} of the tokens go from expert {top['expert']:.0f} of "
        f"layer {top['layer']:.0f} to expert {top['next_expert']:.0f} of the next, the widest band"
    )
    subtitle = (
        f"{len(kept)} bands, {percent(shown)} of all steps from layer to layer; first choices of tokens"
    )
    alt = f"Experts by layer, joined by bands as wide as the share of tokens. {title}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
