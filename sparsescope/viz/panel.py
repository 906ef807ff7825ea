"""A view that is text and not a figure: HTML made of escaped parts only, with one script and one
style for all panels.

A ``Panel`` is a tree of ``Tag``s. What a tag holds is text, which is made visible (``core/escaping.py``) and
escaped when it is written, or further tags; there is no way to put markup into one. ``panel.js`` is the one
script: a panel needs it for comfort and can be read without it. Whatever page holds a panel allows that
script by the SHA-256 of its text (``policy``) and no other.

In a report a panel stands in the page (``html``), which has ``css`` and ``script``; in the explorer and in
notebooks it is a page of its own in a frame (``page``).
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sparsescope.errors import SpecError
from sparsescope.viz import theme
from sparsescope.viz.tokens import display

TAGS = frozenset({"div", "span", "p", "b", "br", "details", "summary", "input"})
ATTRIBUTES = frozenset(
    {
        *("class", "title", "tabindex", "role", "aria-label", "aria-live", "type", "placeholder"),
        # For the script: tokens and where they are said; a field, what it filters, the count
        *("data-mark", "data-readout", "data-filter", "data-item", "data-count"),
    }
)
_EMPTY = frozenset({"br", "input"})
SHADES = 8  # steps of the color scale on each side of its middle
KINDS = len(theme.CATEGORIES["light"])  # colors of categories, the last of them gray
_LONGEST = 4000
_ROWS_IN_FRAME = 15
BARS = 20  # heights of the bars of a small histogram
_SIGNS: Mapping[str, theme.Hue] = {"plus": "blue", "minus": "vermilion"}


@dataclass(frozen=True, slots=True)
class Tag:
    """An element of a panel.

    Args:
        name: One of ``TAGS``.
        parts: Text, and further elements.
        attributes: Values by name, out of ``ATTRIBUTES``.

    Raises:
        SpecError: It is another element, or has another attribute.
    """

    name: str
    parts: tuple[Tag | str, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        strange = {self.name} - TAGS or set(self.attributes) - ATTRIBUTES
        if strange:
            allowed = f"elements {', '.join(sorted(TAGS))}; attributes {', '.join(sorted(ATTRIBUTES))}"
            raise SpecError(
                "a panel has no such element or attribute",
                where="Tag",
                allowed=allowed,
                got=", ".join(sorted(strange)),
            )

    def html(self) -> str:
        """The element as HTML; every text in it is escaped."""
        attributes = "".join(f' {name}="{escaped(value)}"' for name, value in self.attributes.items())
        if self.name in _EMPTY:
            return f"<{self.name}{attributes}>"
        inside = "".join(part.html() if isinstance(part, Tag) else escaped(part) for part in self.parts)
        return f"<{self.name}{attributes}>{inside}</{self.name}>"

    def __iter__(self) -> Iterator[Tag]:
        """This element and all below it, in the order of the page."""
        yield self
        for part in self.parts:
            if isinstance(part, Tag):
                yield from part


def tag(name: str, *parts: Tag | str, **attributes: object) -> Tag:
    """Make an element. An underscore in the name of an attribute stands for a hyphen; one at
    its end is left out.
    """
    return Tag(
        name, parts, {key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()}
    )


def escaped(text: str) -> str:
    """Foreign text for an element or an attribute: invisible characters made visible, markup escaped."""
    return html.escape(display(text, limit=_LONGEST, markup=False), quote=True)


@dataclass(frozen=True, slots=True)
class Panel:
    """What a view returns that shows text.

    Attributes:
        title: What is seen, as a sentence in plain language.
        subtitle: What is drawn: quantity, sample, what was left out.
        alt: One or two sentences with the main numbers, for people who do not see the panel.
        body: What it shows.
        caption: How to read it.
        rows: Lines of text that it takes, roughly; of many the frame of a panel shows some, and the
            others by scrolling.
        most_rows: How many the frame shows at most.
    """

    title: str
    subtitle: str
    alt: str
    body: tuple[Tag, ...]
    caption: str = ""
    rows: int = 12
    most_rows: int = _ROWS_IN_FRAME

    @property
    def height(self) -> int:
        """Height of a frame that holds it, in pixels."""
        return 140 + 28 * min(self.rows, self.most_rows)

    def html(self) -> str:
        """The panel as a part of a page that has ``css`` and ``script``."""
        head = (
            tag("p", tag("b", self.title), class_="panel-title"),
            tag("p", self.subtitle, class_="panel-subtitle"),
        )
        return tag("div", *head, *self.body, class_="panel", role="group", aria_label=self.alt).html()

    def page(
        self, mode: theme.Mode | None = None, *, framed: bool = False, clear: bool = False, source: str = ""
    ) -> str:
        """The panel as a page of its own that loads nothing and runs no script but its own.

        Args:
            mode: Light or dark; None follows the system.
            framed: It is shown in a frame of the height ``height``, and what does not fit scrolls
                inside of the panel.
            clear: The background is that of the page around the frame, which has the colors of ``mode``.
            source: Where the numbers come from, for the foot of the page.
        """
        form = "" if mode is None else f' data-theme="{mode}"'
        classes = " ".join(name for name, wanted in (("framed", framed), ("clear", clear)) if wanted)
        foot = (
            tag("p", self.caption + (f" {source}" if source else ""), class_="panel-foot").html()
            if source
            else ""
        )
        return (
            f'<!doctype html><html lang="en"{form}><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy(script())}">'
            f'<meta name="referrer" content="no-referrer"><title>{escaped(self.title)}</title>'
            f"<style>{page_css()}{css()}</style></head>"
            f'<body class="{classes}">{self.html()}'
            f"{foot}<script>{script()}</script></body></html>"
        )

    def to_html(self, full_html: bool = True, **options: Any) -> str:
        """As of a plotly figure: a page, or (with ``full_html`` false) a part of one; here a frame
        with the page in it.
        """
        if full_html:
            return self.page()
        # Without the right to the origin of the notebook: its page is out of reach for whatever runs in the
        # frame. Light, as figures are in a notebook: whether the page around it is dark cannot be known.
        page = html.escape(self.page("light", framed=True), quote=True)
        return (
            f'<iframe sandbox="allow-scripts" title="{escaped(self.alt)}" srcdoc="{page}" '
            f'style="width:100%;height:{self.height}px;border:0"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.to_html(full_html=False)


@cache
def script() -> str:
    """The one script of all panels."""
    return _file("panel.js")


def policy(*scripts: str) -> str:
    """A content security policy that allows these scripts, by their hashes, inline
    styles, and nothing else.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; base-uri "
        "'none'; form-action 'none'"
    )


@cache
def css() -> str:
    """The style of all panels with the color scale; the page has the colors of ``page_css``
    by the same names.
    """
    return _schemes({mode: _scale(mode) for mode in ("light", "dark")}) + _marks() + _file("panel.css")


@cache
def page_css() -> str:
    """Colors of a page that holds nothing but a panel."""
    named = {
        "bg": theme.BACKGROUND,
        "ink": theme.INK,
        "muted": theme.MUTED,
        "line": theme.GRID,
        "edge": theme.AXIS,
    }
    colors = {mode: {name: color[mode] for name, color in named.items()} for mode in ("light", "dark")}
    for mode in ("light", "dark"):
        colors[mode]["accent"] = theme.CATEGORIES[mode][0]
    return _schemes(colors) + (
        "body { margin: 0; padding: .5rem; background: var(--bg); color: var(--ink); font: 16px/1.55 "
        f"{theme.FONT}; }}\n"
        "body.clear { background: transparent; padding: .15rem; }\n"
    )


def _scale(mode: theme.Mode) -> dict[str, str]:
    """Backgrounds and inks of the color scale and of categories as CSS variables."""
    values: dict[str, str] = {}
    for sign, hue in _SIGNS.items():
        for level, (background, ink) in enumerate(theme.shades(mode, hue, SHADES), 1):
            values |= {f"{sign}-{level}": background, f"{sign}-{level}-ink": ink}
    for number, (background, ink) in enumerate(theme.kinds(mode), 1):
        values |= {f"kind-{number}": background, f"kind-{number}-ink": ink}
    return values


def _marks() -> str:
    names = [f"{sign}-{level}" for sign in _SIGNS for level in range(1, SHADES + 1)]
    names += [f"kind-{number}" for number in range(1, KINDS + 1)]
    colored = (
        f".panel .{name} {{ background: var(--{name}); color: var(--{name}-ink); }}\n" for name in names
    )
    heights = (f".panel .bar-{step} {{ height: {100 * step / BARS:g}%; }}\n" for step in range(BARS + 1))
    return "".join((*colored, *heights))


def _schemes(colors: Mapping[str, Mapping[str, str]]) -> str:
    """CSS variables in the light and the dark form: of the system, of the page where it says,
    and light on paper.
    """
    light, dark = (
        " ".join(f"--{name}: {value};" for name, value in colors[mode].items()) for mode in ("light", "dark")
    )
    return (
        f":root {{ {light} }}\n"
        f'@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {dark} }} }}\n'
        f':root[data-theme="dark"] {{ {dark} }}\n'
        f"@media print {{ :root:root:root {{ {light} }} }}\n"
    )


def _file(name: str) -> str:
    return files("sparsescope.viz").joinpath(name).read_text(encoding="utf-8").replace("\r", "")
