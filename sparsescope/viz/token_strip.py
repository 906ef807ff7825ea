"""A text as the model reads it: the tokens of a document in order, each colored by a number that
a table has for it.

Positive values are blue, negative ones vermilion (a pair that every color vision tells apart); the color
grows from zero where a column has both signs, else from its smallest value. The ends of the scale are the
extremes, or the 2nd and 98th percentile where an extreme is so far out that nothing else would have a color;
the legend says which. White space is visible, the text breaks where it has line feeds, and hovering over a
token shows it with its position and its value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.columns import INDEX_KINDS, Column
from sparsescope.errors import SpecError, unknown_name
from sparsescope.viz.panel import SHADES, Panel, Tag, tag
from sparsescope.viz.sentences import subject_prefix
from sparsescope.viz.tables import format_cell, heading, missing
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    from sparsescope.core.result import Result

MOST_TOKENS = 800
VALUES = ("fraction", "value", "seconds", "bytes", "flops", "count", "threshold")
_PLACES = frozenset({"position", "token"})  # what may tell rows of a text apart, beside the document
_LONGEST = 60  # characters of one token
_PERCENT = 2.0
_FAR_OUT = 2.0  # an extreme is cut off where the scale would be more than this many times as long


def is_text(frame: pd.DataFrame, columns: Sequence[Column]) -> bool:
    """Whether the rows of a table are the tokens of texts in order: one row for each document and
    position, and a number.
    """
    kinds = [column.kind for column in columns]
    if "token_text" not in kinds or not set(kinds) & set(VALUES) or frame.empty:
        return False
    if set(kinds) & (INDEX_KINDS - _PLACES) or "metric" in kinds or "site" in kinds:
        return False
    if any(frame[column.name].isna().all() for column in columns if column.kind == "document"):
        return False
    place = [column.name for column in columns if column.kind in {"document", "position"}]
    return not ("position" in kinds and bool(frame[place].duplicated().any()))


def token_strip(
    result: Result, table: str, *, value: str = "", document: Any = None, title: str = "", caption: str = ""
) -> Panel:
    """Show the tokens of one document, colored by a column.

    Args:
        result: What is shown.
        table: A table with a column of the kind ``token_text``; ``document`` and ``position`` are used
            where they are there.
        value: The column that gives the colors; the first with a number when empty.
        document: Which document, by its cell; the first when None.
        title: What is seen, as a sentence; made of the column when empty.
        caption: How to read it.

    Raises:
        SpecError: The table is not there or has no tokens, no such column, or no such document.
    """
    if table not in result.tables:
        raise unknown_name("table", table, result.tables, next_step="see: Result.tables")
    frame, columns = result.tables[table], result.columns[table]
    token, of = _column(table, columns, ("token_text",)), _column(table, columns, VALUES, value)
    places = {column.kind: column for column in columns if column.kind in {"document", "position"}}
    name = ""
    if "document" in places:
        frame, name = _document(table, frame, places["document"], document)
    if "position" in places:
        frame = frame.sort_values(places["position"].name, kind="stable")
    numbers = pd.to_numeric(frame[of.name], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    scale = Scale.of(numbers)
    shown = frame.head(MOST_TOKENS)
    positions = shown[places["position"].name] if "position" in places else range(len(shown))
    marks: list[Tag] = []
    rows = zip(shown[token.name], numbers[: len(shown)], positions, strict=True)
    for index, (text, number, position) in enumerate(rows):
        marks += _mark(
            str("" if missing(text) else text), number, position, of, scale.shade(number), first=index == 0
        )
    cut = (
        f"the first {len(shown):,} of {len(frame):,} tokens"
        if len(frame) > len(shown)
        else f"{len(frame):,} tokens"
    )
    where = [f"document {name}"] if name else []
    subtitle = subject_prefix(result) + "; ".join([of.description.rstrip("."), *where, cut])
    words = f"{of.name.replace('_', ' ')} of each token"
    return Panel(
        title=title or words[0].upper() + words[1:],
        subtitle=subtitle,
        alt=_alt(words, name, frame[token.name], numbers, of),
        body=(
            _legend(scale, of),
            tag(
                "p",
                "Point at a token, or go through them with the arrow keys; a click keeps one.",
                class_="readout",
                data_readout="",
                aria_live="polite",
            ),
            tag("div", *marks, class_="strip", role="group", aria_label="Tokens"),
        ),
        caption=caption or of.description,
        rows=sum(mark.name == "br" for mark in marks)
        + sum(len(str(t)) + 1 for t in shown[token.name]) // 90
        + 1,
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Colors of numbers.

    Attributes:
        low: Where the colors end below; NaN without a finite number.
        high: Where they end above.
        middle: The number without a color: zero, or the end that is nearer to it.
        below: Whether numbers lie below ``low``.
        above: Whether numbers lie above ``high``.
    """

    low: float
    high: float
    middle: float
    below: bool = False
    above: bool = False

    @classmethod
    def of(cls, numbers: np.ndarray) -> Scale:
        """The scale of these numbers; see the head of this file."""
        finite = numbers[np.isfinite(numbers)]
        if not len(finite):
            return cls(math.nan, math.nan, math.nan)
        low, high = float(finite.min()), float(finite.max())
        with np.errstate(over="ignore", invalid="ignore"):
            inner_low, inner_high = (float(end) for end in np.percentile(finite, [_PERCENT, 100 - _PERCENT]))
            span = inner_high - inner_low
        if 0 < span < math.inf:
            low = inner_low if inner_low - low > (_FAR_OUT - 1) * span else low
            high = inner_high if high - inner_high > (_FAR_OUT - 1) * span else high
        middle = 0.0 if low < 0 < high else low if low >= 0 else high
        return cls(low, high, middle, bool(finite.min() < low), bool(finite.max() > high))

    def shade(self, number: float) -> str:
        """CSS class of a number, for example ``plus-3``; empty in the middle, ``none``
        where it is missing.
        """
        if math.isnan(number) or math.isnan(self.low):
            return "none"
        longest = max(self.high - self.middle, self.middle - self.low)
        if number == self.middle or longest <= 0:
            return ""
        with np.errstate(over="ignore"):
            share = min(abs(number - self.middle) / longest, 1.0) if math.isfinite(longest) else 1.0
        level = max(1, math.ceil(share * SHADES))
        return f"{'plus' if number > self.middle else 'minus'}-{level}"


def _column(table: str, columns: Sequence[Column], kinds: Sequence[str], name: str = "") -> Column:
    """The column of this name, or the first of one of these kinds."""
    usable = {column.name: column for kind in kinds for column in columns if column.kind == kind}
    if name and name not in usable:
        raise unknown_name(
            f"column of {table} with {kinds[0]}", name, usable, next_step="see: Result.columns"
        )
    if not usable:
        raise SpecError(
            "this table has no tokens to color"
            if kinds[0] == "token_text"
            else "this table has no number to color tokens by",
            where=f"table {table}",
            allowed=f"a column of the kind {' or '.join(kinds)}",
            got=", ".join(f"{column.name} ({column.kind})" for column in columns),
        )
    return usable[name] if name else next(iter(usable.values()))


def _document(table: str, frame: pd.DataFrame, column: Column, asked: Any) -> tuple[pd.DataFrame, str]:
    """Rows of one document, and its name."""
    there = frame[column.name].dropna().unique().tolist()
    chosen = there[0] if asked is None and there else asked
    if chosen not in there:
        raise SpecError(
            "there is no such document",
            where=f"table {table}",
            allowed=[*map(repr, there[:20]), *(["..."] if len(there) > 20 else [])],
            got=repr(asked)[:200],
            next_step="leave document out for the first one",
        )
    return frame[frame[column.name] == chosen], format_cell(chosen, column)


def _mark(text: str, number: float, position: Any, of: Column, shade: str, *, first: bool) -> list[Tag]:
    """One token, and the line breaks that it holds."""
    shown = display(text, spaces=True, limit=_LONGEST, markup=False)
    # Invisible characters become words
    shown = shown if len(shown) <= 2 * _LONGEST else shown[: 2 * _LONGEST] + "…"
    says = (
        f"{shown or '(empty)'}  ·  position {position}  ·  {of.name.replace('_', ' ')} "
        f"{format_cell(float(number), of)}"
    )
    classes = " ".join(["mark", *([shade] if shade else [])])
    mark = tag(
        "span", *_visible(shown or "∅"), class_=classes, title=says, data_mark="", tabindex=0 if first else -1
    )
    return [mark, *[tag("br")] * min(text.count("\n"), 2)]


def _visible(shown: str) -> list[Tag | str]:
    """The signs of white space are paler than the text."""
    parts: list[Tag | str] = []
    for char in shown:
        if char in "·⏎⇥␍":
            parts.append(tag("span", char, class_="space"))
        elif parts and isinstance(parts[-1], str):
            parts[-1] += char
        else:
            parts.append(char)
    return parts


def _legend(scale: Scale, of: Column) -> Tag:
    """The color scale with its numbers."""
    if math.isnan(scale.low):
        return tag("div", "no finite number", class_="legend")
    # As many swatches as levels are in use on each side, so that the ends of the ramp are the
    # ends of the scale.
    minus, plus = (int((scale.shade(end).partition("-")[2]) or 0) for end in (scale.low, scale.high))
    minus, plus = (minus if scale.low < scale.middle else 0), (plus if scale.high > scale.middle else 0)
    swatches = [tag("span", class_=f"minus-{level}") for level in range(minus, 0, -1)]
    swatches += [tag("span")] + [tag("span", class_=f"plus-{level}") for level in range(1, plus + 1)]
    low, high = (format_cell(end, of) for end in (scale.low, scale.high))
    zero = [tag("span", "no color: 0")] if scale.low < 0 < scale.high else []
    return tag(
        "div",
        tag("span", heading(of).replace("_", " ")),
        tag("span", f"≤ {low}" if scale.below else low),
        tag("span", *swatches, class_="ramp"),
        tag("span", f"≥ {high}" if scale.above else high),
        *zero,
        class_="legend",
    )


def _alt(words: str, name: str, tokens: pd.Series, numbers: np.ndarray, of: Column) -> str:
    text = f"{len(tokens):,} tokens{f' of document {name}' if name else ''}, colored by {words}."
    if not np.isfinite(numbers).any():
        return f"{text} There is no finite number."
    low, high = (
        int(find(np.where(np.isfinite(numbers), numbers, np.nan))) for find in (np.nanargmin, np.nanargmax)
    )
    said = [
        f"{format_cell(float(numbers[n]), of)} at {display(str(tokens.iloc[n]), spaces=True, limit=30)}"
        for n in (low, high)
    ]
    return f"{text} The values lie between {said[0]} and {said[1]}."
