"""One measure of several subjects in one plot: a line for each, dashed for controls, bands where
there are intervals.

A control has the color of the subject that it belongs to, so pairs are seen together; subjects differ in
color and marker. Colors follow the order of declaration, so the same subject looks the same in every
figure of a study. Shapes: plain frames with the columns ``x``, ``y`` and, where there is an interval,
``low`` and ``high``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.columns import Column
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.steps import StepAxis
from sparsescope.viz.tables import format_cell, heading, is_share
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEIGHT = 360


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a comparison.

    Attributes:
        name: Name in the legend.
        color: Index of the subject it belongs to; a control has that of its subject.
        control: Whether it is a control: dashed, with open markers.
        frame: Columns ``x``, ``y`` and optionally ``low`` and ``high``; one row for each x.
        reference: Values of a reference at the same x, drawn dotted; empty for none.
    """

    name: str
    color: int
    control: bool
    frame: pd.DataFrame
    reference: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Axes:
    """What the axes of a comparison show.

    Attributes:
        x: The column on the horizontal axis.
        y: The column on the vertical axis.
        y_title: Title of the vertical axis; the heading of ``y`` when empty.
        metric: Value of the metric column of the rows, which decides whether a fraction is a share.
        relative: Whether x was stretched to 0-1.
        reference_title: What the reference is.
        log_x: Whether the horizontal axis is logarithmic.
        log_y: Whether the vertical axis is logarithmic.
    """

    x: Column
    y: Column
    y_title: str = ""
    metric: str | None = None
    relative: bool = False
    reference_title: str = "reference"
    log_x: bool = False
    log_y: bool = False


def compare_lines(
    lines: Sequence[Line], axes: Axes, *, title: str, caption: str = "", remarks: Sequence[str] = ()
) -> go.Figure:
    """Draw the lines of several subjects.

    Args:
        lines: In the order of the legend.
        axes: What is drawn.
        title: What is compared; where there is more than one subject the title of the figure
            says what is seen.
        caption: How to read it.
        remarks: What the reader must know about the lines, for the subtitle.

    Returns:
        A figure with alt text; it says so where there is nothing to draw.
    """
    drawn = [line for line in lines if np.isfinite(_numbers(line.frame["y"])).any()]
    if not drawn:
        return fig.empty(title, "no subject has a finite number here")
    percent = axes.y.kind == "fraction" and (axes.metric is None or is_share(axes.metric))
    steps = _steps(drawn, axes)
    if steps is not None:
        drawn = [replace(line, frame=_placed(line.frame, steps)) for line in drawn]
    figure = fig.panels(height=_HEIGHT)
    most = fig.MAX_MARKS // (4 * len(drawn))
    bands = False
    for line in drawn:
        frame = line.frame.iloc[fig.thin(len(line.frame), most)]
        color = theme.CATEGORIES["light"][line.color % len(theme.CATEGORIES["light"])]
        if {"low", "high"} <= set(frame):
            bands |= fig.band(
                figure,
                frame["x"],
                frame["low"],
                frame["high"],
                color=color,
                alpha=0.12 if line.control else 0.22,
            )
        symbol = theme.MARKERS[line.color % len(theme.MARKERS)]
        fig.line(
            figure,
            frame["x"].to_numpy(),
            frame["y"],
            line.name,
            color=color,
            dash="dash" if line.control else "solid",
            symbol=f"{symbol}-open" if line.control else symbol,
            width=1.6 if line.control else 2.4,
            legend=True,
            texts=_hover(line.name, frame, axes, percent),
        )
    dotted = _reference(figure, drawn, most, axes.reference_title)
    _style(figure, drawn, axes, percent, steps)
    parts = ["dashed: controls"] if any(line.control for line in drawn) else []
    parts += ["bands: intervals"] if bands else []
    parts += [f"dotted: {axes.reference_title}"] if dotted else []
    missing = len(lines) - len(drawn)
    parts += [f"{missing} without a finite number"] if missing else []
    # The description of a column may be a formula of its own; the caption of the study says how
    # to read the figure.
    return fig.describe(
        figure,
        title=_seen(drawn, axes, percent) or title,
        subtitle="; ".join([*parts, *remarks]),
        alt=_alt(drawn, axes, percent),
        caption=caption,
    )


def _reference(figure: go.Figure, lines: Sequence[Line], most: int, name: str) -> bool:
    """Draw the reference of the lines: one gray line where they agree to three digits, else one for each."""
    having = [line for line in lines if line.reference and np.isfinite(line.reference).any()]
    same = len({float(f"{v:.3g}") for line in having for v in line.reference if np.isfinite(v)}) == 1
    if same:
        value = float(np.nanmedian(having[0].reference))
        ends = [float(f(_numbers(line.frame["x"]))) for line in having for f in (np.nanmin, np.nanmax)]
        options: dict[str, Any] = {
            "color": theme.SLATE,
            "dash": "dot",
            "symbol": None,
            "width": 1.5,
            "legend": True,
        }
        fig.line(
            figure, [min(ends), max(ends)], [value, value], name, texts=[f"{name} {value:.4g}"] * 2, **options
        )
        return True
    for line in having:
        keep = fig.thin(len(line.frame), most)
        color = theme.CATEGORIES["light"][line.color % len(theme.CATEGORIES["light"])]
        values = np.asarray(line.reference)[keep]
        texts = [f"{name} of {line.name}: {value:.4g}" for value in values]
        fig.line(
            figure,
            line.frame["x"].to_numpy()[keep],
            values,
            name,
            color=color,
            dash="dot",
            symbol=None,
            width=1.2,
            texts=texts,
        )
    return bool(having)


def _steps(lines: Sequence[Line], axes: Axes) -> StepAxis | None:
    """The axis of training steps, where it is logarithmic: step 0 has a place of its own."""
    if not axes.log_x or axes.relative or axes.x.kind != "step":
        return None
    found = sorted({int(step) for line in lines for step in _numbers(line.frame["x"])})
    return StepAxis(tuple(found), log=True) if found[-1] > 0 else None


def _placed(frame: pd.DataFrame, steps: StepAxis) -> pd.DataFrame:
    """The rows at their places on the axis; ``at`` keeps the steps for the hover texts."""
    return frame.assign(at=frame["x"], x=steps.x(frame["x"]))


def _style(
    figure: go.Figure, lines: Sequence[Line], axes: Axes, percent: bool, steps: StepAxis | None
) -> None:
    """Axis titles and forms, and a legend that has room."""
    x_title = f"relative {axes.x.name} (0 first, 1 last)" if axes.relative else heading(axes.x)
    if axes.x.kind in {"layer", "head", "expert"} and not axes.relative and not axes.log_x:
        fig.integer_axis(figure, [v for line in lines for v in line.frame["x"]], x_title)
    figure.update_xaxes(title_text=display(x_title), type="log" if axes.log_x else "linear")
    if steps is not None:
        steps.arrange(figure)
    elif axes.log_x:  # plain numbers of steps; plotly would write 1k, and 100µ below
        figure.update_xaxes(exponentformat="none", separatethousands=True)
    if axes.relative:
        figure.update_xaxes(range=[-0.03, 1.03])
    y_title = axes.y_title or heading(axes.y)
    figure.update_yaxes(title_text=display(y_title), tickformat=".4~%" if percent else None)
    figure.update_yaxes(type="log", exponentformat="power") if axes.log_y else figure.update_yaxes(
        rangemode="tozero"
    )
    rows = -(-len(lines) // 3)  # about three names fit a row on a page
    figure.update_layout(height=(figure.layout.height or _HEIGHT) + 22 * rows, margin={"b": 70 + 22 * rows})
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"})


def _hover(name: str, frame: pd.DataFrame, axes: Axes, percent: bool) -> list[str]:
    metric = None if percent else axes.metric or ""
    texts = []
    for row in frame.to_dict("records"):
        show = format_cell(row["y"], axes.y, metric)
        low, high = row.get("low", np.nan), row.get("high", np.nan)
        if np.isfinite(low) and np.isfinite(high):
            show += " [" + ", ".join(format_cell(end, axes.y, metric) for end in (low, high)) + "]"
        texts.append(f"{name}, {axes.x.name} {row.get('at', row['x']):g}: {show}")
    return texts


def _seen(lines: Sequence[Line], axes: Axes, percent: bool) -> str:
    """Say which subject lies lowest and which highest, by the median over x; controls are not meant by it.

    Over training lines cross, so there it is said from where to where each one runs.
    """
    own = [line for line in lines if not line.control]
    if axes.x.kind == "step":
        return (
            "From first to last step: " + "; ".join(_course(line, axes, percent) for line in own)
            if len(own) <= 4
            else ""
        )
    if len(own) < 2:
        return ""
    ranked = sorted(own, key=lambda line: float(np.nanmedian(_numbers(line.frame["y"]))))
    what = axes.y_title or heading(axes.y)
    low, high = (f"{line.name} ({_range(line, axes, percent)})" for line in (ranked[0], ranked[-1]))
    return f"{what[:1].upper()}{what[1:]}: lowest in {low}, highest in {high}"


def _course(line: Line, axes: Axes, percent: bool) -> str:
    """The first and the last value of a line."""
    values = _numbers(line.frame.sort_values("x")["y"])
    values = values[np.isfinite(values)]
    return (
        f"{line.name} {_brief(float(values[0]), axes, percent)} to {_brief(float(values[-1]), axes, percent)}"
    )


def _range(line: Line, axes: Axes, percent: bool) -> str:
    """The smallest and the largest value of a line."""
    values = _numbers(line.frame["y"])
    values = values[np.isfinite(values)]
    low, high = (_brief(float(v), axes, percent) for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _brief(value: float, axes: Axes, percent: bool) -> str:
    """A number for a sentence: three digits, a share never rounded to 0 or 100 %."""
    if percent and 0.0005 <= value < 0.9995:
        return f"{100 * value:.3g} %"
    return format_cell(value, axes.y) if percent else f"{value:.3g}"


def _alt(lines: Sequence[Line], axes: Axes, percent: bool) -> str:
    """The range of every line, for people who do not see the figure."""
    what = axes.y_title or heading(axes.y)
    parts = "; ".join(f"{line.name} {_range(line, axes, percent)}" for line in lines)
    return f"Line chart of {what} against {axes.x.name}, one line for each subject: {parts}."


def _numbers(values: pd.Series) -> np.ndarray:
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
