"""What a training run shows about grokking, in sentences, and the titles of its numbers."""

from __future__ import annotations

import math

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said, said_value

TITLES = {
    "memorized_step": "Step of memorizing",
    "generalized_step": "Step of generalizing",
    "onset_ratio": "Generalizing / memorizing step",
    "onset_delay": "Steps from memorizing to generalizing",
    "grokked": "Grokked (1 yes, 0 no)",
    "final_test_accuracy": "Test accuracy at the end",
    "final_test_loss": "Test loss at the end",
    "key_frequencies": "Key frequencies",
    "neurons_explained": "Units explained by one frequency",
    "explained_variance": "Variance of the logits explained",
    "excluded_loss": "Loss without the key frequencies",
    "restricted_loss": "Loss with the key frequencies alone",
    "subnetwork": "Smallest sub-network of the same accuracy",
    "restricted_fall_midway": "Restricted loss half of the way, relative",
    "test_accuracy_midway": "Test accuracy half of the way",
    "rank_embedding_fall": "Rank of the embedding at the end, relative",
    "lead_{}": "Steps that {} leads by",
    "generalized_step_median": "Step of generalizing, median over seeds",
    "generalized_step_spread": "Latest / earliest generalizing seed",
}


def statements(result: Result) -> list[Statement]:
    """When the run memorizes and generalizes, what it ends with, and which measure moves first."""
    return [*_onsets(result), *_circuit(result), *_leads(result)]


def _onsets(result: Result) -> list[Statement]:
    names = ("memorized_step", "generalized_step", "onset_ratio", "final_test_accuracy")
    memorized, generalized = (result.scalars.get(name) for name in names[:2])
    if memorized is None or generalized is None:
        return []
    if math.isnan(memorized.value):
        text = "The run never fits its training pairs for good"
    else:
        text = f"The run fits its training pairs from step {said_value(memorized)} on"
    if math.isnan(generalized.value):
        text += " and does not generalize to test pairs within the steps that were trained."
    else:
        text += f" and generalizes to test pairs at step {said_value(generalized)}"
        ratio = defined(result, "onset_ratio")
        text += f", {said_value(ratio[0])} times as late." if ratio else "."
    median = defined(result, "generalized_step_median")
    if median is not None:
        text += f" Over series the median is step {said(median[0])} ({basis(median[0], 'series')})."
    else:
        text += " This is one run: another seed may differ."
    return [Statement(text, "timeline", names)]


def _circuit(result: Result) -> list[Statement]:
    found = defined(result, "key_frequencies", "neurons_explained", "explained_variance")
    if found is None:
        return []
    keys, neurons, variance = found
    text = (
        f"At the last checkpoint one frequency explains each of {said_value(neurons)} of the hidden "
        f"units, and {said_value(keys)} key frequencies explain {said_value(variance)} of the "
        "variance of the logits."
    )
    losses = defined(result, "restricted_loss", "excluded_loss")
    if losses is not None:
        text += f" With them alone the loss is {said_value(losses[0])}, without them {said_value(losses[1])}."
    return [Statement(text, "neurons", tuple(scalar.name for scalar in found))]


def _leads(result: Result) -> list[Statement]:
    """The earliest of the measures, and whether it leads in every series."""
    found = [s for name, s in result.scalars.items() if name.startswith("lead_") and math.isfinite(s.value)]
    if not found:
        return []
    first = max(found, key=lambda scalar: scalar.value)
    measure = first.name.removeprefix("lead_").replace("_", " ")
    if first.value <= 0:
        return [
            Statement(
                f"No measure moved before generalization; the first was {measure}.",
                "lead_times",
                (first.name,),
            )
        ]
    late = [s for s in found if s.value <= 0]
    text = (
        f"The {measure} has made half of its way {said(first)} steps before generalization ({_seeds(first)})"
    )
    text += (
        f"; {len(late)} of {len(found)} measures move after it."
        if late
        else "; all measures looked at move before it."
    )
    return [Statement(text, "lead_times", (first.name,))]


def _seeds(scalar: Scalar) -> str:
    return (
        "one run, which says nothing about other seeds"
        if scalar.interval is None
        else f"median, {basis(scalar, 'series')}"
    )
