"""One palette for every figure, in a light and a dark form.

Figures are drawn in the light form; every color has a dark twin, so ``restyle`` (and the few lines of script
in a report) can turn a finished figure around without drawing it again. Text has a contrast of at least
4.5:1, lines at least 3:1. Ordered quantities (layers, shares) use viridis, cut off where it fades into the
background; heat maps use cividis, which reads the same with any color vision. Categories also differ in dash
and marker.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Literal

import plotly.colors as pc
import plotly.graph_objects as go

Mode = Literal["light", "dark"]
Hue = Literal["blue", "vermilion"]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"

BACKGROUND = {"light": "#ffffff", "dark": "#11151a"}
INK = {"light": "#1b1f24", "dark": "#e6e9ec"}
MUTED = {"light": "#57606a", "dark": "#a3adb8"}
GRID = {"light": "#e4e7eb", "dark": "#2b323a"}
AXIS = {"light": "#8c959f", "dark": "#6e7883"}

# Okabe-Ito hues, darkened (light form) or lightened (dark form) until text in them is readable.
CATEGORIES = {
    "light": ("#0064a6", "#b34400", "#00715a", "#8a3b92", "#7a6200", "#4a535d", "#a3174f", "#3d5a00"),
    "dark": ("#6cb6ff", "#ff9b6a", "#4fd1a5", "#d79be0", "#e3c04d", "#b9c2cc", "#ff8fb4", "#a9d158"),
}
# Ordered classes in stacked bars: never, then rarely to often in five steps, then always.
CLASSES = {
    "light": ("#b34400", "#dfebf6", "#b3cfe8", "#84aed6", "#4f87bd", "#24578f", "#0b1f36"),
    "dark": ("#ff9b6a", "#1e2f42", "#27476a", "#37689b", "#5a93cc", "#97c3ee", "#f2f5f8"),
}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
BLUE, VERMILION, GREEN, PURPLE, OCHRE, SLATE = CATEGORIES["light"][:6]
LEVEL = {"color": SLATE, "width": 1, "dash": "dot"}  # straight lines across a panel
HEATMAP = "Cividis"
_RAMP_STEPS = 64
_RAMP_RANGE = {"light": (0.0, 0.60), "dark": (0.34, 1.0)}
# Keys that hold data or words, never a color: a label that happens to read "#0064a6" must stay as it is.
NO_STYLE = frozenset(
    {"x", "y", "z", "text", "ticktext", "name", "customdata", "hovertemplate", "meta", "template"}
)
_RGBA = re.compile(r"rgba\((\d+), ?(\d+), ?(\d+), ?([\d.]+)\)")


@cache
def _ramp_table(mode: Mode) -> tuple[str, ...]:
    low, high = _RAMP_RANGE[mode]
    points = [low + (high - low) * i / (_RAMP_STEPS - 1) for i in range(_RAMP_STEPS)]
    sampled = pc.sample_colorscale("Viridis", points, colortype="tuple")
    return tuple(
        "#{:02x}{:02x}{:02x}".format(*(round(255 * channel) for channel in color)) for color in sampled
    )


def ramp(count: int) -> list[str]:
    """Return ``count`` ordered colors (light form), dark first."""
    table = _ramp_table("light")
    return [table[round(i * (_RAMP_STEPS - 1) / max(count - 1, 1))] for i in range(count)]


def ramp_scale() -> list[list[Any]]:
    """Return the ordered colors as a plotly color scale, for a color bar beside colored lines."""
    table = _ramp_table("light")
    stops = range(0, _RAMP_STEPS, 7)
    return [[i / (_RAMP_STEPS - 1), table[i]] for i in stops]


def shades(mode: Mode, hue: Hue, count: int) -> list[tuple[str, str]]:
    """Return ``count`` steps from the background to a color, each with an ink that is read on
    it (4.5:1 at least).
    """
    begin, end = BACKGROUND[mode], CATEGORIES[mode][("blue", "vermilion").index(hue)]
    first, last = (tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in (begin, end))
    found = []
    for step in range(1, count + 1):
        mixed = (round(a + (b - a) * step / count) for a, b in zip(first, last, strict=True))
        background = "#{:02x}{:02x}{:02x}".format(*mixed)
        inks = (INK[mode], BACKGROUND[mode], "#000000", "#ffffff")
        found.append((background, next(ink for ink in inks if contrast(ink, background) >= 4.5)))
    return found


def kinds(mode: Mode) -> list[tuple[str, str]]:
    """Return the colors of categories as backgrounds, the gray one last, each with an ink that
    is read on it.
    """
    order = sorted(range(len(CATEGORIES[mode])), key=lambda n: CATEGORIES["light"][n] == SLATE)
    return [(CATEGORIES[mode][n], BACKGROUND[mode]) for n in order]


def rgba(color: str, alpha: float) -> str:
    """Return a hex color with an opacity, for bands."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


@cache
def twins() -> dict[str, str]:
    """Return the dark twin of every light color; keys and values are lower-case hex."""
    pairs = dict(zip(_ramp_table("light"), _ramp_table("dark"), strict=True))
    pairs.update(zip(CATEGORIES["light"], CATEGORIES["dark"], strict=True))
    pairs.update(zip(CLASSES["light"], CLASSES["dark"], strict=True))
    for named in (BACKGROUND, INK, MUTED, GRID, AXIS):
        pairs[named["light"]] = named["dark"]
    return pairs


def _dark(value: Any) -> Any:
    if isinstance(value, str):
        found = _RGBA.fullmatch(value)
        if found:
            key = "#{:02x}{:02x}{:02x}".format(*(int(part) for part in found.groups()[:3]))
            return rgba(twins()[key], float(found.group(4))) if key in twins() else value
        return twins().get(value, value)
    if isinstance(value, dict):
        return {key: item if key in NO_STYLE else _dark(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_dark(item) for item in value]
    return value


def restyle(figure: go.Figure, mode: Mode) -> go.Figure:
    """Return a copy of a figure of this theme in the light or dark form."""
    if mode == "light":
        return go.Figure(figure)
    layout = {**_dark(figure.layout.to_plotly_json()), "template": template("dark")}
    return go.Figure(data=[_dark(trace.to_plotly_json()) for trace in figure.data], layout=layout)


@cache
def template(mode: Mode) -> go.layout.Template:
    """Return the plotly template: quiet grid, left-aligned title, horizontal legend below the title."""
    ink, muted, grid = INK[mode], MUTED[mode], GRID[mode]
    axis = {
        "gridcolor": grid,
        "linecolor": AXIS[mode],
        "tickcolor": AXIS[mode],
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "automargin": True,
        "tickfont": {"color": ink, "size": 12},
        "title": {"font": {"color": ink, "size": 13}, "standoff": 8},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink},
            "paper_bgcolor": BACKGROUND[mode],
            "plot_bgcolor": BACKGROUND[mode],
            "colorway": list(CATEGORIES[mode]),
            "title": {
                "x": 0,
                "xanchor": "left",
                "xref": "container",
                "pad": {"l": 12, "t": 6},
                "yref": "container",
                "y": 1,
                "yanchor": "top",
                "font": {"size": 15, "color": ink},
                "subtitle": {"font": {"size": 12.5, "color": muted}},
            },
            "xaxis": {**axis, "showgrid": False},
            "yaxis": axis,
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": -0.22,
                "yanchor": "top",
                "font": {"size": 12},
            },
            "hoverlabel": {
                "bgcolor": BACKGROUND[mode],
                "bordercolor": AXIS[mode],
                "font": {"color": ink, "size": 12},
                "align": "left",
            },
            "annotationdefaults": {"font": {"color": ink, "size": 12}, "showarrow": False},
            "margin": {"l": 64, "r": 24, "t": 84, "b": 56},
        }
    )


def contrast(first: str, second: str) -> float:
    """Return the WCAG 2 contrast ratio of two hex colors, from 1 to 21."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
