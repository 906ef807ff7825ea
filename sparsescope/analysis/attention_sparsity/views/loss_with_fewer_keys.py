"""``dose_response``: what the loss does when rows keep only some keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsescope.analysis.attention_sparsity.views import parts
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.curves import curve
from sparsescope.viz.sentences import percent

_NAMES = {"top-p": "top-p of the mass", "local": "first 4 and a local window", "random": "random keys (null)"}
_FRAME = 25  # tolerated rises that fit the frame


def dose_response(result: Result) -> fig.Figure:
    """Draw the rise of the loss against attention sparsity for each rule, with critical points."""
    table, points = result.tables["dose_response"], result.tables["critical"]
    if table.empty:
        return fig.empty(
            "Loss against attention sparsity", "this subject predicts no next token, or no dose was asked for"
        )
    figure = fig.panels(height=380)
    tolerated = float(np.log1p(float(result.provenance.get("params", {}).get("tolerance", 0.01))))
    for index, rule in enumerate(dict.fromkeys(table["rule"])):
        curve(
            figure,
            table[table["rule"] == rule].sort_values("sparsity"),
            "rise",
            _NAMES.get(str(rule), str(rule)),
            x="sparsity",
            text=_dose_text,
            show="{:+.4f}".format,
            columns=result.columns["dose_response"],
            color=theme.CATEGORIES["light"][index],
            dash=theme.DASHES[index],
            symbol=theme.MARKERS[index],
            legend=True,
        )
    figure.add_hline(y=tolerated, line={"color": theme.SLATE, "dash": "dash", "width": 1.2})
    found = points.dropna(subset=["sparsity"])
    if len(found):
        texts = [f"{rule}: {percent(x)}" for rule, x in zip(found["rule"], found["sparsity"], strict=True)]
        look: dict[str, Any] = {"color": theme.INK["light"], "symbol": "diamond", "size": 11}
        fig.dots(
            figure, found["sparsity"], [tolerated] * len(found), "critical sparsity", texts=texts, **look
        )
    # The strongest doses cost so much that everything near the tolerance would lie on the axis.
    most = float(np.nanmax(table[["rise", "high"]].to_numpy()))
    low = min(0.0, float(np.nanmin(table[["rise", "low"]].to_numpy())))
    top = max(min(1.1 * most, _FRAME * tolerated), 2 * tolerated)
    cut = bool(table["rise"].max() > top)
    figure.update_yaxes(title_text="rise of the loss (nats per token)", range=[max(1.1 * low, -top / 2), top])
    figure.update_xaxes(
        title_text="attention sparsity: 1 - kept pairs / pairs", tickformat=".0%", range=[0, 1], showgrid=True
    )
    figure.update_layout(showlegend=True)
    title, alt = _texts(result)
    n = table["rows"].max()
    documents = parts.count(int(table["documents"].max()), "document")
    subtitle = f"{n:,} tokens of {documents}; dashed: tolerated rise; bands: paired document bootstrap"
    subtitle += "; higher rises are above the frame, and in the table" if cut else ""
    return fig.describe(figure, result=result, title=title, subtitle=subtitle, alt=alt)


def _dose_text(row: Any, rise: str) -> str:
    return f"{row.setting:g}: sparsity {percent(row.sparsity)} ({percent(1 - row.sparsity)} kept) {rise} nats"


def _texts(result: Result) -> tuple[str, str]:
    """Title and alt text."""
    table = result.tables["dose_response"]
    sentences = []
    for row in result.tables["critical"].itertuples(index=False):
        if np.isfinite(row.sparsity):
            sentences.append(f"{row.rule} {percent(row.sparsity)} [{percent(row.low)}, {percent(row.high)}]")
        else:
            sign, end = ("<", row.smallest) if row.left_censored == "yes" else (">", row.largest)
            sentences.append(f"{row.rule} {'under' if sign == '<' else 'over'} {percent(end)}")
    title = "Sparsity that costs the tolerated rise: " + ", ".join(sentences)
    worst = table.loc[table["rise"].idxmax()]
    alt = f"Line chart of the rise of the loss against attention sparsity. {title}. "
    alt += f"The largest rise is {worst['rise']:.3g} nats ({worst['rule']})."
    return title, alt
