"""Analyses of a series of checkpoints: from a request to a stored result, one model in memory at a time.

As ``run_many`` does for a model and a text: what is stored is opened, finished steps of an interrupted run are read back,
one analysis that fails does not stop the others. The digest is over all checkpoints, the training curves and the probe set.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.activations.capture import tokenized
from sparsescope.activations.series_context import SeriesContext, series_identity
from sparsescope.activations.text.probe import probe_corpus
from sparsescope.core.artifact import Store
from sparsescope.core.registry import Analysis, find_record
from sparsescope.core.spec import Params, Spec, make_params
from sparsescope.errors import SparsescopeError, SpecError
from sparsescope.models.checkpoints import CheckpointSeries, open_series
from sparsescope.runner.engine import Progress, kept_steps
from sparsescope.runner.run import Outcome, Request, check_context, finish, from_command_line, text_options

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus


def given_series(analysis: str, series: object) -> CheckpointSeries:
    """Return a series from what a user gave: the series itself, its name or its folder.

    Raises:
        SpecError: It is something else.
        SubjectError: There is no such series.
    """
    if isinstance(series, CheckpointSeries):
        return series
    if isinstance(series, str | Path):
        return open_series(series)
    raise SpecError(
        f"{analysis} studies a series of checkpoints",
        where="ss.run(subject)",
        allowed="a name such as 'grokking-relu', a folder, or models.checkpoints.open_series(...)",
        got=type(series).__name__,
        next_step=f'for example ss.run("{analysis}", "grokking-relu")',
    )


def run_series(
    requests: Sequence[Request],
    series: CheckpointSeries,
    corpus: Corpus | TokenizedCorpus | None = None,
    *,
    store: str | Path | bool | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Run analyses of one series.

    Args:
        requests: What to run.
        series: The checkpoints.
        corpus: The text on which analyses that read one evaluate every checkpoint; None for the held-out text of the series.
        store: Where to keep results: a folder, True for the default one, None for memory only.
        progress: Told about checkpoints done.

    Returns:
        One outcome for each request, in order. Errors of one analysis are in its outcome.

    Raises:
        SpecError: For an unknown analysis or parameter, one that studies a model, a text for one that reads none, or no text
            for one that needs it, before anything runs.
        ArtifactError: If the folder of runs cannot be written to, before anything runs.
    """
    checked = []
    for request in requests:
        record = find_record(request.analysis)
        if record.input != "series":
            raise SpecError(
                f"{record.name} studies one model on a text, not a series",
                where="analysis",
                next_step=f"sparsescope run {record.name} --subject {series.name}@step-{series.steps[-1]}",
            )
        if corpus is not None and not record.reads_text:
            raise SpecError(
                f"{record.name} reads no text: it evaluates every checkpoint on the probe set of its series",
                where="corpus",
                got=type(corpus).__name__,
                next_step=f'leave it out: ss.run("{record.name}", series), sparsescope run {record.name} --subject SERIES',
            )
        checked.append((record, make_params(record.params, request.params, analysis=record.name)))
    text = _text(series, corpus) if any(record.reads_text for record, _ in checked) else None
    home = Store() if store is True else Store(store) if store else None
    if home is not None:
        home.check_writable()
    done: dict[str, Outcome] = {}
    asked = []
    for record, params in checked:
        context = _context(record, params, series, text)
        outcome = Outcome(_spec(record, params, context))
        asked.append(outcome.spec.digest)
        if outcome.spec.digest in done:
            continue
        done[outcome.spec.digest] = outcome
        try:
            _fill(outcome, record, params, context, home, progress)
        except SparsescopeError as error:
            outcome.error = error
        except Exception as error:
            if len(checked) == 1:
                raise
            outcome.error = SparsescopeError(
                f"{record.name} has a bug: {type(error).__name__}: {error}", where=record.compute, next_step="please report this"
            )
            outcome.error.__cause__ = error
    return [done[digest] for digest in asked]


def _text(series: CheckpointSeries, corpus: Corpus | TokenizedCorpus | None) -> TokenizedCorpus:
    """The text as the tokenizer of the series sees it: what is given, else the held-out text of the series."""
    if corpus is None:
        return probe_corpus(series)
    last = series.subject(series.steps[-1])
    text = tokenized(corpus, last)
    check_context(last, text)
    return text


def _context(record: Analysis, params: Params, series: CheckpointSeries, text: TokenizedCorpus | None) -> SeriesContext:
    """What the analysis gets: the series, the companions that the parameters name, and the text if it reads one."""
    names = getattr(params, record.companions) if record.companions else ()
    return SeriesContext(series, tuple(open_series(name) for name in names), text if record.reads_text else None)


def _spec(record: Analysis, params: Params, context: SeriesContext) -> Spec:
    """Name the run."""
    text = context.corpus
    return Spec(
        analysis=record.name,
        version=record.version,
        params=params.model_dump(mode="json"),
        subject=series_identity(context.series, context.companions),
        corpus=None if text is None else {**text.describe(), "digest": text.digest},
    )


def _fill(
    outcome: Outcome, record: Analysis, params: Params, context: SeriesContext, home: Store | None, progress: Progress | None
) -> None:
    """Open the stored result, or compute and store it."""
    from dataclasses import replace

    spec = outcome.spec
    if home is not None and home.has(spec.run_id):
        outcome.path = home.path(spec.run_id)
        outcome.result, outcome.stored = home.open(spec.run_id), True
        home.drop_partial(spec.digest)
        return
    if progress is not None:
        title = record.title.lower()
        context = replace(context, progress=lambda phase, done, total: progress(f"{title}: {phase}", done, total, "checkpoints"))
    if home is not None:
        context = replace(context, step=kept_steps(home, spec.digest))
    begin, events = time.perf_counter(), [{"time": time.time(), "event": "started"}]
    outcome.result = record.compute_module().compute(params, context)
    finish(outcome, record, home, time.perf_counter() - begin, events, _command(record, params, context))


def _command(record: Analysis, params: Params, context: SeriesContext) -> str:
    """The command line that makes this run again; of a folder only the last part is shown."""
    series = context.series
    name = series.name if series.shipped or "/" in series.name else f"PATH/TO/{series.name}"
    words = ["sparsescope", "run", record.name, "--subject", name]
    if context.corpus is not None and "budget" in context.corpus.describe():  # else the held-out text: it needs no option
        if not from_command_line(context.corpus, series.subject(series.steps[-1])):
            return f"in Python: ss.run({record.name!r}, open_series({name!r}), ss.corpus(...))"
        words += text_options(context.corpus)
    defaults: dict[str, Any] = record.params().model_dump(mode="json")
    for key, value in params.model_dump(mode="json").items():
        if value != defaults[key]:
            words += ["--set", f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    return shlex.join(words)
