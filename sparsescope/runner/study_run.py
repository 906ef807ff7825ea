"""Running a study: for each subject one forward pass that all its analyses share, one subject in memory at a time.

What is stored is opened, so a study that was interrupted, or got another figure, goes on where it was. A subject that
fails (a package that is not installed, too little memory) does not stop the others.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sparsescope.core.registry import find_record
from sparsescope.errors import SparsescopeError
from sparsescope.runner.study import Study, StudyResult, StudyRun, StudySubject, load_study
from sparsescope.runner.study_checks import check_study, load_name, text_source

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.runner.engine import Progress


def study(
    target: str | Path,
    *,
    store: str | Path | bool | None = True,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> StudyResult:
    """Run a study.

    Args:
        target: A name (``sparsescope list studies``), a TOML file, or a folder with a ``study.toml``.
        store: Where runs are kept and looked for: a folder, True for ``$SPARSESCOPE_HOME`` or ``runs``, None for none.
        device: Where models are computed; checkpoints of a series are computed on the CPU.
        progress: Told about tokens done.
        say: Told what is going on, a line at a time.

    Returns:
        The runs, their numbers side by side (``.frame()``) and the checked claims (``.findings``);
        ``ss.report(outcome, "study.html")`` writes the report.

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
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> StudyResult:
    """Run a study that was checked; see ``study``."""
    tell = say or (lambda text: None)
    tell(cost_text(found))
    if store:
        from sparsescope.core.artifact import Store

        (Store() if store is True else Store(store)).check_writable()  # not found out anew with every subject
    outcome = StudyResult(found)
    for index, subject in enumerate(found.declared.subjects, 1):
        tell(f"{index} of {len(found.declared.subjects)}: {subject.name}")
        runs = _runs(found, subject, store, device, progress)
        for run in runs:
            if run.error is not None:
                tell(f"{run.analysis} of {subject.name} failed\n{run.error}")
            elif run.stored:
                tell(f"{run.analysis} was stored already")
        outcome.runs += runs
        gc.collect()  # modules refer to themselves; the next subject needs the memory now
    return outcome


def cost_text(found: Study) -> str:
    """Say what a study takes: subjects, analyses, runs, tokens."""
    declared = found.declared
    subjects, analyses = len(declared.subjects), len(declared.analyses)
    text = any(find_record(entry.name).input == "subject" for entry in declared.analyses)
    read = f"each subject on {declared.tokens:,} tokens" if text else "each on all checkpoints of a series"
    return (
        f"{declared.name}: {subjects} subjects x {analyses} {'analysis' if analyses == 1 else 'analyses'} = "
        f"{subjects * analyses} runs, {read}; stored runs are not run again"
    )


def _runs(
    found: Study, subject: StudySubject, store: str | Path | bool | None, device: str, progress: Progress | None
) -> list[StudyRun]:
    """All analyses of one subject, in the order of the file. Its model is gone from memory when this returns."""
    of_series = {entry.name for entry in found.declared.analyses if find_record(entry.name).input == "series"}
    runs: dict[str, StudyRun] = {}
    for wanted, series in ((of_series, True), ({entry.name for entry in found.declared.analyses} - of_series, False)):
        if wanted:
            runs |= {run.analysis: run for run in _of_kind(found, subject, wanted, series, store, device, progress)}
    return [runs[entry.name] for entry in found.declared.analyses]


def _of_kind(
    found: Study,
    subject: StudySubject,
    wanted: set[str],
    series: bool,
    store: str | Path | bool | None,
    device: str,
    progress: Progress | None,
) -> list[StudyRun]:
    """The analyses of one subject that study it as a series of checkpoints, or those that study it as a model."""
    from sparsescope.models.sources import load
    from sparsescope.runner.run import Request, run_many

    entries = [entry for entry in found.declared.analyses if entry.name in wanted]
    names = [entry.name for entry in entries]
    try:
        requests = [Request(entry.name, {**entry.params, **subject.params.get(entry.name, {})}) for entry in entries]
        named: Progress | None = None
        if progress is not None:  # by subject: a bar for each, and rates that do not mix a small model with a large one

            def named(phase: str, done: int, total: int, unit: str = "tokens") -> None:
                progress(f"{subject.title}: {phase}", done, total, unit)

        if series:
            from sparsescope.models.checkpoints import open_series
            from sparsescope.runner.series import run_series

            opened = open_series(load_name(found, subject.name))
            # The held-out text of the series, unless the study names another for this subject.
            text = None if subject.corpus is None else _text(found, subject)
            outcomes = run_series(requests, opened, text, store=store, progress=named)
        else:
            # The corpus first: it costs nothing until it meets a tokenizer; a text that is not there is found out at once.
            text_source(found, subject.corpus)
            model = load(load_name(found, subject.name), dtype=found.declared.dtype, device=device)
            outcomes = run_many(requests, model, _text(found, subject), store=store, progress=named)
    except SparsescopeError as error:
        return [StudyRun(subject, name, error=error) for name in names]
    except Exception as error:  # a bug with one model must not cost the results of the others; the page names it
        bug = SparsescopeError(f"{type(error).__name__}: {error}", where=subject.name, next_step="please report this")
        bug.__cause__ = error
        return [StudyRun(subject, name, error=bug) for name in names]
    return [StudyRun(subject, name, o.result, o.error, o.stored) for name, o in zip(names, outcomes, strict=True)]


def _text(found: Study, subject: StudySubject) -> Corpus:
    from sparsescope.activations.corpus import corpus

    source = text_source(found, subject.corpus)
    context = subject.context or found.declared.context
    return corpus(source, tokens=found.declared.tokens, seed=found.declared.seed, context=context)
