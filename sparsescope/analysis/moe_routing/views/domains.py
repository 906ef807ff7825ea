"""What experts specialize in: ``domains`` and ``specialization``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.moe_routing.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.layers import layer_axis
from sparsescope.viz.sentences import percent, with_interval

_MOST_DOMAINS = 8
_GAP = 66  # pixels between two rows of panels
_GIVEN = "|"  # in the name of a measure: where something is known


def domains(result: Result) -> fig.Figure:
    """Draw for each domain how much more often than the mean of all domains it chooses an expert."""
    table = result.tables["domain_shares"]
    empty = "Which domain chooses which expert"
    if table["domain"].nunique() < 2:
        return fig.empty(empty, "the text has one domain: there is nothing to compare")
    table = table.assign(gain=table["share"] - table["all_share"])
    if not np.isfinite(table["gain"]).any():
        return fig.empty(empty, "no expert was chosen")
    layers, experts = sorted(table["layer"].unique()), sorted(table["expert"].unique())
    size = table.groupby("domain")["tokens"].max().sort_values(ascending=False, kind="stable")
    most = max(1, min(_MOST_DOMAINS, fig.MAX_MARKS // (len(layers) * len(experts))))
    shown = [name for name in dict.fromkeys(table["domain"]) if name in set(size.index[:most])]
    across = 1 if len(experts) > 24 else min(2, len(shown))
    down = -(-len(shown) // across)
    titles = [f"{name} (n = {_documents(table, name)} documents)" for name in shown]
    figure = fig.panels(down, across, titles=titles, share_y=True)
    for index, name in enumerate(shown):
        rows = table[table["domain"] == name]
        known = {(row.layer, row.expert): row for row in rows.itertuples()}
        texts = [[_hover(known.get((layer, expert)), name) for expert in experts] for layer in layers]
        grid = rows.pivot_table(index="layer", columns="expert", values="gain", dropna=False)
        values = grid.reindex(index=layers, columns=experts).to_numpy(float)
        parts.heat(figure, values, texts, **fig.place_of(index, across))
    ends = float(np.nanmax(table["gain"].abs()))
    height = max(48, (26 if len(layers) <= 8 else 13) * len(layers))
    long = {"lenmode": "pixels", "len": min(300, down * (height + _GAP) - _GAP), "y": 1, "yanchor": "top"}
    parts.diverging(figure, ends, "share minus mean", tickformat="+.0~%", **long)
    _axes(figure, layers, experts, len(shown), across, down)
    title, alt = _largest(table, len(layers) * len(experts) * table["domain"].nunique())
    subtitle = (
        "share of the tokens of a domain that choose the expert, minus the mean over domains; blue: more; "
    )
    subtitle += "intervals in the hover texts"
    if len(size) > len(shown):
        subtitle += f"; the {len(shown)} domains with most tokens of {len(size)}"
    figure = fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)
    parts.stack(figure, down, height, _GAP)
    return figure


def _documents(table: pd.DataFrame, domain: str) -> int:
    return int(table.loc[table["domain"] == domain, "documents"].max())


def _hover(row: Any, domain: str) -> str:
    if row is None:
        return "not measured"
    share, mean = with_interval(row.share, row.low, row.high), percent(row.all_share)
    return (
        f"layer {row.layer}, expert {row.expert}: {share} of the tokens of {domain}, {mean} in the mean of "
        f"the domains ({100 * row.gain:+.3g} points, {parts.number(row.lift)} times)"
    )


def _axes(
    figure: fig.Figure, layers: list[int], experts: list[int], count: int, across: int, down: int
) -> None:
    most = 20 if across == 1 else 12
    figure.update_xaxes(**parts.places(experts, most), range=[-0.5, len(experts) - 0.5])
    figure.update_yaxes(**parts.places(layers, 8), range=[len(layers) - 0.5, -0.5])
    figure.update_yaxes(title_text="layer", col=1)
    for index in range(across * down):
        place = fig.place_of(index, across)
        if index >= count:
            figure.update_xaxes(visible=False, row=place["row"], col=place["column"])
            figure.update_yaxes(visible=False, row=place["row"], col=place["column"])
        elif index + across >= count:
            figure.update_xaxes(title_text="expert", row=place["row"], col=place["column"])


def _largest(table: pd.DataFrame, cells: int) -> tuple[str, str]:
    """Title and alt text: the largest difference, and each domain's own."""

    def said(row: Any) -> str:
        share, mean = with_interval(row["share"], row["low"], row["high"]), percent(row["all_share"])
        return f"{share} of the tokens of {row['domain']}, {mean} in the mean of the domains"

    top = table.loc[table["gain"].abs().idxmax()]
    title = (
        f"Largest of {cells:,} differences: expert {top['expert']} of layer {top['layer']} reads {said(top)}"
    )
    each = [table.loc[index] for index in table.groupby("domain", sort=False)["gain"].idxmax().dropna()]
    texts = [
        f"{row['domain']}: expert {row['expert']} of layer {row['layer']} ({100 * row['gain']:+.3g} points)"
        for row in each
    ]
    alt = f"Heat maps, layers by experts, of the share of tokens minus its mean over domains. {title}. "
    return title, alt + f"Most above the mean, {'; '.join(texts)}."


def specialization(result: Result) -> fig.Figure:
    """Draw the information about the domain beyond chance by layer, beside that of shuffled routers."""
    table = result.tables["specialization"]
    if table.empty or not np.isfinite(table["excess"]).any():
        return fig.empty("Specialization beyond chance", "it needs a text of two domains or more")
    measures = list(dict.fromkeys(table["measure"]))
    titles = [f"{'token known' if _GIVEN in name else 'of any kind'}: {name}" for name in measures]
    figure = fig.panels(1, len(measures), titles=titles, height=parts.HEIGHT, share_y=True)
    known = bool(np.isfinite(table["shuffled"]).any())
    # Over draws of shuffled routers; runs with one draw, or of before, have none
    spread = table["shuffled_sd"] if "shuffled_sd" in table else pd.Series(math.nan, table.index)
    table = table.assign(shuffled_sd=spread.astype(float))
    for column, name in enumerate(measures, 1):
        rows = table[table["measure"] == name].sort_values("layer")
        fig.bars(
            figure, rows["layer"].to_numpy(), rows["excess"].to_numpy(float), "routers as trained",
            color=theme.BLUE, texts=[_bar(row) for row in rows.itertuples()], column=column,
            error_y=fig.error_bars(rows["excess"], rows["low"], rows["high"]),
        )  # fmt: skip
        if known:
            fig.bars(
                figure, rows["layer"].to_numpy(), rows["shuffled"].to_numpy(float), "shuffled routers",
                color=theme.SLATE, texts=[_beside(row) for row in rows.itertuples()], column=column,
                error_y=fig.error_bars(
                    rows["shuffled"], rows["shuffled"] - rows["shuffled_sd"],
                    rows["shuffled"] + rows["shuffled_sd"],
                ),
            )  # fmt: skip
        figure.add_hline(y=0, line=theme.LEVEL, row=1, col=column)
    layer_axis(figure, table)
    fig.y_axes(figure, "information beyond permuted labels, nats")
    figure.update_layout(barmode="group", bargap=0.35)
    fig.legend_below(figure)
    name = next((each for each in measures if _GIVEN in each), measures[-1])
    title, more = _beyond(table[table["measure"] == name], _GIVEN in name)
    means = table.groupby("measure", sort=False)[["excess", "shuffled"]].mean()
    said = [
        f"{each} {parts.nats(row['excess'])}, shuffled {parts.nats(row['shuffled'])}"
        for each, row in means.iterrows()
    ]
    alt = f"Bars by layer of the information of experts about domains. {title}. {more} "
    alt += f"Means: {'; '.join(said)}."
    bars = parts.intervals(result, "bars", parts.JACKKNIFE, table["low"], table["high"])
    subtitle = f"{parts.sample(table)}; {bars}; dotted: labels of domains dealt anew to whole documents"
    if not known:
        subtitle += "; shuffled routers were not read"
    elif np.isfinite(table["shuffled_sd"]).any():
        subtitle += "; bars of shuffled routers: standard deviation over draws"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _bar(row: Any) -> str:
    return (
        f"layer {row.layer:g}: {parts.nats_within(row.excess, row.low, row.high)} beyond chance "
        f"({row.information:.3g} - {row.null_mean:.3g}), {percent(row.of_entropy)} of H(D); q = {row.q:.2g}"
    )


def _beside(row: Any) -> str:
    difference = parts.nats_within(row.beyond_shuffled, row.beyond_low, row.beyond_high)
    spread = f" \N{PLUS-MINUS SIGN} {row.shuffled_sd:.3g}" if math.isfinite(row.shuffled_sd) else ""
    return f"layer {row.layer:g}: {parts.nats(row.shuffled)}{spread}; as trained minus shuffled {difference}"


def _beyond(rows: pd.DataFrame, given: bool) -> tuple[str, str]:
    """The title, and what else the alt text says."""
    where = " where the token is known" if given else ""
    above, _, known = parts.clear(rows)
    total = len(rows)
    if not known:
        title = f"Experts tell {parts.nats(rows['excess'].mean())} about the domain beyond chance{where}"
        if np.isfinite(rows["shuffled"]).any():
            title += f", with shuffled routers {parts.nats(rows['shuffled'].mean())}"
        return f"{title}; no intervals", ""
    title = f"Experts tell about the domain beyond chance in {parts.out_of(above, total, 'layer')}{where}"
    more, less, compared = parts.clear(rows, "beyond_low", "beyond_high")
    if compared:
        title += f"; more than shuffled routers in {more}, less in {less}"
        title += f", not resolved in {compared - more - less}" if compared > more + less else ""
    low, high = float(rows["excess"].min()), float(rows["excess"].max())
    return title, f"The layers have {parts.nats(low)} to {parts.nats(high)}{where}."
