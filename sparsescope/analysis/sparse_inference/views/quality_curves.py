"""``quality``: what unread bytes cost, as KL divergence and as perplexity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sparsescope.analysis.sparse_inference.statements import (
    DENSE,
    middle_target,
    params_of,
    policy_words,
    spoken,
)
from sparsescope.analysis.sparse_inference.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent

_TOLERANCES = (0.01, 0.05, 0.1)
_TICKS = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)]


def quality(result: Result, value: str) -> fig.Figure:
    """Draw KL and the rise of the perplexity against realised bytes under one prefix policy."""
    table = result.tables["quality"]
    # exp of a difference of mean losses is the ratio of perplexities, ends of intervals included
    rises = {
        name: np.expm1(table[name.replace("rise", "loss")].clip(upper=50))
        for name in ("rise", "rise_low", "rise_high")
    }
    table = table.assign(**rises)
    table = table[table["prefix"] == value]
    names, looks = parts.methods_of(table, result), parts.looks(result)
    sparse = table[(table["method"] != DENSE) & (table["kl"] > 0)]
    if sparse.empty:
        return fig.empty("What unread weights cost", "no method was measured under this policy")
    floor = float(sparse["kl"].min()) / 2
    figure = fig.panels(
        1, 2, titles=["KL divergence (logarithmic)", "perplexity, near the tolerances"], height=parts.HEIGHT
    )
    apart = parts.beside(result)
    for name in reversed(names):  # the reference is drawn last, over the others
        own = table[table["method"] == name].sort_values("realised")
        line = name not in apart and len(own) > 1
        _method(figure, own, table[table["method"] == DENSE], name, looks[name], floor, line=line)
    for row in table.itertuples():
        if parts.pruned(row.method):
            _pruned(figure, row, looks[row.method])
    top = _perplexity_axis(figure, table, _tolerances(result))
    _kl_axis(figure, sparse, floor)
    figure.update_xaxes(title_text=parts.BLOCK, tickformat=".0%", rangemode="tozero")
    most = float(table["realised"].max())
    near = table[table["rise"] <= top]["realised"].max()
    figure.update_xaxes(range=[-0.03, 1.04 * most], row=1, col=1)
    figure.update_xaxes(range=[-0.03, min(1.04 * most, float(near) + 0.1)], row=1, col=2)
    figure.update_layout(legend={"traceorder": "reversed"})
    parts.legend_below(figure)
    title, more = _found(result, sparse[~sparse["method"].map(parts.pruned)])
    alt = f"Two charts against the {parts.BLOCK}: KL divergence and rise of perplexity. {title}. {more}"
    subtitle = (
        f"{policy_words(value)}; {parts.documents(table)}, {int(table['tokens'].max()):,} targets; bands and "
    )
    subtitle += f"bars: {_level(result)}paired document-cluster bootstrap; dotted: tolerances"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def _level(result: Result) -> str:
    level = params_of(result).get("level")
    return "" if level is None else f"{100 * float(level):g} % "


def _tolerances(result: Result) -> tuple[float, ...]:
    table = result.tables.get("usable_range")
    if table is not None and len(table):
        return tuple(sorted(map(float, table["tolerance"].unique())))
    return tuple(params_of(result).get("tolerances") or _TOLERANCES)


def _method(
    figure: fig.Figure,
    own: pd.DataFrame,
    dense: pd.DataFrame,
    name: str,
    look: dict[str, Any],
    floor: float,
    *,
    line: bool,
) -> None:
    """Draw one method in both panels; one that was measured at few targets as markers alone."""
    positive = own[own["kl"] > 0]
    positive = positive.assign(kl_low=positive["kl_low"].clip(lower=floor))  # zero has no place on the axis
    whole = pd.concat([dense, own]) if line else own
    for column, rows, y, show in ((1, positive, "kl", _nats), (2, whole, "rise", _signed)):
        ends = rows[f"{y}_low"].to_numpy(float), rows[f"{y}_high"].to_numpy(float)

        def text(at: Any, shown: str = "", y: str = y, show: Any = show) -> str:
            value, low, high = (show(getattr(at, y + end)) for end in ("", "_low", "_high"))
            return (
                f"{percent(at.realised)} unread ({percent(at.target)} asked for): {value} [{low}, {high}]; "
                f"same token {percent(at.agreement)}, perplexity {at.perplexity:.4g}"
            )

        place: dict[str, Any] = {"column": column}
        if line:  # many bands over one another would hide the thickest line: the others are faint
            alpha = 0.16 if column == 1 or look["width"] > 2 else 0.06
            fig.band(figure, rows["realised"], *ends, color=look["color"], alpha=alpha, **place)
            place |= {"legend": column == 1, **look}
            curve(figure, rows, y, name, x="realised", text=text, **place)
        else:
            parts.marks(
                figure,
                rows["realised"].to_numpy(),
                rows[y].to_numpy(),
                name,
                texts=[f"{name}: {text(at)}" for at in rows.itertuples()],
                marker={"color": look["color"], "symbol": look["symbol"], "size": 8},
                error_y=fig.error_bars(rows[y], *ends),
                showlegend=column == 1,
                **place,
            )


def _pruned(figure: fig.Figure, row: Any, look: dict[str, Any]) -> None:
    marker = {"color": look["color"], "symbol": look["symbol"], "size": 11}
    for column, y, show in ((1, "kl", _nats), (2, "rise", _signed)):
        at, low, high = (getattr(row, y + end) for end in ("", "_low", "_high"))
        if column == 1 and not at > 0:
            continue
        text = f"{row.method}: {show(at)} [{show(low)}, {show(high)}], {percent(row.realised)} unread"
        parts.marks(
            figure, [row.realised], [at], row.method, texts=[text], marker=marker, column=column,
            showlegend=column == 1, error_y=fig.error_bars([at], [low], [high]),
        )  # fmt: skip


def _kl_axis(figure: fig.Figure, sparse: pd.DataFrame, floor: float) -> None:
    """Decimal ticks: at most two or three decades are shown, and 0.02 is read faster than a power."""
    top = float(np.nanmax([*sparse["kl"], *sparse["kl_high"]]))
    ticks = [tick for tick in _TICKS if floor <= tick <= 1.5 * top]
    if len(ticks) > 9:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    figure.update_yaxes(
        type="log", range=[np.log10(floor), np.log10(1.3 * top)], tickvals=ticks,
        ticktext=[f"{tick:g}" for tick in ticks], title_text="KL(dense || sparse), nats", row=1, col=1,
    )  # fmt: skip


def _perplexity_axis(figure: fig.Figure, table: pd.DataFrame, tolerances: tuple[float, ...]) -> float:
    """Show what is near the tolerances; where nothing is, all."""
    most, top = float(table["rise"].max()), 3 * max(tolerances)
    sparse = table[table["method"] != DENSE]
    top = most * 1.1 if (sparse["rise"] > top).all() else min(top, max(1.1 * most, 1.2 * max(tolerances)))
    low = max(min(float(sparse["rise"].min()), 0.0), -top)
    for tolerance in tolerances:
        figure.add_hline(y=tolerance, line=theme.LEVEL, row=1, col=2)
    figure.update_yaxes(
        range=[1.1 * low - 0.03 * top, top], tickformat="+.0%" if top > 0.06 else "+.1%",
        title_text="rise of the perplexity", row=1, col=2,
    )  # fmt: skip
    return top


def _found(result: Result, sparse: pd.DataFrame) -> tuple[str, str]:
    """The title, and what else the alt text says."""
    target = middle_target(result, sparse)
    here = sparse[sparse["target"] == target].sort_values("kl")
    said = [f"{spoken(row.method)} at {_nats(row.kl)}" for row in here.itertuples()]
    title = f"With about {percent(target)} of the block bytes unread KL is lowest for {said[0]}"
    title += f", then {parts.listed(said[1:3])}" if len(said) > 1 else ""
    rises = [f"{row.method} {_signed(row.rise)}" for row in here.head(6).itertuples()]
    return title, f"Rise of the perplexity there: {', '.join(rises)}."


def _nats(value: float) -> str:
    return f"{value:.3g} nats" if np.isfinite(value) else "\N{EN DASH}"


def _signed(value: float) -> str:
    return f"{100 * value:+.3g} %" if np.isfinite(value) else "\N{EN DASH}"
