"""Foreign strings made storable (``well_formed``) and safe to draw (``display``).

Names of models, documents, domains and tokens come from files that others wrote. plotly interprets a
pseudo-HTML subset in every text it draws, decodes entities and substitutes ``%{...}``; MathJax, where a
notebook loads it, interprets ``$...$``. Control, zero-width and bidirectional characters hide or reorder what
follows; a flood of combining marks covers the lines above. ``display`` replaces all of them by visible
look-alikes; the tables and the downloads keep the strings as they are.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any

_MARKUP = str.maketrans({"<": "‹", ">": "›", "&": "＆", "$": "＄"})
_BREAKS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\u2028": "⏎", "\u2029": "⏎", "\x7f": "␡"}
# Joiners are part of ordinary spelling (emoji, Persian, Indic scripts) and reorder nothing; one at a time.
_JOINERS = frozenset("\u200c\u200d")
# Letters and symbols that are drawn as nothing: Hangul fillers, the blank Braille pattern,
# the grapheme joiner.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_TEMPLATE = re.compile(r"%(?=\{)")
_TEX = re.compile(r"\\+(?=[(\[]|begin)")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Vietnamese needs two marks on a letter, pointed Hebrew and vocalized Arabic three; a variation
# selector may follow.
_MOST_MARKS = 4


def well_formed(text: str) -> str:
    """Return ``text`` with lone surrogates replaced by U+FFFD and surrogate pairs joined.

    UTF-8 holds no surrogates, so tokenizers, JSON files and Parquet refuse them; they appear in JSON cut in
    the middle of an emoji and in file names decoded with ``surrogateescape``. Every other character, NUL
    included, is left alone.
    """
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def well_formed_values(value: Any) -> Any:
    """Apply ``well_formed`` to every string, keys included, of nested dicts, lists and tuples."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {well_formed_values(key): well_formed_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [well_formed_values(item) for item in value]
    if isinstance(value, tuple):
        return tuple(well_formed_values(item) for item in value)
    return value


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
    shown = (
        cut[:limit]
        if cut.isascii() and cut.isprintable() and not spaces
        else _visible_text(cut[:limit], spaces)
    )
    if markup:
        shown = _TEMPLATE.sub("％", shown.translate(_MARKUP))
    return shown + "…" if len(cut) > limit else shown


def cell_html(text: object, limit: int = 200) -> str:
    """Return foreign text as HTML for a notebook, which also looks for TeX: between dollar signs
    and after backslashes.

    Args:
        text: Any value; it is turned into a string.
        limit: Longest result in characters before escaping.
    """
    return no_tex(html.escape(display(text, limit=limit, markup=False), quote=True))


def no_tex(text: str) -> str:
    """Return ``text`` with what MathJax looks for replaced by look-alikes: dollar signs, and
    backslashes where they count.
    """
    shown = text.replace("$", "\N{FULLWIDTH DOLLAR SIGN}")
    return _TEX.sub(lambda found: "\N{FULLWIDTH REVERSE SOLIDUS}" * len(found[0]), shown)


def _visible_text(text: str, spaces: bool) -> str:
    parts: list[str] = []
    marks = 0
    before = ""
    for character in text:
        if unicodedata.category(character) in {"Mn", "Me"} and character not in _INVISIBLE:
            marks += 1
            if marks <= _MOST_MARKS:
                parts.append(character)
            continue
        if marks > _MOST_MARKS:
            parts.append(f"‹+{marks - _MOST_MARKS} marks›")
        marks = 0
        if character in _JOINERS and (before in _JOINERS or not before):
            parts.append(f"‹U+{ord(character):04X}›")
        else:
            parts.append(_visible(character, spaces))
        before = character
    if marks > _MOST_MARKS:
        parts.append(f"‹+{marks - _MOST_MARKS} marks›")
    return "".join(parts)


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
    nothing = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF  # noncharacters
    hidden = category in {"Cc", "Cf", "Zl", "Zp"} or nothing or character in _INVISIBLE
    if hidden and character not in _JOINERS:
        return f"‹U+{code:04X}›"
    if category == "Zs" and spaces:
        return "·"
    return character
