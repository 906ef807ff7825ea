"""Activation reuse: how far consecutive tokens use the same units.

Weights that are read for several tokens (a chunk, a batch) are needed for the union of the active units. If
tokens chose their units independently, the union would grow to almost every unit; how much less it grows is
reuse. Two nulls say what independence gives: all units alike, and each unit at its own rate. Active means not
exactly zero, or in the smallest set that holds a share of the energy. Chunks never cross a window; the first
token of a window is left out. Of a mixture, the hidden units of all experts of a layer are its units, active
only on tokens that were sent to their expert; beside them stands the reuse of the experts themselves.
Shapes: sets of units, one for each token and rule.
"""

from __future__ import annotations

from pydantic import Field

from sparsescope.activations.bound_table import COLUMNS as BOUNDS
from sparsescope.activations.hidden_layers import HIDDEN
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import JACKKNIFED, PLACE, with_interval


class ActivationReuseParams(Params):
    """Parameters of ``activation_reuse``."""

    sites: str | tuple[str, ...] = Field(
        HIDDEN,
        description="Sites to measure; of a mixture the default takes its hidden layers, all experts of a "
        "layer together.",
    )
    use_share: float = Field(
        0.9,
        gt=0,
        lt=1,
        description="A unit is in use on a token if it is in the set that holds this share of the energy.",
    )
    attended: float | None = Field(
        None,
        ge=0,
        description="Positions that a decoded token attends to, for the bounds; by "
        "default half of the context.",
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap and of the permuted orders.")


_PLACE = (
    *PLACE,
    # A third rule, 'routed', is that of experts as units; a note of the runs that have it says so.
    Column("rule", "label", "When a unit counts as active: 'nonzero' or 'in use' (in the energy set)."),
)
_DOCUMENTS = Column("documents", "count", "Documents behind the row; they are the independent units.")


def _fraction(
    name: str, description: str, prefix: str = "", clause: str = " of the mean"
) -> tuple[Column, Column, Column]:
    """A share of units or an overlap with its bootstrap interval."""
    return with_interval(Column(name, "fraction", description), prefix=prefix, clause=clause)


TABLES: dict[str, tuple[Column, ...]] = {
    "union_density": (
        *_PLACE,
        Column("chunk", "count", "Consecutive tokens in a chunk, k."),
        *_fraction("mean", "Share of units that are active on any token of a chunk, mean over whole chunks."),
        Column(
            "independent",
            "fraction",
            "Null: independent tokens, all units active at the mean rate s of the layer.",
        ),
        Column(
            "marginal",
            "fraction",
            "Null: independent tokens, each unit at its own rate p_j (over all tokens but first ones).",
        ),
        *with_interval(
            Column("ratio", "value", "mean / marginal: below 1 where consecutive tokens reuse units."),
            "the jackknife interval of the ratio, over folds of documents",
            "ratio_",
        ),
        Column("chunks", "count", "Whole chunks."),
        _DOCUMENTS,
    ),
    "chunk_sparsity": (
        *_PLACE,
        *_fraction(
            "token_sparsity",
            "Token-level sparsity: 1 - share of units active on a token.",
            "token_",
            " of token_sparsity",
        ),
        *_fraction(
            "chunk_sparsity",
            "Chunk-level sparsity: 1 - share of units active on any of 8 consecutive tokens.",
            "chunk_",
            " of chunk_sparsity",
        ),
        _DOCUMENTS,
    ),
    "aggregated": (
        *_PLACE,
        Column("tokens", "count", "First tokens of a window (after its very first one), t."),
        *_fraction("mean", "Share of units that none of the first t tokens uses, mean over windows."),
        Column("independent", "fraction", "Null: (1 - s)^t."),
        Column("marginal", "fraction", "Null: mean over units of (1 - p_j)^t."),
        Column("ratio", "value", "mean / marginal: above 1 where a text keeps to its units."),
        Column("windows", "count", "Windows of at least t tokens."),
        _DOCUMENTS,
    ),
    "neighbors": (
        *_PLACE,
        *_fraction("mean", "Jaccard index of the sets of two consecutive tokens, mean over pairs."),
        *_fraction(
            "within",
            "Null: the same for tokens of the document in random order (a sample of each document).",
            "within_",
            " of within",
        ),
        Column(
            "across",
            "fraction",
            "Null: the same for tokens of different documents in random order (a sample of all).",
        ),
        *_fraction(
            "excess",
            "mean - within: what the order of the tokens adds.",
            "excess_",
            " of the excess, document by document",
        ),
        Column("pairs", "count", "Pairs of consecutive tokens."),
        Column("across_pairs", "count", "Pairs of tokens of different documents."),
        _DOCUMENTS,
    ),
    "lorenz": (
        *_PLACE,
        Column("units_share", "fraction", "Share of the units, most used first."),
        Column("firings_share", "fraction", "Share of all firings that these units have."),
    ),
    "concentration": (
        *_PLACE,
        *with_interval(
            Column(
                "gini", "fraction", "Gini coefficient of the rates p_j: 0 where all units fire equally often."
            ),
            JACKKNIFED,
            "gini_",
        ),
        *with_interval(
            Column("hot_share", "fraction", "Smallest share of units that has 80 % of all firings."),
            JACKKNIFED,
            "hot_",
        ),
        Column("units", "count", "Units of the layer."),
        Column("tokens", "count", "Tokens after the first of each window."),
        _DOCUMENTS,
    ),
    "upper_bounds": BOUNDS,
    # Of mixtures only
    "load": (
        *PLACE,
        Column("expert", "expert", "Number of the expert."),
        Column("routed", "count", "Tokens that were sent to it."),
        Column("share", "fraction", "Share of the tokens that were sent to it."),
        Column("tokens", "count", "Tokens after the first of each window."),
    ),
}

ANALYSIS = Analysis(
    name="activation_reuse",
    place=20,
    version="1",
    title="Activation reuse",
    summary="How far consecutive tokens use the same units: unions over chunks, overlaps and "
    "hot units, with nulls.",
    params=ActivationReuseParams,
    compute="sparsescope.analysis.activation_reuse.compute",
    view_module="sparsescope.analysis.activation_reuse.views",
    views=(
        View(
            "union_density",
            "Units needed by a chunk of tokens",
            "Share of units that are active on any of k consecutive tokens, against k: thin lines are "
            "layers, the thick line is the median layer. Dotted: independent tokens with all units "
            "alike; dashed: independent tokens, each unit at its own rate. The distance between dashed "
            "and thick is reuse by neighbours; that between dotted and dashed only says that some units "
            "are used more than others. Of a mixture, units are those of all experts of a layer; a panel of "
            "its own counts experts.",
            table="union_density",
            formula="d_k = mean over chunks of |union of k sets| / n;  nulls 1 - (1 - s)^k and "
            "mean_j 1 - (1 - p_j)^k",
            citation="BlockFFN, arXiv:2507.08771; Mirzadeh et al. 2023, arXiv:2310.04564",
        ),
        View(
            "neighbors",
            "Overlap of consecutive tokens",
            "Jaccard index of the sets of units of two consecutive tokens, by layer, with two nulls: tokens "
            "of the same document in random order, and tokens of different documents. Above the first null, "
            "the order of the words matters; between the two, the document does.",
            table="neighbors",
            formula="J = |A and B| / |A or B|, mean over pairs of consecutive tokens",
        ),
        View(
            "lorenz",
            "Hot and cold units",
            "Share of all firings that the most used units have, one line for each layer. On the diagonal "
            "all units fire equally often. A steep start means that few units could be kept at hand.",
            table="lorenz",
            formula="L(q) = sum of the largest p_j over a share q of the units / sum of all p_j",
            citation="Gini 1912; Song et al. 2023 (PowerInfer), arXiv:2312.12456",
        ),
        View(
            "aggregated",
            "Units that a text never uses",
            "Share of units that none of the first t tokens of a window uses, against t, for the median "
            "layer, with the nulls of independent tokens. Above the dashed line, a text keeps to its units.",
            table="aggregated",
            formula="1 - |union of the first t sets| / n;  nulls (1 - s)^t and mean_j (1 - p_j)^t",
            citation="Mirzadeh et al. 2023, arXiv:2310.04564",
        ),
        View(
            "upper_bounds",
            "Upper bounds on weight bytes saved, by tokens together",
            "The most that skipping inactive units could take off the weight bytes read for one decoded "
            "token, when weights are read once for several consecutive tokens: the union of their units is "
            "needed. The dense model already shares its reading, so the share saved falls with the chunk. "
            "Batches of unrelated text need larger unions. A bound on bytes, not a speed.",
            table="upper_bounds",
            formula="as for one token, with the union density d_k in place of the density",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.activation_reuse.statements",
    headline=(
        "token_sparsity_nonzero",
        "chunk_sparsity_nonzero",
        "token_sparsity_in_use",
        "chunk_sparsity_in_use",
        "union_ratio_8_in_use",
        "neighbor_overlap_in_use",
        "hot_share_in_use",
    ),
    requires=frozenset({"hidden_units"}),
    citations=(
        Citation("Mirzadeh et al. 2023, ReLU Strikes Back", "https://arxiv.org/abs/2310.04564"),
        Citation("Song et al. 2025, BlockFFN", "https://arxiv.org/abs/2507.08771"),
    ),
)
