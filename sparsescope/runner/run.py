"""From a request to a stored result.

``run_many`` runs several analyses of one subject on one corpus: what is stored already is opened, all that need
only activations share ONE forward pass, the rest follows. One that fails does not stop the others.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.activations.capture import BATCH_TOKENS, LiveSource, tokenized
from sparsescope.activations.context import Context
from sparsescope.core.artifact import Store
from sparsescope.core.environment import environment
from sparsescope.core.registry import Analysis, find_record
from sparsescope.core.result import Result
from sparsescope.core.spec import Params, Spec, make_params
from sparsescope.errors import ArtifactError, SparsescopeError, SpecError, SubjectError
from sparsescope.models.variants import split_name
from sparsescope.runner.engine import Progress, kept_steps, one_pass

if TYPE_CHECKING:
    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries
    from sparsescope.models.subject import Subject


@dataclass(frozen=True, slots=True)
class Request:
    """One analysis to run.

    Attributes:
        analysis: Registered name.
        params: What differs from the defaults.
    """

    analysis: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        spec: Names the run.
        result: The result, None if it failed.
        error: Why it failed.
        stored: Whether the result was there before and nothing was computed.
        path: Folder of the stored run.
    """

    spec: Spec
    result: Result | None = None
    error: SparsescopeError | None = None
    stored: bool = False
    path: Path | None = None


@dataclass(slots=True)
class _Job:
    record: Analysis
    params: Params
    outcome: Outcome


def run(
    analysis: str,
    subject: Subject | CheckpointSeries | str | Path,
    corpus: Corpus | TokenizedCorpus | None = None,
    *,
    store: str | Path | bool | None = None,
    progress: Progress | None = None,
    batch_tokens: int = BATCH_TOKENS,
    **params: Any,
) -> Result:
    """Run one analysis.

    Args:
        analysis: Registered name, for example ``"activation_sparsity"``.
        subject: The model; of an analysis of checkpoints the series, or what ``models.checkpoints.open_series`` takes.
        corpus: The text; None for an analysis of checkpoints that reads none, or reads the held-out text of its series.
        store: Where to keep the result: a folder, True for ``$SPARSESCOPE_HOME`` or ``runs``, None for memory only.
            A stored run with the same digest is opened instead of computed again.
        progress: Told about tokens done.
        batch_tokens: Most positions in one forward pass.
        **params: Parameters of the analysis; ``sparsescope show <analysis>`` lists them.

    Returns:
        The result.

    Raises:
        SpecError: For an unknown analysis or parameter.
        SubjectError: If the subject lacks a capability, or activations are not finite.
        ArtifactError: If the result cannot be stored; the error has it as ``.result``.
    """
    request = Request(analysis, params)
    if find_record(analysis).input == "series":
        from sparsescope.runner.series import given_series, run_series

        outcome = run_series([request], given_series(analysis, subject), corpus, store=store, progress=progress)[0]
    else:
        model, text = _model_and_text(analysis, subject, corpus)
        outcome = run_many([request], model, text, store=store, progress=progress, batch_tokens=batch_tokens)[0]
    if outcome.error is not None:
        raise outcome.error
    if outcome.result is None:
        raise ArtifactError("the run left no result", where=outcome.spec.run_id, next_step="please report this")
    return outcome.result


def run_many(
    requests: Sequence[Request],
    subject: Subject,
    corpus: Corpus | TokenizedCorpus,
    *,
    store: str | Path | bool | None = None,
    progress: Progress | None = None,
    batch_tokens: int = BATCH_TOKENS,
    again: bool = False,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run several analyses of one subject on one corpus; see ``run`` for the arguments.

    With ``again``, what measures time is measured anew: the time of measurement joins its digest. ``done`` is told of every
    outcome as soon as it is there: stored ones, then those of the shared forward pass, then the analyses with passes of
    their own.

    Returns:
        One outcome for each request, in order. Errors of one analysis are in its outcome.

    Raises:
        SpecError: For an unknown analysis or parameter, before anything runs.
        ArtifactError: If the folder of runs cannot be written to, before anything runs.
    """
    records = [(find_record(request.analysis), request) for request in requests]
    for record, _ in records:
        if record.input != "subject":
            raise _of_a_series(record)
    checked = [(record, make_params(record.params, request.params, analysis=record.name)) for record, request in records]
    tokens = tokenized(corpus, subject)
    check_context(subject, tokens)
    context = Context(subject, tokens)
    home = Store() if store is True else Store(store) if store else None
    jobs: dict[str, _Job] = {}
    asked = []
    for record, params in checked:
        outcome = Outcome(_spec(record, params, context, again))
        asked.append(outcome.spec.digest)
        if outcome.spec.digest in jobs:  # asked for twice, computed once
            continue
        jobs[outcome.spec.digest] = _Job(record, params, outcome)
        missing = record.requires - subject.capabilities
        if missing:
            outcome.error = _lacks(subject, record, missing)
        elif home is not None and home.has(outcome.spec.run_id):
            outcome.path = home.path(outcome.spec.run_id)
            try:
                outcome.result, outcome.stored = home.open(outcome.spec.run_id), True
                home.drop_partial(outcome.spec.digest)  # left by a process that was killed after it had stored the run
            except ArtifactError as error:  # damaged: said about this run, the others go on
                outcome.error = error
    waiting = [job for job in jobs.values() if job.outcome.result is None and job.outcome.error is None]
    if waiting and home is not None:
        home.check_writable()
    for job in jobs.values():
        if done is not None and job not in waiting:
            done(job.outcome)
    _compute(waiting, context, home, progress, batch_tokens, alone=len(jobs) == 1, done=done)
    return [jobs[digest].outcome for digest in asked]


def _compute(
    jobs: list[_Job],
    context: Context,
    store: Store | None,
    progress: Progress | None,
    batch_tokens: int,
    *,
    alone: bool,
    done: Callable[[Outcome], None] | None,
) -> None:
    """Run the jobs: the shared pass first, then each job's own work."""
    streaming = []
    for job in jobs:
        with _failure_of(job, alone):
            module = job.record.compute_module()
            if hasattr(module, "accumulator"):
                streaming.append((job, module.accumulator(job.params, context)))
    accumulated = {id(job): accumulator for job, accumulator in streaming}
    begin, events = time.perf_counter(), [{"time": time.time(), "event": "started"}]
    if streaming:
        sites = {site.name: site for _, accumulator in streaming for site in accumulator.sites}
        source = LiveSource(context.subject, context.corpus, tuple(sites.values()), batch_tokens=batch_tokens)
        by_digest = {job.outcome.spec.digest: accumulator for job, accumulator in streaming}
        try:
            failures = one_pass(source, by_digest, store=store, progress=progress, events=events)
        except SparsescopeError as error:
            for job, _ in streaming:
                job.outcome.error = error
            failures = {}
        for job, _ in streaming:
            with _failure_of(job, alone):
                if job.outcome.spec.digest in failures:
                    raise failures[job.outcome.spec.digest]
    shared = time.perf_counter() - begin
    for job in sorted(jobs, key=lambda job: id(job) not in accumulated):
        if job.outcome.error is None:
            _finish_job(job, context, store, progress, batch_tokens, alone, shared, events, accumulated.get(id(job)))
        if done is not None:
            done(job.outcome)


def _finish_job(
    job: _Job, context: Context, store: Store | None, progress: Progress | None, batch_tokens: int, alone: bool,
    shared: float, events: list[dict[str, Any]], accumulated: Any,
) -> None:  # fmt: skip
    """Turn sums into a result, or run the passes of an analysis that has its own; store what comes out."""
    begin = time.perf_counter()
    with _failure_of(job, alone):
        module = job.record.compute_module()
        if accumulated is not None:
            job.outcome.result = module.result(job.params, context, accumulated)
        else:
            job.outcome.result = module.compute(job.params, _equipped(context, job, store, progress))
        seconds = time.perf_counter() - begin + (shared if accumulated is not None else 0.0)
        command = reproduce_command(job.record, job.params, job.outcome.spec, context)
        finish(job.outcome, job.record, store, seconds, events, command, batch_tokens=batch_tokens)


def _equipped(context: Context, job: _Job, store: Store | None, progress: Progress | None) -> Context:
    """The context with a progress bar of the job's own, and with steps that are kept in a stored run."""
    equipped = context
    if progress is not None:
        title = job.record.title.lower()
        equipped = replace(equipped, progress=lambda phase, done, total: progress(f"{title}: {phase}", done, total))
    if store is not None:
        equipped = replace(equipped, step=kept_steps(store, job.outcome.spec.digest))
    return equipped


def _model_and_text(
    analysis: str, subject: Subject | CheckpointSeries | str | Path, corpus: Corpus | TokenizedCorpus | None
) -> tuple[Subject, Corpus | TokenizedCorpus]:
    """Refuse a series or a name where a model is wanted, and a missing text.

    Raises:
        SpecError: With how to get what is missing.
    """
    from sparsescope.models.subject import Subject

    if not isinstance(subject, Subject):
        raise SpecError(
            f"{analysis} studies one model",
            where="ss.run(subject)",
            allowed="a Subject",
            got=f"{type(subject).__name__} {str(subject)[:80]!r}",
            next_step='give ss.load("NAME"), or one checkpoint: series.subject(step)',
        )
    if corpus is None:
        raise SpecError(
            f"{analysis} reads text", where="ss.run(corpus)", got="None", next_step='give ss.corpus("python-docs", tokens=8192)'
        )
    return subject, corpus


def _of_a_series(record: Analysis) -> SpecError:
    return SpecError(
        f"{record.name} studies a series of checkpoints, not one model",
        where="analysis",
        allowed="a series of checkpoints",
        next_step=f'run: sparsescope run {record.name} --subject SERIES, or ss.run("{record.name}", "SERIES")',
    )


@contextmanager
def _failure_of(job: _Job, alone: bool) -> Iterator[None]:
    """Keep the error of one job from the others; a bug is raised as it is where there are no others."""
    try:
        yield
    except SparsescopeError as error:
        job.outcome.error = error
    except Exception as error:
        if alone:
            raise
        bug = SparsescopeError(
            f"{job.record.name} has a bug: {type(error).__name__}: {error}",
            where=job.record.compute,
            next_step=f"sparsescope run {job.record.name} with SPARSESCOPE_DEBUG=1 shows the trace; report it",
        )
        bug.__cause__ = error
        job.outcome.error = bug


def finish(
    outcome: Outcome,
    record: Analysis,
    store: Store | None,
    seconds: float,
    events: list[dict[str, Any]],
    command: str,
    **more: Any,
) -> None:
    """Fill in the provenance of an outcome and store its result.

    Args:
        outcome: Has the result.
        record: The analysis.
        store: Where to keep it; None for memory only.
        seconds: Time that it took.
        events: What happened, for ``events.jsonl``.
        command: What makes this run again.
        **more: Added to the environment.

    Raises:
        ArtifactError: There is no result, or it cannot be stored; the error then has it as ``.result``.
    """
    import torch

    result = outcome.result
    if result is None:
        raise ArtifactError("the analysis returned no result", where=record.compute, got="None")
    made_with = environment(device=str(outcome.spec.subject.get("device")), threads=torch.get_num_threads(), **more)
    result.provenance = {
        "run_id": None, "digest": outcome.spec.digest, "version": record.version, "created": None, "seconds": seconds,
        "subject": outcome.spec.subject, "corpus": outcome.spec.corpus, "params": outcome.spec.params,
        "environment": made_with, "command": command,
    }  # fmt: skip
    if store is None:
        return
    try:
        outcome.path = store.write(result, outcome.spec, seconds=seconds, environment=made_with, events=events, command=command)
    except ArtifactError as error:
        error.result = result  # minutes of computing are not lost with the disk
        raise
    store.drop_partial(outcome.spec.digest)


def check_context(subject: Subject, corpus: TokenizedCorpus) -> None:
    """Refuse windows that are longer than the model was made for: rotary models would answer, with nonsense."""
    special = corpus.context - corpus.window
    limit, longest = subject.max_positions, max(min(len(d) + special, corpus.context) for d in corpus.documents)
    if limit is not None and longest > limit:
        raise SubjectError(
            "the windows are longer than the model was made for",
            where=f"context of corpus {corpus.name}",
            allowed=f"at most {limit} tokens for {subject.id}",
            got=corpus.context,
            next_step=f"ss.corpus(..., context={limit}), or --context {limit}",
        )


def _spec(record: Analysis, params: Params, context: Context, again: bool) -> Spec:
    """Name the run."""
    identity = context.subject.identity
    timing = None
    if record.measures_time:
        import torch

        timing = {"device": str(identity.device), "threads": torch.get_num_threads()}
        if again:
            timing["measured"] = datetime.now(UTC).isoformat(timespec="seconds")
    return Spec(
        analysis=record.name,
        version=record.version,
        params=params.model_dump(mode="json"),
        subject=identity.as_dict(),
        corpus={**context.corpus.describe(), "digest": context.corpus.digest},
        timing=timing,
    )


def _lacks(subject: Subject, record: Analysis, missing: frozenset[str]) -> SubjectError:
    return SubjectError(
        f"{record.name} needs what this subject does not have",
        where=subject.id,
        allowed=f"subjects with {', '.join(sorted(record.requires))}",
        got=f"no {', '.join(sorted(missing))}",
        next_step=f"see: sparsescope doctor --subject {shlex.quote(subject.id)}",
    )


def reproduce_command(record: Analysis, params: Params, spec: Spec, context: Context) -> str:
    """Return the command line that makes this run again, or the Python call where there is no such command.

    Paths of this machine are not shown: of a folder or file only the last part is.
    """
    subject = spec.subject
    defaults = record.params().model_dump(mode="json")
    changed = {name: value for name, value in params.model_dump(mode="json").items() if value != defaults[name]}
    if not context.subject.unchanged or not from_command_line(context.corpus, context.subject):
        model = f"ss.load({subject['id']!r}, ...)" if context.subject.unchanged else "ss.wrap(model, tokenizer)"
        more = "".join(f", {name}={value!r}" for name, value in changed.items())
        return f"in Python: ss.run({record.name!r}, {model}, ss.corpus(...){more})"
    _, place = split_name(str(context.subject.source))
    local = Path(place).exists() or ("@" in place and Path(place.rpartition("@")[0]).exists())  # FOLDER@step-N
    variants, bare = split_name(str(subject["id"]))
    name = f"{variants}PATH/TO/{bare}" if local else str(subject["id"])
    words = ["sparsescope", "bench" if record.measures_time else "run", record.name, "--subject", name]
    words += ["--dtype", str(subject["dtype"])]
    if not record.measures_time:
        words += ["--attention", str(subject["attn_implementation"])]
        words += ["--revision", str(subject["revision"])] if subject.get("revision") else []
        words += ["--trust-remote-code"] if subject.get("trust_remote_code") else []
    words += text_options(context.corpus, short=record.measures_time)
    for name, value in changed.items():
        words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    return shlex.join(words)


def text_options(text: TokenizedCorpus, *, short: bool = False) -> list[str]:
    """Return the options of the command line that make a text.

    Args:
        text: One that ``from_command_line`` can make.
        short: Without those that benchmarks do not have.
    """
    found = text.describe()
    options = [("--corpus", "name"), ("--tokens", "budget"), ("--context", "context"), *([] if short else [("--seed", "seed")])]
    words = [word for option, key in options for word in (option, str(found[key]))]
    return words + (["--bos", str(found["bos"])] if not short and found["bos"] != "auto" else [])


def from_command_line(text: TokenizedCorpus, subject: Subject) -> bool:
    """Whether the options of the command line make this very token stream. It is made again: that costs little."""
    from sparsescope.activations.corpus import corpus, registered_corpora

    found = text.describe()
    if found.get("budget") is None or any(name not in registered_corpora() for name in text.name.split("+")):
        return False
    options = {key: found[key] for key in ("seed", "context", "bos")}
    again = corpus(text.name, tokens=found["budget"], **options).tokenize(subject.tokenizer)
    return again.digest == text.digest
