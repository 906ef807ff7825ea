"""Sparsity over training: how many hidden units carry a token, checkpoint by checkpoint, on
one held-out text.

Every checkpoint reads the same tokens: the held-out text of the series, or one that is given. Densities are
those of ``activation_sparsity``; each checkpoint stands beside a control with shuffled MLP input weights, so
that what training does to scale and biases is told from what it does to directions. Differences from the
first checkpoint are paired by document.
Shapes: T checkpoints, D documents, L sites.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import PLACE, with_interval


class SparsityOverTrainingParams(Params):
    """Parameters of ``sparsity_over_training``."""

    sites: str | tuple[str, ...] = Field(
        "auto",
        description="Sites to measure; 'auto' is the MLP hidden layer, per expert where there are experts.",
    )
    share: float = Field(
        0.9, gt=0, lt=1, description="Share of the norm that a top-p set must hold, and that 'in use' means."
    )
    control: bool = Field(
        True, description="Measure every checkpoint with shuffled MLP input weights too (twice the time)."
    )
    push: bool = Field(
        True, description="Measure the gradient with respect to active units (about three times the time)."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap and of the control.")


_STEP = Column("step", "step", "Optimizer step of the checkpoint.")
_METRIC = Column("metric", "metric", "Measure, as in activation_sparsity.")
_N = (
    Column("tokens", "count", "Tokens behind the row (for experts: tokens routed there)."),
    Column("documents", "count", "Documents behind the row; they are the independent units."),
)
_CONTROL = Column(
    "control", "fraction", "The same of the checkpoint with shuffled MLP input weights and zero biases."
)

TABLES: dict[str, tuple[Column, ...]] = {
    "per_checkpoint": (
        _STEP,
        _METRIC,
        *with_interval(
            Column(
                "mean", "fraction", "Mean over sites (that saw tokens at every step) of the mean over tokens."
            )
        ),
        _CONTROL,
        *with_interval(
            Column("change", "value", "Mean minus that of the first checkpoint."),
            "its interval, paired by document",
            "change_",
        ),
        Column(
            "reference",
            "fraction",
            "Value for a long vector of independent normal entries (half-normal magnitudes).",
        ),
        Column("documents", "count", "Documents; they are the independent units."),
    ),
    "per_layer": (
        _STEP,
        *PLACE,
        _METRIC,
        *with_interval(Column("mean", "fraction", "Mean over tokens after the first of each window.")),
        _CONTROL,
        *_N,
    ),
    "unit_use": (
        _STEP,
        *PLACE,
        Column("rule", "label", "When a unit counts as firing: 'nonzero' or 'in use' (in the energy set)."),
        Column("units", "count", "Units of the site."),
        Column("dead_share", "fraction", "Share of units that never fired on this text."),
        Column("always_on_share", "fraction", "Share of units that fired on more than 99 % of tokens."),
        Column("tokens", "count", "Tokens behind the row."),
    ),
    "losses": (
        _STEP,
        Column(
            "domain",
            "domain",
            "Domain of the text; 'all' is the mean over domains, each with the same weight.",
        ),
        *with_interval(Column("loss", "value", "Mean loss of the next token.", "nats")),
        Column("accuracy", "fraction", "Share of tokens for which the most probable one is right."),
        Column(
            "validation",
            "value",
            "Loss on all validation windows, which the text is a part of; from training.",
            "nats",
        ),
        Column(
            "unigram",
            "value",
            "Loss on these windows of a unigram model fitted to the training text of the domain.",
            "nats",
        ),
        Column(
            "trigram",
            "value",
            "Loss on these windows of a trigram model fitted to the training text of the domain.",
            "nats",
        ),
        *_N,
    ),
    "push": (
        _STEP,
        *PLACE,
        *with_interval(
            Column(
                "push",
                "value",
                "Mean of sign(a) dL/da over nonzero units; above zero, descent shrinks |a|.",
                "nats/activation",
            )
        ),
        *with_interval(
            Column(
                "relative", "value", "push / root mean square of dL/da over the same units; between -1 and 1."
            ),
            "its interval",
            "relative_",
        ),
        Column("documents", "count", "Documents; they are the independent units."),
    ),
}

_LAZY = "Li et al. 2023, arXiv:2210.06313"

ANALYSIS = Analysis(
    name="sparsity_over_training",
    place=110,
    version="1",
    title="Sparsity over training",
    summary="How few hidden units carry a token at every checkpoint, beside shuffled controls, "
    "losses and dead units.",
    params=SparsityOverTrainingParams,
    compute="sparsescope.analysis.sparsity_over_training.compute",
    view_module="sparsescope.analysis.sparsity_over_training.views",
    views=(
        View(
            "density",
            "Density over training",
            "Share of units that are not exactly zero, and share of units in the smallest set that holds the "
            "stated part of the energy, at every checkpoint. Thin lines: layers, with document-cluster "
            "bootstrap bands. Thick: their mean. Dashed: the same checkpoints with shuffled MLP input "
            "weights and zero biases. Where the thick line leaves the dashed one, learned directions and "
            "thresholds do it. The exact density of a ReLU control is near one half by construction.",
            table="per_layer",
            formula="d_0 = #{j: v_j != 0} / n;  d_p = min{k: sum of the k largest "
            "v_j^2 >= p * sum v_j^2} / n",
            citation=_LAZY,
        ),
        View(
            "change",
            "Change since the first checkpoint",
            "Density of a checkpoint minus that of the first one, mean over sites. Both read the same "
            "documents, so the interval is that of the paired difference. It speaks about this text, not "
            "about other training runs: there is one.",
            table="per_checkpoint",
            formula="d(step) - d(first), resampled by document with the same draws for both",
        ),
        View(
            "losses",
            "Loss over training, beside baselines",
            "Mean loss of the next token on the text, by domain, with document-cluster bootstrap bands. "
            "Dotted and dashed: unigram and trigram models, each fitted to the training text of its own "
            "domain, which tells them the domain. They were measured on all validation windows, of which the "
            "held-out text is a part; open circles: the model on these windows.",
            table="losses",
            formula="L = -mean log p(next token)",
        ),
        View(
            "unit_use",
            "Dead and always-on units over training",
            "Share of units that never fired on the text, and that fired on more than 99 % "
            "of its tokens, by layer.",
            table="unit_use",
        ),
        View(
            "push",
            "Does the loss shrink active units?",
            "Mean over nonzero units of sign(a) dL/da, divided by the root mean square of dL/da. Above zero "
            "a step of gradient descent on the activations makes active units smaller on average. Li et al. "
            "derive this for ReLU at initialization and take it for a cause of sparsity; it is a statement "
            "about the gradient, not yet about what the weights do.",
            table="push",
            formula="mean(sign(a) g) / sqrt(mean g^2),  g = dL/da over a != 0,  L = summed loss of a window",
            citation=_LAZY,
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.sparsity_over_training.statements",
    headline=(
        "nonzero_first",
        "nonzero_last",
        "nonzero_change",
        "nonzero_control_last",
        "density_energy_first",
        "density_energy_last",
        "density_energy_change",
        "loss_last",
        "trigram_margin",
        "push_first",
    ),
    citations=(
        Citation("Li et al. 2023, The Lazy Neuron Phenomenon", "https://arxiv.org/abs/2210.06313"),
        Citation("Mirzadeh et al. 2023, ReLU Strikes Back", "https://arxiv.org/abs/2310.04564"),
    ),
    inputs=("series", "text"),
    unit="checkpoints",
)
