"""One cell for each head: ``entropy_grid`` and ``sink_grid``, heat maps of layer by head."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import LAYER
from sparsescope.viz.sentences import percent

_SINK = 0.3


def entropy_grid(result: Result) -> fig.Figure:
    """Draw the normalized entropy of each head."""
    grid = _grid(result, "entropy_normalized")
    if grid.empty:
        return fig.empty("Entropy of every head", "no head was measured")
    figure = _heatmap(grid, "entropy / ln t")
    values = grid.to_numpy()
    layer, head = np.unravel_index(np.nanargmin(values), values.shape)
    low, high = np.nanmin(values), np.nanmax(values)
    title = f"Heads use {percent(low)} to {percent(high)} of the entropy of a uniform row"
    null = result.tables["per_head"].query("metric == 'entropy_normalized'")["null"].median()
    place = f"layer {grid.index[layer]:g}, head {grid.columns[head]:g}"
    alt = (
        f"Heat map of normalized entropy over {values.size} heads. {title}; the most concentrated is {place}."
    )
    subtitle = f"mean over rows of entropy / ln t; median head {percent(float(np.nanmedian(values)))}, null "
    subtitle += f"{percent(null)} (normal scores with the same variance)"
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)


def sink_grid(result: Result) -> fig.Figure:
    """Draw the sink rate of each head, over the first 64 rows where windows are that long."""
    metric = "share_sink_64"
    grid = _grid(result, metric)
    if grid.empty or not np.isfinite(grid.to_numpy(dtype=float)).any():
        metric = "share_sink_window"
        grid = _grid(result, metric)
    if grid.empty:
        return fig.empty("Attention sinks", "no head was measured")
    figure = _heatmap(grid, "sink rate")
    values = grid.to_numpy()
    sinks = int((values > _SINK).sum())
    uniform = result.tables["per_head"].query("metric == @metric")["uniform"].median()
    rows = "the first 64 rows of each window" if metric == "share_sink_64" else "the whole window"
    share = percent(sinks / max(int(np.isfinite(values).sum()), 1))
    title = f"{sinks} of {values.size} heads ({share}) put over 30 % of their mass on the first key"
    alt = f"Heat map of the sink rate. {title}; the largest rate is {percent(float(np.nanmax(values)))}."
    subtitle = f"mean weight on the first key over {rows}; a uniform row gives {percent(uniform)}"
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)


def _grid(result: Result, metric: str) -> pd.DataFrame:
    frame = result.tables["per_head"]
    return frame[frame["metric"] == metric].pivot_table(
        index="layer", columns="head", values="mean", dropna=False
    )


def _heatmap(grid: pd.DataFrame, name: str) -> fig.Figure:
    """Layers on x and heads on y: there are usually more layers, and layers are on x in
    every other figure.
    """
    figure = fig.panels(height=max(160, min(18 * grid.shape[1] + 60, 560)))
    texts = [
        [f"layer {layer:g}, head {head:g}: {percent(v)}" for layer, v in grid[head].items()]
        for head in grid.columns
    ]
    figure.add_heatmap(
        x=grid.index.to_numpy(),
        y=grid.columns.to_numpy(),
        z=grid.to_numpy().T,
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        colorscale=theme.HEATMAP,
        customdata=texts,
        hovertemplate="%{customdata}<extra></extra>",
        colorbar={
            "title": {"text": name, "font": {"size": 12}},
            "thickness": 12,
            "outlinewidth": 0,
            "tickformat": ".0%",
        },
    )
    fig.integer_axis(figure, grid.index, LAYER, pad=0.5, ticks=32)
    figure.update_yaxes(
        title_text="head", autorange="reversed", tick0=0, dtick=max(1, grid.shape[1] // 12), showgrid=False
    )
    return figure
