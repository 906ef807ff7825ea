"""What ``list``, ``show`` and ``compare`` print, as plain values and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.cli.console import table
from sparsescope.errors import ArtifactError, unknown_name

if TYPE_CHECKING:
    from sparsescope.core.artifact_store import ArtifactVerdict
    from sparsescope.core.artifacts import Artifact
    from sparsescope.core.registry import Analysis
    from sparsescope.core.result import Result
    from sparsescope.core.run_store import RunCheck, Store, Unfinished
    from sparsescope.core.spec import Params
    from sparsescope.reporting.compare import Comparison
    from sparsescope.runner.run import Outcome
    from sparsescope.runner.study import StudyResult

DEFAULT_SUBJECT = "smollm2-135m"
_TABLE_ROWS = 40


def sections(home: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Everything that has a name, by kind."""
    from sparsescope.activations.corpus import registered_corpora
    from sparsescope.core.registry import analyses, benchmarks
    from sparsescope.core.roles import roles
    from sparsescope.core.run_store import Store
    from sparsescope.models.catalog import registered_subjects
    from sparsescope.models.variants import listed_variants

    store = Store(home)
    runs = []
    for run_id in store.run_ids():
        try:
            manifest = store.manifest(run_id)
        except ArtifactError as error:
            runs.append({"run": run_id, "subject": "unreadable", "corpus": error.what, "created": ""})
            continue
        corpus = manifest.spec.corpus or {}
        runs.append(
            {
                "run": run_id,
                "subject": manifest.spec.subject.get("id", ""),
                "corpus": corpus.get("name", ""),
                "created": manifest.created,
            }
        )
    broken = [
        {"name": name, "summary": f"cannot be imported: {why}"} for name, why in analyses().broken.items()
    ]
    return {
        "analyses": [{"name": record.name, "summary": record.summary} for record in analyses()] + broken,
        "subjects": [
            {"name": e.name, "summary": e.summary, "precision": e.precision, "license": e.license}
            for e in registered_subjects().values()
        ],
        "variants": listed_variants(),
        "corpora": [
            {"name": e.name, "summary": e.summary, "license": e.license}
            for e in registered_corpora().values()
        ],
        "benchmarks": [{"name": record.name, "summary": record.summary} for record in benchmarks()],
        "inputs": [{"name": r.name, "option": r.flag, "summary": r.summary} for r in roles().values()],
        "studies": studies(),
        "runs": runs,
        "artifacts": artifacts(store),
    }


def artifacts(store: Store) -> list[dict[str, Any]]:
    """The artifacts beside the runs; one that cannot be read says so."""
    rows = []
    for artifact_id in store.artifacts.ids():
        try:
            found = store.artifacts.open(artifact_id)
        except ArtifactError as error:
            rows.append(
                {
                    "artifact": artifact_id,
                    "format": "unreadable",
                    "bytes": 0,
                    "created": "",
                    "made_by": error.what,
                }
            )
            continue
        rows.append(
            {
                "artifact": artifact_id,
                "format": found.format,
                "bytes": found.bytes,
                "created": found.created,
                "made_by": found.made_by,
            }
        )
    return rows


def studies() -> list[dict[str, Any]]:
    """The studies that can be run by name; one that cannot be read says so."""
    from sparsescope.errors import SparsescopeError
    from sparsescope.runner.study import load_study
    from sparsescope.runner.study import studies as known

    rows = []
    for name, path in known().items():
        try:
            summary = load_study(path).declared.question
        except SparsescopeError as error:
            summary = f"cannot be read: {error.what}"
        rows.append({"name": name, "summary": summary})
    return rows


def describe(name: str, home: Path | None) -> dict[str, Any]:
    """Everything about one name.

    Raises:
        SpecError: If nothing has this name; the message lists near matches.
    """
    from sparsescope.activations.corpus import registered_corpora
    from sparsescope.core.registry import analyses, benchmarks
    from sparsescope.core.run_store import means_run
    from sparsescope.models.catalog import registered_subjects
    from sparsescope.models.variants import registered_variants

    artifact = find_artifact(name, home)
    if artifact is not None:
        return _describe_artifact(artifact)
    if means_run(name):
        return _describe_run(open_run(name, home))
    for registry in (analyses(), benchmarks()):
        if name in registry:
            return _describe_analysis(registry.get(name), registry.kind)
    if name in registered_subjects():
        entry = registered_subjects()[name]
        return {
            "kind": "subject",
            "name": name,
            "summary": entry.summary,
            "license": entry.license,
            "origin": entry.origin,
            "precision": entry.precision,
            "analyses": _fitting(name),
        }
    if name in registered_variants():
        kind = registered_variants()[name]
        facts = {"summary": kind.summary, "example": kind.example, "parameters": _parameters(kind.params)}
        return {"kind": "variant", "name": name, **facts}
    if name in registered_corpora():
        corpus = registered_corpora()[name]
        facts = {"summary": corpus.summary, "license": corpus.license, "domain": corpus.domain}
        return {"kind": "corpus", "name": name, **facts}
    known = [r.name for r in (*analyses(), *benchmarks())]
    known += [*registered_subjects(), *registered_variants(), *registered_corpora()]
    raise unknown_name("name", name, known, next_step="run: sparsescope list")


def open_run(name: str, home: Path | None) -> Result:
    """Open a run by id in the folder of runs, or by its own folder."""
    from sparsescope.core.run_store import open_run as opened

    return opened(name, home)


def find_artifact(name: str, home: Path | None) -> Artifact | None:
    """An artifact by id in the folder of runs, or by its own folder; None where there is none,
    so a run is meant.
    """
    from sparsescope.core.artifact_store import FOLDER
    from sparsescope.core.artifacts import RECORD, Artifact
    from sparsescope.core.files import given_path
    from sparsescope.core.run_store import Store

    folder = given_path(name, "name of an artifact")
    folder = folder.resolve() if folder.is_dir() else Store(home).root / FOLDER / folder.name
    return Artifact(folder.name, folder) if (folder / RECORD).is_file() else None


def _describe_analysis(record: Analysis, kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": record.name,
        "version": record.version,
        "title": record.title,
        "summary": record.summary,
        "reads": list(record.inputs),
        "needs": sorted(record.requires),
        "parameters": _parameters(record.params),
        "presets": [
            {"preset": name, "parameter": parameter, "value": value}
            for name, changes in record.presets.items()
            for parameter, value in changes.items()
        ],
        "views": [
            {"name": view.name, "title": view.title, "definition": view.formula} for view in record.views
        ],
        "citations": [
            {"work": citation.label, "reference": citation.reference} for citation in record.citations
        ],
    }


def _fitting(name: str) -> list[dict[str, str]]:
    """Which analyses fit what has this name, as far as that is known without loading it."""
    from sparsescope.core.registry import analyses
    from sparsescope.core.roles import known

    there = [*known(name), *known("", "corpus")]
    return [{"name": record.name, "fits": record.fits(there) or "yes"} for record in analyses()]


def _parameters(model: type[Params]) -> list[dict[str, Any]]:
    """Name, default and meaning of each parameter."""
    return [
        {"name": name, "default": field.default, "meaning": field.description or ""}
        for name, field in model.model_fields.items()
    ]


def _describe_run(result: Result) -> dict[str, Any]:
    from sparsescope.core.numbers import format_scalar
    from sparsescope.core.statements import statements_of, title_of
    from sparsescope.reporting.artifacts import artifact_lines

    origin = result.provenance
    return {
        "kind": "run",
        "name": origin["run_id"],
        "subject": origin["subject"].get("id"),
        "corpus": (origin["corpus"] or {}).get("name"),
        "created": origin["created"],
        "seconds": origin["seconds"],
        "preset": origin["preset"],
        "parameters": [{"name": name, "value": value} for name, value in origin["params"].items()],
        "statements": [
            {"statement": statement.text, "view": statement.view} for statement in statements_of(result)
        ],
        "scalars": [
            {
                "name": s.name,
                "title": title_of(result.analysis, s),
                "value": format_scalar(s),
                "definition": s.definition,
            }
            for s in result.scalars.values()
        ],
        "tables": [{"name": name, "rows": len(frame)} for name, frame in result.tables.items()],
        "notes": [asdict(note) for note in result.notes],
        "artifacts": [asdict(line) for line in artifact_lines(result)],
        "command": origin["command"],
    }


def _describe_artifact(artifact: Artifact) -> dict[str, Any]:
    damage = artifact.verify()
    return {
        "kind": f"artifact ({artifact.kind})",
        "name": artifact.id,
        "format": artifact.format,
        "path": str(artifact.path),
        "bytes": artifact.bytes,
        "created": artifact.created,
        "made_by": artifact.made_by,
        "digest": artifact.digest,
        "damage": damage,
        "meta": [{"name": name, "value": value} for name, value in artifact.meta.items()],
        "files": [
            {"file": entry.file, "bytes": entry.bytes, "sha256": entry.sha256} for entry in artifact.files
        ],
    }


def text(found: dict[str, Any]) -> str:
    """Lay out a description: plain values first, then one table for each list."""
    plain, tables = [], []
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables += ["", key, table(list(value[0]), [list(row.values()) for row in value])]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            # a name with a line feed must not look like a key
            plain.append(f"{key + ':':12}{' '.join(shown.splitlines())}")
    return "\n".join(plain + tables)


def verdicts_text(runs: list[RunCheck], artifacts: list[ArtifactVerdict]) -> str:
    """What is intact and what is not, of runs and of artifacts."""
    parts = []
    groups = (("run", [(v.run_id, v) for v in runs]), ("artifact", [(v.artifact_id, v) for v in artifacts]))
    for noun, verdicts in groups:
        rows = [[name, v.status, v.detail.splitlines()[0] if v.detail else ""] for name, v in verdicts]
        intact = sum(v.status == "ok" for _, v in verdicts)
        if rows:
            parts += [table([noun, "status", "detail"], rows), f"{intact} of {len(rows)} {noun}s are intact"]
    return "\n".join(parts)


def unfinished_text(waiting: list[Unfinished], removed: list[Unfinished]) -> str:
    """Say what saved work of interrupted runs there is, and what of it was deleted."""
    from sparsescope.viz.tables import format_bytes

    lines = [f"removed the saved work of {len(removed)} interrupted runs"] if removed else []
    if waiting:
        size, age = format_bytes(sum(entry.bytes for entry in waiting)), waiting[0].age / 86_400
        lines.append(
            f"{len(waiting)} interrupted runs have saved work, {size}, the oldest {age:.1f} days old; the "
            "same command goes on from it; to delete what is older than 30 days: sparsescope verify "
            "--remove-unfinished 30"
        )
    return "\n".join(lines)


def tables_text(result: Result) -> str:
    """The tables of a result as text, cut at ``_TABLE_ROWS`` rows, then its notes."""
    from sparsescope.viz.tables import format_rows, heading

    parts = []
    for name, frame in result.tables.items():
        columns = result.columns[name]
        rows = format_rows(frame, columns, limit=_TABLE_ROWS)
        more = f"\n... {len(frame) - _TABLE_ROWS} more rows" if len(frame) > _TABLE_ROWS else ""
        parts.append(f"{name}\n{table([heading(column) for column in columns], rows)}{more}")
    parts += [f"{note.severity}: {note.message}" for note in result.notes]
    return "\n\n".join(parts)


def comparison_json(found: Comparison) -> dict[str, Any]:
    """A comparison as plain values; tables by their shape, since they are as long as the stored ones."""
    return {
        "analysis": found.analysis,
        "a": found.a,
        "b": found.b,
        "settings": [asdict(difference) for difference in found.settings],
        "environment": [asdict(difference) for difference in found.environment],
        "scalars": [asdict(change) for change in found.scalars],
        "tables": [
            {"name": t.name, "rows": len(t.frame), "only_a": t.only_a, "only_b": t.only_b, "note": t.note}
            for t in found.tables
        ],
        "notes": list(found.notes),
    }


def comparison_text(found: Comparison) -> str:
    """A comparison as text: settings, numbers, environment."""
    from sparsescope.core.numbers import format_number

    parts = [f"{found.title}\n  a  {found.a}\n  b  {found.b}"]
    for title, rows in (
        ("settings that differ", found.settings),
        ("environment that differs", found.environment),
    ):
        parts.append(
            f"{title}\n"
            + (table(["name", "a", "b"], [[d.name, d.a, d.b] for d in rows]) if rows else "  none")
        )
    changes = [
        [
            change.title, format_number(change.a, change.unit), format_number(change.b, change.unit),
            format_number(change.delta, change.unit),
            {True: "yes", False: "no", None: "no interval"}[change.apart],
        ]
        for change in found.scalars
    ]  # fmt: skip
    parts.insert(1, "numbers\n" + table(["number", "a", "b", "b - a", "intervals apart"], changes))
    return "\n\n".join([*parts, *found.notes])


def study_json(outcome: StudyResult, written: Mapping[str, Path]) -> dict[str, Any]:
    """The outcome of a study as plain values, with the files that were written: ``report``, ``notebook``."""
    return {
        "study": outcome.study.declared.name,
        **{kind: str(path) for kind, path in written.items()},
        "bytes": sum(path.stat().st_size for path in written.values()),
        "findings": [asdict(verdict) for verdict in outcome.findings],
        "runs": [
            {
                "subject": run.subject.name,
                "control_of": run.subject.control_of,
                "analysis": run.analysis,
                "id": run.id,
                "run": run.result.run_id if run.result else None,
                "stored_before": run.stored,
                "unstorable": list(run.unstorable),
                "error": run.error.what if run.error else None,
            }
            for run in outcome.runs
        ],
        "numbers": outcome.frame().to_dict("records"),
        "failed": len(outcome.failed),
    }


def study_text(outcome: StudyResult) -> str:
    """The claims of a study and what became of them, as text."""
    if not outcome.findings:
        return f"{len(outcome.results)} of {len(outcome.runs)} runs"
    study = outcome.study
    found = zip(outcome.findings, study.declared.findings, strict=True)
    rows = [[v.status, v.label + study.suffix(finding.analysis), v.measured] for v, finding in found]
    return table(["verdict", "claim", "measured"], rows)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """What became of a request, as plain values."""
    from sparsescope.core.statements import statements_of

    result = outcome.result
    return {
        "run": None if outcome.unstorable else outcome.spec.run_id,
        "path": None if outcome.path is None else str(outcome.path),
        "stored_before": outcome.stored,
        "unstorable": list(outcome.unstorable),
        "statements": [] if result is None else [asdict(statement) for statement in statements_of(result)],
        "scalars": {}
        if result is None
        else {name: asdict(scalar) for name, scalar in result.scalars.items()},
        "notes": [] if result is None else [asdict(note) for note in result.notes],
        "tables": {} if result is None else {name: len(frame) for name, frame in result.tables.items()},
        "provenance": {} if result is None else result.provenance,
    }


def result_json(result: Result) -> dict[str, Any]:
    """One result of a report as plain values."""
    from sparsescope.core.statements import statements_of

    said = [statement.text for statement in statements_of(result)]
    origin = result.provenance
    about = {
        "run": result.run_id,
        "subject": origin["subject"].get("id"),
        "preset": origin.get("preset") or "",
    }
    return {**about, "statements": said}


def findings(outcome: Outcome) -> str:
    """What a run found: sentences, the numbers that fit them, warnings, and how many notes there are."""
    from sparsescope.core.numbers import format_scalar
    from sparsescope.core.statements import headline_of, statements_of, title_of

    result = outcome.result
    if result is None:
        return ""
    said = [f"- {statement.text}" for statement in statements_of(result)]
    rows = [[title_of(result.analysis, scalar), format_scalar(scalar)] for scalar in headline_of(result)]
    warned = [f"{note.severity}: {note.message}" for note in result.notes if note.severity != "info"]
    info = len(result.notes) - len(warned)
    noted = "1 note" if info == 1 else f"{info} notes"
    more = (
        [f"{noted} on method, precision and cost; see: sparsescope show {result.run_id}"]
        if info and result.run_id
        else []
    )
    return "\n".join([_about(result), *said, "", table(["number", "value"], rows), *warned, *more])


def place(outcome: Outcome) -> str:
    """Where a run is stored, or that it is not; its warnings say why."""
    return "not stored" if outcome.path is None else str(outcome.path)


def summary(result: Result) -> str:
    """What a result in a report is, and its first finding."""
    from sparsescope.core.statements import statements_of

    said = statements_of(result)
    return f"{_about(result)}, {result.run_id or 'not stored'}\n  {said[0].text if said else 'no number'}"


def _about(result: Result) -> str:
    """What was measured on which model and text."""
    from sparsescope.reporting.sections import record_of

    corpus = result.provenance.get("corpus") or {}
    tokens = (
        f" on {corpus['tokens']:,} tokens of {corpus.get('name')}"
        if isinstance(corpus.get("tokens"), int)
        else ""
    )
    preset = f" ({label} preset)" if (label := result.provenance.get("preset")) else ""
    return f"{record_of(result).title} of {result.about or 'a model in memory'}{tokens}{preset}"
