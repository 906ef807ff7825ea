"""From a request to a stored result: the one loop over inputs.

``run_many`` runs several analyses of what is given: inputs are opened once and shared, what is stored already
is opened, all analyses that only need activations share ONE forward pass, the rest follows. One that fails
does not stop the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.activations.accumulators import check_methods
from sparsescope.activations.capture import BATCH_TOKENS, LiveSource
from sparsescope.activations.context import Context
from sparsescope.core.artifact_store import ArtifactStore, ArtifactWriter
from sparsescope.core.artifacts import Artifact
from sparsescope.core.environment import environment
from sparsescope.core.registry import FULL, Analysis, find_record
from sparsescope.core.result import Result
from sparsescope.core.roles import role, told
from sparsescope.core.run_files import artifact_ids
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Params, Spec, make_params, with_digest
from sparsescope.errors import ArtifactError, SparsescopeError, SpecError, SubjectError
from sparsescope.runner.command import reproduce_command
from sparsescope.runner.engine import ProgressCallback, kept_steps, one_pass
from sparsescope.runner.inputs import open_inputs, refuse_unread

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
        rather_full: Take a stored run of the defaults instead, where there is one of the same inputs: nobody
            gets less than is there already.
        beside: Further inputs of roles that are repeated, behind those of all requests.
    """

    analysis: str
    params: dict[str, Any] = field(default_factory=dict)
    rather_full: bool = False
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What became of a request.

    Attributes:
        spec: Names the run; of one whose inputs could not be opened without what they are.
        result: The result, None if it failed.
        error: Why it failed.
        stored: Whether the result was there before and nothing was computed.
        path: Folder of the stored run.
        unstorable: Why it is neither stored nor opened: what the identity of its inputs does not cover.
    """

    spec: Spec
    result: Result | None = None
    error: SparsescopeError | None = None
    stored: bool = False
    path: Path | None = None
    unstorable: tuple[str, ...] = ()


@dataclass(slots=True)
class _Job:
    record: Analysis
    params: Params
    context: Context
    outcome: Outcome
    lost: bool = False  # stored, but what it left for other runs is no longer there: it is made again

    @property
    def digest(self) -> str:
        return self.outcome.spec.digest

    @property
    def waiting(self) -> bool:
        return self.outcome.result is None and self.outcome.error is None


def run(
    analysis: str,
    subject: Subject | CheckpointSeries | str | Path | None = None,
    corpus: Corpus | TokenizedCorpus | None = None,
    *,
    store: str | Path | bool | None = None,
    progress: ProgressCallback | None = None,
    batch_tokens: int = BATCH_TOKENS,
    preset: str = FULL,
    **more: Any,
) -> Result:
    """Run one analysis.

    Args:
        analysis: Registered name, for example ``"activation_sparsity"``.
        subject: The model; of an analysis of checkpoints the series, or what ``open_series`` takes.
        corpus: The text; None for an analysis that reads none, or reads the held-out text
            that a series carries.
        store: Where to keep the result: a folder, True for ``$SPARSESCOPE_HOME`` or ``runs``, None for memory
            only. A stored run with the same digest is opened instead of computed again. What has no digest of
            its own, such as a model with a hook that no variant declares, is computed and not stored; a
            warning of the result says so.
        progress: Told what is done.
        batch_tokens: Most positions in one forward pass.
        preset: Preset of the analysis that the parameters start from, for example ``"quick"``; the
            defaults are ``"full"``.
        **more: Further inputs by role, and parameters of the analysis;
            ``sparsescope show <analysis>`` lists both.

    Returns:
        The result.

    Raises:
        SpecError: For an unknown analysis, preset or parameter, an input that is missing, or one that the
            analysis does not read.
        SubjectError: If an input lacks a capability, or activations are not finite.
        ArtifactError: If the result cannot be stored; the error has it as ``.result``.
    """
    record = find_record(analysis)
    given = {name: more.pop(name) for name in record.roles if name in more}
    for option, value in (("subject", subject), ("corpus", corpus)):
        if value is not None:
            name = next(
                (n for n in record.roles if role(n).flag == f"--{option}" and n not in given), _PLAIN[option]
            )
            if name in given:
                raise SpecError(
                    f"the {role(name).title} is given twice",
                    where=f"ss.run({option}, {name}=...)",
                    got="two of them",
                )
            given[name] = value
    refuse_unread(record, given)
    request = Request(analysis, record.preset(preset) | more)
    outcome = run_many([request], given, store=store, progress=progress, batch_tokens=batch_tokens)[0]
    if outcome.error is not None:
        raise outcome.error
    if outcome.result is None:
        raise ArtifactError(
            "the run left no result", where=outcome.spec.run_id, next_step="please report this"
        )
    return outcome.result


_PLAIN = {"subject": "subject", "corpus": "text"}


def run_many(
    requests: Sequence[Request],
    inputs: Mapping[str, Any],
    *,
    store: str | Path | bool | None = None,
    progress: ProgressCallback | None = None,
    batch_tokens: int = BATCH_TOKENS,
    again: bool = False,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run several analyses of the same inputs; see ``run`` for the arguments.

    Each analysis takes the inputs that it reads and leaves the others. With ``again``, what measures time is
    measured anew: the time of measurement joins its digest. ``done`` is told of every outcome as soon as it
    is there: stored ones, then those of the shared forward pass, then the analyses with passes of their own.

    Args:
        requests: What to run.
        inputs: By role, for example ``{"subject": subject, "text": corpus}``; opened, or as the role takes
            it. A ``Fallback`` stands back behind what another input carries.
        store: As for ``run``; a folder that cannot be written to is enough where everything is stored.
        progress: As for ``run``.
        batch_tokens: As for ``run``.
        again: See above.
        done: See above.

    Returns:
        One outcome for each request, in order. Errors of one analysis, also of opening what it reads, are in
        its outcome.

    Raises:
        SpecError: For an unknown analysis or parameter, before anything runs.
        ArtifactError: If something must run and the folder of runs cannot be written to,
            before anything runs.
    """
    checked = [_checked(request) for request in requests]
    home = Store() if store is True else Store(store) if store else None
    jobs: dict[str, _Job] = {}
    asked, opened = [], dict[Any, Any]()
    for request, (record, choices) in zip(requests, checked, strict=True):
        for params in choices:
            job = _Job(record, params, Context({}), Outcome(_spec(record, params, Context({}), again=False)))
            with _failure_of(job, alone=len(requests) == 1):
                job.context = Context(
                    open_inputs(record, _with_named(record, params, inputs, request.beside), opened, home)
                )
                job.outcome.unstorable = tuple(told(job.context.inputs, "unstorable"))
                job.outcome.spec = _spec(record, params, job.context, again)
                _open_stored(job, home)
            if not job.waiting:
                break
        asked.append(job.digest)
        jobs.setdefault(job.digest, job)  # asked for twice, computed once
    waiting = [job for job in jobs.values() if job.waiting]
    if home is not None and any(not job.outcome.unstorable for job in waiting):
        home.check_writable()
    for job in jobs.values():
        if done is not None and job not in waiting:
            done(job.outcome)
    _compute(waiting, _Work(home, progress, batch_tokens, alone=len(jobs) == 1), done)
    return [jobs[digest].outcome for digest in asked]


def _checked(request: Request) -> tuple[Analysis, list[Params]]:
    """The analysis of a request, and its parameters, after the defaults where a stored run
    of these would do.
    """
    record = find_record(request.analysis)
    params = make_params(record.params, request.params, analysis=record.name)
    return record, [record.params(), params] if request.rather_full and request.params else [params]


def _with_named(
    record: Analysis, params: Params, inputs: Mapping[str, Any], beside: Mapping[str, Sequence[Any]]
) -> Mapping[str, Any]:
    """The inputs, and further ones that parameters name or that stand beside them."""
    found = dict(inputs)
    named = [(name, getattr(params, parameter)) for parameter, name in record.filled_by.items()]
    for name, further in (*named, *beside.items()):
        if (given := found.get(name)) is not None:  # without the one under study, those beside it are nothing
            found[name] = [*(given if isinstance(given, list | tuple) else [given]), *further]
    return found


def _spec(record: Analysis, params: Params, context: Context, again: bool) -> Spec:
    """Name the run."""
    slots: dict[str, dict[str, Any]] = {}
    others: dict[str, list[dict[str, Any]]] = {}
    for name, values in context.inputs.items():
        kind = role(name)
        if kind.slot != "inputs" and kind.slot not in slots and values:
            slots[kind.slot] = kind.functions().identity(*values)
        elif values:
            others[name] = [with_digest(kind.functions().identity(value)) for value in values]
    timing = None
    if record.measures_time:
        import torch

        timing = {"device": str(slots.get("subject", {}).get("device")), "threads": torch.get_num_threads()}
        if again:
            timing["measured"] = datetime.now(UTC).isoformat(timespec="seconds")
    return Spec(
        analysis=record.name,
        version=record.version,
        params=params.model_dump(mode="json"),
        subject=slots.get("subject", {}),
        corpus=slots.get("corpus"),
        timing=timing,
        inputs=others or None,
    )


def _open_stored(job: _Job, home: Store | None) -> None:
    """Refuse inputs that lack something; open the run where it is stored, with everything that it left."""
    found = frozenset[str]()
    for name, values in job.context.inputs.items():
        found = found.union(*(role(name).functions().capabilities(value) for value in values))
    if missing := job.record.requires - found:
        job.outcome.error = _lacks(job, missing, found)
    run_id = job.outcome.spec.run_id
    if not job.waiting or home is None or job.outcome.unstorable or not home.has(run_id):
        return
    try:
        job.lost = bool(home.missing_artifacts(run_id))
        if job.lost:
            return
        job.outcome.path = home.path(run_id)
        job.outcome.result, job.outcome.stored = home.open(run_id), True
        home.drop_partial(job.digest)  # left by a process that was killed after it had stored the run
    except ArtifactError as error:  # damaged: said about this run, the others go on
        job.outcome.error = error


def _lacks(job: _Job, missing: frozenset[str], found: frozenset[str]) -> SubjectError:
    return SubjectError(
        f"{job.record.name} needs what this "
        f"{role(job.record.roles[0]).title if job.record.roles else 'run'} does not have",
        where=str(job.outcome.spec.subject.get("id", job.record.name)),
        allowed=f"inputs with {', '.join(sorted(job.record.requires))}",
        got=f"no {', '.join(sorted(missing))}; there is {', '.join(sorted(found)) or 'nothing'}",
        next_step=f"see: sparsescope show {job.record.name}",
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What all jobs of one call share."""

    store: Store | None
    progress: ProgressCallback | None
    batch_tokens: int
    alone: bool

    def store_of(self, job: _Job) -> Store | None:
        """Where a job is kept, finished steps and artifacts included; None for one that has no digest of
        its own.
        """
        return None if job.outcome.unstorable else self.store

    def equipped(self, job: _Job, made: dict[str, Artifact]) -> Context:
        """The context of a job with a progress bar of its own, steps that are kept in a stored run, and a
        place for artifacts.
        """
        context, spec, store = job.context, job.outcome.spec, self.store_of(job)
        if (progress := self.progress) is not None:
            title, usual = job.record.title.lower(), job.record.unit

            def tell(phase: str, done: int, total: int, unit: str = "") -> None:
                progress(f"{title}: {phase}", done, total, unit or usual)

            context = replace(context, progress=tell)
        if store is not None:
            context = replace(context, step=kept_steps(store, spec.digest))
        kept = ArtifactStore(None if store is None else store.root)

        @contextmanager
        def keep(kind: str, name: str = "", **facts: Any) -> Iterator[ArtifactWriter]:
            if (name or kind) in made or (name or kind).partition(".")[0] in job.record.roles:
                raise SpecError(
                    f"an artifact of the name {name or kind!r} is there already, or is an input",
                    where=f"context.keep in {job.record.compute}",
                    next_step='give it a name of its own: context.keep(kind, "NAME", ...)',
                )
            with kept.keep(kind, **{"made_by": spec.run_id, **facts}) as writer:
                yield writer
            made[name or kind] = writer.artifact

        return replace(context, keep=keep)


def _compute(jobs: list[_Job], work: _Work, done: Callable[[Outcome], None] | None) -> None:
    """Run the jobs: the shared pass first, then each job's own work."""
    begin, events = time.perf_counter(), [{"time": time.time(), "event": "started"}]
    accumulated = _shared_pass(jobs, work, events)
    shared = time.perf_counter() - begin
    for job in sorted(jobs, key=lambda job: job.digest not in accumulated):
        if job.outcome.error is None:
            with _failure_of(job, work.alone):
                _finish(job, work, accumulated.get(job.digest), shared, events)
        if done is not None:
            done(job.outcome)


def _shared_pass(jobs: list[_Job], work: _Work, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Feed all jobs that have accumulators in one pass; return what accumulated, by digest."""
    streaming: dict[str, Any] = {}
    by_digest = {job.digest: job for job in jobs}
    # By model and text: all but an analysis that reads a text of its own share; what is not stored apart
    passes: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for job in jobs:
        with _failure_of(job, work.alone):
            module = job.record.compute_module()
            if hasattr(module, "accumulator"):
                accumulator = module.accumulator(job.params, job.context)
                check_methods(accumulator, job.record.owner, job.record.compute)
                place = id(job.context.subject), id(job.context.corpus), bool(job.outcome.unstorable)
                passes.setdefault(place, {})[job.digest] = streaming[job.digest] = accumulator
    for shared in passes.values():
        first = by_digest[next(iter(shared))]
        failures: Mapping[str, Exception]
        try:
            sites = {site.name: site for accumulator in shared.values() for site in accumulator.sites}
            subject, text, size = first.context.subject, first.context.corpus, work.batch_tokens
            source = LiveSource(subject, text, tuple(sites.values()), batch_tokens=size, reuse=True)
            store = work.store_of(first)
            failures = one_pass(source, shared, store=store, progress=work.progress, events=events)
        except Exception as error:  # of the pass that they share
            failures = dict.fromkeys(shared, error)
        for digest, failure in failures.items():
            with _failure_of(by_digest[digest], work.alone):
                raise failure
    return streaming


def _finish(job: _Job, work: _Work, accumulated: Any, shared: float, events: list[dict[str, Any]]) -> None:
    """Turn sums into a result, or run the passes of an analysis that has its own; store what comes out.

    Raises:
        SpecError: There is no result.
        ArtifactError: It cannot be stored; the error has it as ``.result``.
    """
    import torch

    begin, module, made = time.perf_counter(), job.record.compute_module(), dict[str, Artifact]()
    context = work.equipped(job, made)
    finished = accumulated is not None
    result = (
        module.result(job.params, context, accumulated) if finished else module.compute(job.params, context)
    )
    if not isinstance(result, Result) or result.analysis != job.record.name:
        raise SpecError(
            f"analysis {job.record.name} returned no result of its own",
            where=f"{'result' if finished else 'compute'} of {job.record.compute}",
            allowed=f"Result({job.record.name!r}), filled",
            got=f"Result({result.analysis!r})" if isinstance(result, Result) else type(result).__name__,
            next_step=job.record.owner.next_step,
        )
    seconds = time.perf_counter() - begin + (shared if finished else 0.0)
    outcome, spec, preset = job.outcome, job.outcome.spec, job.record.preset_of(job.params)
    made_with = environment(
        device=str(spec.subject.get("device")),
        threads=torch.get_num_threads(),
        batch_tokens=work.batch_tokens,
    )
    command = reproduce_command(job.record, job.params, context)
    for severity, message in told(context.inputs, "notes"):
        result.note(severity, message)
    for found in job.outcome.unstorable:
        result.note("warning", f"This run is not stored: {found}.")
    result.artifacts = made | _read(context)
    result.provenance = {
        "run_id": None,
        "digest": spec.digest,
        "version": job.record.version,
        "created": None,
        "seconds": seconds,
        "subject": spec.subject,
        "corpus": spec.corpus,
        "params": spec.params,
        "environment": made_with,
        "command": command,
        "inputs": spec.inputs,
        "preset": preset,
        "artifacts": artifact_ids(result, spec).model_dump(),
    }
    outcome.result = result
    store = work.store_of(job)
    if store is None:
        return
    try:
        outcome.path = store.write(
            result,
            spec,
            seconds=seconds,
            environment=made_with,
            events=events,
            command=command,
            preset=preset,
            replace=job.lost,
        )
    except ArtifactError as error:
        error.result = result  # minutes of computing are not lost with the disk
        raise
    store.drop_partial(spec.digest)


def _read(context: Context) -> dict[str, Artifact]:
    """The artifacts behind the inputs, by role; of a role that is repeated with a number."""
    found: dict[str, Artifact] = {}
    for name, values in context.inputs.items():
        functions = role(name).functions()
        if hasattr(functions, "artifact"):
            found |= {
                f"{name}.{n}" if n else name: functions.artifact(value) for n, value in enumerate(values)
            }
    return found


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
            next_step=f"sparsescope run {job.record.name} with SPARSESCOPE_DEBUG=1 "
            "shows the trace; report it",
        )
        bug.__cause__ = error
        job.outcome.error = bug
