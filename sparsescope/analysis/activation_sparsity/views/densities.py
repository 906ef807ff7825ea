"""Densities and concentration measures over layers: ``per_layer``, ``token_spread``, ``concentration``.

All three draw the table ``per_layer``. Dotted lines are half-normal references: what a long vector of
independent normal entries gives.
"""

from __future__ import annotations

from typing import Any

from sparsescope.analysis.activation_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import Series, layer_axis, rows_of, series
from sparsescope.viz.sentences import decimal, percent

_NORMS = {"l1": "L1 norm", "energy": "energy"}
_MEASURES = {
    "hoyer": "Hoyer: higher is sparser",
    "gini": "Gini: higher is sparser",
    "pr2": "Participation ratio PR2: lower is sparser",
    "pr4": "Participation ratio PR4: lower is sparser",
    "entropy_number": "Entropy number: lower is sparser",
    "kurtosis": "Kurtosis about zero: higher is sparser",
}
_HEIGHT = 330


def per_layer(result: Result) -> fig.Figure:
    """Draw the densities over layers: one panel for each norm, one line for each share of it."""
    found = series(result.tables["per_layer"], ["metric"], keep=("reference",))
    shares = {norm: parts.shares(found.frame, norm) for norm in _NORMS}
    norms = [norm for norm in _NORMS if shares[norm]] or ["energy"]
    titles = parts.panel_titles(found, [f"smallest set with p % of the {_NORMS[norm]}" for norm in norms])
    figure = fig.panels(
        max(len(found.roles), 1), len(norms), titles=titles, height=_HEIGHT, share_y="all", gap=0.09
    )
    for row, role in enumerate(found.roles, 1):
        for column, norm in enumerate(norms, 1):
            colors = theme.ramp(len(shares[norm]))[::-1]
            lines = [
                (f"density_{norm}_{p}", f"{p} %", color, "solid")
                for p, color in zip(shares[norm], colors, strict=True)
            ]
            if not parts.nonzero_says_nothing(result):
                lines.append(("density_nonzero", "non-zero", theme.SLATE, "dash"))
            _density_lines(figure, found, result, role, lines, row=row, column=column)
    parts.percent_axes(figure, found, "share of units", y_range=(0, 1.04), ticks=10)
    figure.update_layout(margin={"r": 64})
    main = parts.main_share(found.frame)
    rows = found.frame[found.frame["metric"] == f"density_energy_{main}"].dropna(subset=["mean"])
    zero = parts.nonzero_text(result)
    title, alt = "Density by layer", f"Density by layer; {zero}."
    if len(rows):
        span = parts.between(rows["mean"])
        title = f"{span} of the units hold {main} % of the energy, depending on the layer"
        reference = percent(rows["reference"].median())
        lowest = rows.loc[rows["mean"].idxmin(), "layer"]
        alt = (
            f"Line chart of density by layer. The smallest set with {main} % of the energy has {span} of the "
            f"units, least in layer {lowest:g}; half-normal reference {reference}; {zero}."
        )
    subtitle = f"share of units by layer; dotted: half-normal reference; {zero}"
    return parts.describe(figure, result, found, title=title, subtitle=subtitle, alt=alt)


def _density_lines(
    figure: fig.Figure,
    found: Series,
    result: Result,
    role: str,
    lines: list[tuple[str, str, str, str]],
    **place: Any,
) -> None:
    """Draw densities ``(metric, name, color, dash)`` with band, reference and a name at the right end."""
    labels = []
    for metric, name, color, dash in lines:
        last = curve(
            figure,
            rows_of(found, role, metric=metric),
            "mean",
            name,
            color=color,
            dash=dash,
            columns=result.columns["per_layer"],
            reference="reference",
            reference_name=f"{name}, half-normal",
            **place,
        )
        labels.append((last, name))
    end = float(found.frame["layer"].max())
    fig.end_labels(figure, labels, x=end, y_range=(0.02, 1.03), panel_height=_HEIGHT, **place)


def token_spread(result: Result) -> fig.Figure:
    """Draw median and 5-95 % range over tokens of the energy-set density, one panel for each share."""
    found = series(result.tables["per_layer"], ["metric"], keep=("q05", "q50", "q95"))
    every = parts.shares(found.frame, "energy")
    large = [share for share in every if float(share) >= 80] or every
    shares = [large[i] for i in fig.thin(len(large), 3)]
    if not shares:
        return fig.empty("Spread over tokens", "no energy-set density was measured")
    titles = parts.panel_titles(found, [f"{share} % of the energy" for share in shares])
    figure = fig.panels(len(found.roles), len(shares), titles=titles, height=320, share_y="all")
    for row, role in enumerate(found.roles, 1):
        for column, share in enumerate(shares, 1):
            rows = rows_of(found, role, metric=f"density_energy_{share}")
            place: dict[str, Any] = {"color": theme.BLUE, "row": row, "column": column}
            fig.band(figure, rows["layer"], rows["q05"], rows["q95"], alpha=0.22, **place)
            curve(figure, rows, "q50", "median token", text=_spread_text, **place)
    parts.percent_axes(figure, found, "share of units", ticks=24 // len(shares))
    main = parts.main_share(found.frame)
    rows = found.frame[found.frame["metric"] == f"density_energy_{main}"]
    low, middle, high = (percent(rows[q].median()) for q in ("q05", "q50", "q95"))
    title = f"A median token needs {middle} of the units for {main} % of the energy, 1 in 20 over {high}"
    alt = (
        f"Line charts with a range over tokens, by layer. At {main} % of the energy the 5th, 50th and 95th "
        f"percentile of the density are {low}, {middle} and {high} in the median layer."
    )
    subtitle = "line: median over tokens; band: 5–95 % of tokens (a spread, not an interval)"
    return parts.describe(figure, result, found, title=title, subtitle=subtitle, alt=alt, bands=False)


def _spread_text(row: Any, middle: str) -> str:
    return f"layer {row.layer:g}: median {middle}, 5–95 % of tokens {percent(row.q05)} to {percent(row.q95)}"


def concentration(result: Result) -> fig.Figure:
    """Draw the threshold-free measures by layer, each with its half-normal reference."""
    found = series(result.tables["per_layer"], ["metric"], keep=("reference",))
    present = [name for name in _MEASURES if name in set(found.frame["metric"])]
    if not present:
        return fig.empty("Concentration measures", "no concentration measure in this result")
    columns = min(2, len(present))
    titles = [_MEASURES[name] for name in present]
    figure = fig.panels(-(-len(present) // columns), columns, titles=titles, height=230)
    for index, name in enumerate(present):
        place = fig.place_of(index, columns)
        for role, color in zip(found.roles, theme.CATEGORIES["light"], strict=False):
            curve(
                figure,
                rows_of(found, role, metric=name),
                "mean",
                role,
                color=color,
                columns=result.columns["per_layer"],
                show=decimal,
                reference="reference",
                reference_name="half-normal",
                reference_color=theme.SLATE,
                legend=len(found.roles) > 1,
                **place,
            )
        figure.update_yaxes(title_text=parts.label(name), row=place["row"], col=place["column"])
    layer_axis(figure, found.frame, ticks=10)
    name = "gini" if "gini" in present else present[0]
    rows = found.frame[found.frame["metric"] == name].dropna(subset=["mean"])
    title, alt = "Concentration measures by layer", "Concentration measures by layer; no value is defined."
    if len(rows):
        low, high = rows.loc[rows["mean"].idxmin()], rows.loc[rows["mean"].idxmax()]
        title = (
            f"{parts.label(name)} is highest in layer {high['layer']:g} ({high['mean']:.2f}) and "
            f"lowest in layer {low['layer']:g} ({low['mean']:.2f})"
        )
        reference = decimal(rows["reference"].median())
        alt = f"{len(present)} line charts of concentration. {title}; half-normal reference {reference}."
    subtitle = "mean over tokens; dotted: half-normal reference"
    return parts.describe(figure, result, found, title=title, subtitle=subtitle, alt=alt)
