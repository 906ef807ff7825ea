"""What an analysis found, in plain sentences: computed when it is shown, never stored, so
old runs have it too.

An analysis has a module (``Analysis.statements``, without torch and plotly) with ``statements(result)`` and
``TITLES``: what people read in place of the names of its scalars. Without one, the headline numbers make the
sentences. The numbers that the statements are about are the headline of a result: they fit it, where a fixed
list may not (a count of exact zeros says nothing about a model whose activation function gives none).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sparsescope.core.named_code import function_of, module_of
from sparsescope.core.numbers import Scalar, format_number
from sparsescope.core.registry import Analysis, find_record
from sparsescope.errors import SparsescopeError, SpecError

if TYPE_CHECKING:
    import pandas as pd

    from sparsescope.core.result import Result

MOST = 3  # sentences of one result
_FALLBACK_HEADLINE = 8
_HOLE = "{}"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that an analysis found.

    Args:
        text: One or two plain sentences with their numbers, intervals and n; not escaped.
        view: The view whose figure shows it; empty where there is none.
        scalars: Names of the numbers that it is about; the first of them make the cards.
    """

    text: str
    view: str = ""
    scalars: tuple[str, ...] = ()


def statements_of(result: Result) -> list[Statement]:
    """Say what a result shows, the most important first; one to three sentences where it has a number.

    A statement about a view whose table is not there loses the view. An analysis that has no statements, or
    fails at saying them (``trouble_of``), gives its headline numbers.
    """
    record = _record(result.analysis)
    declared = record.views if record is not None else ()
    views = {view.name for view in declared if view.table in result.tables}
    first = declared[0].name if declared else ""
    found = _own(result) or [_plain(result.analysis, scalar, first) for scalar in _declared(result)[:MOST]]
    return [Statement(s.text, s.view if s.view in views else "", s.scalars) for s in found]


def headline_of(result: Result) -> list[Scalar]:
    """The numbers shown first: those that the statements are about, or those that the analysis declares."""
    named = dict.fromkeys(name for statement in _own(result) for name in statement.scalars)
    return [result.scalars[name] for name in named if name in result.scalars] or _declared(result)


def title_of(analysis: str, scalar: Scalar) -> str:
    """What people read in place of the name of a scalar.

    Its own title where it has one, else that of the analysis (for runs stored before there were titles), else
    its name in words.
    """
    if scalar.title:
        return scalar.title
    titles: Mapping[str, str] = getattr(_module(analysis), "TITLES", {})
    if scalar.name in titles:
        return titles[scalar.name]
    for pattern, title in titles.items():
        if _HOLE in pattern and (match := _matcher(pattern).fullmatch(scalar.name)):
            return title.format(*(part.replace("_", " ") for part in match.groups()))
    return words(scalar.name)


def definition_of(result: Result, scalar: Scalar) -> str:
    """The definition of a scalar, in which other scalars of the result have their titles in
    place of their names.
    """
    names = sorted((name for name in result.scalars if "_" in name), key=len, reverse=True)
    if not names:
        return scalar.definition

    def titled(match: re.Match[str]) -> str:
        return f'"{title_of(result.analysis, result.scalars[match[0]])}"'

    return re.sub(rf"(?<![\w.])(?:{'|'.join(map(re.escape, names))})(?!\w)", titled, scalar.definition)


def words(name: str) -> str:
    """An identifier as words: ``mean_gini`` -> ``Mean gini``."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


# -- pieces of sentences ----------------------------------------------------------------------------


def said(scalar: Scalar) -> str:
    """A number with its interval in brackets, for example ``31.20 % [30.90, 31.52]``."""
    return said_value(scalar) + said_interval(scalar)


def said_value(scalar: Scalar) -> str:
    """The number alone."""
    return format_number(scalar.value, scalar.unit)


def said_interval(scalar: Scalar) -> str:
    """`` [30.90, 31.52]`` with a blank in front, in the unit of the number; empty where there is none."""
    if scalar.interval is None:
        return ""
    unit = " %" if scalar.unit == "fraction" else " s" if scalar.unit == "seconds" else f" {scalar.unit}"
    ends = (
        format_number(end, scalar.unit).removesuffix(unit)
        for end in (scalar.interval.low, scalar.interval.high)
    )
    return f" [{', '.join(ends)}]"


def basis(scalar: Scalar, units: str = "documents") -> str:
    """What an interval rests on: ``n = 79 documents``, with its coverage where that is not 95 %; or
    that there is none.
    """
    ends = scalar.interval
    if ends is None:
        return "no interval"
    coverage = "" if abs(ends.level - 0.95) < 1e-9 else f"{100 * ends.level:g} % interval, "
    return f"{coverage}n = {ends.n:,} {units}"


def defined(result: Result, *names: str) -> list[Scalar] | None:
    """The scalars of these names; None where one is missing or not defined."""
    found = [result.scalars.get(name) for name in names]
    known = [scalar for scalar in found if scalar is not None and math.isfinite(scalar.value)]
    return known if len(known) == len(names) else None


def nearest(result: Result, prefix: str, wanted: float) -> str | None:
    """The defined scalar ``prefix + number`` whose number is next to ``wanted``: a parameter may
    have chosen others.
    """
    numbers = {}
    for name, scalar in result.scalars.items():
        if name.startswith(prefix) and math.isfinite(scalar.value):
            try:
                numbers[name] = float(name.removeprefix(prefix))
            except ValueError:
                continue
    return min(numbers, key=lambda name: abs(numbers[name] - wanted)) if numbers else None


def rows(result: Result, table: str, **where: Any) -> pd.DataFrame | None:
    """The rows of a table with these values; None where there is no such table, column or row."""
    frame = result.tables.get(table)
    if frame is None or not set(where) <= set(frame.columns):
        return None
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return frame if len(frame) else None


def by_layer(frame: pd.DataFrame | None, column: str, unit: str = "fraction") -> str:
    """``from 5.10 % in layer 3 to 31.00 % in layer 0``, of means over the sites of a layer; empty for
    fewer than two layers.
    """
    if frame is None or not {"layer", column} <= set(frame.columns):
        return ""
    values = frame.groupby("layer")[column].mean().dropna()
    if len(values) < 2:
        return ""
    low, high = values.idxmin(), values.idxmax()
    ends = [f"{format_number(float(values[layer]), unit)} in layer {layer:g}" for layer in (low, high)]
    return f"from {ends[0]} to {ends[1]}"


def has_experts(frame: pd.DataFrame | None) -> bool:
    """Whether a table has rows of single experts of a mixture."""
    if frame is None or "site" not in frame:
        return False
    return bool(frame["site"].astype(str).str.contains(".experts.", regex=False).any())


def median_by_layer(frame: pd.DataFrame | None, column: str) -> pd.DataFrame | None:
    """The median over the sites of each layer, for ``by_layer``: in a mean over experts, one that got hardly
    any tokens would weigh as much as the others.
    """
    if frame is None or not {"layer", column} <= set(frame.columns):
        return None
    return frame.groupby("layer", as_index=False)[column].median()


# -- where they come from ---------------------------------------------------------------------------


def own_statements(result: Result) -> list[Statement] | None:
    """What the module of the analysis says; None where it names no module.

    Raises:
        SpecError: The module cannot be imported, lacks ``statements(result)``, or returns something else.
        Exception: Whatever the function raises.
    """
    record = _record(result.analysis)
    if record is None or not record.statements:
        return None
    module = module_of(record.statements, record.owner, "statements")
    said = function_of(module, "statements(result)", record.owner, "statements")(result)
    found = list(said) if isinstance(said, Iterable) else [said]
    if not all(isinstance(entry, Statement) for entry in found):
        raise SpecError(
            f"the function statements of {record.owner.name} returned something else",
            where=f"module {record.statements}",
            allowed="a list of Statement(text, view, scalars)",
            got=f"{type(said).__name__} {str(said)[:80]!r}",
            next_step=record.owner.next_step,
        )
    return found


def trouble_of(result: Result) -> str:
    """Why the analysis says nothing itself, in one sentence; empty where it does or has no statements."""
    try:
        own_statements(result)
    except Exception as error:  # of a plug-in, or of a run that others made
        why = error.what if isinstance(error, SparsescopeError) else f"{type(error).__name__}: {error}"
        return f"the statements of {result.analysis} failed, so its numbers are shown instead: {why}"
    return ""


def _own(result: Result) -> list[Statement]:
    """The statements of the analysis; none where it has no module or fails at saying them."""
    try:
        return (own_statements(result) or [])[:MOST]
    except Exception:  # the numbers are shown all the same
        _tell(trouble_of(result))
        return []


@cache
def _tell(trouble: str) -> None:
    """Say it once: statements are made wherever a result is shown."""
    _LOG.warning("%s; sparsescope.testing.check_statements shows all of it", trouble)


def _declared(result: Result) -> list[Scalar]:
    """The numbers that the analysis declares as its headline, or the first ones."""
    record = _record(result.analysis)
    found = [result.scalars[name] for name in (record.headline if record else ()) if name in result.scalars]
    return found or list(result.scalars.values())[:_FALLBACK_HEADLINE]


def _plain(analysis: str, scalar: Scalar, view: str) -> Statement:
    """A number as a sentence."""
    n = "" if scalar.interval is None else f", n = {scalar.interval.n:,}"
    return Statement(f"{title_of(analysis, scalar)}: {said(scalar)}{n}.", view, (scalar.name,))


def _record(analysis: str) -> Analysis | None:
    """The registered record; None where the package that made the result is not installed."""
    try:
        return find_record(analysis)
    except SpecError:
        return None


def _module(analysis: str) -> Any:
    """The statements module of an analysis, or None."""
    record = _record(analysis)
    if record is None or not record.statements:
        return None
    try:
        return module_of(record.statements, record.owner, "statements")
    except SparsescopeError:  # said where its statements are asked for
        return None


@cache
def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile("(.+)".join(map(re.escape, pattern.split(_HOLE))))
