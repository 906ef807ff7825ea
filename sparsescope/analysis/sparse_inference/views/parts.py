"""What the figures of ``sparse_inference`` share: looks of methods, words for roles, error bars, legends."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from sparsescope.analysis.sparse_inference.statements import DENSE, params_of, reference_of, titles_of
from sparsescope.core.result import Result
from sparsescope.viz import figure as fig
from sparsescope.viz import theme
from sparsescope.viz.tokens import display

HEIGHT = 360
BLOCK = "share of block-matrix bytes not read"
_CRIMSON, _OLIVE = theme.CATEGORIES["light"][6:8]
# They belong to the name of a method, so that a run with few methods looks like one with many
_LOOKS = {
    "auto": (theme.BLUE, "circle", "solid"),
    "TEAL": (theme.VERMILION, "square", "solid"),
    "WINA": (theme.GREEN, "diamond", "solid"),
    "WINA as released": (theme.GREEN, "diamond-open", "dash"),
    "WAS": (theme.PURPLE, "triangle-up", "solid"),
    "R-Sparse": (theme.OCHRE, "cross", "solid"),
    "CATS": (_CRIMSON, "triangle-down", "solid"),
    "Top-p": (_OLIVE, "x", "solid"),
    "CETT": (_CRIMSON, "triangle-down-open", "dash"),
}
_ROLE = re.compile(r"(attn|mlp)\.([\w.]+)\[([\w.,]*)\]")
_LETTER, _SWATCH = 6.6, 52  # pixels of the legend


def looks(result: Result) -> dict[str, dict[str, Any]]:
    """Color, marker, dash and width of every method of a result, the same in all figures.

    The dense model and what is pruned alone are gray; the reference is the thickest; a method with
    another allocation has the color of the plain one and an open marker.
    """
    names: dict[str, None] = {}
    for table in result.tables.values():
        for column in ("method", "first", "second"):
            if column in table:
                names |= dict.fromkeys(map(str, table[column].unique()))
    reference, others = reference_of(result), 0
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        plain = name.rpartition(", then ")[2] if pruned(name) else name
        base, _, allocation = plain.partition(", ")
        if name == DENSE or (pruned(name) and base not in _LOOKS):
            color, symbol, dash = theme.SLATE, "star", "dash"
        elif base in _LOOKS:
            color, symbol, dash = _LOOKS[base]
        else:  # a name of a later version: any color is better than none
            color, symbol, dash = _OLIVE, theme.MARKERS[others % len(theme.MARKERS)], "dashdot"
            others += 1
        if pruned(name):
            symbol = "star"
        elif allocation and not symbol.endswith("-open"):
            symbol += "-open"
        found[name] = {
            "color": color,
            "symbol": symbol,
            "dash": "dot" if allocation else dash,
            "width": 3.4 if name == reference else 1.8,
        }
    return found


def pruned(name: object) -> bool:
    """Whether a row of quality is of a model that was pruned."""
    return str(name).startswith("Wanda ")


def beside(result: Result) -> set[str]:
    """Methods that were measured at the targets of comparison alone."""
    params = params_of(result)
    return set(titles_of(params.get("beside", ()))) - set(titles_of(params.get("methods", ())))


def methods_of(table: pd.DataFrame, result: Result) -> list[str]:
    """The methods of a table in its order, without the dense model; the reference first."""
    names = [str(name) for name in dict.fromkeys(table["method"]) if name != DENSE and not pruned(name)]
    return sorted(names, key=lambda name: name != reference_of(result))


def role_words(role: object) -> str:
    """What a mask is of, in words: ``attn.in[k,q,v]`` -> ``attn k, q, v``."""
    match = _ROLE.fullmatch(str(role))
    if match is None:
        return str(role)
    home = "mlp experts" if ".experts" in f".{match[2]}" and match[1] == "mlp" else match[1]
    return f"{home} {match[3].replace(',', ', ')}"


def role_looks(roles: list[str]) -> dict[str, dict[str, Any]]:
    """Color and marker of every kind of input: shades by place in the block, not the hues of methods."""
    shades = theme.ramp(len(roles))
    return {
        role: {"color": shades[n], "symbol": theme.MARKERS[n % len(theme.MARKERS)]}
        for n, role in enumerate(roles)
    }


def roles_of(table: pd.DataFrame) -> list[str]:
    """The roles of a table, attention first and inputs before outputs, whatever the order of the rows."""
    roles = [str(role) for role in dict.fromkeys(table["role"])]

    def rank(role: str) -> tuple[bool, bool, str]:
        stem = role.partition("[")[0]
        return not stem.startswith("attn"), stem.endswith(("out", ".o")), role

    return sorted(roles, key=rank)


def marks(
    figure: fig.Figure,
    x: Any,
    y: Any,
    name: str,
    *,
    texts: list[str],
    marker: dict[str, Any],
    row: int = 1,
    column: int = 1,
    **options: Any,
) -> None:
    """Add markers to a panel; ``texts`` are the hover texts."""
    figure.add_scatter(
        x=x,
        y=y,
        name=display(name, limit=60),
        mode="markers",
        marker=marker,
        customdata=[display(text, limit=240) for text in texts],
        hovertemplate="%{customdata}<extra></extra>",
        row=row,
        col=column,
        **{"showlegend": False, **options},
    )


def legend_below(figure: fig.Figure, *, drop: int = 56) -> None:
    """Show the legend below the panels, with room for its lines.

    Args:
        figure: Changed in place.
        drop: Distance from the panels in pixels: room for ticks and the title of the axis.
    """
    names = [str(trace.name) for trace in figure.data if trace.showlegend]
    width = _SWATCH + _LETTER * max(map(len, names), default=1)
    lines = math.ceil(len(names) * width / 860)
    height = float(figure.layout.height or HEIGHT + 140)
    figure.update_layout(
        showlegend=True,
        height=height + 20 * lines,
        margin={"b": drop + 20 * lines + 14},
        legend={
            "orientation": "h",
            "x": 0,
            "yref": "container",
            "y": (20 * lines + 8) / (height + 20 * lines),
        },
    )


def documents(table: pd.DataFrame) -> str:
    """On how many documents a table rests."""
    return f"n = {int(table['documents'].max()):,} documents"


def listed(parts: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
