"""The numbers that stand first, and what a reader has to know beside them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.activations.routing_information import MEASURES
from sparsescope.core.numbers import Interval
from sparsescope.metrics.estimates import note_few_documents
from sparsescope.metrics.jackknife import JACKKNIFE, jackknife_interval

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from sparsescope.activations.context import Context
    from sparsescope.analysis.moe_routing.tables import Measured
    from sparsescope.core.result import Result

_NAMES = dict(zip(MEASURES, ("excess", "excess_given_token"), strict=True))


def add_scalars(out: Result, measured: Measured) -> None:
    """Means over layers, with intervals where they have some."""
    trace, layers = measured.trace, len(measured.layers)
    over = f"mean over {layers} layers"
    load = out.tables["load"].query("domain == 'all'")
    out.add_scalar(
        "normalized_entropy",
        load["normalized_entropy"].mean(),
        "",
        f"entropy of the shares of slots over ln E: 1 is balanced; {over}",
    )
    out.add_scalar(
        "max_violation", load["max_violation"].max(), "", "(largest load - mean) / mean, in the worst layer"
    )
    out.add_scalar("dead_experts", load["dead"].mean(), "fraction", f"experts without a token; {over}")
    _information(out, measured, over)
    rows = out.tables["repetition"].query("lag == 1 and measure == 'shared'")
    for name, column, text in (
        ("shared_by_neighbors", "mean", "share of experts that two tokens in a row have in common"),
        ("shared_by_chance", "load_chance", "the same of independent tokens with these loads"),
    ):
        out.add_scalar(name, rows[column].mean(), "fraction", f"{text}; {over}")
    out.add_scalar("experts", trace.experts, "count", "experts of a layer")
    out.add_scalar("experts_per_token", measured.k, "count", "experts that a token is sent to")
    out.add_scalar("tokens", trace.tokens.sum(), "count", "tokens after the first of each window")
    out.add_scalar(
        "documents", len(trace.documents), "count", "documents, the independent units of every interval"
    )


def _information(out: Result, measured: Measured, over: str) -> None:
    found, other = measured.information, measured.shuffled
    if found is None:
        return

    def interval(whole: ArrayLike, folds: ArrayLike) -> Interval | None:
        if not measured.compares:
            return None
        level = measured.params.level
        ends = jackknife_interval(np.asarray(whole), np.asarray(folds), level)
        return Interval.of(*ends, level, JACKKNIFE, len(measured.labels))

    for place, measure in enumerate(MEASURES):
        excess, folds = found.excess[:, place].mean(), (found.folds - found.null_mean)[..., place].mean(1)
        text = f"{measure} of expert and domain minus that of permuted labels of documents; {over}"
        out.add_scalar(_NAMES[measure], excess, "nats", text, interval=interval(excess, folds))
    if other is None:
        return
    difference = (found.excess - other.excess)[:, 1].mean()
    folds = ((found.folds - found.null_mean) - (other.folds - other.null_mean))[..., 1].mean(1)
    out.add_scalar(
        "against_shuffled",
        difference,
        "nats",
        f"{MEASURES[1]} beyond chance, minus the same of the model with shuffled routers; {over}",
        interval=interval(difference, folds),
    )


def add_notes(out: Result, measured: Measured, context: Context) -> None:
    """Say what the reader has to know."""
    trace = measured.trace
    note_few_documents(out, len(trace.documents), "specialization", "intervals")
    if measured.information is None:
        out.note(
            "warning",
            "The text has one domain: specialization in domains cannot be measured. Read several corpora, "
            "joined by '+'.",
            "specialization",
        )
    elif not measured.compares:
        out.note(
            "warning",
            f"A domain has {measured.fewest} documents, fewer than {measured.params.least_documents}: "
            f"domains are "
            "compared without intervals.",
            "specialization",
        )
    if measured.k == 1:
        out.note("info", "A token is sent to one expert: no two are chosen together.", "coactivation")
    if out.tables["load"]["dead"].isna().any():
        out.note(
            "info",
            "Experts without a token are called dead from 50 E / k tokens on; with fewer, chance leaves "
            "some out.",
            "load",
        )
    unread = int((measured.chosen.sum(0) == 0).sum())
    if unread:
        out.note(
            "info",
            f"{unread} of {len(measured.layers) * trace.experts} experts were chosen by no token: they "
            f"have no "
            "output here, and rank as the first to go.",
            "saliency",
        )
    unknown = [router.layer for router in measured.routers if router.rule is None]
    if unknown:
        out.note(
            "warning",
            f"How the routers of layers {unknown} choose is not known: probabilities are the softmax of "
            f"their "
            "scores, and experts that are pruned leave their tokens with fewer experts.",
            "pruning",
        )
    shared = [block.layer for block in context.subject.blocks if block.experts and block.experts.shared]
    if shared:
        out.note(
            "info",
            f"Every token also uses a shared expert ({len(shared)} layers): it is not routed, and not "
            f"counted here.",
            "load",
        )
    text = "The rank of a pruning criterion is taken on the same text that the loss is measured on."
    if "pruning" in out.tables and not math.isnan(float(out.tables["pruning"]["change"].mean())):
        out.note("info", text, "pruning")
