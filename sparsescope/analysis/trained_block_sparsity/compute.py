"""Trained block sparsity, computed: each series measured on its own, set beside its dense twin, then means
over seeds with Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.context import Context
from sparsescope.activations.text.probe import check_probes
from sparsescope.analysis.trained_block_sparsity import LENGTHS, TrainedBlockSparsityParams
from sparsescope.analysis.trained_block_sparsity.measure import Measured, measure
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.errors import SpecError
from sparsescope.metrics.estimates import BOOTSTRAP, PAIRED_BOOTSTRAP, DocumentBootstrap, note_few_documents
from sparsescope.metrics.routing_locality import chunk_sparsity_chance
from sparsescope.metrics.seeds import STUDENT, over_seeds
from sparsescope.models.checkpoints import distinct_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.checkpoints import CheckpointSeries

NOT_KNOWN, DENSE = "not known", "dense"
_EIGHT = LENGTHS.index(8)
_SPARSITIES = (("token_sparsity", "token_"), ("chunk_sparsity", "chunk_"), ("excess", "excess_"))
#: How the labels of models call what a configuration says.
_WORDS = {
    "chunk_loss": "chunk",
    "locality_loss": "locality",
    "loss_chunk": "tokens",
    "ffn_experts": "experts",
    "expert_size": "units",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A series with its place in the comparison."""

    series: str
    model: str
    seed: str
    step: int
    found: Measured


def compute(params: TrainedBlockSparsityParams, context: Context) -> Result:
    """Run the analysis."""
    series, corpus = (context.series, *context.companions), context.corpus
    held_out = check_probes(series, corpus)
    measured = []
    for number, one in enumerate(series):
        context.progress("series", number, len(series))

        def make(one: CheckpointSeries = one) -> dict[str, NDArray[Any]]:
            return measure(one, corpus)

        measured.append(Measured.of(context.step(f"series-{number}", make)))
    context.progress("series", len(series), len(series))
    seeds = [NOT_KNOWN if one.trained is None else str(one.trained.seed) for one in series]
    steps = [one.steps[-1] for one in series]
    runs = [
        Run(*cells)
        for cells in zip(distinct_names(series), labels(measured), seeds, steps, measured, strict=True)
    ]
    _refuse_repeated(runs)
    domains = [corpus.domains.index(document.domain) for document in corpus.documents]
    draws = DocumentBootstrap.draw(domains, params.resamples, params.seed, params.level)
    out = Result("trained_block_sparsity")
    table = [run_row(run, twin_of(run, runs), draws) for run in runs]
    out.add("models", model_rows(runs, table, params.level))
    out.add("runs", table)
    for name, rows_of in (("chunks", _chunk_rows), ("layers", _layer_rows)):
        out.add(
            name,
            [
                {**row, "own": "yes" if run is runs[0] else "no"}
                for run in runs
                for row in rows_of(run, draws)
            ],
        )
    _scalars(out, runs, table, params, len(corpus.documents))
    _notes(out, runs, len(corpus.documents), held_out)
    return out


def labels(measured: Sequence[Measured]) -> list[str]:
    """What was trained: strengths of the losses and what else differs among models of small experts;
    ``dense``, with the architecture where there are several.
    """
    sparse = [one for one in measured if one.idle is not None]
    architectures = {one.architecture for one in measured if one.idle is None}
    found = []
    for one in measured:
        if one.idle is None:
            found.append(DENSE if len(architectures) == 1 else f"{DENSE} {one.architecture}")
            continue
        told = [
            f"{word} {one.options[key]:g}"
            for key, word in _WORDS.items()
            if key in one.options
            and (
                key in ("chunk_loss", "locality_loss")
                or any(other.options.get(key) != one.options[key] for other in sparse)
            )
        ]
        found.append(", ".join(told) or one.architecture)
    return found


def _refuse_repeated(runs: Sequence[Run]) -> None:
    """Refuse two series of one model and one seed: they would count as two seeds.

    Raises:
        SpecError: There are such series.
    """
    seen: dict[tuple[str, str], str] = {}
    for run in runs:
        key = (run.model, run.seed)
        if run.seed != NOT_KNOWN and key in seen:
            raise SpecError(
                "two series are of the same model and the same seed",
                where=f"{seen[key]}, {run.series}",
                allowed="one series for each model and seed",
                got=f"{run.model}, seed {run.seed}, twice",
                next_step="leave one of them out",
            )
        seen[key] = run.series


def twin_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The first dense series of the same seed; None for a dense one, and where there is none."""
    if run.found.idle is None or run.seed == NOT_KNOWN:
        return None
    return next((other for other in runs if other.found.idle is None and other.seed == run.seed), None)


def run_row(run: Run, twin: Run | None, draws: DocumentBootstrap) -> dict[str, Any]:
    """A row of the table ``runs``."""
    found = run.found
    loss = draws.ratio(found.losses, found.targets)
    row: dict[str, Any] = {
        "series": run.series,
        "model": run.model,
        "seed": run.seed,
        "step": run.step,
        "parameters": found.parameters,
        **_cells("loss", "", (loss.mean, loss.low, loss.high)),
        **_cells("increase", "increase_", (math.nan,) * 3),
        **_cells("token_sparsity", "token_", (math.nan,) * 3),
        **_cells("chunk_sparsity", "chunk_", (math.nan,) * 3),
        **_cells("excess", "excess_", (math.nan,) * 3),
        **dict.fromkeys(("independent", "reuse", "reuse_independent"), math.nan),
        "dead": 0,
        "experts": 0,
        "tokens": found.tokens,
        "documents": draws.documents,
    }
    if twin is not None:
        other = twin.found
        again = draws.replicates(found.losses, found.targets) / draws.replicates(other.losses, other.targets)
        row |= _cells("increase", "increase_", (found.loss / other.loss - 1, *draws.ends(again - 1)))
    if found.idle is None or found.chunks is None or found.used is None or found.again is None:
        return row
    share = draws.ratio(found.idle.mean(1), found.chunks)  # [K]
    rates = found.rates
    row |= _cells("token_sparsity", "token_", [ends[0] for ends in share])
    row |= _cells("chunk_sparsity", "chunk_", [ends[_EIGHT] for ends in share])
    independent = float(chunk_sparsity_chance(rates, 8)[:, 1].mean())
    again = draws.replicates(found.idle.mean(1)[:, _EIGHT], found.chunks[:, _EIGHT])
    drawn = draws.replicates(found.used, found.chunks[:, :1, None])  # rates in each resample, [B, L, E]
    excess = draws.ends(again - chunk_sparsity_chance(drawn, 8)[..., 1].mean(-1))
    row |= _cells("excess", "excess_", (row["chunk_sparsity"] - independent, *excess))
    with np.errstate(invalid="ignore", divide="ignore"):
        reuse = found.again[1].sum() / found.again[0].sum()
        chance = (rates**2).sum(-1) / rates.sum(-1)  # of each layer, weighed by its uses
        chance = (chance * found.again[0])[found.again[0] > 0].sum() / found.again[0].sum()
    return row | {
        "independent": independent,
        "reuse": float(reuse),
        "reuse_independent": float(chance),
        "dead": int((rates == 0).sum()),
        "experts": rates.size,
    }


def model_rows(runs: Sequence[Run], table: Sequence[dict[str, Any]], level: float) -> list[dict[str, Any]]:
    """Table ``models``: one row for each model, in the order of the series."""
    found = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [row for row in table if row["model"] == model]
        paired = [row["increase"] for row in own if math.isfinite(row["increase"])]
        row: dict[str, Any] = {"model": model, "seeds": len(own), "parameters": own[0]["parameters"]}
        row |= _cells("loss", "", over_seeds([one["loss"] for one in own], level))
        row |= _cells("increase", "increase_", over_seeds(paired, level)) | {"pairs": len(paired)}
        for name, prefix in _SPARSITIES:
            row |= _cells(name, prefix, over_seeds([one[name] for one in own], level))
        for name in ("independent", "reuse", "reuse_independent", "dead"):
            row[name] = float(np.mean([one[name] for one in own]))
        if not own[0]["experts"]:
            row["dead"] = math.nan
        found.append(row)
    return found


def _cells(name: str, prefix: str, values: Sequence[Any]) -> dict[str, float]:
    mean, low, high = map(float, values)
    return {name: mean, f"{prefix}low": low, f"{prefix}high": high}


def _chunk_rows(run: Run, draws: DocumentBootstrap) -> list[dict[str, Any]]:
    found = run.found
    if found.idle is None or found.chunks is None or found.used is None:
        return []
    share, rates = draws.ratio(found.idle.mean(1), found.chunks), found.rates
    rows = []
    for place, length in enumerate(LENGTHS):
        alike, own = chunk_sparsity_chance(rates, length).mean(0)
        rows.append(
            {
                "series": run.series,
                "model": run.model,
                "length": length,
                **_cells("sparsity", "", [ends[place] for ends in share]),
                "independent": own,
                "alike": alike,
                "chunks": int(found.chunks[:, place].sum()),
            }
        )
    return rows


def _layer_rows(run: Run, draws: DocumentBootstrap) -> list[dict[str, Any]]:
    found = run.found
    if found.idle is None or found.chunks is None or found.used is None or found.again is None:
        return []
    share = draws.ratio(found.idle, found.chunks[:, None])  # [L, K]
    rates = found.rates
    own = chunk_sparsity_chance(rates, 8)[:, 1]
    with np.errstate(invalid="ignore"):
        reuse = found.again[1] / found.again[0]
    return [
        {
            "series": run.series,
            "model": run.model,
            "layer": layer,
            **_cells("token_sparsity", "token_", [ends[layer, 0] for ends in share]),
            **_cells("chunk_sparsity", "chunk_", [ends[layer, _EIGHT] for ends in share]),
            "independent": own[layer],
            "reuse": reuse[layer],
            "dead": int((rates[layer] == 0).sum()),
        }
        for layer in range(len(own))
    ]


def _scalars(
    out: Result,
    runs: Sequence[Run],
    table: Sequence[dict[str, Any]],
    params: TrainedBlockSparsityParams,
    documents: int,
) -> None:
    """Numbers of the first model: over seeds where there are several, of the first training else."""
    models = out.tables["models"].to_dict("records")
    first, seeds = models[0], int(models[0]["seeds"])
    single, level = table[0], params.level
    said = f"{first['model']}, " + (f"mean over {seeds} seeds" if seeds > 1 else "one training")

    def ends(prefix: str, n: int, paired: bool = False) -> Interval | None:
        if n > 1:
            method = f"{STUDENT}, paired" if paired else STUDENT
            return Interval.of(first[f"{prefix}low"], first[f"{prefix}high"], level, method, n)
        method = PAIRED_BOOTSTRAP if paired else BOOTSTRAP
        return Interval.of(single[f"{prefix}low"], single[f"{prefix}high"], level, method, documents)

    paired = ends("increase_", int(first["pairs"]), paired=True)
    text = f"loss over that of the dense twin of the same seed, minus 1: {said}"
    out.add_scalar("loss_increase", first["increase"], "fraction", text, direction="lower", interval=paired)
    for name, key, prefix, text in (
        ("loss", "loss", "", "cross-entropy of a token"),
        ("token_sparsity", "token_sparsity", "token_", "TLS, share of experts that a token does not use"),
        ("chunk_sparsity_8", "chunk_sparsity", "chunk_", "CLS_8, share that none of 8 tokens in a row uses"),
        ("chunk_sparsity_8_excess", "excess", "excess_", "CLS_8 minus that of independent tokens"),
    ):
        out.add_scalar(
            name, first[key], "nats" if name == "loss" else "fraction", f"{text}: {said}",
            direction="lower" if name == "loss" else "higher", interval=ends(prefix, seeds),
        )  # fmt: skip
    for name, key, unit, text in (
        ("chunk_sparsity_8_independent", "independent", "fraction", "CLS_8 if tokens chose independently"),
        ("reuse", "reuse", "fraction", "share of the experts of a token that the next one uses too"),
        ("reuse_independent", "reuse_independent", "fraction", "that share if tokens chose independently"),
        ("dead_experts", "dead", "experts", f"of {single['experts']}, those that no token uses"),
    ):
        out.add_scalar(name, first[key], unit, f"{text}: {said}")
    dense = next((row for row in models if row["model"].startswith(DENSE)), None)
    if dense is not None:
        n = int(dense["seeds"])
        known = Interval.of(dense["low"], dense["high"], level, STUDENT, n)
        text = f"cross-entropy of the dense twin, mean over {n} seeds"
        out.add_scalar("dense_loss", dense["loss"], "nats", text, direction="lower", interval=known)
        out.add_scalar("parameter_ratio", first["parameters"] / dense["parameters"], "",
                       f"weights of {first['model']} over those of the dense twin")  # fmt: skip
    out.add_scalar("models", len(models), "count", "models that are compared")
    out.add_scalar("series", len(runs), "count", "trainings")
    out.add_scalar("tokens", runs[0].found.tokens, "count", "tokens after the first of each window")
    out.add_scalar("documents", documents, "count", "documents, the units of the intervals of one training")


def _notes(out: Result, runs: Sequence[Run], documents: int, held_out: bool) -> None:
    table = out.tables["models"]
    out.note(
        "warning",
        "Seeds are the independent units of what is said of a model. Trainings of one size and one length "
        "say nothing about other sizes, lengths or texts; bytes saved are not time saved.",
        "models",
    )
    single = table.loc[table["seeds"] < 2, "model"]
    if len(single):
        out.note("warning", f"One seed, so no interval over seeds: {'; '.join(single)}.", "models")
    if not any(run.found.idle is None for run in runs):
        out.note("warning", "No dense twin is among the series, so no loss is compared.", "models")
    alone = [run.series for run in runs if run.found.idle is not None and twin_of(run, runs) is None]
    if alone and any(run.found.idle is None for run in runs):
        out.note("info", f"No dense twin of the same seed: {', '.join(alone)}.", "runs")
    if len({run.step for run in runs}) > 1:
        out.note(
            "warning", "The series differ in their last step: losses are not those of models alone.", "runs"
        )
    sizes = table["parameters"]
    if sizes.max() > 1.01 * sizes.min():
        out.note("warning", "The models differ in their number of weights by more than 1 %.", "models")
    dead = [f"{row.series} {row.dead}" for row in out.tables["runs"].itertuples() if row.dead]
    if dead:
        out.note("info", f"Experts that no token of the text uses: {', '.join(dead)}.", "runs")
    if not held_out:
        out.note("info", "Whether the trainings read this text is not known.", "runs")
    note_few_documents(out, documents, "runs")
