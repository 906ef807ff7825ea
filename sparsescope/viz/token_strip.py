"""A text as the model reads it: the tokens of a document in order, each colored by a number that
a table has for it, or by a category: its expert.

Positive values are blue, negative ones vermilion (a pair that every color vision tells apart); the color
grows from zero where a column has both signs, else from its smallest value. The ends of the scale are the
extremes, or the 2nd and 98th percentile where an extreme is so far out that nothing else would have a color;
the legend says which. White space is visible, the text breaks where it has line feeds, and hovering over a
token shows it with its position and its value.

Of categories the most frequent have colors of their own, and the others share a gray one; the legend names
them with their shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.columns import INDEX_KINDS, Column
from sparsescope.errors import SpecError, unknown_name
from sparsescope.viz.panel import KINDS, SHADES, Panel, Tag, tag
from sparsescope.viz.sentences import percent, subject_prefix
from sparsescope.viz.tables import format_cell, heading, missing
from sparsescope.viz.tokens import display

if TYPE_CHECKING:
    from sparsescope.core.result import Result

MOST_TOKENS = 800
VALUES = ("fraction", "value", "seconds", "bytes", "flops", "count", "threshold")
CATEGORIES = ("expert",)  # numbers that are names
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
    result: Result,
    table: str,
    *,
    value: str = "",
    document: Any = None,
    where: Mapping[str, Any] | None = None,
    title: str = "",
    caption: str = "",
    remark: str = "",
) -> Panel:
    """Show the tokens of one document, colored by a column.

    Args:
        result: What is shown.
        table: A table with a column of the kind ``token_text``; ``document`` and ``position`` are used
            where they are there.
        value: The column that gives the colors; when empty the first with a number, else the first with
            an expert.
        document: Which document, by its cell; the first when None.
        where: Which rows, by the cells of further columns, where a table has several for a token:
            ``{"layer": 3}``.
        title: What is seen, as a sentence; made of the column when empty.
        caption: How to read it.
        remark: What the subtitle says beside column, document and number of tokens.

    Raises:
        SpecError: The table is not there or has no tokens, no such column, no such document, no such
            rows, or several experts for one token.
    """
    if table not in result.tables:
        raise unknown_name("table", table, result.tables, next_step="see: Result.tables")
    frame, columns = result.tables[table], result.columns[table]
    token, of = (
        _column(table, columns, ("token_text",)),
        _column(table, columns, (*VALUES, *CATEGORIES), value),
    )
    frame, chosen = _where(table, frame, columns, where or {})
    places = {column.kind: column for column in columns if column.kind in {"document", "position"}}
    name, whole = "", frame
    if "document" in places:
        frame, name = _document(table, frame, places["document"], document)
    if "position" in places:
        frame = frame.sort_values(places["position"].name, kind="stable")
    numbers = _floats(frame[of.name])
    scale: Scale | Categories = Scale.of(numbers)
    if of.kind in CATEGORIES:
        if "position" in places:
            _check_single(table, frame[places["position"].name], of)
        scale = Categories.of(_floats(whole[of.name]))
    shown = frame.head(MOST_TOKENS)
    positions = shown[places["position"].name] if "position" in places else range(len(shown))
    marks: list[Tag] = []
    rows = zip(shown[token.name], numbers[: len(shown)], positions, strict=True)
    for index, (text, number, position) in enumerate(rows):
        marks += mark(
            str("" if missing(text) else text), number, position, of, scale.shade(number), first=index == 0
        )
    cut = (
        f"the first {len(shown):,} of {len(frame):,} tokens"
        if len(frame) > len(shown)
        else f"{len(frame):,} tokens"
    )
    of_what = [*chosen, *([f"document {name}"] if name else [])]
    further = [remark] if remark else []
    subtitle = subject_prefix(result) + "; ".join([of.description.rstrip("."), *of_what, cut, *further])
    words = f"{of.name.replace('_', ' ')} of each token"
    return Panel(
        title=title or words[0].upper() + words[1:],
        subtitle=subtitle,
        alt=_alt(words, name, frame[token.name], numbers, of),
        body=(
            _legend(scale, of) if isinstance(scale, Scale) else _kinds(scale, numbers, of),
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
        rows=sum(one.name == "br" for one in marks)
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


@dataclass(frozen=True, slots=True)
class Categories:
    """Colors of categories.

    Attributes:
        ranks: Number of the color of each category that has one of its own, from 1.
        others: Whether there are more categories, which share the last color.
    """

    ranks: Mapping[float, int]
    others: bool = False

    @classmethod
    def of(cls, names: np.ndarray) -> Categories:
        """The colors of these categories, the most frequent first; equally frequent ones by number."""
        found, counts = np.unique(names[np.isfinite(names)], return_counts=True)
        order = found[np.argsort(-counts, kind="stable")].tolist()
        others = len(order) > KINDS
        return cls({name: rank for rank, name in enumerate(order[: KINDS - others], 1)}, others)

    def shade(self, name: float) -> str:
        """CSS class of a category, for example ``kind-3``; ``none`` where it is missing."""
        return f"kind-{self.ranks.get(name, KINDS)}" if math.isfinite(name) else "none"


def _floats(cells: pd.Series) -> np.ndarray:
    return pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float, na_value=np.nan)


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


def _where(
    table: str, frame: pd.DataFrame, columns: Sequence[Column], where: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[str]]:
    """Rows with these cells, and what they are in words."""
    known = {column.name: column for column in columns}
    said = []
    for name, asked in where.items():
        if name not in known:
            raise unknown_name(f"column of {table}", name, known, next_step="see: Result.columns")
        there = frame[name].dropna().unique().tolist()
        if asked not in there:
            raise SpecError(
                f"there is no row with this {name}",
                where=f"table {table}",
                allowed=_some(there),
                got=repr(asked)[:200],
                next_step=f"take one of the cells of the column {name}",
            )
        frame = frame[frame[name] == asked]
        said.append(f"{name.replace('_', ' ')} {format_cell(asked, known[name])}")
    return frame, said


def _some(cells: Sequence[Any]) -> list[str]:
    return [*map(repr, cells[:20]), *(["..."] if len(cells) > 20 else [])]


def _check_single(table: str, positions: pd.Series, of: Column) -> None:
    """A token has one category: the last of several would hide the others."""
    again = positions[positions.duplicated()]
    if len(again):
        raise SpecError(
            "a token has several rows, and one color",
            where=f"table {table}",
            allowed=f"one {of.name} for each {positions.name}",
            got=f"{positions.name} {again.iloc[0]} more than once",
            next_step='choose rows, for example where={"layer": 0}',
        )


def _document(table: str, frame: pd.DataFrame, column: Column, asked: Any) -> tuple[pd.DataFrame, str]:
    """Rows of one document, and its name."""
    there = frame[column.name].dropna().unique().tolist()
    chosen = there[0] if asked is None and there else asked
    if chosen not in there:
        raise SpecError(
            "there is no such document",
            where=f"table {table}",
            allowed=_some(there),
            got=repr(asked)[:200],
            next_step="leave document out for the first one",
        )
    return frame[frame[column.name] == chosen], format_cell(chosen, column)


def mark(text: str, number: float, position: Any, of: Column, shade: str, *, first: bool) -> list[Tag]:
    """One token, and the line breaks that it holds.

    Args:
        text: The token.
        number: Its value.
        position: Where it is.
        of: What the value is.
        shade: CSS class of its color.
        first: Whether the keyboard reaches it first.
    """
    shown = display(text, spaces=True, limit=_LONGEST, markup=False)
    # Invisible characters become words
    shown = shown if len(shown) <= 2 * _LONGEST else shown[: 2 * _LONGEST] + "…"
    says = (
        f"{shown or '(empty)'}  ·  position {position}  ·  {of.name.replace('_', ' ')} "
        f"{format_cell(float(number), of)}"
    )
    classes = " ".join(["mark", *([shade] if shade else [])])
    mark = tag(
        "span", *visible(shown or "∅"), class_=classes, title=says, data_mark="", tabindex=0 if first else -1
    )
    return [mark, *[tag("br")] * min(text.count("\n"), 2)]


def visible(shown: str) -> list[Tag | str]:
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


def _kinds(colors: Categories, names: np.ndarray, of: Column) -> Tag:
    """The categories of a document with their colors and shares, the most frequent of them first."""
    finite = names[np.isfinite(names)]
    if not len(finite):
        return tag("div", f"no {of.name} is known", class_="legend")
    parts = []
    for name, share in _shares(finite):
        if name in colors.ranks:
            parts.append((colors.shade(name), f"{format_cell(name, of)}: {percent(share)}"))
    rest = [(name, share) for name, share in _shares(finite) if name not in colors.ranks]
    if rest:
        total = percent(sum(share for _, share in rest))
        words = f"{len(rest)} others: {total}" if len(rest) > 1 else f"{format_cell(rest[0][0], of)}: {total}"
        parts.append((f"kind-{KINDS}", words))
    entries = [
        tag("span", tag("span", class_=f"swatch {shade}"), tag("span", words), class_="kind")
        for shade, words in parts
    ]
    return tag("div", tag("span", heading(of).replace("_", " ")), *entries, class_="legend")


def _shares(names: np.ndarray) -> list[tuple[float, float]]:
    """Categories with their shares, the most frequent first."""
    found, counts = np.unique(names[np.isfinite(names)], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return list(zip(found[order].tolist(), (counts[order] / counts.sum()).tolist(), strict=True))


def _alt(words: str, name: str, tokens: pd.Series, numbers: np.ndarray, of: Column) -> str:
    text = f"{len(tokens):,} tokens{f' of document {name}' if name else ''}, colored by {words}."
    if not np.isfinite(numbers).any():
        return f"{text} There is no finite number."
    if of.kind in CATEGORIES:
        most = [f"{format_cell(name, of)} ({percent(share)})" for name, share in _shares(numbers)[:3]]
        return f"{text} The most frequent: {', '.join(most)}."
    low, high = (
        int(find(np.where(np.isfinite(numbers), numbers, np.nan))) for find in (np.nanargmin, np.nanargmax)
    )
    said = [
        f"{format_cell(float(numbers[n]), of)} at {display(str(tokens.iloc[n]), spaces=True, limit=30)}"
        for n in (low, high)
    ]
    return f"{text} The values lie between {said[0]} and {said[1]}."
