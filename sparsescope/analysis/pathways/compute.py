"""Pathways over training, computed: one checkpoint in memory at a time, then tables over checkpoints and
series.

Every series, the one under study and its seeds, is read and measured in the same way. What was read of a
checkpoint, and what was measured of it, are steps of their own that a stored run keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.pathways import PathwaysParams, scalars
from sparsescope.analysis.pathways import tables as make
from sparsescope.analysis.pathways.measure import Group, measure_checkpoint
from sparsescope.analysis.pathways.measured import Measured
from sparsescope.analysis.pathways.read import (
    Partition,
    is_mixture,
    make_partition,
    read_checkpoint,
    shape_of,
)
from sparsescope.analysis.pathways.samples import samples_of
from sparsescope.core.result import Result
from sparsescope.errors import SubjectError
from sparsescope.metrics.leads import (
    aligned_rows,
    correlation_rows,
    lead_rows,
    lead_summary_rows,
    log_loss,
    onset_rows,
)
from sparsescope.metrics.onsets import Onsets, find_onsets
from sparsescope.models.checkpoints import distinct_names
from sparsescope.models.provenance.training_curves import training_curves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.models.checkpoints import CheckpointSeries

    Arrays = dict[str, NDArray[Any]]


def compute(params: PathwaysParams, context: Context) -> Result:
    """Run the analysis."""
    series = (context.series, *context.companions)
    labels = distinct_names(series)
    total, done = sum(map(len, series)), 0
    measured = []
    for index, found in enumerate(series):
        measured.append(_measure(found, labels[index], index, params, context, done, total))
        done += len(found)
    context.progress("checkpoints", total, total)
    own = measured[0]
    out = Result("pathways")
    for name in ("checkpoints", "variants", "labels", "random_partitions"):
        parts = [getattr(make, name)(m) for m in measured]
        if name == "checkpoints":
            parts = [part.assign(own="no" if number else "yes") for number, part in enumerate(parts)]
        out.add(name, pd.concat(parts, ignore_index=True))
    for name in ("layers", "dimensions", "flow"):
        out.add(name, getattr(make, name)(own))
    out.add("memorized", make.memorized(own, params))
    followed = make.followed(own)
    out.add("onsets", onset_rows(measured))
    steady = [m.steady for m in measured]  # half of a way is not made in a leap
    out.add("leads", lead_rows(steady, ("test_accuracy", "test_loss", "test_loss_log10", *followed)))
    out.add("lead_summary", lead_summary_rows(out.tables["leads"], params.level))
    out.add("aligned", aligned_rows(measured, ("test_accuracy", "test_loss", *followed)))
    correlate = partial(correlation_rows, draws=params.draws, level=params.level, seed=params.seed)
    out.add("correlations", correlate(own, followed))
    out.add("steady", correlate(own.steady, followed))
    swapped = [
        *make.swap(measured, "all", params),
        *make.swap(steady, "steady", params),
    ]
    out.add("swap", swapped)
    out.add("power", [*make.power(own, "all", params), *make.power(own.steady, "steady", params)])
    out.add("foretelling", make.foretelling(measured, params))
    scalars.fill(out, measured, params)
    return out


def _measure(
    series: CheckpointSeries,
    label: str,
    index: int,
    params: PathwaysParams,
    context: Context,
    done: int,
    total: int,
) -> Measured:
    """Read and measure every checkpoint of one series."""
    corpus = context.inputs["text"][0] if context.inputs.get("text") else None
    samples = samples_of(series, corpus, params)
    groups = [Group.of(samples, name, params) for name in samples.groups]
    curves, onsets = _onsets(series, params)
    partitions, ahead = _partitions(series, onsets, index, params, context)
    read: list[Arrays] = []
    measured: list[Arrays] = []
    for number, entry in enumerate(series.checkpoints):
        context.progress("checkpoints", done + number, total)

        def read_one(step: int = entry.step) -> Arrays:
            subject = series.subject(step)
            return shape_of(subject) | read_checkpoint(subject, samples, partitions)

        read.append(context.step(f"series-{index}-step-{entry.step}", read_one))
        _check_shape(series, entry.step, read)
        arrays = read[-1]
        experts = int(arrays["rows"].shape[1])

        def measure_one(arrays: Arrays = arrays, experts: int = experts) -> Arrays:
            return measure_checkpoint(groups, arrays, experts)

        measured.append(context.step(f"series-{index}-measures-{entry.step}", measure_one))
    return Measured(
        label, series.steps, samples, groups, curves, onsets, read, measured, bool(partitions), ahead, params
    )


def _onsets(series: CheckpointSeries, params: PathwaysParams) -> tuple[pd.DataFrame, Onsets]:
    """What the training logged, and when it memorized and generalized; nothing of a series of others."""
    if series.trained is None:
        steps = pd.DataFrame({"step": list(series.steps)})
        return steps, Onsets(None, None, grokked=False, lost_at=None)
    curves = training_curves(series)
    found = find_onsets(
        curves["step"].to_numpy(), curves["train_accuracy"].to_numpy(), curves["test_accuracy"].to_numpy(),
        level=params.accuracy, logs=params.logs,
    )  # fmt: skip
    curves["test_loss_log10"] = log_loss(curves["test_loss"])
    return curves.drop(columns="split"), found


def _partitions(
    series: CheckpointSeries, onsets: Onsets, index: int, params: PathwaysParams, context: Context
) -> tuple[list[Partition], bool]:
    """The partition of a dense model and random ones, none of a mixture; and whether they look ahead."""
    later = [step for step in series.steps if onsets.memorized is not None and step >= onsets.memorized]
    ahead = params.partition_from == "last" or not later
    step = series.steps[-1] if ahead else later[0]

    def make_all() -> Arrays:
        subject = series.subject(step)
        if is_mixture(subject):
            return {"none": np.zeros(0)}
        draws = [None, *range(params.random_partitions)]
        found = [make_partition(subject, params, draw) for draw in draws]
        return {
            f"{draw}-{layer}": labels
            for draw, partition in enumerate(found)
            for layer, labels in partition.labels.items()
        }

    arrays = context.step(f"partition-{index}", make_all)
    if "none" in arrays:
        return [], False
    named: list[dict[int, NDArray[np.int64]]] = [{} for _ in range(params.random_partitions + 1)]
    for name, labels in arrays.items():
        draw, layer = map(int, name.split("-"))
        named[draw][layer] = labels
    return [Partition(labels, params.blocks) for labels in named], ahead


def _check_shape(series: CheckpointSeries, step: int, read: Sequence[Arrays]) -> None:
    """Refuse a series whose checkpoints differ in their experts or neurons."""
    first, last = (each["shape"].tolist() for each in (read[0], read[-1]))
    if first != last:
        raise SubjectError(
            "the checkpoints of this series differ in their experts",
            where=f"{series.name}, step {step}",
            allowed=f"(layer, experts or neurons, experts per token) as at step {series.steps[0]}: {first}",
            got=last,
            next_step="compare checkpoints of one architecture",
        )
