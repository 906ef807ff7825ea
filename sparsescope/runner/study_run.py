"""Running a study: for each subject one forward pass that all its analyses share, one subject
in memory at a time.

What is stored is opened, so a study that was interrupted, or got another figure, goes on where it was. A
subject that fails (a package that is not installed, too little memory) does not stop the others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.registry import find_record
from sparsescope.core.roles import roles
from sparsescope.core.run_store import Store
from sparsescope.errors import ArtifactError, SparsescopeError
from sparsescope.runner.inputs import Fallback, Lost
from sparsescope.runner.recipes import PREFIX, given_input
from sparsescope.runner.run import Request, run_many
from sparsescope.runner.study import Study, StudyResult, StudyRun, StudySubject, load_study
from sparsescope.runner.study_checks import check_study, load_name, repeated_roles, text_source

if TYPE_CHECKING:
    from sparsescope.runner.engine import ProgressCallback


def study(
    target: str | Path,
    *,
    store: str | Path | bool | None = True,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> StudyResult:
    """Run a study.

    Args:
        target: A name (``sparsescope list studies``), a TOML file, or a folder with a ``study.toml``.
        store: Where runs are kept and looked for: a folder, True for ``$SPARSESCOPE_HOME`` or
            ``runs``, None for none.
        device: Where models are computed; checkpoints of a series are computed on the CPU.
        progress: Told about tokens done.
        say: Told what is going on, a line at a time.

    Returns:
        The runs, their numbers side by side (``.frame()``) and the checked claims (``.findings``);
        ``ss.figure(outcome, TITLE)`` draws a declared figure, ``ss.report(outcome, "study.html")``
        writes the report.

    Raises:
        SpecError: If the study is not valid; nothing has run then.
        ArtifactError: If the folder of runs cannot be written to.
    """
    found = load_study(target)
    check_study(found)
    return run_study(found, store=store, device=device, progress=progress, say=say)


def run_study(
    found: Study,
    *,
    store: str | Path | bool | None = True,
    device: str = "cpu",
    progress: ProgressCallback | None = None,
    say: Callable[[str], None] | None = None,
) -> StudyResult:
    """Run a study that was checked; see ``study``."""
    tell = say or (lambda text: None)
    tell(cost_text(found))
    outcome = StudyResult(found)
    for index, subject in enumerate(found.declared.subjects, 1):
        tell(f"{index} of {len(found.declared.subjects)}: {subject.name}")
        runs = _runs(found, subject, store, device, progress)
        for run in runs:
            if run.error is not None:
                tell(f"{run.id} of {subject.name} failed\n{run.error}")
            elif run.stored:
                tell(f"{run.id} was stored already")
            for reason in run.unstorable if store and run.error is None else ():
                tell(f"{run.id} of {subject.name} is not stored: {reason}")
        outcome.runs += runs
        gc.collect()  # modules refer to themselves; the next subject needs the memory now
    return outcome


def cost_text(found: Study) -> str:
    """Say what a study takes: subjects, analyses, runs, tokens."""
    declared = found.declared
    subjects, analyses = len(declared.subjects), len(declared.analyses)
    records = [find_record(entry.name) for entry in declared.analyses]
    counts = [subject.tokens or declared.tokens for subject in declared.subjects]
    least = f"{min(counts):,} to " if min(counts) < max(counts) else ""
    series, text = "all checkpoints", f"{least}{max(counts):,} tokens"
    read = " and ".join(dict.fromkeys(series if "series" in record.roles else text for record in records))
    return (
        f"{declared.name}: {subjects} subjects x {analyses} {'analysis' if analyses == 1 else 'analyses'} = "
        f"{subjects * analyses} runs, each subject on {read}; stored runs are not run again"
    )


def _runs(
    found: Study,
    subject: StudySubject,
    store: str | Path | bool | None,
    device: str,
    progress: ProgressCallback | None,
) -> list[StudyRun]:
    """All analyses of one subject, in the order of the file. Its model is gone from memory
    when this returns.
    """
    entries = found.declared.analyses
    named: ProgressCallback | None = None
    # By subject: a bar for each, and rates that do not mix a small model with a large one
    if progress is not None:

        def named(phase: str, done: int, total: int, unit: str = "tokens") -> None:
            progress(f"{subject.title}: {phase}", done, total, unit)

    try:
        inputs, beside = _inputs(found, subject, store, device, named)
        requests = [
            Request(
                entry.name,
                {**entry.params, **subject.params.get(entry.id, {})},
                beside={name: more for name, more in beside.items() if name in repeated_roles(entry.name)},
            )
            for entry in entries
        ]
        outcomes = run_many(requests, inputs, store=store, progress=named)
    except SparsescopeError as error:
        # A folder that cannot be written to ends the study, not this subject
        if store and isinstance(error, ArtifactError):
            (Store() if store is True else Store(store)).check_writable()
        return [StudyRun(subject, entry.name, error=error, id=entry.id) for entry in entries]
    # A bug with one model must not cost the results of the others; the page names it
    except Exception as error:
        bug = SparsescopeError(
            f"{type(error).__name__}: {error}", where=subject.name, next_step="please report this"
        )
        bug.__cause__ = error
        return [StudyRun(subject, entry.name, error=bug, id=entry.id) for entry in entries]
    return [
        StudyRun(subject, e.name, o.result, o.error, o.stored, e.id, o.unstorable)
        for e, o in zip(entries, outcomes, strict=True)
    ]


def _inputs(
    found: Study,
    subject: StudySubject,
    store: str | Path | bool | None,
    device: str,
    progress: ProgressCallback | None,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What the analyses of a subject read, by role, and what stands beside the model or series under study.
    The text of the study stands back behind one that a series carries.
    """
    from sparsescope.activations.corpus import corpus
    from sparsescope.models.sources import load

    declared, name = found.declared, load_name(found, subject.name)
    read = {entry for analysis in declared.analyses for entry in find_record(analysis.name).roles}
    home = (Store() if store is True else Store(store)) if store else None

    def made(make: Callable[[], Any]) -> Any:
        """An input; where it cannot be made, its error is that of the analyses that read it."""
        try:
            return make()
        except SparsescopeError as error:
            if home is not None and isinstance(error, ArtifactError):
                home.check_writable()  # a folder that cannot be written to ends the study
            return Lost(error)

    # The corpus first: it costs nothing until it meets a tokenizer
    text = made(
        lambda: corpus(
            text_source(found, subject.corpus),
            tokens=subject.tokens or declared.tokens,
            seed=declared.seed,
            context=subject.context or declared.context,
            max_document_tokens=declared.document_tokens,
            deduplicate=not declared.keep_duplicates,
        )
    )
    given: dict[str, Any] = {}
    beside: dict[str, list[Any]] = {}
    several = set[str]().union(*(repeated_roles(entry.name) for entry in declared.analyses))
    for role, value in {**declared.inputs, **subject.inputs}.items():
        if role in read:
            each = [value] if isinstance(value, str) else value
            values = [made(partial(given_input, found, entry, home, progress)) for entry in each]
            flat = [one for made_ in values for one in (made_ if isinstance(made_, list) else [made_])]
            if role in several:
                beside[role] = flat
            else:
                given[role] = flat[0] if isinstance(value, str) and len(flat) == 1 else flat
    given["text"] = Fallback(text) if subject.corpus is None else text
    under = made(partial(given_input, found, name, home, progress)) if name.startswith(PREFIX) else name
    for entry in read & {role.name for role in roles().values() if role.flag == "--subject"}:
        loads = entry == "subject" and not isinstance(under, Lost)
        given[entry] = made(partial(load, under, dtype=declared.dtype, device=device)) if loads else under
    return given, beside
