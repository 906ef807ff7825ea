"""Figures of ``steering``."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.tokens import display

_CHOSEN = "chosen on training documents"


def _colors(result: Result) -> dict[str, str]:
    names = list(dict.fromkeys(result.tables["methods"]["method"]))
    hues = [color for color in theme.CATEGORIES["light"] if color != theme.SLATE]
    return {
        name: theme.SLATE if name == "random" else hues[place % len(hues)] for place, name in enumerate(names)
    }


def lifts(result: Result) -> fig.Figure:
    """Draw the lift of each method at each divergence."""
    return _by_target(result, "lift", ("low", "high"))


def contrasts(result: Result) -> fig.Figure:
    """Draw adding against subtracting."""
    return _by_target(result, "contrast", ("contrast_low", "contrast_high"))


def _by_target(result: Result, column: str, ends: tuple[str, str]) -> fig.Figure:
    table, colors = result.tables["methods"], _colors(result)
    figure = fig.panels(height=340)
    last = _CHOSEN if column == "lift" else "mean"
    for place, (name, color) in enumerate(colors.items()):
        rows = table[table["method"] == name]
        at = [last if target == _CHOSEN else f"KL {target}" for target in rows["target"]]
        values, low, high = (rows[part].to_numpy() for part in (column, *ends))
        texts = [
            f"{name}, {where}: {value:+.3f} [{a:+.3f}, {b:+.3f}] nats"
            for where, value, a, b in zip(at, values, low, high, strict=True)
        ]
        symbol = theme.MARKERS[place % len(theme.MARKERS)]
        fig.dots(figure, at, values, name, color=color, texts=texts, symbol=symbol, size=9)
        figure.data[-1].update(error_y=fig.error_bars(values, low, high))
    figure.update_layout(scattermode="group", scattergap=0.6)
    figure.add_hline(y=0, line=theme.LEVEL)
    figure.update_xaxes(title_text="KL divergence on neutral text, nats a token")
    fig.y_axes(figure, f"{column}, nats a token")
    fig.legend_below(figure)
    final = table[table["target"] == _CHOSEN].sort_values(column, ascending=False)
    parts = [f"{row.method} {getattr(row, column):+.3f}" for row in final.itertuples()]
    title = f"{column.capitalize()}: {', '.join(parts)} nats a token"
    alt = f"Dots with intervals by divergence. {title}."
    subtitle = (
        f"mean over {int(table['concepts'].max())} concepts, test documents; bars: intervals over concepts"
    )
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def detection(result: Result) -> fig.Figure:
    """Draw how well directions tell their concepts."""
    table, colors = result.tables["detection"], _colors(result)
    figure = fig.panels(height=max(160, 34 * len(table) + 60))
    for row in table.itertuples():
        text = f"{row.method}: {row.auroc:.3f} [{row.low:.3f}, {row.high:.3f}]"
        name = str(row.method)
        fig.dots(
            figure, [row.auroc], [display(name, limit=40)], name, color=colors[name], texts=[text], size=10
        )
        figure.data[-1].update(error_x=fig.error_bars([row.auroc], [row.low], [row.high]), showlegend=False)
    figure.add_vline(x=0.5, line=theme.LEVEL)
    figure.update_xaxes(title_text="area under the ROC curve, mean over concepts")
    figure.update_yaxes(automargin=True, autorange="reversed", title_text="method")
    parts = [f"{row.method} {row.auroc:.2f}" for row in table.itertuples()]
    title = f"Directions tell their concept: {', '.join(parts)}"
    alt = f"Dots with intervals. {title}; chance is 0.5."
    subtitle = f"{int(table['documents'].max())} documents that nothing was chosen on; chance: 0.5"
    return fig.describe(figure, title=title, subtitle=subtitle, alt=alt, result=result)


def concepts(result: Result) -> fig.Figure:
    """Draw the contrast of every method for each concept."""
    table, colors = result.tables["concepts"], _colors(result)
    order = table[table["method"] != "random"].groupby("concept")["contrast"].max().sort_values().index
    names = [display(name, limit=40) for name in order][-40:]
    figure = fig.panels(height=max(200, 22 * len(names) + 60))
    for place, (name, color) in enumerate(colors.items()):
        rows = table[table["method"] == name]
        at = [display(concept, limit=40) for concept in rows["concept"]]
        texts = [
            f"{row.concept}, {row.direction or name}: {row.contrast:+.3f} nats, area {row.auroc:.2f}"
            for row in rows.itertuples()
        ]
        symbol = theme.MARKERS[place % len(theme.MARKERS)]
        fig.dots(
            figure, rows["contrast"].to_numpy(), at, name, color=color, texts=texts, symbol=symbol, size=8
        )
    figure.add_vline(x=0, line=theme.LEVEL)
    figure.update_yaxes(categoryorder="array", categoryarray=names, automargin=True, title_text="concept")
    figure.update_xaxes(title_text="contrast, nats a token")
    fig.legend_below(figure)
    wins = table.loc[table.groupby("concept")["contrast"].idxmax()]["method"].value_counts()
    parts = [f"{name} {count}" for name, count in wins.items()]
    title = f"Largest contrast for so many of {len(order)} concepts: {', '.join(parts)}"
    alt = f"Dots of contrasts by concept. {title}."
    return fig.describe(figure, title=title, subtitle="mean over divergences", alt=alt, result=result)
