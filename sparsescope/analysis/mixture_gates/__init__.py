"""Gates of mixtures compared: what the choice of a gate costs or saves, over seeds, on one text.

Several series of mixtures that differ in their gate and their seed read the same held-out text with their
last checkpoints. A loss is compared only where gates use about as many experts for a token: one that uses
more computes more. An expert is used where its weight is not zero; slots of weight zero are no choice.
Trainings (seeds) are the independent units, so intervals are those of Student's t over seeds, and the
difference from the reference gate is paired by seed: of one seed all gates begin with the same weights
elsewhere and read the same batches. Churn is 1 - |S and S'| / |S or S'| (Jaccard): sets vary in size.

Shapes: L layers with a router, E experts, D documents.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import with_interval


class MixtureGatesParams(Params):
    """Parameters of ``mixture_gates``."""

    others: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = Field(
        (),
        description="Further series, of other gates and seeds, by name or folder, set beside this one.",
        max_length=100,
        json_schema_extra={"role": "series"},
    )
    reference: str = Field(
        "top_k", min_length=1, max_length=100, description="Gate from which losses differ, paired by seed."
    )
    active: float = Field(
        2.0, gt=0, description="Active experts of a token at which losses are compared, in the mean."
    )
    tolerance: float = Field(
        0.1, ge=0, lt=1, description="Share of it by which the mean may be off for a loss to be compared."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the resamples.")


_OVER_SEEDS = "the Student t interval over seeds; none for one seed"
_GATE = Column("gate", "label", "Name of the gate; with options where one gate has several.")
_LOSS = Column("loss", "value", "Cross-entropy of the tokens after the first of each window.", "nats")
_ACTIVE = Column(
    "active", "value", "Experts with a weight that is not zero: mean over tokens and layers.", "experts"
)
_CV = Column(
    "load_cv",
    "value",
    "Standard deviation over mean of the tokens of an expert, mean over layers; 0 is balanced.",
)
_CHURN = Column(
    "churn",
    "fraction",
    "1 - |S and S'| / |S or S'| of the experts of a token at the last two checkpoints after step 0: mean "
    "over tokens and layers; two empty sets are equal.",
)

TABLES: dict[str, tuple[Column, ...]] = {
    "gates": (
        _GATE,
        Column("seeds", "count", "Series with this gate, n; they are the independent units."),
        *with_interval(_LOSS, _OVER_SEEDS),
        *with_interval(_ACTIVE, _OVER_SEEDS, "active_"),
        *with_interval(_CV, _OVER_SEEDS, "cv_"),
        *with_interval(_CHURN, _OVER_SEEDS, "churn_"),
        Column("comparable", "label", "'yes' where the mean of active is near enough to the wanted number."),
        *with_interval(
            Column(
                "loss_difference",
                "value",
                "Loss minus that of the reference gate, mean over the seeds that both have; NaN where one "
                "of the two is not comparable.",
                "nats",
            ),
            f"{_OVER_SEEDS}, paired",
            "difference_",
        ),
        Column("pairs", "count", "Seeds that the gate and the reference both have."),
    ),
    "runs": (
        Column("series", "label", "Name of the series."),
        _GATE,
        Column("seed", "label", "Seed of the training; 'not known' for series of other trainers."),
        Column("step", "step", "Optimizer step of the last checkpoint, which is measured."),
        Column(
            "before", "value", "Step of the checkpoint that churn is counted from; NaN for none.", "steps"
        ),
        *with_interval(_LOSS),
        _ACTIVE,
        _CV,
        _CHURN,
        Column("tokens", "count", "Tokens after the first of each window."),
        Column("documents", "count", "Documents behind the interval of the loss."),
    ),
}

ANALYSIS = Analysis(
    name="mixture_gates",
    place=118,
    version="1",
    title="Gates of mixtures compared",
    summary="What mixtures that differ in their gate lose on one text, how many experts they use, and how "
    "even and how settled their choice is.",
    params=MixtureGatesParams,
    compute="sparsescope.analysis.mixture_gates.compute",
    view_module="sparsescope.analysis.mixture_gates.views",
    views=(
        View(
            "loss",
            "Loss by gate",
            "Left: loss on the text; ticks are single trainings, dots the mean over seeds with its t "
            "interval. Right: the difference from the reference gate, paired by seed; left of zero is "
            "better. Open and gray: gates with more or fewer active experts, which are not compared.",
            table="gates",
            formula="mean over seeds +- t_(n-1) s / sqrt(n)",
        ),
        View(
            "active",
            "Active experts and load",
            "Left: experts that a token uses, mean over tokens and layers; shaded: where losses are "
            "compared. Right: coefficient of variation of the load, 0 where all experts get as many tokens. "
            "Dots: mean over seeds with its t interval; ticks: single trainings.",
            table="gates",
            formula="mean |{e: w_e != 0}|;  sd(N_e) / mean(N_e)",
            citation="Shazeer et al. 2017, arXiv:1701.06538",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.mixture_gates.statements",
    headline=("gates", "comparable_gates"),
    inputs=("series*", "text"),
    unit="series",
    requires=frozenset({"experts", "gates"}),
    presets={"quick": {"resamples": 300}},
    citations=(
        Citation(
            "Shazeer et al. 2017, Sparsely-Gated Mixture-of-Experts", "https://arxiv.org/abs/1701.06538"
        ),
        Citation("Wang et al. 2024, ReMoE", "https://arxiv.org/abs/2412.14711"),
    ),
)
