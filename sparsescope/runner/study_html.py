"""How the outcome of a study shows itself in a notebook: its headline numbers, and a checked claim. Foreign text is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.core.escaping import cell_html
from sparsescope.core.numbers import format_scalar
from sparsescope.core.registry import find_record
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.runner.findings import CheckedFinding
    from sparsescope.runner.study import StudyResult, StudyRun

_LONGEST = 4000
_FEW = 8


def numbers_html(outcome: StudyResult) -> str:
    """Return the headline numbers side by side: a table for each analysis, a column for each subject; failed runs below."""
    tables = []
    for analysis in outcome.study.declared.analyses:
        runs = [run for run in outcome.runs if run.analysis == analysis.name and run.result is not None]
        if runs:
            tables.append(_table(analysis.name, runs))
    failed = "".join(
        f"<li>{cell_html(run.subject.title)}, {cell_html(run.analysis)}: {cell_html(run.error.what, _LONGEST)}</li>"
        for run in outcome.failed
        if run.error is not None
    )
    return "".join(tables) + (f"<p>These runs failed:</p><ul>{failed}</ul>" if failed else "")


def finding_html(verdict: CheckedFinding) -> str:
    """Return a checked claim: what became of it, the claim, the numbers with their intervals, what it means."""
    open_end = " The interval leaves room for the opposite." if verdict.decided is False else ""
    return (
        f"<p><b>{verdict.status.capitalize()}:</b> {cell_html(verdict.claim, _LONGEST)}.<br>"
        f"Measured: {cell_html(verdict.measured, _LONGEST)}.{open_end}</p>"
        + (f"<p>{cell_html(verdict.reading, _LONGEST)}</p>" if verdict.reading else "")
    )


def _table(analysis: str, runs: list[StudyRun]) -> str:
    """Headline numbers of one analysis."""
    found = {run.subject.title: run.result.scalars for run in runs if run.result is not None}
    present = {name: scalar for scalars in found.values() for name, scalar in scalars.items()}
    try:
        headline = find_record(analysis).headline
    except SpecError:  # the package that made the runs is not installed
        headline = ()
    names = [name for name in headline if name in present] or list(present)[:_FEW]
    head = "".join(f"<th>{cell_html(title)}</th>" for title in found)
    rows = "".join(
        f"<tr><td title='{cell_html(present[name].definition, _LONGEST)}'>{cell_html(name.replace('_', ' '))}</td>"
        + "".join(f"<td>{cell_html(format_scalar(scalars[name])) if name in scalars else '–'}</td>" for scalars in found.values())
        + "</tr>"
        for name in names
    )
    return f"<h4>{cell_html(analysis)}</h4><table><tr><th></th>{head}</tr>{rows}</table>"
