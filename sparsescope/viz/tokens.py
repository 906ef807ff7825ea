"""Foreign strings made safe and visible: token text, labels, domains, ids, paths.

plotly interprets a pseudo-HTML subset in every text it draws, decodes entities and substitutes ``%{...}``;
MathJax, where a notebook loads it, interprets ``$...$``. Control, zero-width and bidirectional characters
hide or reorder what follows. ``display`` replaces all of them by visible look-alikes; the tables and the
downloads keep the strings as they are.
"""

from __future__ import annotations

import re
import unicodedata

_MARKUP = str.maketrans({"<": "‹", ">": "›", "&": "＆", "$": "＄"})
_BREAKS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u2028": "⏎", "\u2029": "⏎", "\x7f": "␡"}
# Joiners are part of ordinary spelling (emoji, Persian, Indic scripts) and reorder nothing.
_JOINERS = frozenset("\u200c\u200d")
_TEMPLATE = re.compile(r"%(?=\{)")


def display(text: object, *, spaces: bool = False, limit: int = 80, markup: bool = True) -> str:
    """Return ``text`` as it can be drawn safely.

    Args:
        text: Any value; it is turned into a string.
        spaces: Show spaces as ``·`` (for tokens, where they matter).
        limit: Longest result in characters; longer text ends in ``…``.
        markup: Also replace ``< > & $`` and ``%{``. False where the target escapes markup itself (HTML
            through jinja2), so that the reader sees the real characters.

    Returns:
        The same text with control, bidirectional, zero-width and markup characters made visible.
    """
    raw = str(text)
    cut = raw[: limit + 1]
    shown = "".join(_visible(character, spaces) for character in cut[:limit])
    if markup:
        shown = _TEMPLATE.sub("％", shown.translate(_MARKUP))
    return shown + "…" if len(cut) > limit else shown


def _visible(character: str, spaces: bool) -> str:
    if character == " ":
        return "·" if spaces else " "
    if character in _BREAKS:
        return _BREAKS[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    category = unicodedata.category(character)
    if category == "Cs":
        return "\N{REPLACEMENT CHARACTER}"  # a lone surrogate cannot be encoded
    if category in {"Cc", "Cf", "Zl", "Zp"} and character not in _JOINERS:
        return f"‹U+{code:04X}›"
    if category == "Zs" and spaces:
        return "·"
    return character
