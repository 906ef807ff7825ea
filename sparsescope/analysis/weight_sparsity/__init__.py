"""Weight sparsity: how many weights of a language model can go, by which criterion, before quality breaks.

Weights are set to zero in a copy of the model, level by level, and every pruned model reads the same held-out
documents as the dense one, so that each difference is paired. The drop point of a curve is the largest
sparsity whose monotone damage stays within a tolerance.
Shapes: K levels, D documents, L matrices [out, in].
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsescope.analysis.weight_sparsity.tables import TABLES
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.errors import SpecError
from sparsescope.pruning.curves import read_curve

Share = Annotated[float, Field(gt=0, lt=1)]


class WeightSparsityParams(Params):
    """Parameters of ``weight_sparsity``."""

    curves: tuple[str, ...] = Field(
        ("magnitude", "magnitude+global", "random", "wanda", "ria", "sparsegpt"),
        description="What is compared: CRITERION[+ALLOCATION][+PATTERN][+finetuned]; criteria magnitude, "
        "random, wanda, ria, sparsegpt; allocations global, erk, owl, atp.",
        min_length=1,
        max_length=24,
    )
    levels: tuple[Share, ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        description="Sparsities at which every curve is measured.",
        min_length=1,
        max_length=40,
    )
    refine: int = Field(
        3, ge=0, le=20, description="Further levels of each curve; each halves the widest bracket of a drop."
    )
    tolerances: tuple[Annotated[float, Field(gt=0, le=5)], ...] = Field(
        (0.01, 0.05, 0.1),
        description="Rises of the loss, in nats, at which the drop point is read.",
        min_length=1,
        max_length=6,
    )
    compare_at: Share = Field(
        0.5, description="The level at which criteria, masks and matrices are compared; one of the levels."
    )
    patterns: tuple[str, ...] = Field(
        ("2:4",), description="N:M patterns measured for each criterion beside its curve.", max_length=6
    )
    tokens: int = Field(
        16_384, ge=256, le=10_000_000, description="Held-out tokens on which losses are measured."
    )
    document_tokens: int = Field(
        256,
        ge=16,
        le=1_000_000,
        description="Most held-out tokens of one document: many documents tell more than long ones.",
    )
    calibration_tokens: int = Field(
        8192, ge=64, le=1_000_000, description="Tokens of other documents, read by wanda, ria and sparsegpt."
    )
    calibration_document_tokens: int = Field(
        1024, ge=16, le=1_000_000, description="Most calibration tokens of one document."
    )
    calibration_draw: int = Field(
        0, ge=0, le=1000, description="Which stretch of documents is read for calibration, from 0."
    )
    propagation: Literal["sequential", "dense"] = Field(
        "sequential",
        description="Calibrate each block on what the pruned ones before it give, or all on the dense model.",
    )
    first_positions: bool = Field(
        True, description="Let the first token of each window count in the calibration, as in the papers."
    )
    scope: str = Field(
        "blocks", description="Which matrices: blocks, mlp, attention, or a pattern of parameters."
    )
    finetune_steps: int = Field(300, ge=1, le=100_000, description="Updates of curves named +finetuned.")
    finetune_rate: float = Field(3e-4, gt=0, le=1, description="Learning rate of these updates (AdamW).")
    floor_rows: int = Field(
        16, ge=0, le=4096, description="Rows of each matrix whose least-squares floor is found (sparsegpt)."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap, of random masks and of fine-tuning.")

    @field_validator("curves")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            try:
                read_curve(name)
            except SpecError as error:
                raise ValueError(f"{name!r}: {error.what} ({error.allowed or error.got})") from None
        if len(set(value)) != len(value):
            raise ValueError("curves must be distinct")
        return value

    @field_validator("patterns")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from sparsescope.pruning.patterns import NM, read_pattern

        for text in value:
            try:
                found = read_pattern(text)
            except SpecError as error:
                raise ValueError(f"{text!r}: {error.what}") from None
            if not isinstance(found, NM):
                raise ValueError(f"{text!r} is no N:M pattern; name it in a curve: magnitude+{text}")
        return value

    @field_validator("levels", "tolerances")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return tuple(sorted(value))


ANALYSIS = Analysis(
    name="weight_sparsity",
    place=60,
    version="1",
    title="Weight sparsity",
    summary="How many weights can be set to zero, by which criterion and pattern, before the loss rises.",
    params=WeightSparsityParams,
    compute="sparsescope.analysis.weight_sparsity.compute",
    view_module="sparsescope.analysis.weight_sparsity.views",
    views=(
        View(
            "curves",
            "What removing weights costs",
            "Rise of the loss on held-out text against the share of block weights that are set to zero, "
            "without any training afterwards. Dotted lines: the tolerances at which drop points are read. "
            "Bands are paired document-cluster bootstrap intervals. Markers without a line are N:M patterns. "
            "Random masks are the null: a criterion is worth its distance from them.",
            table="curve",
            formula="damage(s) = mean over tokens of loss(pruned at s) - loss(dense), same tokens",
            citation="essential sparsity, arXiv:2306.03805; Wanda, arXiv:2306.11695; SparseGPT, "
            "arXiv:2301.00774",
        ),
        View(
            "drop_points",
            "Where quality breaks",
            "For each curve the largest sparsity whose damage stays within the tolerance, read from a "
            "monotone (isotonic) fit, with its interval. A tolerance below what the text can resolve is "
            "marked: more held-out text narrows it.",
            table="drop_points",
            formula="s* = max{s : isotonic damage(s) <= tolerance}",
            citation="arXiv:2306.03805, definition of essential sparsity, with a tolerance in nats",
        ),
        View(
            "comparisons",
            "Which criterion earns its cost",
            "Paired difference of the loss between two ways to prune at the same sparsity, fixed before "
            "measuring. An interval that contains zero does not tell the two apart on this text.",
            table="comparisons",
            formula="difference = mean over tokens of loss(first) - loss(second), same tokens",
        ),
        View(
            "cost",
            "Damage against the time to prune",
            "Rise of the loss at the level of comparison against the seconds that pruning took on this "
            "machine, calibration included. Further left and lower is better.",
            table="cost",
        ),
        View(
            "zeros",
            "Where the zeros are",
            "Share of zeros of each matrix at the level of comparison, of a curve whose matrices do not all "
            "lose the same: a global threshold shows which of them have small weights.",
            table="zeros",
            select="curve",
        ),
        View(
            "retained",
            "Energy that is left",
            "Sum of squares of the kept weights by layer at the level of comparison, mean over the matrices "
            "of a layer; dotted: the most that any mask of these sparsities retains. Wanda and SparseGPT "
            "retain less than magnitude on purpose.",
            table="per_matrix",
            formula="retained = sum of W_ij^2 over kept / sum of W_ij^2",
        ),
        View(
            "overlap",
            "Do criteria agree on the weights that go",
            "Cohen's kappa of the masks of two curves at the level of comparison: 0 is what independent "
            "masks of the same sparsities give, 1 is the same masks. Plain agreement or cosine would look "
            "high by chance alone.",
            table="overlap",
            formula="kappa = (agreement - chance) / (1 - chance), chance taken matrix by matrix",
        ),
        View(
            "reconstruction",
            "How close SparseGPT comes to the best update",
            "Relative error of the output of each matrix on the calibration text, mean over the matrices of "
            "a layer: of the mask alone, after SparseGPT's update, and the least that any weights with the "
            "same mask reach.",
            table="reconstruction",
            formula="||(W' - W) X||^2 / ||W X||^2",
            citation="SparseGPT, arXiv:2301.00774",
        ),
        View(
            "finetuned",
            "After training on with the mask fixed",
            "Rise of the loss over the dense model, when both are trained on for the same number of steps on "
            "the same text and zeros stay zeros. It is another quantity than the zero-shot curve and never "
            "shares a line with it.",
            table="finetuned",
            citation="essential sparsity, arXiv:2306.03805, which fine-tunes",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.weight_sparsity.statements",
    headline=("dense_perplexity",),
    requires=frozenset({"causal", "logits"}),
    presets={
        "quick": {
            "curves": ("magnitude", "wanda"),
            "levels": (0.1, 0.2, 0.3, 0.5, 0.7),
            "refine": 0,
            "patterns": (),
            "tokens": 2048,
            "document_tokens": 128,
            "calibration_tokens": 1024,
            "propagation": "dense",
        }
    },
    citations=(
        Citation("Essential sparsity (2023)", "https://arxiv.org/abs/2306.03805"),
        Citation("Wanda (2023)", "https://arxiv.org/abs/2306.11695"),
        Citation("SparseGPT (2023)", "https://arxiv.org/abs/2301.00774"),
        Citation("Plug-and-Play: RIA (ICLR 2024)", "https://openreview.net/forum?id=Tr0lPx9woF"),
        Citation("OWL (2023)", "https://arxiv.org/abs/2310.05175"),
        Citation("ATP (2025)", "https://arxiv.org/abs/2502.14770"),
        Citation("RigL (2020): ERK", "https://arxiv.org/abs/1911.11134"),
    ),
)
