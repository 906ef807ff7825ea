"""Figures of ``trained_block_sparsity``: functions of the stored result that say their finding."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.sentences import percent, with_interval
from sparsescope.viz.tokens import display

_AXES = (
    ("token_sparsity", "token_", "TLS: experts that a token does not use"),
    ("chunk_sparsity", "chunk_", "CLS 8: that 8 tokens do not use"),
)


def trade_off(result: Result) -> fig.Figure:
    """Draw the loss of each model against both sparsities, with the dense twin as a line."""
    models, runs = result.tables["models"], result.tables["runs"]
    sparse = models[models["token_sparsity"].notna()]
    dense = models[models["token_sparsity"].isna()]
    figure = fig.panels(1, 2, titles=[title for _, _, title in _AXES], height=340, share_y=True, gap=0.06)
    for place, (name, prefix, _) in enumerate(_AXES, 1):
        for row in dense.itertuples():
            figure.add_hline(
                y=row.loss, line={"color": theme.SLATE, "width": 1.5, "dash": "dash"}, row=1, col=place
            )
            if np.isfinite(row.low):
                figure.add_hrect(
                    y0=row.low, y1=row.high, fillcolor=theme.rgba(theme.SLATE, 0.15), line_width=0,
                    layer="below", row=1, col=place,
                )  # fmt: skip
        single = runs[runs["experts"] > 0]
        _dots(figure, single, name, "one training", theme.VERMILION, "line-ew-open", place)
        if place == 2:
            _dots(figure, sparse, "independent", "CLS 8 of independent tokens", theme.SLATE,
                  "triangle-left-open", place)  # fmt: skip
        _dots(figure, sparse, name, "model, mean over seeds", theme.BLUE, "circle", place)
        values, losses = (sparse[column].to_numpy(float) for column in (name, "loss"))
        figure.data[-1].update(
            error_x=fig.error_bars(values, sparse[f"{prefix}low"], sparse[f"{prefix}high"]),
            error_y=fig.error_bars(losses, sparse["low"], sparse["high"]),
        )
        figure.update_xaxes(title_text="share of experts", tickformat=".0%", row=1, col=place)
    figure.update_yaxes(title_text="loss, nats a token", col=1)
    fig.legend_below(figure)
    twin = "" if dense.empty else f"; dashed: dense twin, {dense['loss'].iloc[0]:.3f} nats"
    subtitle = (
        f"n = {_seeds(models)} seeds for each model, {int(runs['tokens'].max()):,} tokens; bars: Student t "
        f"over seeds{twin}"
    )
    told = "; ".join(
        f"{row.model}: loss {row.loss:.3f}, TLS {percent(row.token_sparsity)}, "
        f"CLS 8 {percent(row.chunk_sparsity)}"
        for row in sparse.head(8).itertuples()
    )
    return fig.describe(
        figure, title=_cost(sparse), subtitle=subtitle, alt=f"Dots, one for each model. {told}."
    )


def _cost(sparse: pd.DataFrame) -> str:
    """The finding of the trade-off: the sparsest model that loses little."""
    cheap = sparse[sparse["increase"] <= 0.02]
    if cheap.empty:
        first = sparse.iloc[0]
        sparsities = percent(first.token_sparsity), percent(first.chunk_sparsity)
        return f"TLS {sparsities[0]} and CLS 8 {sparsities[1]} in the first model"
    best = cheap.loc[cheap["chunk_sparsity"].idxmax()]
    return (
        f"Within 2 % of the dense loss, TLS reaches {percent(best.token_sparsity)} and CLS 8 "
        f"{percent(best.chunk_sparsity)}"
    )


def _seeds(models: pd.DataFrame) -> str:
    found = sorted({int(n) for n in models["seeds"]})
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _dots(
    figure: fig.Figure, rows: pd.DataFrame, column: str, name: str, color: str, symbol: str, place: int
) -> None:
    """Add markers to a panel; the legend names them once."""
    values = rows[column].to_numpy(float)
    texts = [
        f"{row.model}{', ' + row.series if hasattr(row, 'series') else ''}: {percent(value)}, "
        f"loss {row.loss:.4g}"
        for row, value in zip(rows.itertuples(), values, strict=True)
    ]
    figure.add_scatter(
        x=values,
        y=rows["loss"].to_numpy(float),
        name=name,
        mode="markers",
        marker={"color": color, "size": 9, "symbol": symbol},
        showlegend=name not in {trace.name for trace in figure.data},
        legendgroup=name,
        customdata=[display(text, limit=200) for text in texts],
        hovertemplate="%{customdata}<extra></extra>",
        row=1,
        col=place,
    )


def chunks(result: Result) -> fig.Figure:
    """Draw the share of experts that a chunk does not need against its length."""
    table = result.tables["chunks"]
    figure = fig.panels(height=360)
    names = list(dict.fromkeys(table["series"]))
    for number, name in reversed(list(enumerate(names))):
        rows = table[table["series"] == name]
        texts = [
            f"{row.model}, n = {row.length}: {with_interval(row.sparsity, row.low, row.high)}, "
            f"independent {percent(row.independent)}, {row.chunks:,} chunks"
            for row in rows.itertuples()
        ]
        first = number == 0
        fig.line(
            figure, rows["length"], rows["sparsity"], name if first else "other trainings",
            color=theme.BLUE if first else theme.rgba(theme.SLATE, 0.45), texts=texts,
            width=3 if first else 1.2, legend=first or number == len(names) - 1,
        )  # fmt: skip
    own = table[table["series"] == names[0]]
    fig.line(figure, own["length"], own["independent"], f"{names[0]}, independent tokens", color=theme.BLUE,
             dash="dash", symbol=None, legend=True)  # fmt: skip
    figure.update_xaxes(title_text="tokens in a row", type="log", tickvals=sorted(set(table["length"])))
    figure.update_yaxes(title_text="experts that none of them uses", tickformat=".0%", rangemode="tozero")
    fig.legend_below(figure)
    one, last = own.iloc[0], own.iloc[-1]
    title = (
        f"Of the experts, a token leaves out {percent(one.sparsity)}, {last.length} in a row "
        f"{percent(last.sparsity)}; independent tokens {percent(last.independent)}"
    )
    subtitle = f"{display(str(own['model'].iloc[0]), limit=60)}; n = {len(names)} trainings"
    told = "; ".join(f"{row.length} tokens {percent(row.sparsity)}" for row in own.itertuples())
    return fig.describe(
        figure, title=title, subtitle=subtitle, alt=f"Lines, one for each training. {title}. {told}."
    )
