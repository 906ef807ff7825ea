"""Interventions on a frozen model: keep k hidden units of every token, and see what that does.

Keeping the k largest is compared with keeping k others, drawn among the units that are not zero: the gap is
what the ranking is worth. Calibration (ECE, with its null) and robustness to corrupted input are measured for
the dense and the sparse model on the same tokens. The model is not trained again, so this says what is there,
not what training with top-k would give.
Shapes: T held-out tokens, D documents, L layers, f hidden units of a layer.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import with_interval


class ActivationInterventionsParams(Params):
    """Parameters of ``activation_interventions``."""

    densities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.75, 0.5, 0.25, 0.125, 0.0625),
        description="Shares k / f of the units that are kept.",
        min_length=1,
        max_length=12,
    )
    robust_density: float = Field(
        0.5, gt=0, lt=1, description="Share k / f of the sparse model whose robustness is measured."
    )
    corruption: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.05, 0.1, 0.2), description="Shares of the input tokens that are replaced.", max_length=8
    )
    tokens: int = Field(4096, ge=256, le=1_000_000, description="Tokens on which losses are measured.")
    null_draws: int = Field(500, ge=50, le=10_000, description="Draws of the null of the calibration error.")
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(
        0, ge=0, description="Seed of random sets, of corruption, of nulls and of the bootstrap."
    )

    @field_validator("densities", "corruption")
    @classmethod
    def _distinct(cls, value: tuple[float, ...], info: object) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("values must be distinct")
        return tuple(sorted(value))


_PAIRED = "its paired document-cluster bootstrap interval"
_MODEL = Column("model", "label", "'dense', or which units are kept: 'top-k' or 'random-k'.")
_KEPT = Column("kept", "fraction", "k / f: share of the hidden units of each layer kept on each token.")
_LOSS = Column("loss", "value", "Mean loss of the next token.", "nats")
_ACCURACY = Column("accuracy", "fraction", "Share of targets that are the most probable token.")
_N = (
    Column("tokens", "count", "Target tokens."),
    Column("documents", "count", "Documents; they are the independent units."),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "loss_curve": (
        _MODEL,
        _KEPT,
        _LOSS,
        *with_interval(
            Column("loss_rise", "value", "Loss - loss of the dense model, paired by token.", "nats"), _PAIRED
        ),
        _ACCURACY,
        Column(
            "changed", "fraction", "Share of targets whose most probable token being right or wrong changed."
        ),
        *_N,
    ),
    "calibration": (
        _MODEL,
        _KEPT,
        *with_interval(
            Column(
                "ece",
                "fraction",
                "Expected calibration error of the most probable token, 15 bins of equal width.",
            ),
            clause=" of the error",
        ),
        Column("null", "fraction", "Mean error of a perfectly calibrated model with the same confidences."),
        Column("null_high", "fraction", "95th percentile of that null."),
        Column("confidence", "fraction", "Mean largest probability."),
        _ACCURACY,
        *_N,
    ),
    "reliability": (
        _MODEL,
        _KEPT,
        Column("confidence", "fraction", "Mean confidence of the predictions of the bin."),
        Column("accuracy", "fraction", "Share of them that are right."),
        Column(
            "low",
            "fraction",
            "Lower end of the Wilson interval of the accuracy, tokens taken as independent.",
            low_of="accuracy",
        ),
        Column("high", "fraction", "Upper end of it.", high_of="accuracy"),
        Column("tokens", "count", "Predictions in the bin."),
    ),
    "robustness": (
        _MODEL,
        Column("corrupted", "fraction", "Share of the input tokens replaced by tokens drawn from the text."),
        _LOSS,
        *with_interval(
            Column(
                "loss_rise", "value", "Loss on corrupted - loss on clean input of the same model.", "nats"
            ),
            _PAIRED,
        ),
        *with_interval(
            Column(
                "excess",
                "value",
                "Rise of the sparse model - rise of the dense model; negative: more robust.",
                "nats",
            ),
            _PAIRED,
            "excess_",
        ),
        *_N,
    ),
}

ANALYSIS = Analysis(
    name="activation_interventions",
    place=50,
    version="1",
    title="Interventions on hidden units",
    summary="What keeping the k largest or k random hidden units does to loss, calibration and "
    "robustness of a frozen model.",
    params=ActivationInterventionsParams,
    compute="sparsescope.analysis.activation_interventions.compute",
    view_module="sparsescope.analysis.activation_interventions.views",
    views=(
        View(
            "loss_curve",
            "Loss when k units are kept",
            "Rise of the loss when every token keeps only k hidden units in every layer: the k of largest "
            "magnitude, or k drawn at random among those that are not zero. The distance between the curves "
            "is what the ranking is worth. The model is frozen: training with top-k would do better. Bands "
            "are paired document-cluster bootstrap intervals.",
            table="loss_curve",
            formula="y = W_out (m * h),  m_j = 1 for the k largest |h_j| (top-k), or for k random j "
            "with h_j != 0 (random-k)",
            citation="Li et al. 2023, arXiv:2210.06313",
        ),
        View(
            "calibration",
            "Calibration of the dense and the sparse model",
            "Expected calibration error of the most probable token, beside the error that a perfectly "
            "calibrated model would show on as many tokens (grey). An error within the grey range says "
            "nothing. The reliability curve below shows where confidence and accuracy part.",
            table="calibration",
            formula="ECE = sum_b (n_b / n) |accuracy_b - confidence_b|, 15 bins of equal width; null: "
            "outcomes drawn with the predicted confidences",
            citation="Guo et al. 2017, arXiv:1706.04599",
        ),
        View(
            "robustness",
            "Robustness to corrupted input",
            "Rise of the loss when a share of the input tokens is replaced by tokens drawn from the same "
            "text; the targets are those of the clean text. Both models read the same corrupted tokens. "
            "Trained top-k models were reported to be more robust; this is a frozen model, and the panel at "
            "the right says whether the same holds here.",
            table="robustness",
            formula="excess = [loss(sparse, corrupted) - loss(sparse, clean)] - [loss(dense, "
            "corrupted) - loss(dense, clean)]",
            citation="Li et al. 2023, arXiv:2210.06313",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.activation_interventions.statements",
    headline=("loss_rise_top_k", "loss_rise_random_k", "ece_dense", "ece_top_k", "robustness_excess"),
    requires=frozenset({"hidden_units", "causal", "logits"}),
    presets={"quick": {"densities": (0.5, 0.25), "corruption": (0.2,), "tokens": 3072}},
    citations=(
        Citation("Li et al. 2023, The Lazy Neuron Phenomenon", "https://arxiv.org/abs/2210.06313"),
        Citation(
            "Guo et al. 2017, On Calibration of Modern Neural Networks", "https://arxiv.org/abs/1706.04599"
        ),
    ),
)
