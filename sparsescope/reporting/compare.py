"""Two results of the same analysis side by side: what was set differently, and what came out differently.

Tables are aligned on their index and text columns (layer, site, metric, domain, ...); every measured column
gets three columns: a, b and b - a. Where those keys do not name a row uniquely, the order of the rows within
equal keys is the last key, and the comparison says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from sparsescope.core.columns import INDEX_KINDS, TEXT_KINDS, Column
from sparsescope.core.numbers import Direction, Interval, format_number
from sparsescope.core.result import Result
from sparsescope.core.statements import definition_of, title_of
from sparsescope.errors import SpecError
from sparsescope.reporting.sections import flat, record_of

ABSENT = "(absent)"
_ORDER = "row"
Verdict = Literal["better", "worse", "same", "changed", ""]


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that differs: dotted name, text in a, text in b."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class ScalarChange:
    """A number in both results.

    Attributes:
        name: Name of the scalar.
        title: What people read in its place.
        unit: Its unit.
        direction: Which direction is better.
        definition: What it is.
        a: Value in a; NaN where a has no such scalar.
        b: Value in b.
        delta: ``b - a``.
        verdict: ``better`` or ``worse`` where a direction is declared, ``changed`` where it is not, ``same``
            for equal numbers, empty where a value is missing.
        apart: Whether the two intervals do not overlap; None where one is missing. Overlap does not prove
            that there is no difference.
        interval_a: Interval in a.
        interval_b: Interval in b.
    """

    name: str
    title: str
    unit: str
    direction: Direction
    definition: str
    a: float
    b: float
    delta: float
    verdict: Verdict
    apart: bool | None
    interval_a: Interval | None
    interval_b: Interval | None


@dataclass(frozen=True, slots=True)
class TableComparison:
    """A table of both results, aligned.

    Attributes:
        name: Name of the table.
        frame: Keys, then ``<column> a``, ``<column> b``, ``<column> b - a`` for each measured column.
        columns: Meaning of the columns of ``frame``.
        keys: The columns that rows were aligned on.
        only_a: Rows of a that have no partner.
        only_b: Rows of b that have no partner.
        note: What the reader has to know, or empty.
    """

    name: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    keys: tuple[str, ...]
    only_a: int
    only_b: int
    note: str = ""

    def changed(self) -> pd.DataFrame:
        """Return the rows in which a measured column differs; a missing partner is a difference."""
        different = pd.Series(False, index=self.frame.index)
        for name in (c.name.removesuffix(" b - a") for c in self.columns if c.name.endswith(" b - a")):
            a, b = self.frame[f"{name} a"], self.frame[f"{name} b"]
            different |= (a != b) & ~(a.isna() & b.isna())
        return self.frame[different]

    def summary(self) -> str:
        """Say how rows were matched and how many have no partner."""
        parts = [self.note or f"aligned on {', '.join(self.keys)}"]
        parts += [f"{n:,} rows only in {side}" for side, n in (("a", self.only_a), ("b", self.only_b)) if n]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that differs between two results of one analysis."""

    analysis: str
    title: str
    a: str
    b: str
    settings: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    scalars: tuple[ScalarChange, ...]
    tables: tuple[TableComparison, ...]
    notes: tuple[str, ...] = ()


def compare(a: Result, b: Result) -> Comparison:
    """Compare two results.

    Args:
        a: The baseline.
        b: The other; deltas are ``b - a``.

    Raises:
        SpecError: If they come from different analyses.
    """
    if a.analysis != b.analysis:
        raise SpecError(
            "only results of the same analysis can be compared",
            allowed=a.analysis,
            got=b.analysis,
            next_step="choose two runs whose ids begin with the same name; see: sparsescope list",
        )
    shared = [name for name in a.tables if name in b.tables]
    notes = [
        f"table {name!r} is only in {'a' if name in a.tables else 'b'}"
        for name in a.tables.keys() ^ b.tables.keys()
    ]
    if a.provenance.get("version") != b.provenance.get("version"):
        notes.append(
            "the two runs come from different versions of the analysis: numbers may differ by method"
        )
    return Comparison(
        analysis=a.analysis,
        title=record_of(a).title,
        a=a.run_id or "a (not stored)",
        b=b.run_id or "b (not stored)",
        settings=_differences(_settings(a), _settings(b)),
        environment=_differences(
            a.provenance.get("environment") or {}, b.provenance.get("environment") or {}
        ),
        scalars=tuple(_scalar(name, a, b) for name in dict.fromkeys([*a.scalars, *b.scalars])),
        tables=tuple(_table(name, a, b) for name in shared),
        notes=tuple(sorted(notes)),
    )


def format_delta(change: ScalarChange) -> str:
    """Format ``b - a``: fractions in percentage points."""
    if math.isnan(change.delta):
        return "–"
    if change.unit == "fraction":
        return f"{100 * change.delta:+.2f} points"
    return ("+" if change.delta > 0 else "") + format_number(change.delta, change.unit)


def _settings(result: Result) -> dict[str, Any]:
    origin = result.provenance
    kept = {key: origin.get(key) for key in ("version", "params", "subject", "corpus", "inputs")}
    return {key: value for key, value in kept.items() if value is not None}


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Settings that differ, by dotted name."""
    first, second = dict(flat(a)), dict(flat(b))
    names = dict.fromkeys([*first, *second])
    pairs = [(name, first.get(name, ABSENT), second.get(name, ABSENT)) for name in names]
    return tuple(Difference(*pair) for pair in pairs if pair[1] != pair[2])


def _scalar(name: str, a: Result, b: Result) -> ScalarChange:
    first, second = a.scalars.get(name), b.scalars.get(name)
    known = second or first
    if known is None:
        raise SpecError("no such scalar", got=name)
    low = first.value if first else math.nan
    high = second.value if second else math.nan
    delta = high - low
    intervals = (first.interval if first else None, second.interval if second else None)
    apart = None
    if intervals[0] and intervals[1]:
        apart = intervals[0].high < intervals[1].low or intervals[1].high < intervals[0].low
    return ScalarChange(
        name,
        title_of(a.analysis, known),
        known.unit,
        known.direction,
        definition_of(b if second else a, known),
        low,
        high,
        delta,
        _verdict(delta, known.direction),
        apart,
        *intervals,
    )


def _verdict(delta: float, direction: Direction) -> Verdict:
    if math.isnan(delta):
        return ""
    if delta == 0:
        return "same"
    if direction == "none":
        return "changed"
    return "better" if (delta > 0) == (direction == "higher") else "worse"


def _table(name: str, a: Result, b: Result) -> TableComparison:
    """Align one table on its keys."""
    columns = {c.name: c for c in a.columns[name]}
    shared = [c for c in b.columns[name] if c.name in columns and columns[c.name].kind == c.kind]
    keys = [c for c in shared if c.kind in INDEX_KINDS or c.kind in TEXT_KINDS]
    measured = [c for c in shared if c not in keys]
    names = [c.name for c in keys]
    first, second = a.tables[name], b.tables[name]
    note = ""
    if not names or first.duplicated(names).any() or second.duplicated(names).any():
        note = "rows with the same keys are matched in their order"
        first, second = (_numbered(frame, names) for frame in (first, second))
        keys.append(Column(_ORDER, "position", "Order of the row among those with the same keys."))
        names.append(_ORDER)
    merged = first.merge(second, on=names, how="outer", suffixes=(" a", " b"), indicator="__side")
    counts = merged["__side"].value_counts()
    frame = merged[names].copy()
    out = list(keys)
    for column in measured:
        left = pd.to_numeric(merged[f"{column.name} a"], errors="coerce").astype(float)
        right = pd.to_numeric(merged[f"{column.name} b"], errors="coerce").astype(float)
        for suffix, values in (("a", left), ("b", right), ("b - a", right - left)):
            frame[f"{column.name} {suffix}"] = values
            kind = "value" if suffix == "b - a" and column.kind in {"count", "fraction"} else column.kind
            out.append(Column(f"{column.name} {suffix}", kind, column.description, column.unit))
    return TableComparison(
        name,
        frame,
        tuple(out),
        tuple(names),
        int(counts.get("left_only", 0)),
        int(counts.get("right_only", 0)),
        note,
    )


def _numbered(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    order = (
        frame.groupby(names, sort=False, dropna=False).cumcount() if names else pd.Series(range(len(frame)))
    )
    return frame.assign(**{_ORDER: order.to_numpy()})
