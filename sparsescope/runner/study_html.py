"""How the outcome of a study shows itself in a notebook: its headline numbers, and a checked claim.
Foreign text is escaped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.core.escaping import cell_html
from sparsescope.core.numbers import format_scalar
from sparsescope.core.statements import headline_of, title_of

if TYPE_CHECKING:
    from sparsescope.core.result import Result
    from sparsescope.runner.findings import CheckedFinding
    from sparsescope.runner.study import StudyResult

_LONGEST = 4000


def numbers_html(outcome: StudyResult) -> str:
    """Return the headline numbers side by side: a table for each analysis, a column for each subject;
    failed runs below.
    """
    tables = []
    for analysis in outcome.study.declared.analyses:
        results = {
            run.subject.title: run.result
            for run in outcome.runs
            if run.id == analysis.id and run.result is not None
        }
        if results:
            tables.append(_table(analysis.id or analysis.name, results))
    failed = "".join(
        f"<li>{cell_html(run.subject.title)}, {cell_html(run.id)}: {cell_html(run.error.what, _LONGEST)}</li>"
        for run in outcome.failed
        if run.error is not None
    )
    return "".join(tables) + (f"<p>These runs failed:</p><ul>{failed}</ul>" if failed else "")


def finding_html(verdict: CheckedFinding) -> str:
    """Return a checked claim: what became of it, the claim, the numbers with their
    intervals, what it means.
    """
    open_end = " The interval leaves room for the opposite." if verdict.decided is False else ""
    return (
        f"<p><b>{verdict.status.capitalize()}:</b> {cell_html(verdict.claim, _LONGEST)}.<br>"
        f"Measured: {cell_html(verdict.measured, _LONGEST)}.{open_end}</p>"
        + (f"<p>{cell_html(verdict.reading, _LONGEST)}</p>" if verdict.reading else "")
    )


def _table(heading: str, results: dict[str, Result]) -> str:
    """Headline numbers of one analysis, a column for each subject."""
    names = dict.fromkeys(scalar.name for result in results.values() for scalar in headline_of(result))
    present = {
        name: (result, scalar) for result in results.values() for name, scalar in result.scalars.items()
    }
    rows = ""
    for name in names:
        result, scalar = present[name]
        cells = [
            format_scalar(found.scalars[name]) if name in found.scalars else "–" for found in results.values()
        ]
        title = (
            "<td "
            f"title='{cell_html(scalar.definition, _LONGEST)}'>"
            f"{cell_html(title_of(result.analysis, scalar))}</td>"
        )
        rows += f"<tr>{title}{''.join(f'<td>{cell_html(cell)}</td>' for cell in cells)}</tr>"
    head = "".join(f"<th>{cell_html(title)}</th>" for title in results)
    return f"<h4>{cell_html(heading)}</h4><table><tr><th></th>{head}</tr>{rows}</table>"
