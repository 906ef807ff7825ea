"""The report: one self-contained HTML file for one or several results.

It works from a file path without a network: plotly's bundle is inlined once, figures are JSON, tables are
HTML with a CSV download in a ``data:`` address. Nothing in it names a path outside the folder of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from sparsescope.core.files import given_output, replace_file
from sparsescope.core.numbers import format_scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import headline_of, title_of
from sparsescope.errors import SpecError
from sparsescope.reporting import page
from sparsescope.reporting.depth import depth_of
from sparsescope.reporting.head import measured, warnings_of
from sparsescope.reporting.sections import Section, record_of, sections_of, shortened
from sparsescope.reporting.study import render_study
from sparsescope.runner.study import StudyResult


def build(results: Sequence[Result] | StudyResult, path: str | Path, *, title: str | None = None) -> Path:
    """Write a report.

    Args:
        results: What to show, in this order, each once; at least one. Or the outcome of a study. A report of
            more than about 40 MB keeps every finding and number, has figures and whole tables of the first
            results, and names the command that shows those of each other one.
        path: The HTML file; an existing one is replaced atomically, of a link what it leads to.
        title: Heading; made from the subjects when None.

    Returns:
        The path.

    Raises:
        SpecError: If there is no result, or the path is no file's.
        ArtifactError: If the file cannot be written.
    """
    target = given_output(path, "path", "report")
    replace_file(target, render(results, title=title).encode(), action="write the report")
    return target


def render(results: Sequence[Result] | StudyResult, *, title: str | None = None) -> str:
    """Return the report as HTML text; see ``build``."""
    if isinstance(results, StudyResult):
        return render_study(results, title=title)
    if not results:
        raise SpecError(
            "a report needs at least one result",
            next_step="run an analysis first: sparsescope run activation_sparsity --subject smollm2-135m",
        )
    foreign = [result for result in results if not isinstance(result, Result)]
    if foreign:
        raise SpecError(
            "a report is made of results",
            where="results",
            allowed="a list of Result",
            got=repr(foreign[0])[:80],
            next_step="results come from ss.run(...) and ss.open(...)",
        )
    results = list({result.run_id or id(result): result for result in results}.values())  # each once
    sections = sections_of(results)
    subjects = list(dict.fromkeys(entry.subject for entry in sections))
    what = sections[0].title if len({entry.title for entry in sections}) == 1 else "Sparse structure"
    heading = title or f"{what} of " + (subjects[0] if len(subjects) == 1 else f"{len(subjects)} models")
    return page.render(
        "report.html",
        name="report",
        title=heading,
        measured=measured(results),
        warnings=warnings_of(results),
        sections=sections,
        labels=_labels(sections),
        origins=_origins(sections),
        depth=depth_of(results),
        shortened=shortened(sections),
        across=_across(results),
    )


def _origins(sections: Sequence[Section]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Distinct models and corpora, for the head of the report; what differs by run stays with the run."""
    by_run = {"Run", "Version of the analysis", "Preset", "Time", "Corpus digest", "Weights", "Device"}
    found: dict[tuple[tuple[str, str], ...], str] = {}
    for entry in sections:
        rows = tuple(row for row in entry.origin if row[0] not in by_run and row[0] != "Made")
        found.setdefault(rows, next((text for label, text in entry.origin if label == "Made"), "not stored"))
    return [(made[:10], list(rows)) for rows, made in found.items()]


def _across(results: Sequence[Result]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Headline numbers side by side, for every analysis that has two results or more."""
    tables = []
    for name, group in groupby(sorted(results, key=lambda r: r.analysis), key=lambda r: r.analysis):
        members = list(group)
        if len(members) < 2:
            continue
        record = record_of(members[0])
        titles = {s.name: title_of(name, s) for member in members for s in headline_of(member)}
        rows = []
        for member in members:
            found = member.scalars
            rows.append([_name(member), *(format_scalar(found[n]) if n in found else "–" for n in titles)])
        tables.append((record.title or name, list(titles.values()), rows))
    return tables


def _labels(sections: Sequence[Section]) -> list[str]:
    """Headings that tell the sections apart: by model, and by corpus or run where the model is the same."""
    labels = [entry.title for entry in sections]
    more: tuple[Callable[[Section], list[str]], ...] = (
        lambda s: [s.subject],
        lambda s: [s.subject, s.corpus],
        lambda s: [s.subject, s.corpus, s.run_id],
    )
    for parts in more:
        if len(set(labels)) == len(labels):
            break
        labels = [" · ".join(part for part in (entry.title, *parts(entry)) if part) for entry in sections]
    return labels


def _name(result: Result) -> str:
    """Model and corpus of a result."""
    subject, corpus = result.provenance.get("subject") or {}, result.provenance.get("corpus") or {}
    return " · ".join(str(part) for part in (subject.get("id", "in memory"), corpus.get("name")) if part)
