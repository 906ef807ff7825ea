"""The shell of every HTML file that sparsescope writes: one file, no network, no script but its own.

The policy is ``default-src 'none'``; the three scripts (plotly's packaged bundle, ``page.js`` and that of
panels) are allowed by the SHA-256 of their text, so an injected script does not run. Data travel in
``application/json`` blocks, which browsers do not execute, with ``< > &`` and the JavaScript line separators
escaped. Only inline styles are allowed freely: plotly sets them.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import plotly.graph_objects as go
import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from sparsescope.viz import panel, theme
from sparsescope.viz.tokens import display

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def json_block(value: Any) -> Markup:
    """Return JSON that is safe inside a script element, whatever strings it holds."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, allow_nan=False)
    return Markup(text.translate(_ESCAPES))  # noqa: S704  markup characters were escaped in this line


def figure_json(figure: go.Figure) -> str:
    """Return a figure as JSON without its template, which the page holds once for all figures."""
    bare = go.Figure(figure)
    bare.layout.template = None
    raw = bare.to_json(validate=False)
    return str(raw).encode("utf-8", "replace").decode()


@cache
def scripts() -> tuple[str, str, str]:
    """Return the text of the three scripts: plotly's bundle, the code that draws the figures,
    and that of panels.
    """
    loader = environment().loader
    own = loader.get_source(environment(), "page.js")[0] if loader else ""
    return plotly.offline.get_plotlyjs().replace("\r", ""), own.replace("\r", ""), panel.script()


def policy() -> str:
    """Return the content security policy with the hashes of ``scripts()``."""
    return panel.policy(*scripts()) + "; img-src data: blob:"


def theme_data(name: str) -> dict[str, Any]:
    """Return what ``page.js`` needs to turn figures light or dark and to name downloaded images."""
    return {
        "name": name,
        "twins": theme.twins(),
        "data_keys": sorted(theme.NO_STYLE),
        "templates": {mode: theme.template(mode).to_plotly_json() for mode in ("light", "dark")},
    }


@cache
def environment() -> Environment:
    """Return the template environment: everything is escaped, an unknown name is an error."""
    env = Environment(
        loader=PackageLoader("sparsescope.reporting", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["plain"] = lambda text, limit=400: display(text, limit=limit, markup=False)
    env.globals["json_block"] = json_block
    env.globals["colors"] = {
        mode: {
            "bg": theme.BACKGROUND[mode],
            "ink": theme.INK[mode],
            "muted": theme.MUTED[mode],
            "line": theme.GRID[mode],
            "edge": theme.AXIS[mode],
            "accent": theme.CATEGORIES[mode][0],
            "warn": theme.CATEGORIES[mode][1],
        }
        for mode in ("light", "dark")
    }
    return env


def render(template: str, *, name: str, **context: Any) -> str:
    """Render a page template with the scripts, the policy and the theme."""
    bundle, own, of_panels = scripts()
    page = (
        environment()
        .get_template(template)
        .render(
            policy=policy(),
            bundle=Markup(bundle),  # noqa: S704  a file of the plotly package
            own=Markup(own),  # noqa: S704  a file of this package
            panel=Markup(of_panels),  # noqa: S704  a file of this package
            panel_css=Markup(panel.css()),  # noqa: S704  made of files and constants of this package
            theme=theme_data(name),
            **context,
        )
    )
    return page.encode("utf-8", "replace").decode()


def figure_page(figure: go.Figure | panel.Panel, *, title: str, source: str = "") -> str:
    """Return one figure as a self-contained HTML page.

    Args:
        figure: The figure, of this package's theme.
        title: Title of the page.
        source: Where the numbers come from, for example the id of the run.
    """
    if isinstance(figure, panel.Panel):
        return figure.page(source=source)
    meta = figure.layout.meta or {}
    return render(
        "figure.html",
        name="figure",
        title=title,
        source=source,
        figure=figure_json(figure),
        alt=meta.get("alt", title),
        caption=meta.get("caption", ""),
        height=int(figure.layout.height or 450),
    )
