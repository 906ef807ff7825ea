"""Gates compared, computed: each series measured on its own, then means over seeds with Student's t."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.context import Context
from sparsescope.activations.text.probe import check_probes
from sparsescope.analysis.mixture_gates import MixtureGatesParams
from sparsescope.analysis.mixture_gates.measure import Measured, measure, measured_steps
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics.estimates import DocumentBootstrap, note_few_documents
from sparsescope.metrics.seeds import STUDENT, over_seeds
from sparsescope.models.checkpoints import distinct_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.checkpoints import CheckpointSeries

NOT_KNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Run:
    """A series with its place in the comparison."""

    series: str
    gate: str
    seed: str
    steps: tuple[int | None, int]
    found: Measured


def compute(params: MixtureGatesParams, context: Context) -> Result:
    """Run the analysis."""
    series, corpus = (context.series, *context.companions), context.corpus
    held_out = _check_series(series, corpus)
    measured = []
    for number, one in enumerate(series):
        context.progress("series", number, len(series))

        def make(one: CheckpointSeries = one) -> dict[str, NDArray[Any]]:
            return measure(one, corpus)

        measured.append(Measured.of(context.step(f"series-{number}", make)))
    context.progress("series", len(series), len(series))
    shown = distinct_names(series)
    runs = [
        Run(
            name,
            gate,
            NOT_KNOWN if one.trained is None else str(one.trained.seed),
            measured_steps(one),
            found,
        )
        for name, gate, one, found in zip(shown, labels(measured), series, measured, strict=True)
    ]
    _refuse_repeated(runs)
    out = Result("mixture_gates")
    out.add("gates", gate_rows(runs, params))
    out.add("runs", _run_rows(runs, corpus, params))
    _scalars(out, runs, params, len(corpus.documents))
    _notes(out, runs, params, len(corpus.documents), held_out)
    return out


def _check_series(series: Sequence[CheckpointSeries], corpus: TokenizedCorpus) -> bool:
    """Refuse series that cannot be compared on this text; say whether it is what the first one carries.

    Raises:
        SubjectError: One has no experts.
        SpecError: They carry different texts.
    """
    for one in series:
        if one.trained is not None and "experts" not in one.kinds:
            raise SubjectError(
                "this series has no experts, and no gate",
                where=one.name,
                allowed="series of mixtures of experts",
                got=one.trained.architecture,
                next_step="leave it out",
            )
    return check_probes(series, corpus)


def labels(measured: Sequence[Measured]) -> list[str]:
    """The name of the gate of each series, with the options that differ where one gate has several."""
    found = []
    for one in measured:
        same = [other.options for other in measured if other.gate == one.gate]
        differing = [key for key in one.options if any(other.get(key) != one.options[key] for other in same)]
        told = ", ".join(f"{key}={one.options[key]}" for key in differing)
        found.append(f"{one.gate} ({told})" if told else one.gate)
    return found


def _refuse_repeated(runs: Sequence[Run]) -> None:
    """Refuse two series of one gate and one seed: they would count as two seeds.

    Raises:
        SpecError: There are such series.
    """
    seen: dict[tuple[str, str], str] = {}
    for run in runs:
        key = (run.gate, run.seed)
        if run.seed != NOT_KNOWN and key in seen:
            raise SpecError(
                "two series have the same gate and the same seed",
                where=f"{seen[key]}, {run.series}",
                allowed="one series for each gate and seed",
                got=f"{run.gate}, seed {run.seed}, twice",
                next_step="leave one of them out",
            )
        seen[key] = run.series


def gate_rows(runs: Sequence[Run], params: MixtureGatesParams) -> list[dict[str, Any]]:
    """Table ``gates``: one row for each gate, in the order of the series."""
    reference = {run.seed: run.found.loss for run in runs if run.gate == params.reference}
    rows = []
    fair = {gate: _comparable(runs, gate, params) for gate in dict.fromkeys(run.gate for run in runs)}
    for gate in fair:
        own = [run for run in runs if run.gate == gate]
        row: dict[str, Any] = {"gate": gate, "seeds": len(own)}
        for name, prefix in (("loss", ""), ("active", "active_"), ("load_cv", "cv_"), ("churn", "churn_")):
            row |= _cells(name, prefix, [getattr(run.found, name) for run in own], params.level)
        pairs = [
            run.found.loss - reference[run.seed]
            for run in own
            if run.seed != NOT_KNOWN and run.seed in reference and gate != params.reference
        ]
        compared = pairs if fair[gate] and fair.get(params.reference) else []
        row["comparable"] = "yes" if fair[gate] else "no"
        row |= _cells("loss_difference", "difference_", compared, params.level)
        rows.append({**row, "pairs": len(pairs)})
    return rows


def _comparable(runs: Sequence[Run], gate: str, params: MixtureGatesParams) -> bool:
    active = float(np.mean([run.found.active for run in runs if run.gate == gate]))
    return abs(active - params.active) <= params.tolerance * params.active + 1e-9


def _cells(name: str, prefix: str, values: Sequence[float], level: float) -> dict[str, float]:
    found = over_seeds(values, level)
    return {name: found.mean, f"{prefix}low": found.low, f"{prefix}high": found.high}


def _run_rows(
    runs: Sequence[Run], corpus: TokenizedCorpus, params: MixtureGatesParams
) -> list[dict[str, Any]]:
    """Table ``runs``: one row for each series."""
    domains = [corpus.domains.index(document.domain) for document in corpus.documents]
    draws = DocumentBootstrap.draw(domains, params.resamples, params.seed, params.level)
    rows = []
    for run in runs:
        found, (before, last) = run.found, run.steps
        loss = draws.ratio(found.losses, found.targets)
        rows.append(
            {
                "series": run.series,
                "gate": run.gate,
                "seed": run.seed,
                "step": last,
                "before": math.nan if before is None else float(before),
                "loss": float(loss.mean),
                "low": float(loss.low),
                "high": float(loss.high),
                "active": found.active,
                "load_cv": found.load_cv,
                "churn": found.churn,
                "tokens": found.tokens,
                "documents": len(corpus.documents),
            }
        )
    return rows


def _scalars(out: Result, runs: Sequence[Run], params: MixtureGatesParams, documents: int) -> None:
    table, level = out.tables["gates"], params.level
    fair = table[table["comparable"] == "yes"]
    out.add_scalar("gates", len(table), "count", "gates that are compared")
    out.add_scalar(
        "series", len(runs), "count", "trainings, the independent units of all intervals over seeds"
    )
    near = f"{params.active:g} active experts of a token in the mean, +- {100 * params.tolerance:g} %"
    out.add_scalar("comparable_gates", len(fair), "count", f"gates with {near}: their losses are compared")
    for row in table.to_dict("records"):
        name, n, pairs = _slug(row["gate"]), int(row["seeds"]), int(row["pairs"])
        if row["gate"] == params.reference:
            ends = Interval.of(row["low"], row["high"], level, STUDENT, n)
            text = f"loss of the gate {row['gate']}, mean over {n} seeds"
            out.add_scalar("reference_loss", row["loss"], "nats", text, direction="lower", interval=ends)
        if math.isfinite(row["loss_difference"]):
            ends = Interval.of(
                row["difference_low"], row["difference_high"], level, f"{STUDENT}, paired", pairs
            )
            out.add_scalar(
                f"loss_difference_{name}",
                row["loss_difference"],
                "nats",
                f"loss of the gate {row['gate']} minus that of {params.reference}, mean over {pairs} seeds",
                direction="lower",
                interval=ends,
            )
    out.add_scalar("tokens", runs[0].found.tokens, "count", "tokens after the first of each window")
    out.add_scalar("documents", documents, "count", "documents, the units of the intervals of one training")


def _slug(gate: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", gate.lower()).strip("_")


def _notes(
    out: Result, runs: Sequence[Run], params: MixtureGatesParams, documents: int, held_out: bool
) -> None:
    table = out.tables["gates"]
    out.note(
        "warning",
        "Seeds are the independent units of intervals over gates. Trainings of one recipe and one size say "
        "nothing about other lengths of training, sizes, texts or options of a gate.",
        "gates",
    )
    single = table.loc[table["seeds"] < 2, "gate"]
    if len(single):
        out.note("warning", f"One seed, so no interval: {', '.join(single)}.", "gates")
    away = table[table["comparable"] == "no"]
    if len(away):
        told = ", ".join(
            f"{gate} {active:.3g}" for gate, active in zip(away["gate"], away["active"], strict=True)
        )
        out.note(
            "warning",
            f"Not within {100 * params.tolerance:g} % of {params.active:g} active experts, so their loss is "
            f"not compared: {told}.",
            "gates",
        )
    if params.reference not in set(table["gate"]):
        out.note(
            "warning",
            f"No series has the gate {params.reference}, so no loss is compared; there are "
            f"{', '.join(table['gate'])}.",
            "gates",
        )
    compared = int(table["difference_low"].notna().sum())
    if compared > 1:
        out.note(
            "info",
            f"{compared} differences, each with an interval of {100 * params.level:g} %: that one of them "
            "leaves out zero by chance is more likely than for a single one.",
            "gates",
        )
    if len({(run.steps, run.found.sizes) for run in runs}) > 1:
        out.note(
            "warning",
            "The series differ in steps, layers, experts or width: differences are not those of gates alone.",
            "runs",
        )
    if any(math.isnan(run.found.churn) for run in runs):
        out.note("info", "Churn needs two checkpoints after step 0; a series has fewer.", "runs")
    unnamed = [run.series for run in runs if not run.found.named]
    if unnamed:
        out.note(
            "info",
            f"The configuration names no gate, which is called top_k here: {', '.join(unnamed)}.",
            "runs",
        )
    if not held_out:
        out.note("info", "Whether the trainings read this text is not known.", "runs")
    note_few_documents(out, documents, "runs")
