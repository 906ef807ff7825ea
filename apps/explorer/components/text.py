"""Foreign text in Streamlit: nothing that comes from data is taken for Markdown.

Streamlit renders Markdown in most of its text, which would load an image from ``![](http://...)``, build
links and read ``:red[...]``, ``:material/...:`` and ``$...$``. ``plain`` escapes all ASCII punctuation.
"""

from __future__ import annotations

import re

from sparsescope.viz.tokens import display

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# Shortcodes such as ":smile:" and bare addresses, which become links, are looked for after escapes are
# resolved; a word joiner keeps them apart.
_SHORTCODE = re.compile(r":(?=[a-z0-9_+/-]+:|//)|@(?=\S)|\bwww(?=\.)", re.IGNORECASE)


def plain(text: object, *, limit: int = 400) -> str:
    """Return Markdown that shows ``text`` as it is, on one line."""
    shown = _SHORTCODE.sub("\\g<0>\N{WORD JOINER}", display(text, limit=limit, markup=False))
    return _PUNCTUATION.sub(r"\\\1", shown)
