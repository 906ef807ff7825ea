"""What a report shows of one result: plain values for the templates, made without drawing HTML.

Numbers are formatted here, by the kind of their column or the unit of their scalar, so that the template only
places text. A view that fails on unusual data becomes a visible message; its table is still shown.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from sparsescope.core.columns import Column
from sparsescope.core.numbers import Scalar, format_number
from sparsescope.core.registry import Analysis, View, find_record
from sparsescope.core.result import Note, Result
from sparsescope.core.spec import Params, variant_of
from sparsescope.core.statements import definition_of, headline_of, title_of, trouble_of, words
from sparsescope.errors import SparsescopeError, SpecError
from sparsescope.reporting import page
from sparsescope.reporting.artifacts import ArtifactLine, artifact_lines
from sparsescope.reporting.depth import left_out
from sparsescope.reporting.head import Finding, findings_of
from sparsescope.viz import generic
from sparsescope.viz.panel import Panel
from sparsescope.viz.tables import csv, format_cell, format_rows, heading, numeric

if TYPE_CHECKING:
    import plotly.graph_objects as go

ROWS_SHOWN = 800  # 30 layers with 13 measures in two domains are 780 rows: a report shows every layer
CHOICES_SHOWN = 3  # of a view that shows one value of a column
# Bytes of inlined downloads in one report; beyond its share a table offers the rows shown
CSV_BUDGET = 1_500_000
# Bytes of figures and tables from which on runs come without figures and with short tables: a page then has
# about 40 MB, plotly included
PAGE_BUDGET = 28_000_000
SHORT_ROWS = 5  # of their tables
_CELL_BYTES = 34  # of a cell of a table beside its text
_PLAIN_IN_URL = ",.:;/_-[]()=@!~*'|"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TableBlock:
    """A table as text: at most ``ROWS_SHOWN`` rows, and a download of all rows where there is room."""

    key: str

    name: str
    headings: tuple[tuple[str, str, bool], ...]  # text, description, aligned as a number
    rows: list[list[str]]
    total: int
    stored_at: str
    download: str
    download_rows: int


@dataclass(frozen=True, slots=True)
class FigureBlock:
    """A figure with its texts and the table behind it."""

    key: str
    title: str
    caption: str
    formula: str
    citation: str
    alt: str
    height: int
    json: str
    table: TableBlock | None
    table_key: str
    problem: str = ""
    panel: Markup | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A headline number with its interval and definition."""

    label: str
    value: str
    interval: str
    definition: str


@dataclass(frozen=True, slots=True)
class Section:
    """Everything about one result."""

    key: str
    title: str
    summary: str
    subject: str
    corpus: str
    run_id: str
    findings: list[Finding]
    cards: list[Card]
    others: list[Card]
    warnings: list[Note]
    notes: list[Note]  # of protocol: cost, bisection, precision
    figures: list[FigureBlock]
    tables: list[TableBlock]
    origin: list[tuple[str, str]]
    artifacts: list[ArtifactLine]
    depth: str  # what a preset leaves out
    params: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    command: str
    citations: list[tuple[str, str]]
    shortened: str  # the command that shows what is left out of a large page

    @property
    def nbytes(self) -> int:
        """About what its figures and tables add to a page."""
        tables = [*self.tables, *(figure.table for figure in self.figures if figure.table is not None)]
        return sum(len(figure.json) + len(figure.panel or "") for figure in self.figures) + sum(
            len(table.download) + sum(len(cell) + _CELL_BYTES for row in table.rows for cell in row)
            for table in tables
        )


def record_of(result: Result) -> Analysis:
    """Return the registered analysis, or a bare record when its package is not installed."""
    try:
        return find_record(result.analysis)
    except SpecError:
        pass  # a result outlives the package that made it
    title = words(result.analysis)
    return Analysis(
        result.analysis,
        "?",
        title,
        "This analysis is not installed here; its stored numbers are shown.",
        Params,
        "",
    )


def views_of(result: Result) -> tuple[View, ...]:
    """Return the declared views whose table is there, or one generic view for each table."""
    declared = tuple(view for view in record_of(result).views if view.table in result.tables)
    if declared:
        return declared
    return tuple(
        View(
            name, words(name), "Default figure of this table.", table=name,
            select=generic.select_column(result, name),
        )
        for name in result.tables
    )  # fmt: skip


def draw(result: Result, view: View, value: Any = None) -> go.Figure | Panel:
    """Draw a view of ``views_of``, the declared figure or the generic one, for one value of
    its column ``select``.
    """
    record = record_of(result)
    if any(view.name == known.name for known in record.views):
        return record.draw(view.name, result, value)
    return generic.draw(result, view.table, view.chosen(result, value) if view.select else None)


def choice_text(result: Result, view: View, value: Any) -> str:
    """A value of the column that a view selects by, as people read it, for example ``layer 3``."""
    column = next(column for column in result.columns[view.table] if column.name == view.select)
    shown = format_cell(value, column)
    return shown if column.kind == "label" else f"{view.select.replace('_', ' ')} {shown}"


def section(
    result: Result, key: str, *, budget: int = CSV_BUDGET, rows: int = ROWS_SHOWN, figures: bool = True
) -> Section:
    """Prepare one result for the template.

    Args:
        result: What to show.
        key: Prefix of the anchors, unique in the report.
        budget: Bytes that the inlined downloads of this result may take.
        rows: Most rows of a table that are shown.
        figures: Whether its figures are drawn; its numbers are there in any case.
    """
    record = record_of(result)
    each = budget // max(len(result.tables), 1)
    drawn: list[FigureBlock] = []
    shown: set[str] = set()
    anchors: dict[str, tuple[str, str]] = {}
    for index, view in enumerate(views_of(result) if figures else ()):
        # A table that belongs to several figures stands below the first of them.
        block = (
            None
            if view.table in shown
            else table_block(result, view.table, f"{key}-t-{view.table}", each, rows)
        )
        shown.add(view.table)
        anchors[view.name] = (f"{key}-{index}", view.title)
        drawn += _figures(result, view, f"{key}-{index}", block, f"{key}-t-{view.table}")
    headline = headline_of(result)
    others = [scalar for scalar in result.scalars.values() if scalar not in headline]
    origin = result.provenance
    trouble = trouble_of(result)
    notes = [*result.notes, *([Note("warning", trouble)] if trouble else [])]
    return Section(
        key=key,
        title=record.title,
        summary=record.summary,
        subject=result.about or "in memory",
        corpus=str((origin.get("corpus") or {}).get("name", "")),
        run_id=str(result.run_id or "not stored"),
        findings=findings_of(result, anchors),
        cards=[card(result, scalar) for scalar in headline],
        others=[card(result, scalar) for scalar in others],
        warnings=sorted((note for note in notes if note.severity != "info"), key=lambda note: note.severity),
        notes=[note for note in notes if note.severity == "info"],
        figures=drawn,
        tables=[
            table_block(result, name, f"{key}-t-{name}", each, rows)
            for name in result.tables
            if name not in shown
        ],
        origin=origin_rows(result),
        artifacts=artifact_lines(result),
        depth=left_out(record, result),
        params=flat(origin.get("params") or {}),
        environment=flat(origin.get("environment") or {}),
        command=str(origin.get("command") or ""),
        citations=[(c.label, c.reference) for c in record.citations],
        shortened=""
        if figures
        else f"sparsescope report {result.run_id}"
        if result.run_id
        else "ss.report([result])",
    )


def sections_of(results: Sequence[Result], rows: int = ROWS_SHOWN) -> list[Section]:
    """Prepare the results of one page; once they are too large together, the others come without figures and
    with short tables.
    """
    made: list[Section] = []
    used = 0
    for index, result in enumerate(results):
        room, budget = used < PAGE_BUDGET, CSV_BUDGET // len(results)
        shown = rows if room else min(rows, SHORT_ROWS)
        made.append(section(result, f"s{index}", budget=budget, rows=shown, figures=room))
        used += made[-1].nbytes
    return made


def shortened(sections: Sequence[Section]) -> str:
    """Say how many runs are shortened, for example ``3 of 40 runs``; empty where none is."""
    count = sum(bool(entry.shortened) for entry in sections)
    return f"{count} of {len(sections)} runs" if count else ""


def card(result: Result, scalar: Scalar) -> Card:
    """Format one scalar of a result."""
    interval = ""
    if scalar.interval is not None:
        i = scalar.interval
        low, high = format_number(i.low, scalar.unit), format_number(i.high, scalar.unit)
        interval = f"{100 * i.level:g} % interval {low} to {high}, n = {i.n} ({i.method})"
    title, definition = title_of(result.analysis, scalar), definition_of(result, scalar)
    return Card(title, format_number(scalar.value, scalar.unit), interval, definition)


def table_block(result: Result, name: str, key: str, budget: int, shown: int = ROWS_SHOWN) -> TableBlock:
    """Format one table and prepare its download: all rows if they take less than ``budget`` bytes."""
    return frame_block(
        result.tables[name],
        result.columns[name],
        name=name,
        key=key,
        budget=budget,
        comment=_table_comment(result, name),
        stored_at=f"{result.run_id}/tables/{name}.parquet" if result.run_id else "",
        shown=shown,
    )


def frame_block(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    *,
    name: str,
    key: str,
    budget: int,
    comment: str,
    stored_at: str = "",
    shown: int = ROWS_SHOWN,
) -> TableBlock:
    """Format a frame and prepare its download.

    Args:
        frame: The table.
        columns: Meaning of its columns.
        name: Name above it and of the download.
        key: Its anchor.
        budget: Bytes that the download may take; beyond them it holds the rows shown.
        comment: First line of the download.
        stored_at: Where all rows are, in the folder of runs.
        shown: Most rows shown.
    """
    rows = len(frame)
    # Do not write a large table out only to find that it does not fit: a cell takes two bytes or more.
    text = (
        "" if 2 * frame.size > budget else quote(csv(frame, columns, comments=(comment,)), safe=_PLAIN_IN_URL)
    )
    if not text or len(text) > budget:
        rows = min(rows, shown)
        text = quote(csv(frame.head(rows), columns, comments=(comment,)), safe=_PLAIN_IN_URL)
    return TableBlock(
        key=key,
        name=name,
        headings=tuple((heading(c), c.description, numeric(c)) for c in columns),
        rows=format_rows(frame, columns, shown),
        total=len(frame),
        stored_at=stored_at,
        download="data:text/csv;charset=utf-8," + text,
        download_rows=rows,
    )


def table_csv(result: Result, name: str, frame: pd.DataFrame | None = None) -> str:
    """Return a table of a result as CSV with the run, the subject and the units above the header."""
    comments = (_table_comment(result, name),)
    return csv(result.tables[name] if frame is None else frame, result.columns[name], comments=comments)


def _table_comment(result: Result, name: str) -> str:
    subject = result.about or "in memory"
    return (
        f"sparsescope {result.analysis}, table {name}, run {result.run_id or 'not stored'}, subject {subject}"
    )


def _figures(
    result: Result, view: View, key: str, table: TableBlock | None, table_key: str
) -> list[FigureBlock]:
    """The figure of a view; of one that selects, a figure for each of the first values."""
    try:
        choices = view.choices(result)
    except SpecError:  # the figure says it
        choices = []
    if not choices:
        return [_figure(result, view, key, table, table_key)]
    blocks = []
    for number, value in enumerate(choices[:CHOICES_SHOWN]):
        texts = {"title": f"{view.title}: {choice_text(result, view, value)}"}
        if number == 0 and len(choices) > CHOICES_SHOWN:
            more = (
                f"Shown for the first {CHOICES_SHOWN} of {len(choices):,} values of {view.select}; "
                "the explorer shows each."
            )
            texts["caption"] = f"{view.caption} {more}".strip()
        place = key if number == 0 else f"{key}-{number}"
        blocks.append(
            _figure(result, replace(view, **texts), place, None if number else table, table_key, value)
        )
    return blocks


def _figure(
    result: Result, view: View, key: str, table: TableBlock | None, table_key: str, value: Any = None
) -> FigureBlock:
    texts: dict[str, Any] = {
        "key": key,
        "title": view.title,
        "caption": view.caption,
        "formula": view.formula,
        "citation": view.citation,
        "table": table,
        "table_key": table_key,
    }
    try:
        figure = draw(result, view, value)
        if isinstance(figure, Panel):
            # escaped
            return FigureBlock(**texts, alt=figure.alt, height=0, json="", panel=Markup(figure.html()))  # noqa: S704
        meta = figure.layout.meta or {}
        return FigureBlock(
            **texts,
            alt=str(meta.get("alt") or view.caption),
            height=int(figure.layout.height or 450),
            json=page.figure_json(figure),
        )
    # One figure must not take the report with it; the table still holds the numbers
    except Exception as error:
        if isinstance(error, SparsescopeError):  # it says itself what is wrong; a trace would hide it
            _LOG.warning("view %s of %s failed: %s", view.name, result.analysis, error)
        else:
            _LOG.exception("view %s of %s failed", view.name, result.analysis)
        why = error.what if isinstance(error, SparsescopeError) else type(error).__name__
        return FigureBlock(
            **texts,
            alt="",
            height=0,
            json="",
            problem=f"This figure could not be drawn ({why}). The table holds the numbers.",
        )


# -- where a result comes from ---------------------------------------------------------------------


def origin_rows(result: Result) -> list[tuple[str, str]]:
    """Return where the numbers come from, as label and text."""
    origin = result.provenance
    subject, corpus = origin.get("subject") or {}, origin.get("corpus") or {}
    rows = [
        ("Model" if subject.get("id") else "Read", result.about),
        ("Variant", variant.text if (variant := variant_of(subject)) is not None else None),
        ("Revision", subject.get("revision")),
        ("Architecture", _architecture(subject)),
        ("Weights", f"SHA-256 {subject['weight_hash'][:16]}…" if subject.get("weight_hash") else None),
        ("Precision of origin", origin_text(subject.get("origin_precision"))),
        ("Computed in", subject.get("dtype")),
        ("Attention", subject.get("attn_implementation")),
        ("Device", subject.get("device")),
        ("Remote code", "trusted and executed" if subject.get("trust_remote_code") else None),
        ("Corpus", corpus.get("name")),
        ("Text", _amount(corpus)),
        ("Domains", _domains(corpus.get("domains"))),
        ("License of the text", corpus.get("license")),
        ("Corpus digest", f"{corpus['digest'][:16]}…" if corpus.get("digest") else None),
        ("Run", result.run_id or "not stored"),
        ("Version of the analysis", origin.get("version")),
        ("Preset", origin.get("preset")),
        ("Made", origin.get("created")),
        (
            "Time",
            format_number(float(origin["seconds"]), "seconds") if origin.get("seconds") is not None else None,
        ),
    ]
    return [(label, str(text)) for label, text in rows if text not in (None, "")]


def origin_text(precision: object) -> str | None:
    """Say in words what precision the weights came in."""
    if not precision:
        return None
    text = str(precision)
    return f"dequantized from {text}" if text.startswith("gguf:") else text


def _architecture(subject: Mapping[str, Any]) -> str | None:
    parts = [str(subject["architecture"])] if subject.get("architecture") else []
    if subject.get("n_parameters"):
        parts.append(f"{subject['n_parameters'] / 1e6:,.1f} M parameters")
    if subject.get("n_layers"):
        parts.append(f"{subject['n_layers']} layers of width {subject.get('d_model', '?')}")
    return ", ".join(parts) or None


def _amount(corpus: Mapping[str, Any]) -> str | None:
    parts = []
    for key, unit in (("tokens", "tokens"), ("documents", "documents")):
        if isinstance(corpus.get(key), int):
            parts.append(f"{corpus[key]:,} {unit}")
    if corpus.get("context"):
        parts.append(f"windows of {corpus['context']}")
    return ", ".join(parts) or None


def _domains(domains: Any) -> str | None:
    if isinstance(domains, Mapping):
        texts = []
        for name, entry in domains.items():
            tokens = entry.get("tokens") if isinstance(entry, Mapping) else None
            texts.append(f"{name} ({tokens:,} tokens)" if isinstance(tokens, int) else str(name))
        return ", ".join(texts) or None
    if isinstance(domains, Sequence) and not isinstance(domains, str):
        return ", ".join(map(str, domains)) or None
    return str(domains) if domains else None


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested values to ``(dotted name, text)`` rows."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        label = f"{prefix}{name}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{label}.")
        else:
            rows.append(
                (label, ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
            )
    return rows
