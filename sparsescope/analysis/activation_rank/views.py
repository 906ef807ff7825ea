"""Figures of ``activation_rank``: functions of the stored result that say their finding in the title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import dropped_text, series
from sparsescope.viz.sentences import percent, subject_prefix

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MEASURES = {
    "entropy_rank": "Entropy rank",
    "participation": "Participation ratio",
    "stable_rank": "Stable rank",
}
_LAYER = "layer (0 at the input)"
_TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 3, 5)]


def ranks(result: Result) -> go.Figure:
    """Draw the three effective ranks by layer, with their references."""
    table = result.tables["ranks"]
    found = series(table, ["metric"], keep=("reference", "ratio"))
    if found.frame["mean"].notna().sum() == 0:
        return fig.empty("Effective rank by layer", "no activation varied between tokens")
    figure = fig.panels(1, len(_MEASURES), titles=list(_MEASURES.values()), height=340, gap=0.07)
    colors = dict(zip(found.roles, theme.CATEGORIES["light"], strict=False))
    for column, metric in enumerate(_MEASURES, 1):
        for role, color in colors.items():
            rows = found.frame[(found.frame["role"] == role) & (found.frame["metric"] == metric)].sort_values("layer")
            texts = [
                f"layer {at:g}: {mean:.1f} [{low:.1f}, {high:.1f}], {ratio:.2f} of independent entries"
                for at, mean, low, high, ratio in rows[["layer", "mean", "low", "high", "ratio"]].itertuples(index=False)
            ]
            place: dict[str, Any] = {"column": column}
            fig.band(figure, rows["layer"], rows["low"], rows["high"], color=color, **place)
            legend = column == 1 and len(found.roles) > 1
            fig.line(figure, rows["layer"], rows["mean"], role, color=color, texts=texts, legend=legend, **place)
            dotted: dict[str, Any] = {"color": theme.SLATE, "dash": "dot", "symbol": None, "width": 1.5}
            fig.line(figure, rows["layer"], rows["reference"], "independent entries", **dotted, **place)
    fig.integer_axis(figure, found.frame["layer"], _LAYER, ticks=8)
    figure.update_yaxes(type="log", tickvals=_TICKS)
    figure.update_yaxes(title_text="effective rank (directions, log scale)", col=1)
    main = found.frame[found.frame["role"] == found.roles[0]]
    middle = main.groupby("metric")[["mean", "reference"]].median()
    largest, tokens = int(table["largest"].max()), int(table["tokens"].max())
    entropy = middle.loc["entropy_rank"]
    title = (
        f"{tokens:,} tokens spread over {entropy['mean']:.0f} of at most {largest:,} directions (entropy rank, median layer); "
    )
    title += f"independent entries over {entropy['reference']:.0f}"
    rest = "; ".join(f"{_MEASURES[name]} {middle.loc[name, 'mean']:.1f}" for name in ("participation", "stable_rank"))
    alt = f"Lines of effective rank by layer. {title}. {rest}."
    level = next((s.interval.level for s in result.scalars.values() if s.interval is not None), None)
    bands = "no intervals: they need two documents or more"
    if level is not None:
        bands = f"bands: {100 * level:g} % jackknife interval over folds of documents"
    subtitle = f"{subject_prefix(result)}centered sample; dotted: independent entries; {bands}{dropped_text(found)}"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)


def spectrum(result: Result) -> go.Figure:
    """Draw the variance held by the largest components."""
    table = result.tables["spectrum"].dropna(subset=["energy"])
    if table.empty:
        return fig.empty("Variance held by the largest directions", "no activation varied between tokens")
    figure = fig.panels(height=400)
    layers = sorted(table["layer"].unique())
    colors = dict(zip(layers, theme.ramp(len(layers)), strict=True))
    most = fig.MAX_MARKS // (table["site"].nunique() + 1) - 1
    at_tenth = []
    for (layer, site), rows in table.groupby(["layer", "site"], sort=True):
        rows = rows.sort_values("components").iloc[fig.thin(len(rows), most)]
        pairs = zip(rows["components"], rows["energy"], strict=True)
        texts = [f"{site}: {k} components hold {percent(e)} of the variance" for k, e in pairs]
        look: dict[str, Any] = {"color": colors[layer], "symbol": None, "width": 1.3}
        fig.line(figure, rows["components"], rows["energy"], f"layer {layer:g}", texts=texts, **look)
        at_tenth.append(float(np.interp(10, rows["components"], rows["energy"])))
    widest = table.groupby("site")["components"].max().idxmax()
    rows = table[table["site"] == widest].sort_values("components")
    dotted: dict[str, Any] = {"color": theme.SLATE, "dash": "dot", "symbol": None, "width": 2, "legend": True}
    fig.line(figure, rows["components"], rows["reference"], "independent entries", **dotted)
    figure.update_xaxes(type="log", tickvals=_TICKS, title_text="largest principal components (log scale)")
    figure.update_yaxes(title_text="share of the variance", tickformat=".0%", range=[0, 1.02])
    figure.update_layout(showlegend=True)
    fig.color_bar(figure, float(layers[0]), float(layers[-1]), "layer")
    middle, null = percent(float(np.median(at_tenth))), percent(float(np.interp(10, rows["components"], rows["reference"])))
    title = f"Ten directions hold {middle} of the variance in the median layer, {null} if entries were independent"
    alt = f"Curves of the variance held by the largest components, one for each of {len(layers)} layers. {title}."
    subtitle = f"{subject_prefix(result)}principal components of the centered sample of tokens"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt)
