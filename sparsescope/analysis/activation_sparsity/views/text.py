"""Where in the text the units work: ``by_position`` (in the window) and ``by_domain`` (kinds of text).

Both show the energy-set density nearest to 90 %. The first token is a position of its own: attention sinks
and massive activations live there.
"""

from __future__ import annotations

from sparsescope.analysis.activation_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.layers import Series, layer_bar, layer_lines, layer_shades, rows_of, series
from sparsescope.viz.sentences import percent

_MAX_DOMAINS = 8
_MAX_TICKS = 16


def by_position(result: Result) -> fig.Figure:
    """Draw the density against the position in the window: one line for each layer, the median in front."""
    table = result.tables["by_position"]
    main = parts.main_share(table)
    table = table[table["metric"] == f"density_energy_{main}"]
    if table.empty:
        return fig.empty("Density by position", "no energy-set density by position in this result")
    bins = table[["position", "position_end"]].drop_duplicates("position").sort_values("position")
    names = {
        first: f"{first:g}" if first == last else f"{first:g}–{last:g}"
        for first, last in bins.itertuples(index=False)
    }
    found = series(table, ["position"])
    shades = layer_shades(found.frame)
    titles = found.roles if len(found.roles) > 1 else ()
    figure = fig.panels(1, len(found.roles), titles=titles, height=360, share_y=True)
    placed = found.frame.assign(
        place=found.frame["position"].map({first: index for index, first in enumerate(names)})
    )
    for column, role in enumerate(found.roles, 1):
        rows = placed[placed["role"] == role]
        layer_lines(
            figure,
            rows,
            "place",
            "mean",
            lambda at, share: f"layer {at.layer:g}, position {names[at.position]}: {share}",
            shades=shades,
            columns=result.columns["by_position"],
            band=False,
            width=1.2,
            opacity=0.75,
            column=column,
        )
        curve(
            figure,
            rows.groupby(["position", "place"], as_index=False)["mean"].median(),
            "mean",
            "median layer",
            x="place",
            text=lambda at, share: f"median layer, position {names[at.position]}: {share}",
            color=theme.INK["light"],
            width=3.5,
            column=column,
        )
    _position_axis(figure, list(names.values()))
    fig.y_axes(figure, f"share of units for {main} % of the energy", tickformat=".0~%", rangemode="tozero")
    layer_bar(figure, shades)
    medians = found.frame.groupby("position")["mean"].median()
    first, later = percent(medians.iloc[0]), percent(medians.iloc[1:].median())
    title = f"The first token needs {first} of the units, later tokens {later}"
    alt = (
        f"Lines of density against position, one for each of {len(shades)} layers. In the median layer the "
        f"first position needs {first} of the units for {main} % of the energy, later positions {later}."
    )
    subtitle = "thin: layers; thick, and in the title: median layer; shaded: the first token"
    return parts.describe(
        figure, result, found, title=title, subtitle=subtitle, alt=alt, bands=found.sites > 1
    )


def _position_axis(figure: fig.Figure, names: list[str]) -> None:
    shown = fig.thin(len(names), _MAX_TICKS)
    figure.update_xaxes(
        title_text="position in the window (tokens; bins widen)",
        tickvals=shown.tolist(),
        ticktext=[names[index] for index in shown],
        range=[-0.5, len(names) - 0.5],
    )
    if len(names) > 1:
        shade = theme.rgba(theme.OCHRE, 0.12)
        figure.add_vrect(x0=-0.5, x1=0.5, fillcolor=shade, line_width=0, layer="below", row="all", col="all")


def by_domain(result: Result) -> fig.Figure:
    """Draw the density by layer for each domain, with bands."""
    table = result.tables["by_domain"]
    main = parts.main_share(table)
    table = table[table["metric"] == f"density_energy_{main}"]
    if table.empty:
        return fig.empty("Density by domain", "no energy-set density by domain in this result")
    found = series(table, ["domain"])
    size = table.groupby("domain")["tokens"].max().sort_values(ascending=False, kind="stable")
    domains = list(size.index)[:_MAX_DOMAINS]
    titles = found.roles if len(found.roles) > 1 else ()
    figure = fig.panels(len(found.roles), 1, titles=titles, height=340)
    for row, role in enumerate(found.roles, 1):
        for index, domain in enumerate(domains):
            curve(
                figure,
                rows_of(found, role, domain=domain),
                "mean",
                domain,
                color=theme.CATEGORIES["light"][index],
                dash=theme.DASHES[index],
                symbol=theme.MARKERS[index],
                columns=result.columns["by_domain"],
                text=lambda at, share: f"{at.domain}, layer {at.layer:g}: {share}",
                legend=True,
                row=row,
            )
    parts.percent_axes(figure, found, f"share of units for {main} % of the energy")
    figure.update_layout(legend={"title": {"text": "domain:"}}, showlegend=True)
    title, alt = _domain_texts(found, domains, main or "")
    subtitle = "mean over tokens by layer and domain"
    if len(size) > len(domains):
        subtitle += f"; the {_MAX_DOMAINS} domains with most tokens of {len(size)}"
    return parts.describe(figure, result, found, title=title, subtitle=subtitle, alt=alt)


def _domain_texts(found: Series, domains: list[str], main: str) -> tuple[str, str]:
    """Title and alt text: the largest difference between domains, or the range of the only one."""
    wide = found.frame.pivot_table(index=["role", "layer"], columns="domain", values="mean")
    gap = (wide.max(axis=1) - wide.min(axis=1)).dropna()
    if wide.shape[1] < 2 or gap.empty:
        span = parts.between(found.frame["mean"])
        title = f"{span} of the units hold {main} % of the energy in the only domain"
        return title, f"Line chart of density by layer for one domain, {domains[0]}: {span}."
    at = gap.idxmax()
    points = f"{100 * gap.max():.1f} percentage points"
    alt = (
        f"Line chart of density by layer for {len(domains)} domains. The largest difference is {points} in "
        f"layer {at[1]:g}: {wide.loc[at].idxmin()} is lowest, {wide.loc[at].idxmax()} highest."
    )
    return f"Domains differ by up to {points} (in layer {at[1]:g})", alt
