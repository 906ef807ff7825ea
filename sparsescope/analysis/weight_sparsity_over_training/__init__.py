"""Weight sparsity over training: how many weights can go at every checkpoint, beside random masks.

Each checkpoint is pruned in a copy at several levels, without training afterwards, and reads the same
held-out targets as the dense one: text that the series carries, or the equations of modular addition that
were not trained on. The drop point is the largest sparsity whose monotone damage stays within a tolerance.
A checkpoint whose loss is not below chance has nothing to lose, and no drop point; nor has one whose loss
falls under random masks: they make an over-confident model less sure, and that is all.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsescope.analysis.weight_sparsity_over_training.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.errors import SpecError
from sparsescope.pruning.curves import read_curve

Share = Annotated[float, Field(gt=0, lt=1)]


class WeightSparsityOverTrainingParams(Params):
    """Parameters of ``weight_sparsity_over_training``."""

    curves: tuple[str, ...] = Field(
        ("magnitude+global", "magnitude"),
        description="What is measured beside random masks: CRITERION[+ALLOCATION], of those that read no "
        "text: magnitude; global, erk, atp.",
        min_length=1,
        max_length=8,
    )
    random_masks: int = Field(
        2, ge=1, le=20, description="Draws of random masks, uniform over matrices; their damage is averaged."
    )
    levels: tuple[Share, ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        description="Sparsities at which every checkpoint is measured.",
        min_length=2,
        max_length=40,
    )
    refine: int = Field(
        6, ge=0, le=20, description="Further levels at most; each halves the widest gap around a drop point."
    )
    tolerances: tuple[Annotated[float, Field(gt=0, le=5)], ...] = Field(
        (0.01, 0.05, 0.1),
        description="Rises of the loss, in nats, at which the drop point is read.",
        min_length=1,
        max_length=4,
    )
    relative: tuple[Share, ...] = Field(
        (0.05,),
        description="Rises as shares of what the checkpoint gains on chance: a checkpoint that knows little "
        "has little to lose, and any rise in nats is a larger part of it.",
        max_length=4,
    )
    tokens: int = Field(
        16_384, ge=64, le=10_000_000, description="Held-out targets on which losses are measured."
    )
    document_tokens: int = Field(
        256, ge=16, le=1_000_000, description="Of text: most held-out tokens of one document."
    )
    unigram_tokens: int = Field(
        2048,
        ge=64,
        le=1_000_000,
        description="Of text: tokens of other documents whose frequencies are counted; their loss is chance.",
    )
    pairs: Literal["test", "train"] = Field(
        "test", description="Of modular addition: equations that were not trained on, or those that were."
    )
    scope: str = Field(
        "blocks", description="Which matrices: blocks, mlp, attention, or a pattern of parameters."
    )
    surrogates: int = Field(
        1999, ge=99, le=100_000, description="Gradual courses that the largest rise is compared with."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap, of random masks and of surrogates.")

    @field_validator("curves")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                curve = read_curve(name)
            except SpecError as error:
                raise ValueError(f"{name!r}: {error.what} ({error.allowed or error.got})") from None
            if curve.criterion.reads or curve.allocation.reads:
                raise ValueError(f"{name!r} reads a calibration text; weight_sparsity measures it")
            if curve.criterion.drawn:
                raise ValueError(f"{name!r}: random masks are measured in any case, see random_masks")
            if curve.pattern is not None or curve.finetuned:
                raise ValueError(f"{name!r}: give CRITERION[+ALLOCATION]; weight_sparsity measures the rest")
        if len(set(value)) != len(value):
            raise ValueError("curves must be distinct")
        return value

    @field_validator("levels", "tolerances", "relative")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return tuple(sorted(value))


_ESSENTIAL = "essential sparsity, arXiv:2306.03805"

ANALYSIS = Analysis(
    name="weight_sparsity_over_training",
    place=75,
    version="1",
    title="Weight sparsity over training",
    summary="How many weights can be set to zero at every checkpoint before the loss rises, beside random "
    "masks.",
    params=WeightSparsityOverTrainingParams,
    compute="sparsescope.analysis.weight_sparsity_over_training.compute",
    view_module="sparsescope.analysis.weight_sparsity_over_training.views",
    views=(
        View(
            "drop_points",
            "Essential sparsity over training",
            "Above: the largest share of the block weights that can be set to zero, without training "
            "afterwards, before the loss on held-out targets rises by the tolerance. Bands: intervals over "
            "documents. Gray: random masks on the same checkpoints, the null. Below: the loss of the dense "
            "checkpoint and chance (dotted). Where the loss is not below chance there is nothing to break, "
            "and no drop point; nor where random masks lower the loss. Vertical line, where there is one: "
            "the step of generalization.",
            table="drop_points",
            formula="s*(step) = max{s : isotonic damage(s) <= tolerance}",
            citation=f"{_ESSENTIAL}, with a tolerance in nats",
        ),
        View(
            "excess",
            "Beyond random masks",
            "Drop point of a criterion minus that of random masks of the same sparsity on the same "
            "checkpoint. A drop point that rises as much with random masks says that the model became "
            "robust, not that a part of its weights became dispensable.",
            table="excess",
            formula="s*_criterion - s*_random, the same documents drawn for both",
        ),
        View(
            "damage",
            "What each level costs, checkpoint by checkpoint",
            "Rise of the loss over training steps, one line for each sparsity and a panel for each way to "
            "prune. Dotted: the tolerances.",
            table="damage",
            formula="damage(s) = mean over targets of loss(pruned at s) - loss(dense), same targets",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.weight_sparsity_over_training.statements",
    headline=("checkpoints_with_signal",),
    requires=frozenset({"curves"}),
    presets={
        "quick": {
            "curves": ("magnitude+global",),
            "random_masks": 1,
            "levels": (0.1, 0.3, 0.5, 0.7, 0.9),
            "refine": 4,
            "tolerances": (0.05,),
            "tokens": 1536,
            "document_tokens": 128,
            "resamples": 200,
        }
    },
    citations=(
        Citation("Essential sparsity (2023)", "https://arxiv.org/abs/2306.03805"),
        Citation("Progress measures for grokking (2023)", "https://arxiv.org/abs/2301.05217"),
    ),
    inputs=("series",),
    unit="checkpoints",
)
