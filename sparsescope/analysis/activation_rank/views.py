"""Figures of ``activation_rank``: functions of the stored result that say their finding in the title."""

from __future__ import annotations

import numpy as np

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve, dotted
from sparsescope.viz.layers import (
    dropped_text,
    layer_axis,
    layer_bar,
    layer_lines,
    layer_shades,
    rows_of,
    series,
)
from sparsescope.viz.sentences import band_text, percent

_MEASURES = {
    "entropy_rank": "Entropy rank",
    "participation": "Participation ratio",
    "stable_rank": "Stable rank",
}
_NULL = "independent entries"
_TICKS = [digit * 10**power for power in range(5) for digit in (1, 2, 3, 5)]


def ranks(result: Result) -> fig.Figure:
    """Draw the three effective ranks by layer, with their references."""
    table, columns = result.tables["ranks"], result.columns["ranks"]
    found = series(table, ["metric"], keep=("reference", "ratio", "largest"))
    if found.frame["mean"].notna().sum() == 0:
        return fig.empty("Effective rank by layer", "no activation varied between tokens")
    figure = fig.panels(1, len(_MEASURES), titles=list(_MEASURES.values()), height=340, gap=0.07)
    for column, metric in enumerate(_MEASURES, 1):
        for role, color in zip(found.roles, theme.CATEGORIES["light"], strict=False):
            curve(
                figure,
                rows_of(found, role, metric=metric),
                "mean",
                role,
                color=color,
                columns=columns,
                show="{:.1f}".format,
                text=lambda at, shown: f"layer {at.layer:g}: {shown}, {at.ratio:.2f} of independent entries",
                reference="reference",
                reference_name=_NULL,
                reference_color=theme.SLATE,
                legend=len(found.roles) > 1,
                column=column,
            )
    layer_axis(figure, found.frame, ticks=8)
    fig.y_axes(figure, "effective rank (directions, log scale)", type="log", tickvals=_TICKS)
    middle = rows_of(found, found.roles[0]).groupby("metric")[["mean", "reference", "largest"]].median()
    entropy, tokens = middle.loc["entropy_rank"], int(table["tokens"].max())
    if found.sites > 1:
        who = f"The tokens of an expert (up to {tokens:,}) spread"
        largest, where = round(float(entropy["largest"])), "median expert"
        bands = f"lines: median over up to {found.sites} experts of a layer; bands: 5–95 % of the experts"
    else:
        who, largest, where = f"{tokens:,} tokens spread", int(table["largest"].max()), "median layer"
        bands = band_text(result, "jackknife interval over folds of documents")
    title = f"{who} over {entropy['mean']:.0f} of at most {largest:,} directions (entropy rank, {where})"
    title += f"; independent entries over {entropy['reference']:.0f}"
    rest = "; ".join(
        f"{_MEASURES[name]} {middle.loc[name, 'mean']:.1f}" for name in ("participation", "stable_rank")
    )
    subtitle = f"centered sample; dotted: independent entries; {bands}{dropped_text(found)}"
    alt = f"Lines of effective rank by layer. {title}. {rest}."
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def spectrum(result: Result) -> fig.Figure:
    """Draw the variance held by the largest components."""
    table = result.tables["spectrum"].dropna(subset=["energy"])
    if table.empty:
        return fig.empty("Variance held by the largest directions", "no activation varied between tokens")
    figure, shades = fig.panels(height=400), layer_shades(table)
    layer_lines(
        figure, table, "components", "energy",
        lambda at, held: f"{at.site}: {at.components} components hold {held} of the variance",
        shades=shades, split=("site",), most=fig.MAX_MARKS // (table["site"].nunique() + 1) - 1, width=1.3,
    )  # fmt: skip
    sites = [rows.sort_values("components") for _, rows in table.groupby("site")]
    widest = max(sites, key=lambda rows: rows["components"].max())
    dotted(figure, widest["components"], widest["reference"], _NULL, width=2, legend=True)
    figure.update_xaxes(type="log", tickvals=_TICKS, title_text="largest principal components (log scale)")
    fig.y_axes(figure, "share of the variance", tickformat=".0%", range=[0, 1.02])
    figure.update_layout(showlegend=True)
    layer_bar(figure, shades)
    experts = len(sites) > len(shades)
    held, alone = (
        np.array([np.interp(10, rows["components"], rows[name]) for rows in sites])
        for name in ("energy", "reference")
    )
    # Experts have samples of different sizes, and each its own reference.
    null = float(np.median(alone) if experts else np.interp(10, widest["components"], widest["reference"]))
    title = (
        f"Ten directions hold {percent(float(np.median(held)))} of the variance in the median "
        f"{'expert' if experts else 'layer'}, {percent(null)} if entries were independent"
    )
    lines = f"the experts of {len(shades)} layers" if experts else f"{len(shades)} layers"
    alt = f"Curves of the variance held by the largest components, one for each of {lines}. {title}."
    subtitle = "principal components of the centered sample of tokens"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
