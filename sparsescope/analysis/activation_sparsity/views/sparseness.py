"""Two directions of sparseness, and what sparsity could save: ``lifetime`` and ``upper_bounds``.

Population sparseness is over the units of a token, lifetime sparseness over the tokens of a unit.
"""

from __future__ import annotations

from typing import Any

from sparsescope.analysis.activation_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.bounds import draw_bounds
from sparsescope.viz.curves import curve, dotted
from sparsescope.viz.layers import layer_axis, rows_of, series
from sparsescope.viz.sentences import decimal


def lifetime(result: Result) -> fig.Figure:
    """Draw lifetime sparseness by layer (mean, interval, range over units) beside population sparseness."""
    found = series(result.tables["lifetime"], keep=("q05", "q50", "q95", "population", "reference"))
    if found.frame["mean"].notna().sum() == 0:
        return fig.empty("Population and lifetime sparseness", "no unit was ever active")
    figure = fig.panels(
        len(found.roles), 1, titles=parts.panel_titles(found, [""])[: len(found.roles)], height=340
    )
    for row, role in enumerate(found.roles, 1):
        rows = rows_of(found, role)
        fig.band(figure, rows["layer"], rows["q05"], rows["q95"], color=theme.BLUE, row=row, alpha=0.10)
        options: dict[str, Any] = {"show": decimal, "legend": True, "row": row}
        columns = result.columns["lifetime"]
        curve(
            figure,
            rows,
            "mean",
            "lifetime (over tokens)",
            color=theme.BLUE,
            columns=columns,
            alpha=0.35,
            **options,
        )
        options |= {"color": theme.VERMILION, "dash": "dash", "symbol": "square"}
        curve(figure, rows, "population", "population (over units)", **options)
        dotted(figure, rows["layer"], rows["reference"], "normal entries", row=row, legend=row == 1)
    figure.update_layout(showlegend=True)
    figure.update_yaxes(range=[0, 1.02], title_text="Treves-Rolls sparseness (0 flat, 1 one-hot)")
    layer_axis(figure, found.frame)
    life, population = (float(found.frame[name].median()) for name in ("mean", "population"))
    order = "less" if life < population else "more"
    title = (
        f"Units are {order} sparse over tokens ({life:.2f}) than tokens over units "
        f"({population:.2f}), in the median layer"
    )
    if abs(life - population) < 0.01:
        title = (
            f"Sparseness over tokens ({life:.2f}) and over units ({population:.2f}) agree in the median layer"
        )
    alt = (
        f"Lines of sparseness by layer. {title}; half-normal reference "
        f"{decimal(found.frame['reference'].median())}."
    )
    subtitle = (
        "dark band: jackknife interval over folds of documents; pale band: 5–95 % of the units; "
        "dotted: normal entries"
    )
    return parts.describe(figure, result, found, title=title, subtitle=subtitle, alt=alt, bands=False)


def upper_bounds(result: Result) -> fig.Figure:
    """Draw the upper bounds by rule and scheme."""
    return draw_bounds(result.tables["upper_bounds"], result)
