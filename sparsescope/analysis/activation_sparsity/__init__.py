"""Activation sparsity: how few units of a layer carry a token.

Density d is the share of units that count, sparsity is 1 - d; both are always named. What counts is
defined three ways: not exactly zero (meaningful for ReLU only); the smallest set of units that holds a
share p of the L1 norm; the same for the energy (squared L2 norm). Threshold-free measures (Hoyer, Gini,
participation ratios) stand beside the value that a half-normal vector would give.
Shapes: one activation batch is [token, unit]; statistics are per token, then averaged over tokens.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from sparsescope.activations.bound_table import COLUMNS as BOUNDS
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import JACKKNIFED, PLACE, with_interval


class ActivationSparsityParams(Params):
    """Parameters of ``activation_sparsity``."""

    sites: str | tuple[str, ...] = Field(
        "auto",
        description="Sites to measure; 'auto' is the MLP hidden layer, per expert where there are experts.",
    )
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.9, 0.95, 0.99),
        description="Shares p of the norm that a top-p set must hold.",
        min_length=1,
        max_length=8,
    )
    use_share: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="A unit is in use on a token if it is in the set that holds this share of the energy.",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")
    attended: float | None = Field(
        None,
        ge=0,
        description="Positions that a decoded token attends to, for the bounds; by "
        "default half of the context.",
    )

    @field_validator("shares")
    @classmethod
    def _sorted_and_distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({percent_name(p) for p in value}) != len(value):
            raise ValueError("shares must be distinct at a resolution of 0.1 percentage points")
        return tuple(sorted(value))


def percent_name(share: float) -> str:
    """Name of a share in metric ids: 0.9 -> ``"90"``, 0.995 -> ``"99.5"``."""
    return f"{100 * share:.1f}".removesuffix(".0")


_METRIC = Column("metric", "metric", "Measure; the formulas stand with the figures.")
_MEAN = with_interval(Column("mean", "fraction", "Mean over tokens after the first of each window."))
_N = (
    Column("tokens", "count", "Tokens behind the row (for experts: tokens routed there)."),
    Column("documents", "count", "Documents behind the row; they are the independent units."),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "per_layer": (
        *PLACE,
        _METRIC,
        *_MEAN,
        Column("sparsity", "fraction", "1 - mean where the measure is a density; empty otherwise."),
        Column("q05", "fraction", "5th percentile over tokens."),
        Column("q50", "fraction", "Median over tokens."),
        Column("q95", "fraction", "95th percentile over tokens."),
        Column(
            "reference",
            "fraction",
            "Value for a long vector of independent normal entries (half-normal magnitudes).",
        ),
        *_N,
    ),
    "by_position": (
        *PLACE,
        Column("position", "position", "First position of the bin within its window; 0 is the first token."),
        Column("position_end", "position", "Last position of the bin."),
        _METRIC,
        *_MEAN,
        *_N,
    ),
    "by_domain": (*PLACE, Column("domain", "domain", "Domain label of the documents."), _METRIC, *_MEAN, *_N),
    "frequency": (
        *PLACE,
        Column("rank", "fraction", "Share of the units of the layer that are used at least as often."),
        Column("nonzero", "fraction", "Share of tokens on which the unit at this rank is not exactly zero."),
        Column("in_use", "fraction", "Share of tokens on which the unit at this rank is in the energy set."),
    ),
    "unit_use": (
        *PLACE,
        Column("rule", "label", "When a unit counts as firing: 'nonzero' or 'in use' (in the energy set)."),
        Column("units", "count", "Units of the layer."),
        Column("dead", "count", "Units that never fired."),
        Column("dead_share", "fraction", "Dead units / units."),
        Column(
            "dead_bound",
            "fraction",
            "One-sided upper bound on the firing rate of a dead unit, from effective tokens.",
        ),
        Column("always_on", "count", "Units that fired on more than 99 % of tokens."),
        Column("always_on_share", "fraction", "Always-on units / units."),
        Column(
            "always_on_bound",
            "fraction",
            "One-sided lower bound on the rate of a unit that fired on every token.",
        ),
        Column("below_0.1%", "fraction", "Share of units that fire on fewer than 0.1 % of tokens."),
        Column("below_1%", "fraction", "Share of units that fire on fewer than 1 % of tokens."),
        Column("below_10%", "fraction", "Share of units that fire on fewer than 10 % of tokens."),
        Column("below_50%", "fraction", "Share of units that fire on fewer than half of the tokens."),
        Column(
            "icc",
            "fraction",
            "Correlation of firing within documents, pooled over units; 1 where there are too few events.",
        ),
        Column(
            "effective_tokens",
            "value",
            "Tokens / design effect: as many independent tokens say as much.",
            "tokens",
        ),
        *_N,
    ),
    "units": (
        *PLACE,
        Column("neuron", "neuron", "Index of the unit at its site."),
        Column("nonzero", "fraction", "Share of tokens on which the unit is not exactly zero."),
        Column("in_use", "fraction", "Share of tokens on which the unit is in the energy set."),
        Column("documents_nonzero", "count", "Documents in which the unit was ever not zero."),
        Column("documents_in_use", "count", "Documents in which the unit was ever in use."),
        Column("mean_magnitude", "value", "Mean |activation| over tokens.", "activation"),
        Column(
            "lifetime_sparseness",
            "fraction",
            "Treves-Rolls sparseness of |activation| over the tokens of the unit.",
        ),
    ),
    "lifetime": (
        *PLACE,
        *with_interval(
            Column(
                "mean",
                "fraction",
                "Mean lifetime sparseness over the units of the layer that were ever not zero.",
            ),
            JACKKNIFED,
        ),
        Column("q05", "fraction", "5th percentile over units."),
        Column("q50", "fraction", "Median over units."),
        Column("q95", "fraction", "95th percentile over units."),
        Column(
            "population", "fraction", "Population sparseness: the same measure over units, mean over tokens."
        ),
        Column("reference", "fraction", "Value of either for independent normal entries."),
        Column("units", "count", "Units behind the row."),
        *_N,
    ),
    "upper_bounds": BOUNDS,
}

ANALYSIS = Analysis(
    name="activation_sparsity",
    place=10,
    version="2",
    title="Activation sparsity",
    summary="How few units carry a token: densities, concentration measures and unit use, by "
    "layer, position and domain.",
    params=ActivationSparsityParams,
    compute="sparsescope.analysis.activation_sparsity.compute",
    view_module="sparsescope.analysis.activation_sparsity.views",
    views=(
        View(
            "per_layer",
            "Density by layer",
            "Share of units that are not exactly zero, and share of units in the smallest set that holds a "
            "given part of the L1 norm or of the energy. Bands are document-cluster bootstrap intervals. "
            "Dotted: what a vector of independent normal entries gives. A gated layer multiplies two "
            "factors and lies below that line even without training, so read differences between layers, "
            "not the distance to the line. For SwiGLU and GELU the exact-zero density is near 100 % by "
            "construction and says nothing.",
            table="per_layer",
            formula="d_0 = #{j: v_j != 0} / n;  d_p = min{k: sum of the k largest |v_j|^q >= p * sum "
            "|v_j|^q} / n, q = 1 (L1) or 2 (energy)",
            citation="Li et al. 2023, arXiv:2210.06313; Universal Properties of Activation "
            "Sparsity, arXiv:2509.00454",
        ),
        View(
            "token_spread",
            "Spread over tokens",
            "Median and 5-95 % range over tokens of the energy-set density, by layer. A wide range means "
            "that a fixed budget of units would starve some tokens.",
            table="per_layer",
            formula="quantiles over tokens of d_p (energy)",
        ),
        View(
            "concentration",
            "Concentration measures by layer",
            "Threshold-free measures of |v|, averaged over tokens, each with its half-normal reference "
            "(dotted). Hoyer, Gini and kurtosis rise, participation ratios and the entropy number fall, as "
            "fewer units carry more. Hoyer depends on the width: do not compare it between layers of "
            "different width. Kurtosis is taken about zero, 3 for a normal vector. Treves-Rolls population "
            "sparseness is PR2 turned around and stands in the table.",
            table="per_layer",
            formula="Hoyer = (sqrt(n) - L1/L2) / (sqrt(n) - 1);  Gini = sum_k (2k - n - 1) x_(k) / (n "
            "sum x);  PR2 = (sum x)^2 / (n sum x^2);  PR4 = (sum x^2)^2 / (n sum x^4);  entropy number "
            "= exp(-sum p ln p) / n, p = x / sum x;  kurtosis = n sum v^4 / (sum v^2)^2;  Treves-Rolls "
            "= (1 - PR2) / (1 - 1/n)",
            citation="Hoyer 2004; Hurley & Rickard 2009; Treves & Rolls 1991",
        ),
        View(
            "lifetime",
            "Population and lifetime sparseness",
            "Population sparseness asks how few units carry a token, lifetime sparseness how few tokens a "
            "unit works on: the same measure, over units and over tokens. They need not agree: a layer "
            "whose units differ in size, but not over time, is sparse over units only. Dotted: "
            "independent normal entries.",
            table="lifetime",
            formula="S = (1 - a) / (1 - 1/N),  a = (mean r)^2 / mean r^2,  r = |v|, over the n units of a "
            "token or the N tokens of a unit",
            citation="Treves & Rolls 1991, Network 2:371",
        ),
        View(
            "frequency",
            "Sorted frequency of use",
            "Units of each layer sorted by how often they are in use (in the energy set), most used first. A "
            "steep fall means that few units do most of the work; the right end shows rare and dead units.",
            table="frequency",
            formula="p_j = share of tokens on which unit j is in the energy set, sorted",
            citation="Li et al. 2023, arXiv:2210.06313",
        ),
        View(
            "unit_use",
            "Dead and always-on units",
            "Share of units that never fired and that fired on more than 99 % of tokens, by layer. A unit "
            "that never fired is only known to fire rarely: the table gives the one-sided bound, which "
            "counts tokens of one document as dependent.",
            table="unit_use",
            formula="upper bound = 1 - (1 - level)^(1/N_eff),  level = 0.95 by default;  "
            "N_eff = N / (1 + (m - 1) ICC),  m = sum n_d^2 / N",
        ),
        View(
            "by_position",
            "Density by position",
            "Energy-set density against the position within the window, by layer. The first token is a "
            "position of its own: attention sinks and massive activations live there, so it is left out "
            "of every other figure.",
            table="by_position",
        ),
        View(
            "by_domain",
            "Density by domain",
            "Energy-set density by layer for each domain of text, with document-cluster bootstrap bands. "
            "Bands that are apart speak for a difference; bands that overlap decide nothing.",
            table="by_domain",
        ),
        View(
            "upper_bounds",
            "Upper bounds on FLOPs and weight bytes saved",
            "The most that skipping inactive units could take off one decoded token, as a share of the whole "
            "model, by how the active units are known. Attention, output head and the cost of irregular "
            "access stay. The 'nonzero' rule loses nothing; the energy rules leave out small units, so the "
            "output changes by an amount that is not measured here. These are counts, not times: hardware "
            "rarely gives all of it.",
            table="upper_bounds",
            formula="with m matrices and density rho: second matrix only (1 - rho)/m;  all after the first "
            "(1 - rho)(m - 1)/m;  ideal predictor 1 - rho;  whole model: times the share of the MLPs",
            citation="Li et al. 2023, arXiv:2210.06313; Amdahl 1967",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.activation_sparsity.statements",
    headline=(
        "mean_nonzero",
        "mean_zero_sparsity",
        "mean_density_energy_90",
        "mean_sparsity_energy_90",
        "mean_density_l1_90",
        "mean_sparsity_l1_90",
        "mean_gini",
        "mean_hoyer",
    ),
    requires=frozenset({"hidden_units"}),
    citations=(
        Citation("Li et al. 2023, The Lazy Neuron Phenomenon", "https://arxiv.org/abs/2210.06313"),
        Citation("Hurley & Rickard 2009, Comparing Measures of Sparsity", "https://arxiv.org/abs/0811.4706"),
        Citation(
            "Treves & Rolls 1991, What determines the capacity of autoassociative memories", "Network 2:371"
        ),
        Citation("Universal Properties of Activation Sparsity (2025)", "https://arxiv.org/abs/2509.00454"),
    ),
)
