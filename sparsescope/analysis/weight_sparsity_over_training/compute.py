"""Weight sparsity over training, computed: one checkpoint in memory at a time, then paired drop points.

Shapes: T checkpoints, W ways to prune, K levels, D documents.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.activations.context import Context
from sparsescope.analysis.weight_sparsity_over_training import WeightSparsityOverTrainingParams
from sparsescope.analysis.weight_sparsity_over_training.measure import RANDOM, Held, Rule, held_of, measure
from sparsescope.analysis.weight_sparsity_over_training.rows import Course
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.metrics.estimates import PAIRED_BOOTSTRAP, DocumentBootstrap, note_few_documents
from sparsescope.metrics.onsets import Onsets, find_onsets
from sparsescope.pruning.curves import Curve
from sparsescope.pruning.scope import choose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.checkpoints import CheckpointSeries


def compute(params: WeightSparsityOverTrainingParams, context: Context) -> Result:
    """Run the analysis."""
    series = context.series
    held = held_of(series, params)
    arrays = []
    for index, entry in enumerate(series.checkpoints):
        context.progress("checkpoints", index, len(series))

        def reduce(step: int = entry.step) -> dict[str, NDArray[Any]]:
            return measure(series.subject(step), held, params)

        arrays.append(context.step(f"checkpoint-{index}", reduce))
    context.progress("checkpoints", len(series), len(series))
    draws = DocumentBootstrap.draw(held.strata, params.resamples, params.seed, params.level, PAIRED_BOOTSTRAP)
    course = Course(params, held, draws, series.steps, arrays)
    out = Result("weight_sparsity_over_training")
    out.add("per_checkpoint", course.per_checkpoint())
    out.add("damage", course.damage())
    out.add("drop_points", course.drop_points())
    out.add("excess", course.excess())
    out.add("abruptness", course.abruptness())
    _scalars(out, course, _onsets(series) if held.pairs else None)
    _notes(out, course, series, held)
    return out


def _onsets(series: CheckpointSeries) -> Onsets | None:
    """When the run memorized and generalized, by its training curves."""
    long = series.curves()
    chosen = long[(long["part"] == "") & (long["measure"] == "accuracy")]
    by = chosen.pivot_table(index="step", columns="split", values="value")
    if not {"train", "test"} <= set(by):
        return None
    return find_onsets(by.index.to_numpy(), by["train"].to_numpy(), by["test"].to_numpy())


def _scalars(out: Result, course: Course, onsets: Onsets | None) -> None:
    """Drop points and excess of the last checkpoint with signal, and their change since the first."""
    places, steps, draws, n = course.places, course.steps, course.draws, course.documents
    text = "checkpoints whose loss is below chance by 1.96 standard errors and that random masks do not "
    text += "improve; the others have no drop point"
    out.add_scalar("checkpoints_with_signal", float(len(places)), "count", text)
    for when, place in zip(("first", "last"), (places[0], places[-1]) if places else (), strict=False):
        text = f"step of the {when} checkpoint with signal: below chance, and not improved by random masks"
        out.add_scalar(f"{when}_signal_step", float(steps[place]), "count", text)
    found = out.tables["per_checkpoint"]
    out.add_scalar(
        "loss_last",
        float(found["loss"].iloc[-1]),
        "nats",
        f"mean loss of the dense checkpoint of step {steps[-1]} on {course.held.text}",
        interval=draws.between(found["low"].iloc[-1], found["high"].iloc[-1], n),
        direction="lower",
    )
    text = "loss without knowledge on the same targets: " + (
        "log p, of equal chances for every residue" if course.held.pairs else "the frequencies of tokens"
    )
    out.add_scalar("loss_chance", float(found["chance"].iloc[-1]), "nats", text)
    if onsets is not None:
        for name, step in (("memorized", onsets.memorized), ("generalized", onsets.generalized)):
            text = (
                f"first step with {'training' if name == 'memorized' else 'test'} accuracy of at least 0.99 "
            )
            text += "in 3 consecutive logs of the training"
            out.add_scalar(f"{name}_step", math.nan if step is None else float(step), "count", text)
    for curve in course.curves:
        for rule in course.rules:
            _scalars_of(out, course, curve, rule)


def _scalars_of(out: Result, course: Course, curve: Curve, rule: Rule) -> None:
    """The scalars of one curve at one tolerance; NaN where no checkpoint has signal."""
    places, draws, n = course.places, course.draws, course.documents
    name = f"{curve.slug}_at_{rule.slug}"
    first, last = (places[0], places[-1]) if places else (None, None)
    what = (
        f"largest share of the weights in scope that can be set to zero by {curve.title} with a rise of the "
        f"loss over that of the dense checkpoint of at most {rule.name.removeprefix('+')}"
        + (" on chance" if rule.relative else "")
    )
    for when, place in (("first", first), ("last", last)):
        found = None if place is None else course.drops[place, curve.name, rule]
        out.add_scalar(
            f"sparsity_{when}_{name}",
            math.nan if found is None else found.at,
            "fraction",
            f"{what}; {when} checkpoint with signal"
            + (f", step {course.steps[place]}" if place is not None else ""),
            interval=None
            if found is None
            else Interval.of(found.low, found.high, draws.level, found.method, n),
            title=f"Weights off at {rule.name}, {curve.title}, {when} checkpoint",
        )
    change, drawn = math.nan, np.full(2, math.nan)
    if first is not None and last is not None:
        ends = [course.drops[place, curve.name, rule].at for place in (first, last)]
        change = ends[1] - ends[0]
        drawn = course.replicates[last, curve.name, rule] - course.replicates[first, curve.name, rule]
    out.add_scalar(
        f"change_{name}",
        change,
        "",
        f"{what}: last checkpoint with signal minus the first, paired by document",
        interval=draws.interval(drawn, n),
        title=f"Weights off at {rule.name}, {curve.title}, last minus first",
    )
    if curve.name != RANDOM:
        value, drawn = (math.nan, drawn * math.nan) if last is None else course.beyond(last, curve, rule)
        out.add_scalar(
            f"excess_{name}",
            value,
            "",
            f"{what}, minus that of random masks; last checkpoint with signal, paired by document",
            interval=draws.interval(drawn, n),
            title=f"Beyond random masks at {rule.name}, {curve.title}",
        )


def _notes(out: Result, course: Course, series: CheckpointSeries, held: Held) -> None:
    """Say what is pruned, on what it is scored, and what the numbers cannot say."""
    params = course.params
    out.note("info", choose(series.subject(series.steps[-1]), params.scope).text, "scope")
    out.note("info", f"protocol: scored on {held.text}; pruned without training afterwards", "protocol")
    out.note(
        "warning",
        "One training run: intervals are over documents, and say nothing about other seeds or recipes. "
        f"Draws of random masks: {params.random_masks}, the same at every checkpoint.",
        "drop_points",
    )
    out.note(
        "info",
        "intervals of drop points invert a studentized bootstrap test over documents; those of differences "
        "are percentiles of paired resampled drop points, which cover 89 to 95 % at nominal 95",
        "intervals",
    )
    lost = len(course.steps) - len(course.measured)
    if lost:
        out.note(
            "warning",
            f"no signal at {lost} of {len(course.steps)} checkpoints: their loss is not below chance, so "
            "there is no quality that pruning could break, and no drop point",
            "drop_points",
        )
    odd = [course.steps[place] for place in course.measured if place not in course.places]
    if odd:
        out.note(
            "warning",
            f"random masks lower the loss at step {', '.join(map(str, odd[:6]))}: there the dense model is "
            "over-confident, a smaller loss is no better knowledge, and no drop point is given",
            "drop_points",
        )
    note_few_documents(out, course.documents, "drop_points")
