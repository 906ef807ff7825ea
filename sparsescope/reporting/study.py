"""The page of a study: question, text, checked claims, subjects side by side, declared figures, then
every run, folded.

Plain values for ``study.html``; the parts about single runs are those of the report. Negative results stand
where positive ones stand. What could not be run or drawn is listed, not left out.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.core.columns import INDEX_KINDS, Column
from sparsescope.core.notebook_figures import also_as_html
from sparsescope.core.numbers import Scalar, format_number
from sparsescope.core.result import Result
from sparsescope.core.statements import headline_of, title_of
from sparsescope.errors import SpecError, near_matches, unknown_name
from sparsescope.reporting import page
from sparsescope.reporting.head import Finding, findings_of
from sparsescope.reporting.narrative import narrative_html
from sparsescope.reporting.sections import (
    ROWS_SHOWN,
    FigureBlock,
    frame_block,
    origin_rows,
    record_of,
    sections_of,
    shortened,
)
from sparsescope.runner.study import StudyFigure, StudyResult, StudyRun
from sparsescope.viz.figure import empty
from sparsescope.viz.layers import series
from sparsescope.viz.side_by_side import Axes, Line, compare_lines
from sparsescope.viz.tables import is_share

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LOG = logging.getLogger(__name__)
_FIGURE_BUDGET = 60_000  # bytes of the download below a comparison figure
_FEWEST_ROWS = 60
_HARD_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Across:
    """What one analysis found: the first finding of each subject, and a row for each number, a
    column for each subject.
    """

    title: str
    said: list[tuple[str, Finding]]  # name of the subject
    subjects: list[tuple[str, bool]]  # name, whether it is a control
    rows: list[tuple[str, str, list[tuple[str, str]]]]  # number, definition, cells of value and interval


def render_study(outcome: StudyResult, *, title: str | None = None) -> str:
    """Return the report of a study as HTML text.

    Raises:
        SpecError: If no run of it has a result.
    """
    declared = outcome.study.declared
    done = [run for run in outcome.runs if run.result is not None]
    if not done:
        raise SpecError(
            "no run of the study has a result, so there is nothing to report",
            where=str(outcome.study.path),
            next_step=f"sparsescope study {shlex.quote(declared.name)} says why each of them failed",
        )
    rows = max(ROWS_SHOWN // len(done), _FEWEST_ROWS)
    found = sections_of([run.result for run in done if run.result is not None], rows)
    sections = list(zip([_heading(run, outcome) for run in done], found, strict=True))
    return page.render(
        "study.html",
        name=declared.name,
        title=title or declared.title,
        question=declared.question,
        narrative=narrative_html(outcome.study.narrative),
        verdicts=outcome.findings,
        summary=verdict_text(outcome),
        across=across(outcome),
        figures=[_figure(figure, f"c{index}", outcome) for index, figure in enumerate(declared.figures)],
        failed=[
            (_heading(run, outcome), run.error.what if run.error else "", _cure(run))
            for run in outcome.failed
        ],
        sections=sections,
        shortened=shortened(found),
        origins=_origins(done),
        made=max(str(run.result.provenance.get("created") or "") for run in done if run.result is not None)[
            :10
        ],
        command=f"sparsescope study {shlex.quote(declared.name)}",
    )


def verdict_text(outcome: StudyResult) -> str:
    """Say how many claims hold, for example ``4 of 6 claims hold; 2 do not hold``."""
    found = outcome.findings
    counts = {
        status: sum(v.status == status for v in found) for status in ("holds", "does not hold", "not checked")
    }
    parts = [f"{counts['holds']} of {len(found)} claims hold"]
    parts += [f"{counts['does not hold']} do not hold"] if counts["does not hold"] else []
    parts += [f"{counts['not checked']} could not be checked"] if counts["not checked"] else []
    return "; ".join(parts)


def across(outcome: StudyResult) -> list[Across]:
    """Return the headline numbers side by side, one table for each analysis."""
    tables = []
    for analysis in outcome.study.declared.analyses:
        runs = [run for run in outcome.runs if run.id == analysis.id and run.result is not None]
        if not runs or runs[0].result is None:
            continue
        results = [run.result for run in runs if run.result is not None]
        record = record_of(results[0])
        scalars = {run.subject.name: run.result.scalars for run in runs if run.result is not None}
        present = {name: s for found in scalars.values() for name, s in found.items()}
        names = dict.fromkeys(scalar.name for result in results for scalar in headline_of(result))
        subjects = [(run.subject.title, run.subject.control_of is not None) for run in runs]
        rows = []
        for name in names:
            cells = [_cell(scalars[run.subject.name].get(name)) for run in runs]
            rows.append((title_of(analysis.name, present[name]), present[name].definition, cells))
        said = [(run.subject.title, found[0]) for run, found in _said(runs, outcome) if found]
        tables.append(Across(record.title + outcome.study.suffix(analysis.id), said, subjects, rows))
    return tables


def _said(runs: Sequence[StudyRun], outcome: StudyResult) -> list[tuple[StudyRun, list[Finding]]]:
    """What each run found; links lead to the run, which is folded, since its figures are drawn
    when it is opened.
    """
    done = [run for run in outcome.runs if run.result is not None]
    found = []
    for run in runs:
        if run.result is not None:
            key = f"s{next(index for index, other in enumerate(done) if other is run)}"
            found.append(
                (
                    run,
                    findings_of(
                        run.result, {view.name: (key, view.title) for view in record_of(run.result).views}
                    ),
                )
            )
    return found


def _cell(scalar: Scalar | None) -> tuple[str, str]:
    """A number, and its interval on a line of its own."""
    if scalar is None:
        return "–", ""
    value, ends = format_number(scalar.value, scalar.unit), scalar.interval
    if ends is None:
        return value, ""
    interval, count = (
        f"[{format_number(ends.low, scalar.unit)}, {format_number(ends.high, scalar.unit)}]",
        f"n = {ends.n}",
    )
    # Breaks between the two only
    return value, f"{interval.replace(' ', _HARD_SPACE)} {count.replace(' ', _HARD_SPACE)}"


def _heading(run: StudyRun, outcome: StudyResult) -> str:
    title = record_of(run.result).title if run.result is not None else run.analysis
    return f"{run.subject.title}: {title}{outcome.study.suffix(run.id)}"


def _cure(run: StudyRun) -> str:
    return "" if run.error is None else run.error.next_step or ""


def _origins(runs: Sequence[StudyRun]) -> tuple[list[str], list[list[str]]]:
    """Models and texts as one table: a column for each subject, a row for what at least one of them has."""
    shown = (
        "Model",
        "Revision",
        "Architecture",
        "Precision of origin",
        "Computed in",
        "Device",
        "Corpus",
        "Text",
    )
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        if run.result is not None:
            found.setdefault(run.subject.title, dict(origin_rows(run.result)))
    labels = [label for label in shown if any(label in rows for rows in found.values())]
    return list(found), [[label, *(rows.get(label, "–") for rows in found.values())] for label in labels]


def colors(outcome: StudyResult) -> dict[str, int]:
    """Return the color of every subject: by order of declaration, a control that of its subject."""
    own = [entry.name for entry in outcome.study.declared.subjects if entry.control_of is None]
    index = {name: number for number, name in enumerate(own)}
    return {entry.name: index[entry.control_of or entry.name] for entry in outcome.study.declared.subjects}


def figure(outcome: StudyResult, which: str | int = 0) -> go.Figure:
    """Draw a declared figure of a study: a column of a table, one line for each subject.

    Args:
        outcome: The outcome of ``ss.study``.
        which: Title of the figure, or its place in the file, from 0.

    Returns:
        The figure; where there is nothing to draw (no subject was measured) it says why.

    Raises:
        SpecError: If the study declares no such figure.
    """
    declared = outcome.study.declared.figures
    titles = [entry.title for entry in declared]
    if isinstance(which, str) and which not in titles:
        raise unknown_name("figure of the study", which, titles, next_step="the titles stand in study.toml")
    if not isinstance(which, str) and not 0 <= which < len(declared):
        allowed = f"0 to {len(declared) - 1}" if declared else "none: the study declares no figure"
        raise SpecError(
            "there is no such figure of the study", where=str(outcome.study.path), allowed=allowed, got=which
        )
    entry = declared[titles.index(which) if isinstance(which, str) else which]
    also_as_html()
    try:
        return _compared(entry, outcome)[0]
    except SpecError as error:
        return empty(entry.title, _problem(error))


def _compared(declared: StudyFigure, outcome: StudyResult) -> tuple[go.Figure, list[Line], Axes]:
    """A declared figure and what it shows.

    Raises:
        SpecError: If there is nothing to draw.
    """
    lines, axes, remarks = _lines(declared, outcome)
    return (
        compare_lines(lines, axes, title=declared.title, caption=declared.caption, remarks=remarks),
        lines,
        axes,
    )


def _problem(error: SpecError) -> str:
    return f"{error.what}. {error.next_step or ''}".strip()


def _figure(declared: StudyFigure, key: str, outcome: StudyResult) -> FigureBlock:
    """Draw a declared figure, with the drawn numbers below it; one that cannot be drawn says why."""
    texts: dict[str, Any] = {
        "key": key,
        "title": declared.title,
        "caption": declared.caption,
        "formula": "",
        "citation": "",
    }
    try:
        drawn, lines, axes = _compared(declared, outcome)
    except SpecError as error:
        return FigureBlock(
            **texts, alt="", height=0, json="", table=None, table_key="", problem=_problem(error)
        )
    except Exception as error:  # one figure must not take the page with it
        _LOG.exception("figure %s of the study failed", key)
        problem = f"This figure could not be drawn ({type(error).__name__})."
        return FigureBlock(**texts, alt="", height=0, json="", table=None, table_key="", problem=problem)
    frame, columns = _drawn(lines, axes)
    comment = f"sparsescope study {outcome.study.declared.name}, figure: {declared.title}"
    block = frame_block(
        frame, columns, name="of this figure", key=f"{key}-t", budget=_FIGURE_BUDGET, comment=comment
    )
    meta = drawn.layout.meta or {}
    return FigureBlock(
        **texts,
        alt=str(meta.get("alt") or declared.caption),
        height=int(drawn.layout.height or 450),
        json=page.figure_json(drawn),
        table=block,
        table_key=f"{key}-t",
    )


def _lines(declared: StudyFigure, outcome: StudyResult) -> tuple[list[Line], Axes, list[str]]:
    """The lines of a figure, from the tables of all subjects that have them."""
    shades, lines, remarks = colors(outcome), [], []
    axes: Axes | None = None
    for subject in outcome.study.declared.subjects:
        result = outcome.result(subject.name, declared.analysis)
        if result is None:
            remarks.append(f"{subject.title} was not measured")
            continue
        columns = _columns(result, declared)
        frame, several = _rows(result, declared)
        if axes is None:
            metric = next((str(v) for k, v in declared.where.items() if columns[k].kind == "metric"), None)
            x, y = columns[declared.x], columns[declared.y]
            axes = Axes(
                x,
                y,
                declared.y_title or "",
                metric,
                declared.relative,
                declared.reference_title,
                declared.log_x,
                declared.log_y,
            )
        if several:
            remarks.append(f"{subject.title}: {several}")
        if frame.empty:
            remarks.append(f"{subject.title} has no such rows")
            continue
        reference = tuple(frame["reference"]) if declared.reference else ()
        lines.append(
            Line(subject.title, shades[subject.name], subject.control_of is not None, frame, reference)
        )
    if axes is None or not lines:
        rows = ", ".join(f"{k} = {v}" for k, v in declared.where.items())
        raise SpecError(
            f"No subject has rows for this figure in table {declared.table}" + (f" ({rows})" if rows else "")
        )
    return lines, axes, remarks


def _columns(result: Result, declared: StudyFigure) -> dict[str, Column]:
    """Meaning of the columns; what an analysis did not declare is found missing here."""
    if declared.table not in result.tables:
        near = near_matches(declared.table, result.tables)
        hint = f"near: {', '.join(near)}" if near else None
        raise SpecError(f"{result.analysis} has no table {declared.table!r}", next_step=hint)
    columns = {column.name: column for column in result.columns[declared.table]}
    asked = (declared.x, declared.y, declared.low, declared.high, declared.reference, *declared.where)
    for name in asked:
        if name is not None and name not in columns:
            near = near_matches(name, columns)
            hint = f"near: {', '.join(near)}" if near else None
            raise SpecError(
                f"table {declared.table!r} of {result.analysis} has no column {name!r}", next_step=hint
            )
    return columns


def _rows(result: Result, declared: StudyFigure) -> tuple[pd.DataFrame, str]:
    """One row for each x, with columns x, at (x before stretching), y, low, high, reference; and
    how rows were joined.
    """
    table = result.tables[declared.table]
    for name, wanted in declared.where.items():
        table = table[table[name] == wanted]
    names = {
        "x": declared.x,
        "y": declared.y,
        "low": declared.low,
        "high": declared.high,
        "reference": declared.reference,
    }
    work = pd.DataFrame(
        {k: pd.to_numeric(table[v], errors="coerce").astype(float) for k, v in names.items() if v is not None}
    )
    several = ""
    if work["x"].duplicated().any():
        work, several = _joined(table, work, declared)
    work = work[np.isfinite(work["x"])].sort_values("x", kind="stable").reset_index(drop=True)
    work["at"] = work["x"]
    if declared.relative and len(work):
        first, last = work["x"].min(), work["x"].max()
        work["x"] = (work["x"] - first) / (last - first) if last > first else 0.0
    return work, several


def _joined(table: pd.DataFrame, work: pd.DataFrame, declared: StudyFigure) -> tuple[pd.DataFrame, str]:
    """Several rows at one x: experts of a layer get the median and range of ``viz.layers``,
    others the median.
    """
    if declared.x == "layer" and "site" in table:
        renamed = work.rename(columns={"x": "layer", "y": "mean"}).assign(site=table["site"].to_numpy())
        found = series(renamed, keep=("reference",) if declared.reference else ())
        if found.sites > 1 and len(found.roles) == 1:
            keep = ["layer", "mean", "low", "high", *(["reference"] if declared.reference else [])]
            return found.frame[keep].rename(
                columns={"layer": "x", "mean": "y"}
            ), "median and 5–95 % range over experts"
    joined = work.groupby("x", sort=True, as_index=False).median(numeric_only=True)
    return joined.drop(
        columns=["low", "high"], errors="ignore"
    ), f"median over rows with the same {declared.x}"


def _drawn(lines: Sequence[Line], axes: Axes) -> tuple[pd.DataFrame, tuple[Column, ...]]:
    """The drawn numbers as one table."""
    frames = []
    for line in lines:
        part = line.frame[[c for c in ("at", "x", "y", "low", "high", "reference") if c in line.frame]].copy()
        part.insert(0, "subject", line.name)
        frames.append(part)
    frame = pd.concat(frames, ignore_index=True)
    kind, at = axes.y.kind, axes.x.kind
    if kind == "fraction" and axes.metric is not None and not is_share(axes.metric):
        kind = "value"  # a Gini coefficient is no percentage
    columns = [Column("subject", "label", "Subject.")]
    if axes.relative or at not in INDEX_KINDS:
        columns.append(Column("x", "value", "Horizontal position in the figure."))
    columns.insert(1, Column("at", at, axes.x.description, axes.x.unit))
    columns.append(Column("y", kind, axes.y.description, axes.y.unit))
    meanings = {
        "low": "Lower end of the band.",
        "high": "Upper end of the band.",
        "reference": "Value of the reference.",
    }
    columns += [Column(name, kind, text, axes.y.unit) for name, text in meanings.items() if name in frame]
    return frame[[column.name for column in columns]], tuple(columns)
