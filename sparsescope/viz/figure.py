"""Building blocks of every figure: panels, lines, bands, direct labels, and the texts a figure must carry.

A finished figure has a title that says what is seen, axis titles with units, and in ``layout.meta`` a
caption and an alt text made from the data. Traces are SVG only (``scatter``, ``bar``, ``heatmap``): few
marks, crisp in print. Every text that comes from data goes through ``tokens.display``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sparsescope.core.result import Result
from sparsescope.viz import theme
from sparsescope.viz.sentences import subject_prefix
from sparsescope.viz.tokens import display

Figure = go.Figure  # what a view returns
MAX_MARKS = 10_000
# Lines of this length fit a printed page.
_TITLE_WIDTH, _SUBTITLE_WIDTH = 82, 104
_LINE = 20


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    titles: Sequence[str] = (),
    height: int = 300,
    share_y: bool | str = False,
    gap: float | None = None,
) -> go.Figure:
    """Return an empty grid of panels.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        titles: Panel titles, row by row.
        height: Height of one panel in pixels.
        share_y: As ``shared_yaxes`` of plotly (``True`` shares along rows, ``"all"`` everywhere).
        gap: Space between columns as a fraction of the width.
    """
    gap = gap if gap is not None else (0.04 if share_y else 0.09)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[display(t) for t in titles] or None,
        shared_yaxes=share_y,
        horizontal_spacing=gap if columns > 1 else 0,
        vertical_spacing=min(0.16, 0.9 / max(rows, 1)) if rows > 1 else 0,
    )
    for annotation in figure.layout.annotations:
        annotation.update(font={"size": 13, "weight": 600}, yshift=2)
    figure.update_layout(template=theme.template("light"), height=rows * height + 140, hovermode="closest")
    return figure


def place_of(index: int, columns: int) -> dict[str, Any]:
    """Row and column, from 1, of the panel with this index in a grid that is filled row by row."""
    return {"row": index // columns + 1, "column": index % columns + 1}


def describe(
    figure: go.Figure, *, title: str, subtitle: str, alt: str, caption: str = "", result: Result | None = None
) -> go.Figure:
    """Set title, subtitle, alt text and caption; all are treated as foreign text.

    Args:
        figure: The figure, changed in place.
        title: What is seen, as a sentence in plain language.
        subtitle: What is drawn: quantity, sample, meaning of bands and dotted lines.
        alt: One or two sentences with the main numbers, for people who do not see the figure.
        caption: How to read it; the report and the app show it beside the figure.
        result: What is drawn; the subtitle begins with the name of its subject.
    """
    subtitle = (subject_prefix(result) if result is not None else "") + subtitle
    # A percent sign stays with its number: textwrap does not break at a no-break space.
    head = textwrap.wrap(display(title, limit=240).replace(" %", "\N{NO-BREAK SPACE}%"), _TITLE_WIDTH) or [""]
    below = textwrap.wrap(display(subtitle, limit=480).replace(" %", "\N{NO-BREAK SPACE}%"), _SUBTITLE_WIDTH)
    figure.update_layout(
        title={
            "text": "<b>" + "<br>".join(head) + "</b>",
            "subtitle": {"text": "<br>".join(below)},
            # plotly centres a title of several lines on the place of one line: make room above.
            "pad": {"l": 12, "t": 6 + (_LINE * (len(head) - 1)) // 2},
        },
        meta={
            "alt": display(alt, limit=600, markup=False),
            "caption": display(caption, limit=2000, markup=False),
        },
    )
    # Also for figures that were not made by ``panels``: one theme, and a height that the page can reserve.
    figure.update_layout(template=theme.template("light"), height=figure.layout.height or 440)
    panel_titles = any(a.yref == "paper" for a in figure.layout.annotations)
    figure.update_layout(margin={"t": 34 + _LINE * len(head) + 17 * len(below) + (18 if panel_titles else 0)})
    return figure


def line(
    figure: go.Figure,
    x: Sequence[Any] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    name: str,
    *,
    color: str,
    texts: Sequence[str] | None = None,
    dash: str = "solid",
    symbol: str | None = "circle",
    width: float = 2,
    row: int = 1,
    column: int = 1,
    legend: bool = False,
    **options: Any,
) -> None:
    """Add one line. Infinite values are left out; ``texts`` are the hover texts.

    Args:
        figure: Target.
        x: Positions.
        y: Values.
        name: Name in the hover label and the legend.
        color: Hex color of the light palette.
        texts: Hover text of each point.
        dash: plotly dash style.
        symbol: Marker symbol, or None for no markers.
        width: Line width in pixels.
        row: Panel row, from 1.
        column: Panel column, from 1.
        legend: Whether the line is in the legend.
        **options: Further plotly trace options.
    """
    values = np.asarray(y, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    few = len(values) <= 48
    label = display(name, limit=60)
    figure.add_trace(
        go.Scatter(
            x=x,
            y=values,
            name=label,
            mode="lines+markers" if symbol and few else "lines",
            line={"color": color, "width": width, "dash": dash},
            marker={"color": color, "size": 5, "symbol": symbol or "circle"},
            showlegend=legend,
            connectgaps=False,
            **({} if texts is None else _hover(texts, label)),
            **options,
        ),
        row=row,
        col=column,
    )


def _hover(texts: Sequence[str], label: str) -> dict[str, Any]:
    """Trace options of hover texts; ``label`` stands beside them."""
    shown = [display(text, limit=200) for text in texts]
    return {"customdata": shown, "hovertemplate": f"%{{customdata}}<extra>{label}</extra>"}


def dots(
    figure: go.Figure,
    x: Sequence[Any] | np.ndarray,
    y: Sequence[Any] | np.ndarray,
    name: str,
    *,
    color: str,
    texts: Sequence[str],
    symbol: str | list[str] = "circle",
    size: int = 9,
) -> None:
    """Add markers without a line, with a name in the legend; ``texts`` are the hover texts."""
    label = display(name, limit=60)
    marker = {"color": color, "size": size, "symbol": symbol}
    figure.add_scatter(
        x=x, y=y, name=label, mode="markers", marker=marker, showlegend=True, **_hover(texts, label)
    )


def bars(
    figure: go.Figure,
    x: Sequence[Any] | np.ndarray,
    y: Sequence[Any] | np.ndarray,
    name: str,
    *,
    color: str,
    texts: Sequence[str],
    row: int = 1,
    column: int = 1,
    **options: Any,
) -> None:
    """Add bars; the legend names them once for all panels.

    Args:
        figure: Target.
        x: Positions or names.
        y: Heights.
        name: Name in the legend.
        color: Hex color of the light palette.
        texts: Hover text of each bar; the name stands beside it.
        row: Panel row, from 1.
        column: Panel column, from 1.
        **options: Further plotly trace options.
    """
    label = display(name, limit=60)
    figure.add_bar(
        x=x,
        y=y,
        name=label,
        legendgroup=label,
        showlegend=label not in {trace.name for trace in figure.data},
        marker={"color": color, "line": {"width": 0}},
        row=row,
        col=column,
        **_hover(texts, label),
        **options,
    )


def error_bars(values: Any, low: Any, high: Any, **look: Any) -> dict[str, Any]:
    """Error bars of a trace from the ends of intervals; none where there is no interval.

    Args:
        values: Where the marks are.
        low: Lower ends.
        high: Upper ends.
        **look: What differs from the usual bars, for example ``thickness=1.3``.
    """
    middle = np.asarray(values, float)
    up, down = np.asarray(high, float) - middle, middle - np.asarray(low, float)
    known = np.isfinite(up) & np.isfinite(down)
    return {
        "type": "data",
        "symmetric": False,
        # An interval of a bootstrap need not hold the value; a bar has no negative length
        "array": np.where(known, np.maximum(up, 0), 0),
        "arrayminus": np.where(known, np.maximum(down, 0), 0),
        "thickness": 1.5,
        "width": 3,
        **look,
    }


def band(
    figure: go.Figure,
    x: Sequence[float] | np.ndarray,
    low: Any,
    high: Any,
    *,
    color: str,
    row: int = 1,
    column: int = 1,
    alpha: float = 0.18,
) -> bool:
    """Shade between ``low`` and ``high`` where both are finite; say whether anything was drawn.

    A point whose neighbours have no interval is drawn as a narrow box, so that one layer is enough.
    """
    x, low, high = (np.asarray(v, dtype=float) for v in (x, low, high))
    good = np.isfinite(x) & np.isfinite(low) & np.isfinite(high)
    if not good.any():
        return False
    xs: list[float | None] = []
    ys: list[float | None] = []
    with np.errstate(over="ignore"):
        steps = np.diff(np.unique(x[good]))
    step = np.min(steps, initial=np.inf) if np.isfinite(steps).any() else 1.0
    for run in np.split(np.flatnonzero(good), np.flatnonzero(np.diff(np.flatnonzero(good)) > 1) + 1):
        at, lower, upper = x[run], low[run], high[run]
        if len(run) == 1:
            at = np.array([at[0] - 0.15 * step, at[0] + 0.15 * step])
            lower, upper = np.repeat(lower, 2), np.repeat(upper, 2)
        xs += [*at, *at[::-1], None]
        ys += [*lower, *upper[::-1], None]
    figure.add_trace(
        go.Scatter(
            x=xs,
            y=ys,
            fill="toself",
            fillcolor=theme.rgba(color, alpha),
            mode="lines",
            line={"width": 0, "color": color},
            hoverinfo="skip",
            showlegend=False,
        ),
        row=row,
        col=column,
    )
    return True


def spread(
    values: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move values apart until neighbours are at least ``gap`` apart, moving each as little as possible.

    All stay within ``low`` and ``high`` (if there is room). Source: pool-adjacent-violators on
    ``value - rank * gap`` (isotonic regression), which is the least-squares solution; clipping keeps it so.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []  # [mean, size]
    for rank, index in enumerate(order):
        blocks.append([values[index] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * size) / (blocks[-1][1] + size),
                blocks[-1][1] + size,
            ]
    most = high - (len(values) - 1) * gap
    flat = [max(min(mean, most), low) for mean, size in blocks for _ in range(int(size))]
    placed = [0.0] * len(values)
    for rank, index in enumerate(order):
        placed[index] = flat[rank] + rank * gap
    return placed


def end_labels(
    figure: go.Figure,
    labels: Sequence[tuple[float, str]],
    *,
    x: float,
    y_range: tuple[float, float],
    panel_height: float,
    row: int = 1,
    column: int = 1,
) -> None:
    """Write names at the right ends of lines, moved apart so that they never overlap.

    Args:
        figure: Target.
        labels: ``(y, text)`` for each line. The text is in ink: most line colors are too pale for words.
        x: Where the lines end.
        y_range: Range of the y axis.
        panel_height: Height of the panel in pixels.
        row: Panel row, from 1.
        column: Panel column, from 1.
    """
    finite = [item for item in labels if math.isfinite(item[0])]
    gap = 15 * (y_range[1] - y_range[0]) / panel_height
    for y, (_, text) in zip(spread([item[0] for item in finite], gap, *y_range), finite, strict=True):
        figure.add_annotation(
            x=x,
            y=y,
            text=display(text, limit=40),
            xanchor="left",
            xshift=7,
            showarrow=False,
            font={"color": theme.INK["light"], "size": 12},
            row=row,
            col=column,
        )


def color_bar(figure: go.Figure, low: float, high: float, title: str) -> None:
    """Add a color bar for lines that are colored by an ordered quantity (they carry no scale themselves)."""
    ticks = sorted({round(low + (high - low) * i / 4) for i in range(5)})
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            showlegend=False,
            hoverinfo="skip",
            marker={
                "color": [low, high],
                "colorscale": theme.ramp_scale(),
                "cmin": low,
                "cmax": high if high > low else low + 1,
                "showscale": True,
                "colorbar": {
                    "title": {"text": display(title), "font": {"size": 12}},
                    "thickness": 12,
                    "outlinewidth": 0,
                    "tickvals": ticks,
                    "len": 0.9,
                },
            },
        )
    )


def integer_axis(
    figure: go.Figure, values: Any, title: str, *, ticks: int = 16, pad: float = 0.6, **place: Any
) -> None:
    """Set an x axis with whole-number ticks (layers, heads), at most about ``ticks`` of them."""
    finite = [float(v) for v in values if math.isfinite(float(v))] or [0.0]
    low, high = min(finite), max(finite)
    step = next(
        (s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500) if (high - low) / s < ticks), (high - low) / ticks
    )
    figure.update_xaxes(
        title_text=display(title), range=[low - pad, high + pad], tick0=0, dtick=step, tickformat="d", **place
    )


def y_axes(figure: go.Figure, title: str, **options: Any) -> None:
    """Set all y axes; the title stands at the left of each row only."""
    figure.update_yaxes(**options)
    figure.update_yaxes(title_text=display(title), col=1)


def legend_below(figure: go.Figure) -> None:
    """Show the legend in one line below the panels."""
    figure.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.22, "x": 0})


def empty(title: str, message: str) -> go.Figure:
    """Return a figure that says why there is nothing to draw."""
    figure = panels(height=120)
    figure.add_annotation(
        text=display(message, limit=200), x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 14}
    )
    figure.update_xaxes(visible=False, title_text="nothing to draw")
    figure.update_yaxes(visible=False, title_text="nothing to draw")
    return describe(figure, title=title, subtitle="", alt=f"{title}: {message}")


def thin(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` indices of ``range(count)``, evenly spread, first and last included."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.round(np.linspace(0, count - 1, max(most, 2))).astype(int))


def mark_count(figure: go.Figure) -> int:
    """Return the number of marks of a figure: points of lines and bars, cells of heat maps."""
    total = 0
    for trace in figure.data:
        cells = getattr(trace, "z", None)
        if cells is not None:
            total += sum(len(row) for row in cells)
        else:
            total += max(len(values) for values in (trace.x, trace.y, ()) if values is not None)
    return total
