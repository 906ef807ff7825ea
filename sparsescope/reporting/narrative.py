"""The narrative of a study: Markdown to HTML, or to the Markdown of a notebook, that carries no
markup of its own.

HTML in the text is shown as text, images are left out (the page loads nothing), links lead to https addresses
or within the page only, control and bidirectional characters are made visible. A first heading is left out
(the page has a title), the others of a page move down two levels, below those of the page.

What shows a notebook is not known: JupyterLab, nbconvert and others read Markdown in different ways, some of
them with HTML and all of them with TeX. So what opens a tag, an image, another link or a formula is broken up
wherever it stands, in code as well, whatever a parser would make of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from sparsescope.core.escaping import no_tex
from sparsescope.viz.tokens import display

_LONGEST = 1_000_000
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_IMAGE = re.compile(r"!(?=\[)")
#: What stands between the text of a link, or the name of a definition, and any other address.
_ADDRESS = re.compile(r"\](?=[(:](?!\s*(?:https://|#)))")
#: Within an address that many readers make a link without being asked.
_BARE = re.compile(r"(?<=\bhttp):(?=//)|(?<=\bftp):(?=//)|(?<=\bwww)\.", re.IGNORECASE)
_MARKS = re.compile(r"([`*_\[\]<>~|&#])")
#: A list, a rule or a heading at the beginning of a line.
_BLOCK = re.compile(r"^(\d*)(?=[-+=.)])")


def narrative_html(text: str) -> Markup:
    """Render the narrative of a study.

    Args:
        text: CommonMark with tables.

    Returns:
        HTML that is safe to place in a report.
    """
    tokens = _parser().parse(_visible(text))
    if len(tokens) > 2 and tokens[0].type == "heading_open" and tokens[0].tag == "h1":
        tokens = tokens[3:]
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(int(token.tag[1:]) + 1, 6)}"
        if token.children:
            token.children = _links(token.children)
    html: Any = _parser().renderer.render(tokens, _parser().options, {})
    # Written by the renderer from escaped text; HTML in the source is disabled
    return Markup(html)  # noqa: S704


def narrative_markdown(text: str) -> str:
    """Return the narrative of a study as Markdown for a notebook.

    Args:
        text: CommonMark with tables.

    Returns:
        The same text without its first heading; see the head of this file for what is replaced.
    """
    shown = _TAG.sub("\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}", _visible(text))
    shown = _BARE.sub(r"\\\g<0>", no_tex(_ADDRESS.sub("] ", _IMAGE.sub("! ", shown))))
    return re.sub(r"\A\s*# [^\n]*\n", "", shown).strip()


def plain_markdown(text: str) -> str:
    """Return a text of a study that is not Markdown (a title, a caption) as Markdown, on one line, that
    shows it as it is.
    """
    shown = display(" ".join(text.split()), limit=_LONGEST, markup=False).replace(
        "\\", "\N{FULLWIDTH REVERSE SOLIDUS}"
    )
    shown = _BARE.sub(r"\\\g<0>", _MARKS.sub(r"\\\1", no_tex(shown)))
    return _BLOCK.sub(r"\1\\", shown)


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False, "maxNesting": 40}).enable("table").disable("image")


def _visible(text: str) -> str:
    """Make control and bidirectional characters visible, line by line: line ends and indents are Markdown."""
    lines = text.replace("\r\n", "\n").replace("\t", "    ").split("\n")
    return "\n".join(display(line, limit=_LONGEST, markup=False) for line in lines)


def _links(tokens: Sequence[Token]) -> list[Token]:
    """Keep links to https addresses and within the page; of others the words stay."""
    kept, open_links = [], []
    for token in tokens:
        if token.type == "link_open":
            address = str(token.attrs.get("href", ""))
            good = address.startswith(("https://", "#"))
            open_links.append(good)
            if not good:
                continue
            if address.startswith("https://"):
                token.attrSet("rel", "noopener noreferrer")
        elif token.type == "link_close" and not open_links.pop():
            continue
        kept.append(token)
    return kept
