"""Activation rank: how many directions the tokens of a layer spread over.

Sparse counts units, rank counts directions: a layer can use few units and many directions, or all units and
few directions. A sample of tokens, the same for every layer, is centered and its singular values are summed
up in three effective ranks, beside what independent entries of the same shape would give. Of a mixture, each
expert is measured on a sample of the tokens routed to it.
Shapes: m sampled tokens x n units.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.activations.hidden_layers import HIDDEN
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import JACKKNIFED, PLACE, with_interval


class ActivationRankParams(Params):
    """Parameters of ``activation_rank``."""

    sites: str | tuple[str, ...] = Field(
        HIDDEN,
        description="Sites to measure; of a mixture the default takes its hidden layers, per expert.",
    )
    sample_tokens: int = Field(
        768, ge=16, le=16_384, description="Tokens in the sample; no rank can be larger than this less one."
    )
    memory: int = Field(
        512, ge=1, description="MiB for the sampled activations; more sites than fit are thinned out evenly."
    )
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the sample.")


TABLES: dict[str, tuple[Column, ...]] = {
    "ranks": (
        *PLACE,
        Column(
            "metric",
            "metric",
            "Effective rank: entropy_rank, stable_rank or participation (of the eigenvalues).",
        ),
        *with_interval(
            Column("mean", "value", "Effective rank of the centered sample.", "directions"), JACKKNIFED
        ),
        Column(
            "reference", "value", "The same for as many independent entries of equal variance.", "directions"
        ),
        Column(
            "ratio",
            "value",
            "mean / reference: below 1 where tokens spread over fewer directions than noise would.",
        ),
        Column("largest", "count", "Largest rank that the sample allows: min(tokens - 1, units)."),
        Column("units", "count", "Units of the site."),
        Column("tokens", "count", "Tokens in the sample."),
        Column("documents", "count", "Documents in the sample; they are the independent units."),
    ),
    "spectrum": (
        *PLACE,
        Column("components", "count", "Number of largest components."),
        Column("energy", "fraction", "Share of the variance that they hold."),
        Column("reference", "fraction", "The same for independent entries."),
    ),
}

ANALYSIS = Analysis(
    name="activation_rank",
    place=30,
    version="1",
    title="Activation rank",
    summary="How many directions the tokens of a layer spread over: three effective ranks, with "
    "independent entries beside.",
    params=ActivationRankParams,
    compute="sparsescope.analysis.activation_rank.compute",
    view_module="sparsescope.analysis.activation_rank.views",
    views=(
        View(
            "ranks",
            "Effective rank by layer",
            "Three effective ranks of a centered sample of tokens, by layer, on log axes. Dotted: "
            "independent entries of equal variance. The entropy rank counts small directions too; the stable "
            "rank looks at the largest direction only; the participation ratio lies between. All depend on "
            "the number of tokens: compare runs with equal samples. Of a mixture, lines are the median over "
            "the experts of a layer, each on the tokens routed to it.",
            table="ranks",
            formula="entropy rank = exp(-sum p ln p), p = s / sum s;  stable rank = sum s^2 / max "
            "s^2;  participation ratio = (sum s^2)^2 / sum s^4;  s: singular values of the "
            "centered matrix. References: integral over the Marchenko-Pastur density;  m n / (sqrt "
            "m + sqrt n)^2;  m n / (m + n)",
            citation="Roy & Vetterli 2007; Marchenko & Pastur 1967",
        ),
        View(
            "spectrum",
            "Variance held by the largest directions",
            "Share of the variance that the k largest principal components hold, one line for each layer or "
            "expert; dotted: independent entries. A line far above the dotted one means that few directions "
            "carry most of what varies between tokens.",
            table="spectrum",
            formula="sum of the k largest s^2 / sum of all s^2",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.activation_rank.statements",
    headline=("mean_entropy_rank", "mean_stable_rank", "mean_participation"),
    requires=frozenset({"hidden_units"}),
    citations=(
        Citation("Roy & Vetterli 2007, The effective rank", "EUSIPCO 2007"),
        Citation("Marchenko & Pastur 1967", "Math. USSR-Sbornik 1:457"),
    ),
)
