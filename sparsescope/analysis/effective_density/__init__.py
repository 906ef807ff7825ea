"""Effective density: how many hidden units a language model needs, judged by what it loses
without the others.

A threshold is meaningful when it is tied to performance. Two rules switch units off: CETT, which bounds the
relative error of the layer's output, and the top-p set of the L1 norm. Each is tightened until the perplexity
of held-out text rises by a given percentage, or the accuracy of the next token falls by a given share; the
density found there is the result. Of a mixture, units are those of the experts that a token is sent to.
Shapes: T held-out tokens, D documents, L layers, f hidden units of a layer.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from sparsescope.activations.bound_table import COLUMNS as BOUNDS
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import PLACE, ends_of, with_interval


class EffectiveDensityParams(Params):
    """Parameters of ``effective_density``."""

    percents: tuple[Annotated[float, Field(gt=0, le=50)], ...] = Field(
        (0.5, 1.0, 5.0),
        description="Rises of perplexity, in percent, at which the density is read.",
        min_length=1,
        max_length=6,
    )
    tolerance: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Bisection of CETT stops this close to the wanted rise, in percentage points.",
    )
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
        description="Shares p of the L1 norm, the grid of the top-p rule.",
        min_length=2,
        max_length=30,
    )
    keep_score: float = Field(
        0.99, gt=0, lt=1, description="Critical sparsity keeps this share of the dense accuracy."
    )
    calibration_tokens: int = Field(
        512, ge=64, le=16_384, description="Tokens on which CETT thresholds are chosen."
    )
    tokens: int = Field(
        4096, ge=256, le=1_000_000, description="Held-out tokens on which losses are measured."
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")

    @field_validator("percents")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({f"{p:g}" for p in value}) != len(value):
            raise ValueError("percents must be distinct")
        return tuple(sorted(value))

    @field_validator("shares")
    @classmethod
    def _falling(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value):
            raise ValueError("shares must be distinct")
        return tuple(sorted(value, reverse=True))


_RULE = Column("rule", "label", "'CETT' or 'top-p': which units are switched off.")
_SPARSITY = Column("sparsity", "fraction", "1 - density.")


def _density(description: str) -> tuple[Column, ...]:
    """A density, its sparsity, and the interval of the density."""
    column = Column("density", "fraction", description)
    return (
        column,
        _SPARSITY,
        *ends_of(column, "the paired document-cluster bootstrap interval of the density"),
    )


TABLES: dict[str, tuple[Column, ...]] = {
    "effective": (
        _RULE,
        Column(
            "criterion", "label", "What ends the tightening: a rise of perplexity, or a loss of accuracy."
        ),
        *_density("Units kept / units, mean over layers and tokens, where the criterion is met."),
        Column("bracket", "fraction", "Distance between the densities of the two measured points around it."),
        Column(
            "censored",
            "label",
            "'no', or why the density is only a bound: the criterion was not met within the grid.",
        ),
        Column("documents", "count", "Held-out documents; they are the independent units."),
        Column("tokens", "count", "Held-out target tokens."),
    ),
    "curve": (
        _RULE,
        Column("setting", "threshold", "CETT level of every layer, or the share p of the L1 norm."),
        Column("density", "fraction", "Units kept / units, mean over layers of the mean over tokens."),
        _SPARSITY,
        *with_interval(
            Column(
                "perplexity_rise", "fraction", "exp(mean loss - mean dense loss) - 1 on the held-out tokens."
            ),
            "its paired document-cluster bootstrap interval",
            "perplexity_rise_",
        ),
        Column("accuracy", "fraction", "Share of targets that are the most probable token."),
        Column("relative_accuracy", "fraction", "Accuracy / dense accuracy."),
    ),
    "per_layer": (
        *PLACE,
        Column("percent", "value", "Rise of perplexity at which the density is read.", "%"),
        *_density("Units kept / units at the CETT level of this rise, mean over tokens."),
        Column(
            "threshold",
            "threshold",
            "Units with |activation| times output column norm below it are switched off.",
        ),
        Column(
            "cett", "fraction", "CETT of the layer at this threshold, measured on the calibration tokens."
        ),
    ),
    "bounds": BOUNDS,
    "cost": (
        Column("step", "label", "Part of the work."),
        Column("passes", "count", "Forward passes over the part of the text."),
        Column("tokens", "count", "Tokens of all these passes."),
    ),
}

ANALYSIS = Analysis(
    name="effective_density",
    place=40,
    version="2",
    title="Effective density",
    summary="How few hidden units a language model needs at a stated rise of perplexity or loss of accuracy.",
    params=EffectiveDensityParams,
    compute="sparsescope.analysis.effective_density.compute",
    view_module="sparsescope.analysis.effective_density.views",
    views=(
        View(
            "loss_curve",
            "What switching units off costs",
            "Rise of perplexity on held-out text against the share of hidden units that stay on, when units "
            "are switched off in all layers together, token by token. Dotted lines: the rises at which "
            "densities are read. Bands are paired document-cluster bootstrap intervals. A curve further left "
            "loses less with fewer units.",
            table="curve",
            formula="CETT(x; e) = ||sum of n_i over {i: ||n_i|| < e}|| / ||sum of all n_i||,  n_i = h_i "
            "W_out[:, i]; one mean CETT for all layers gives one threshold e per layer.  Top-p: the smallest "
            "set with sum |h_i| >= p ||h||_1",
            citation="ReLU^2 Wins, arXiv:2402.03804; Sparsing Law, arXiv:2411.02335; Universal "
            "Properties, arXiv:2509.00454",
        ),
        View(
            "per_layer",
            "Effective density by layer",
            "Share of units that stay on in each layer when one CETT level for all layers lets perplexity "
            "rise by the given percentage. One number without this sensitivity is not credible: the lines "
            "show how far it moves. Of a mixture, lines are the median over the experts of a layer, each "
            "on the tokens routed to it.",
            table="per_layer",
            formula="d = mean over tokens of #{i: |h_i| ||W_out[:, i]|| >= e_layer} / f",
            citation="Sparsing Law, arXiv:2411.02335",
        ),
        View(
            "accuracy_curve",
            "Accuracy of the next token against sparsity",
            "Accuracy relative to the dense model against the density, for both rules. The dotted line is "
            "the share that critical sparsity must keep; the crossing is read from a monotone (isotonic) "
            "fit, not from single points.",
            table="curve",
            formula="critical sparsity = largest S with isotonic score(S) >= keep_score * score(0)",
            citation="Universal Properties of Activation Sparsity, arXiv:2509.00454",
        ),
        View(
            "bounds",
            "Upper bounds on what this density saves",
            "Share of the FLOPs and of the weight bytes of one decoded token that perfect use of the "
            "sparsity could save, for each rise of perplexity and each way to know the active units. It is a "
            "bound on counts, never a speed; the table lists every assumption.",
            table="bounds",
            formula="gated MLP: (1 - d)/3 if only the last matrix is skipped, 2(1 - d)/3 after the gate, 1 - "
            "d with an ideal predictor;  whole model: times the share of the MLPs",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.effective_density.statements",
    headline=("density_cett_ppl_1", "sparsity_cett_ppl_1", "critical_sparsity_top_p", "dense_perplexity"),
    requires=frozenset({"hidden_units", "causal", "logits"}),
    # As many documents as in full: intervals of fewer would be too narrow, and fewer passes save as much.
    presets={"quick": {"percents": (1.0, 5.0), "tolerance": 0.1, "shares": (0.99, 0.95, 0.9, 0.8, 0.6, 0.4)}},
    citations=(
        Citation("ReLU^2 Wins (2024): CETT", "https://arxiv.org/abs/2402.03804"),
        Citation("Sparsing Law (2024): CETT-PPL-p %", "https://arxiv.org/abs/2411.02335"),
        Citation(
            "Universal Properties of Activation Sparsity (2025): critical sparsity",
            "https://arxiv.org/abs/2509.00454",
        ),
    ),
)
