"""Grokking, computed: onsets from the training curves, measures of every checkpoint, phases,
leads and correlations.

One model is in memory at a time; what was measured of a checkpoint is kept in a stored run. Every series (the
one under study and its companions) is measured in the same way, with its own key frequencies: frequencies
differ between seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sparsescope.analysis.grokking import GrokkingParams
from sparsescope.analysis.grokking import checkpoint as one
from sparsescope.analysis.grokking import tables as make
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.metrics.leads import aligned_rows, correlation_rows, lead_rows, lead_summary_rows, onset_rows
from sparsescope.metrics.onsets import Onsets, find_onsets, kaplan_meier_median, median_range
from sparsescope.models.checkpoints import distinct_names
from sparsescope.models.provenance.training_curves import LOSSES, training_curves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.models.checkpoints import CheckpointSeries


@dataclass(slots=True)
class Measured:
    """A series with everything that was measured of it.

    Attributes:
        name: Its name.
        curves: Table ``curves``.
        onsets: When it memorized and generalized.
        checkpoints: Table ``checkpoints``.
        keys: Key frequencies.
        keys_from: ``units``, ``embedding``, ``given``, or empty for series of other data.
        modulus: p, None for series of other data.
        arrays: The arrays of each checkpoint.
        tensors: Names of the parameters.
    """

    name: str
    curves: pd.DataFrame
    onsets: Onsets
    checkpoints: pd.DataFrame
    keys: tuple[int, ...]
    keys_from: str
    modulus: int | None
    arrays: list[dict[str, NDArray[Any]]]
    tensors: list[str]


def compute(params: GrokkingParams, context: Context) -> Result:
    """Run the analysis."""
    series = (context.series, *context.companions)
    labels = distinct_names(series)
    total, done = sum(map(len, series)), 0
    measured = []
    for index, found in enumerate(series):
        measured.append(_measure(found, labels[index], index, params, context, done, total))
        done += len(found)
    own = measured[0]
    out = Result("grokking")
    out.add("checkpoints", own.checkpoints)
    out.add("curves", own.curves)
    segments, cleanup = make.segments(own, params)
    out.add("phases", make.phases(own, cleanup))
    out.add("segments", segments)
    out.add("onsets", onset_rows(measured))
    out.add("leads", lead_rows(measured, make.FOLLOWED))
    out.add("lead_summary", lead_summary_rows(out.tables["leads"], params.level))
    out.add("aligned", aligned_rows(measured, make.ALIGNED))
    correlated = correlation_rows(
        own, make.FOLLOWED, draws=params.draws, level=params.level, seed=params.seed
    )
    out.add("correlations", correlated)
    out.add("spectrum", make.spectrum(own))
    out.add("tensors", make.tensors(own))
    _scalars(out, own, measured, params)
    _notes(out, context.series, own, measured, params)
    return out


def _measure(
    series: CheckpointSeries,
    label: str,
    index: int,
    params: GrokkingParams,
    context: Context,
    done: int,
    total: int,
) -> Measured:
    """Measure every checkpoint of one series."""
    task = one.task_of(series)
    curves = training_curves(series)
    found = find_onsets(
        curves["step"].to_numpy(), curves["train_accuracy"].to_numpy(), curves["test_accuracy"].to_numpy(),
        level=params.accuracy, logs=params.logs,
    )  # fmt: skip
    keys: tuple[int, ...] = ()
    keys_from = ""
    if task is not None:

        def last_keys() -> dict[str, NDArray[Any]]:
            chosen, how = one.find_keys(series.subject(series.steps[-1]), task, params)
            return {
                "keys": np.array(chosen, np.int64),
                "how": np.array([("units", "embedding", "given").index(how)]),
            }

        known = context.step(f"keys-{index}", last_keys)
        keys, keys_from = (
            tuple(map(int, known["keys"])),
            ("units", "embedding", "given")[int(known["how"][0])],
        )
    arrays, rows = [], []
    for i, entry in enumerate(series.checkpoints):
        context.progress(f"checkpoints of {label}", done + i, total)

        def reduce(step: int = entry.step) -> dict[str, NDArray[Any]]:
            return one.measure(series.subject(step), task, keys, params)

        arrays.append(context.step(f"series-{index}-step-{entry.step}", reduce))
        losses: list[float] = arrays[-1]["losses"].tolist()
        if not losses:  # of other data: as measured when the checkpoint was written
            losses = [
                entry.stored.get(split, {}).get(what, math.nan)
                for what in ("loss", "accuracy")
                for split in _splits(curves)
            ]
        rows.append((entry.step, *losses, *arrays[-1]["values"]))
    context.progress(f"checkpoints of {label}", done + len(series), total)
    from sparsescope.models.identity import named_tensors

    names = [name for name, _ in named_tensors(series.subject(series.steps[-1]).model)]
    table = pd.DataFrame(rows, columns=["step", *LOSSES, *one.NAMES])
    frame = curves.drop(columns="split") if "split" in curves else curves
    return Measured(
        label, frame, found, table, keys, keys_from, task.modulus if task else None, arrays, names
    )


def _splits(curves: pd.DataFrame) -> tuple[str, str]:
    return "train", str(curves["split"].iloc[0]) if "split" in curves else "test"


def _scalars(out: Result, own: Measured, measured: list[Measured], params: GrokkingParams) -> None:
    """Headline numbers of the series under study, and medians over series where there are several."""
    onsets, table = own.onsets, own.checkpoints
    rule = f"in {params.logs} consecutive logs; one run"
    memorized = math.nan if onsets.memorized is None else onsets.memorized
    generalized = math.nan if onsets.generalized is None else onsets.generalized
    add = out.add_scalar
    add(
        "memorized_step",
        memorized,
        "count",
        f"t_mem: first step with training accuracy >= {params.accuracy:g} {rule}",
    )
    add(
        "generalized_step",
        generalized,
        "count",
        f"t_gen: first step with test accuracy >= {params.accuracy:g} {rule}",
    )
    add("onset_ratio", onsets.ratio, "", "t_gen / t_mem of this run")
    add("onset_delay", onsets.delay, "count", "t_gen - t_mem in steps, of this run")
    text = "1 if t_gen >= t_mem + max(3 logs, t_mem / 2), else 0"
    add("grokked", float(onsets.grokked), "", text)
    last = table.iloc[-1]
    add(
        "final_test_accuracy",
        last["test_accuracy"],
        "fraction",
        "test accuracy of the last checkpoint, on every test pair",
    )
    add(
        "final_test_loss",
        last["test_loss"],
        "nats",
        "test loss of the last checkpoint, mean over every test pair",
    )
    add(
        "key_frequencies",
        len(own.keys),
        "count",
        f"key frequencies of the last checkpoint ({own.keys_from or 'none'})",
    )
    for name, text in (
        (
            "neurons_explained",
            f"share of hidden units that one frequency explains above {params.explained:g}, last checkpoint",
        ),
        (
            "explained_variance",
            (
                "share of the variance of the logits that the cosines of the key frequencies "
                "explain, last checkpoint"
            ),
        ),
        ("excluded_loss", "training loss without the key frequencies, last checkpoint"),
        ("restricted_loss", "loss over all pairs with the key frequencies alone, last checkpoint"),
        ("subnetwork", "least share of hidden units with the training accuracy of all, last checkpoint"),
    ):
        add(name, last[name], "nats" if name.endswith("loss") else "fraction", text)
    first = make.at_onset(own)
    middle = make.near(table, (memorized + generalized) / 2)
    if first is not None and middle is not None:
        share = middle["restricted_loss"] / first["restricted_loss"]
        text = (
            f"restricted loss at step {int(middle['step'])}, half of the way from t_mem to "
            "t_gen, over that at t_mem"
        )
        add("restricted_fall_midway", share, "", text, direction="lower")
        add(
            "test_accuracy_midway",
            middle["test_accuracy"],
            "fraction",
            f"test accuracy at step {int(middle['step'])}, half of the way",
        )
    if first is not None:
        add("rank_embedding_fall", last["rank_embedding"] / first["rank_embedding"], "",
            "effective rank of the embedding, last checkpoint / at t_mem")  # fmt: skip
    summary = out.tables["lead_summary"]
    leads = out.tables["leads"]
    mine = leads[leads["series"] == own.name].set_index("measure")
    for name in (
        "restricted_loss",
        "excluded_loss",
        "gini_embedding",
        "rank_embedding",
        "weight_norm",
        "neurons_explained",
    ):
        row = summary[(summary["measure"] == name) & (summary["rule"] == "half way")]
        spread = None
        if len(row) and int(row["series"].iloc[0]) > 1:
            found = row.iloc[0]
            method = "order statistics over series, of their median"
            spread = Interval(found["low"], found["high"], found["coverage"], method, int(found["series"]))
        value = (
            found["median"]
            if spread is not None
            else mine.loc[name, "lead_half_way"]
            if name in mine.index
            else math.nan
        )
        over = f"median over {spread.n} series" if spread else "one run"
        add(
            f"lead_{name}",
            value,
            "count",
            f"t_gen minus the step at which {name} made half of its way, {over}",
            interval=spread,
        )
    if len(measured) > 1:
        times = [_last_or(m.onsets.generalized, m) for m in measured]
        seen = [m.onsets.generalized is not None for m in measured]
        found_range = median_range([t for t, s in zip(times, seen, strict=True) if s], params.level)
        text = f"Kaplan-Meier median of t_gen over {len(measured)} series, {sum(seen)} of which generalized"
        interval = None
        if found_range.n > 1:
            interval = Interval(
                found_range.low,
                found_range.high,
                found_range.level,
                "order statistics of those",
                found_range.n,
            )
        add("generalized_step_median", kaplan_meier_median(times, seen), "count", text, interval=interval)
        reached = [t for t, s in zip(times, seen, strict=True) if s and t > 0]
        text = (
            f"largest t_gen / smallest t_gen of the {len(reached)} of {len(measured)} series that generalized"
        )
        add(
            "generalized_step_spread", max(reached) / min(reached) if len(reached) > 1 else math.nan, "", text
        )


def _last_or(step: int | None, measured: Measured) -> float:
    """Step of generalization, or the last one that was looked at."""
    return float(measured.curves["step"].iloc[-1]) if step is None else float(step)


def _notes(
    out: Result, series: CheckpointSeries, own: Measured, measured: list[Measured], params: GrokkingParams
) -> None:
    """Say what could not be measured, and what the reader has to know."""
    if own.modulus is None:
        out.note(
            "info",
            "no modular addition: Fourier measures and sub-networks are not defined",
            place="checkpoints",
        )
    elif own.keys:
        how = {
            "units": f"each explains at least {100 * params.key_share:g} % of the hidden units",
            "embedding": f"each holds at least {params.times_flat:g} times its share of a flat spectrum of "
            "the embedding; hidden units cannot be read, or none belongs to one frequency",
            "given": "as given",
        }[own.keys_from]
        listed = ", ".join(map(str, own.keys))
        out.note(
            "info",
            f"key frequencies of the last checkpoint, for all checkpoints: {listed} ({how})",
            place="key frequencies",
        )
    else:
        out.note(
            "warning",
            "the last checkpoint has no key frequency, so restricted and excluded losses are not defined: no "
            "algorithm on frequencies is there to be kept or removed",
            place="key frequencies",
        )
    if own.onsets.generalized is None:
        out.note(
            "info",
            f"the run did not generalize within {int(own.curves['step'].iloc[-1])} steps",
            place="onsets",
        )
    if own.onsets.lost_at is not None:
        out.note("warning", f"generalization was lost again at step {own.onsets.lost_at}", place="onsets")
    for name, what in (
        ("neurons_explained", "hidden units cannot be read"),
        ("subnetwork", "logits are not linear in the hidden units"),
    ):
        if own.modulus is not None and own.checkpoints[name].isna().all():
            out.note("info", f"{name.replace('_', ' ')} is not defined: {what}", place="checkpoints")
    if len(measured) == 1:
        out.note(
            "warning",
            "one run: a lead time of one seed says nothing about other seeds; give further series as seeds",
            place="leads",
        )
    else:
        left = [m.name for m in measured if m.onsets.generalized is None]
        text = f"lead times over {len(measured) - len(left)} series that generalized"
        out.note("info", text + (f"; without {', '.join(left)}" if left else ""), place="leads")
    text = (
        "checkpoints follow each other: they are not independent, and the intervals of correlations "
        "are too narrow by that"
    )
    out.note("info", text, place="correlations")
    if own.modulus is not None:
        pairs = zip(series.checkpoints, own.checkpoints["test_loss"], strict=True)
        errors = [
            abs(loss / c.stored["test"]["loss"] - 1)
            for c, loss in pairs
            if c.stored.get("test", {}).get("loss")
        ]
        rounding = [
            abs(c.stored["test"]["loss"] / c.trained["test"]["loss"] - 1)
            for c in series.checkpoints
            if "test" in c.trained
        ]
        if errors and rounding:
            out.note(
                "info",
                "weights are rounded to float16: that moves the test loss by at most "
                f"{100 * max(rounding):.2g} %; the test losses found here are those recorded with the "
                f"checkpoints up to {100 * max(errors):.2g} %",
                place="precision",
            )
