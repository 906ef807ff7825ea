"""Grokking: when a training run memorizes, when it generalizes, and which measures of the weights tell early.

Reads a series of checkpoints and its training curves. Of series of modular addition it also has the Fourier
measures: what the key frequencies alone compute (restricted loss), what is left without them (excluded loss),
and how many hidden units one frequency explains. Key frequencies are those of the last checkpoint, for all
checkpoints. Shapes: modulus p, f hidden units.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.onset_tables import ONSET_TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params


class GrokkingParams(Params):
    """Parameters of ``grokking``."""

    seeds: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = Field(
        (),
        description="Further series of the same kind (other seeds), by name or folder, set beside this one.",
        max_length=20,
        json_schema_extra={"role": "series"},
    )
    accuracy: float = Field(
        0.99, gt=0, le=1, description="Accuracy that must be held, of training pairs and of test pairs."
    )
    logs: int = Field(3, ge=1, le=50, description="Consecutive logs that must hold it.")
    explained: float = Field(
        0.85, gt=0, lt=1, description="A hidden unit is explained above this share of its energy."
    )
    key_share: float = Field(
        0.02, gt=0, le=1, description="A key frequency explains at least this share of the hidden units."
    )
    key_frequencies: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Key frequencies; found in the last checkpoint when empty.", max_length=500
    )
    times_flat: float = Field(
        2.0,
        gt=1,
        description="Without readable units: times that a key frequency of the embedding "
        "exceeds a flat spectrum.",
    )
    agreement: float = Field(
        0.95, gt=0, le=1, description="Share of predictions that a smaller sub-network must keep."
    )
    most_segments: int = Field(6, ge=1, le=12, description="Most straight lines of a segmented loss curve.")
    surrogates: int = Field(199, ge=19, le=10_000, description="Curves of the null of the last change-point.")
    draws: int = Field(
        2000, ge=100, le=100_000, description="Monotone surrogates and permutations of a correlation."
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of surrogates and permutations.")


_STEP = Column("step", "step", "Optimizer step.")
_CURVES = (
    Column("train_loss", "value", "Mean cross-entropy of the training pairs.", "nats"),
    Column(
        "test_loss",
        "value",
        "Mean cross-entropy of the test pairs (of text: of the validation part).",
        "nats",
    ),
    Column("train_accuracy", "fraction", "Share of training pairs answered right."),
    Column("test_accuracy", "fraction", "Share of test pairs answered right."),
)
#: The measures of a checkpoint, apart from losses and accuracies.
MEASURES: tuple[Column, ...] = (
    Column(
        "restricted_loss",
        "value",
        "Cross-entropy over all pairs of the logits that keep the key frequencies alone.",
        "nats",
    ),
    Column("restricted_test_loss", "value", "The same over the test pairs.", "nats"),
    Column(
        "excluded_loss",
        "value",
        "Cross-entropy over the training pairs of the logits without all key frequencies.",
        "nats",
    ),
    Column(
        "excluded_one_loss",
        "value",
        "The same without one key frequency, mean over the key frequencies.",
        "nats",
    ),
    Column(
        "explained_variance",
        "fraction",
        "Share of the variance of the logits that cos w_k(a + b - c), k in K, explain.",
    ),
    Column("neurons_explained", "fraction", "Share of hidden units whose activation one frequency explains."),
    Column(
        "gini_embedding",
        "fraction",
        "Gini coefficient of the Fourier norms of the embedding of the residues.",
    ),
    Column(
        "gini_neuron_logit",
        "fraction",
        "Gini coefficient of the Fourier norms of W_U W_out, from hidden units to logits.",
    ),
    Column(
        "rank_embedding", "value", "Effective rank exp(H(s / sum s)) of the embedding, s its singular values."
    ),
    Column(
        "rank_mlp_out", "value", "Effective rank of the second MLP matrix, mean over layers (and experts)."
    ),
    Column("weight_norm", "value", "Square root of the sum of all squared parameters."),
    Column(
        "gini_weights", "fraction", "Gini coefficient of the magnitudes of all entries of weight matrices."
    ),
    Column(
        "subnetwork",
        "fraction",
        "Least share of hidden units, by ||w_in|| ||w_out||, with the training accuracy of all.",
    ),
    Column(
        "subnetwork_agreement",
        "fraction",
        "Least share of hidden units that keeps the wanted share of predictions.",
    ),
    Column(
        "collapsed",
        "fraction",
        "Share of training pairs whose loss is exactly zero in float32: they teach nothing.",
    ),
)
TABLES: dict[str, tuple[Column, ...]] = {
    "checkpoints": (_STEP, *_CURVES, *MEASURES),
    "curves": (
        _STEP,
        *_CURVES,
        Column("weight_norm", "value", "Square root of the sum of all squared parameters."),
    ),
    "phases": (
        Column("phase", "label", "Name of the phase."),
        Column("begin", "step", "First step."),
        Column("end", "step", "Last step."),
        Column("rule", "label", "What sets its begin."),
    ),
    "segments": (
        Column("curve", "label", "The curve that is divided into straight lines over steps."),
        Column("segment", "count", "Number of the line, from 1."),
        Column("begin", "step", "First step of the line."),
        Column("end", "step", "Last step of the line."),
        Column("slope", "value", "Slope, powers of ten for 1000 steps.", "decades"),
        Column("explained", "fraction", "Share of the variance of the curve that all its lines explain."),
        Column(
            "p_value",
            "value",
            "Chance of a gain as large as that of the last line, under AR(1) noise without it.",
        ),
    ),
    **ONSET_TABLES,
    "spectrum": (
        _STEP,
        Column("frequency", "value", "k; the function is cos or sin of 2 pi k / p."),
        Column("units", "count", "Hidden units that this frequency explains."),
        Column("embedding_norm", "value", "||cos_k^T W_E|| and ||sin_k^T W_E|| together."),
        Column("logit_energy", "fraction", "Share of the energy of the sum-dependent logits."),
        Column("excluded_loss", "value", "Loss of the training pairs without this frequency.", "nats"),
        Column("key", "label", "Whether it is a key frequency."),
    ),
    "tensors": (
        _STEP,
        Column("tensor", "label", "Name of the parameter."),
        Column("squared_norm", "value", "Sum of its squared entries."),
        Column("effective_rank", "value", "exp(H(s / sum s)) of its singular values; of experts the mean."),
        Column("stable_rank", "value", "sum s^2 / max s^2."),
    ),
}

_NANDA = "Nanda et al. 2023, arXiv:2301.05217"

ANALYSIS = Analysis(
    name="grokking",
    version="2",
    title="Grokking",
    summary="When a training run memorizes and when it generalizes, and which measures of its "
    "checkpoints tell early.",
    params=GrokkingParams,
    compute="sparsescope.analysis.grokking.compute",
    view_module="sparsescope.analysis.grokking.views",
    views=(
        View(
            "timeline",
            "From memorizing to generalizing",
            "Losses, accuracies and measures over training steps on a logarithmic axis (step 0 is left out). "
            "Shaded: the phases, whose borders come from rules and change-points, never by eye. In circuit "
            "formation the restricted loss falls and the excluded loss rises while the test loss still "
            "stands: the general solution grows beside the memorized one.",
            table="checkpoints",
            formula="restricted = CE(Pi_K L + mean(L - Pi_K L)),  excluded = CE(L - Pi_K L) on training "
            "pairs, Pi_K = projector on cos w_k(a + b), sin w_k(a + b), k in K;  t_mem, t_gen: accuracy >= "
            "0.99 in 3 consecutive logs",
            citation=_NANDA,
        ),
        View(
            "onset_aligned",
            "Measures before and after generalization",
            "Each measure over the step relative to t_gen, one line for each series (seed). A measure leads "
            "if it moves left of zero in every line; one run says nothing about other seeds.",
            table="aligned",
            formula="x = step - t_gen",
        ),
        View(
            "lead_times",
            "How early each measure moves",
            "Steps before t_gen at which a measure has made half of its way, one point for each series, "
            "with the median and its exact interval where there are several series. Left of zero: it "
            "moves after generalization.",
            table="leads",
            formula="lead = t_gen - step of half way from the value at t_mem to the last one",
        ),
        View(
            "checkpoint_slider",
            "Frequencies, checkpoint by checkpoint",
            "Above: hidden units that one frequency explains, by frequency. Below: norm of each Fourier "
            "component of the embedding. Move the slider to another checkpoint.",
            table="spectrum",
            formula="frac_k = energy of {cos_k, sin_k of a, of b, their four products} / "
            "total energy of the unit",
            citation=_NANDA,
        ),
        View(
            "neurons",
            "Hidden units that serve one frequency",
            "Share of hidden units that one frequency explains, over training steps: all together, "
            "and for each key frequency. A unit is explained when one frequency holds more than the "
            "stated share of its energy.",
            table="spectrum",
            formula="explained: max_k frac_k > 0.85",
            citation=_NANDA,
        ),
        View(
            "correlations",
            "Correlations beside their trend null",
            "Correlation of each measure with the test accuracy over checkpoints from t_mem on (dot, with "
            "Fisher interval), of the differences between checkpoints (diamond), and whether it exceeds what "
            "rising series of the same increments give (filled) or not (open). Two unrelated series that "
            "both rise correlate strongly.",
            table="correlations",
            formula="trend percentile = share of monotone surrogates with |r*| < |r|",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.grokking.statements",
    headline=("memorized_step", "generalized_step", "onset_ratio", "neurons_explained"),
    requires=frozenset({"curves", "pairs"}),
    citations=(
        Citation("Nanda et al. 2023: progress measures", "https://arxiv.org/abs/2301.05217"),
        Citation("Merrill et al. 2023: sparse sub-networks", "https://arxiv.org/abs/2303.11873"),
        Citation("Liu et al. 2022: weight norm (Omnigrok)", "https://arxiv.org/abs/2210.01117"),
    ),
    place=70,
    inputs=("series*",),
    unit="checkpoints",
)
