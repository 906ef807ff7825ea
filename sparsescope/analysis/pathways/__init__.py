"""Pathways over training: which experts a sample goes through, and whether that foretells generalization.

The pathway of a sample keeps in each layer the fewest experts that hold a share of the router's weight. Its
measures are followed over checkpoints: edit distances of two samples (the paper does not say what is edited
and which weights are meant: both are given in both ways), beside samples at the loads that there are;
smoothness from layer to layer; effective dimension of the routing. Dense layers have blocks of neurons in
place of experts. Correlations with the score stand beside what a trend alone gives, beside the score of
other seeds, and beside the power to find a link. Definitions and sources: ``metrics.pathways``,
``metrics.pathway_distances``, ``metrics.pathway_nulls``, ``metrics.run_links``, ``metrics.leads``.
"""

from __future__ import annotations

from sparsescope.analysis.pathways.declared import TABLES
from sparsescope.analysis.pathways.declared import PathwaysParams as PathwaysParams
from sparsescope.core.registry import Analysis, Citation, View

_LI = "Li, Fan & Zhou 2025, arXiv:2506.21551"

ANALYSIS = Analysis(
    name="pathways",
    place=118,
    version="1",
    title="Pathways",
    summary="Which experts samples go through over training, and whether that tells when a run "
    "generalizes.",
    params=PathwaysParams,
    compute="sparsescope.analysis.pathways.compute",
    view_module="sparsescope.analysis.pathways.views",
    views=(
        View(
            "over_training",
            "Pathways over training",
            "Edit distance of the pathways of two samples, with what samples at these loads would have "
            "(dotted), smoothness from layer to layer, effective dimension of the routing, and the loss. "
            "Balance alone moves the distance: read it beside its dotted line.",
            table="checkpoints",
            formula="pathway: fewest experts with sum of weights >= tau;  distance: Levenshtein;  "
            "smoothness: "
            "mean_l cos(r_l, r_l+1), r_l = sum_e P_e v_e, rows v less their mean;  dimension: "
            "tr H (H + lambda I)^-1, H = P P^T",
            citation=_LI,
        ),
        View(
            "correlations",
            "Correlations beside their trend null",
            "Correlation of each measure with the accuracy on what was not trained, over checkpoints from "
            "t_mem "
            "on (dot, with Fisher interval), of the differences between checkpoints (diamond), and whether "
            "it "
            "exceeds what rising series of the same increments give (filled) or not (open). Distance falls "
            "and "
            "smoothness rises where the paper's claim holds; roughness is the paper's 'consistency'.",
            table="correlations",
            formula="r of (measure, accuracy);  r of their differences",
            citation=_LI,
        ),
        View(
            "swap",
            "Its own score, or that of any run",
            "Correlation of a measure with the score of its own run and, open, of the other seeds at the "
            "same "
            "steps. Where both are alike, the link is that of two things that happen while a model trains. "
            "Without leaps: checkpoints at which the training loss has leapt are left out, since a leap "
            "moves everything at once.",
            table="swap",
            select="over",
            formula="mean of r(M_a, G_a) and of r(M_a, G_b)",
        ),
        View(
            "power",
            "Would a link be found?",
            "Share of planted links that two tests find, with as many checkpoints and the increments of this "
            "measure: the correlation of the differences, and the place among monotone surrogates.",
            table="power",
            select="over",
            formula="planted: increments of the score correlate with those of the measure by the strength",
        ),
        View(
            "labels",
            "Same answer, closer path?",
            "Distance of pairs of two labels minus that of pairs of one: the same answer of an addition, the "
            "same domain of a text. Zero where the label has nothing to do with the path.",
            table="labels",
            formula="mean distance of two labels - mean distance of one",
        ),
        View(
            "layers",
            "Where pathways change",
            "Edit distance, effective experts and participation of the routing kernel by layer, over "
            "training.",
            table="layers",
            citation=_LI,
        ),
        View(
            "flow",
            "Paths from layer to layer",
            "First choices of tokens: the width of a band is the share of the tokens that go from one expert "
            "to "
            "another of the next layer. Rare bands are left out.",
            table="flow",
            select="step",
        ),
        View(
            "memorized",
            "Distances around memorizing",
            "Training samples by the checkpoint from which they are memorized, each group around that step. "
            "Which group a sample is in depends on the end of the training: it cannot be known at the time.",
            table="memorized",
            formula="t* = first step from which loss <= eps and |loss - last loss| <= delta",
            citation=_LI,
        ),
        View(
            "lead_times",
            "How early each measure moves",
            "Steps before t_gen at which a measure has made half of its way, one point for each series, with "
            "the median and its exact interval. Pathways stand beside test loss, weight norm and rank, which "
            "need no pathways.",
            table="leads",
            formula="lead = t_gen - step of half way from the value at t_mem to the last one",
        ),
        View(
            "onset_aligned",
            "Measures before and after generalization",
            "Each measure over the step relative to t_gen, one line for each series.",
            table="aligned",
            formula="x = step - t_gen",
        ),
        View(
            "random_partitions",
            "Blocks of alike neurons, and random ones",
            "Dense models: measures with blocks of alike neurons and with random blocks. What both show is a "
            "trend of activations, not of pathways.",
            table="random_partitions",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.pathways.statements",
    headline=("distance_excess", "distance_correlation", "swap_p"),
    inputs=("series*", "text?"),
    unit="checkpoints",
    presets={
        "quick": {
            "samples": 128, "null_draws": 10, "permutations": 49, "resamples": 200, "draws": 500,
            "random_partitions": 2,
        }
    },
    citations=(
        Citation("Li, Fan & Zhou 2025, Grokking in LLM Pretraining?", "https://arxiv.org/abs/2506.21551"),
        Citation("Zhang et al. 2022, MoEfication", "https://arxiv.org/abs/2110.01786"),
    ),
)  # fmt: skip
