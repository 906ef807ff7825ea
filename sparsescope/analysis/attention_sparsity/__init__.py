"""Attention sparsity: how few keys a query uses, where they are, and how many the model can do without.

A row is one query of one head in one window; it spreads a mass of 1 over the t keys that it may see.
Density of a row is the share of those keys that count, sparsity is 1 - density; both are always named. Rows
of the first position, of special tokens and with fewer than ``t_min`` keys are left out, except where a
table says otherwise.
Shapes: everything is counted by [document, layer, head]; documents are the independent units.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import LAYER, with_interval

Share = Annotated[float, Field(gt=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=1_000_000)]


class AttentionSparsityParams(Params):
    """Parameters of ``attention_sparsity``."""

    windows: int = Field(
        24,
        ge=1,
        description="Windows to measure, spread over domains and documents by the seed: "
        "first one of each document.",
    )
    t_min: int = Field(
        32, ge=2, description="Rows with fewer keys than this are only in the figure by length."
    )
    shares: tuple[Share, ...] = Field(
        (0.9, 0.95, 0.99), description="Shares p of top-p sets.", min_length=1, max_length=6
    )
    errors: tuple[Share, ...] = Field(
        (0.1, 0.2), description="Output errors that dropped keys may cause.", min_length=1, max_length=4
    )
    blocks: tuple[Literal[16, 32, 64, 128], ...] = Field((16, 64), description="Block sizes.", min_length=1)
    every: int = Field(
        8, ge=1, description="Output-aware measures and the normal null are taken on every n-th row."
    )
    dose_windows: int = Field(
        8, ge=0, description="Windows of the dose-response, the first of those chosen; 0 leaves it out."
    )
    dose_shares: tuple[Share, ...] = Field(
        (0.5, 0.8, 0.9, 0.95, 0.99), description="Shares that rule 'top-p' keeps."
    )
    dose_widths: tuple[Width, ...] = Field(
        (16, 64, 128, 192), description="Local windows that rule 'local' keeps."
    )
    dose_random: tuple[Share, ...] = Field(
        (0.95, 0.99),
        description="Shares whose top-p counts rule 'random' keeps, with keys drawn at random: the null.",
    )
    tolerance: float = Field(0.01, gt=0, lt=1, description="Rise of the perplexity that is tolerated.")
    chunk: Literal[128, 256, 512, 1024] = Field(256, description="Rows of attention that exist at a time.")
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(
        0, ge=0, description="Seed of the choice of windows, of the nulls and of the bootstrap."
    )

    @field_validator("shares", "errors", "blocks", "dose_shares", "dose_widths", "dose_random")
    @classmethod
    def _sorted_and_distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) != len(value) or len({percent_name(v) for v in value}) != len(value):
            raise ValueError("values must be distinct, shares at a resolution of 0.1 percentage points")
        return tuple(sorted(value))


def percent_name(share: float) -> str:
    """Name of a share in metric ids: 0.9 -> ``"90"``, 0.995 -> ``"99.5"``."""
    return f"{100 * share:.1f}".removesuffix(".0")


_HEAD = Column("head", "head", "Query head, counted from 0.")
_METRIC = Column("metric", "metric", "Measure; the formulas stand with the figures.")
_OVER_HEADS = with_interval(Column("mean", "fraction", "Mean over heads and rows."))
_REFERENCES = (
    Column(
        "uniform",
        "fraction",
        "The same measure of rows that spread their mass evenly over the keys they may see.",
    ),
    Column(
        "null",
        "fraction",
        "Null. Concentration measures: a row whose scores are normal quantiles with the row's own "
        "variance. Measures of place: the row's weights dealt at random to its keys (in expectation that "
        "is the uniform value).",
    ),
)
_N = (
    Column("rows", "count", "Rows (queries) behind the number; for measures of a whole window: windows."),
    Column("documents", "count", "Documents behind the number; they are the independent units."),
)
_SHARES_OF_HEAD = tuple(
    Column(name, "fraction", f"Mean share of the weights {where}.")
    for name, where in (
        ("first", "on the first key of the window"),
        ("previous", "on the key just before the query"),
        ("local", "on keys less than 16 away, the query itself included"),
    )
)

TABLES: dict[str, tuple[Column, ...]] = {
    "per_layer": (LAYER, _METRIC, *_OVER_HEADS, *_REFERENCES, *_N),
    "per_head": (
        LAYER,
        _HEAD,
        _METRIC,
        *with_interval(Column("mean", "fraction", "Mean over rows.")),
        *_REFERENCES,
        *_N,
    ),
    "in_keys": (
        LAYER,
        _METRIC,
        *with_interval(
            Column("mean", "value", "Mean over heads and rows: entropy in nats, all others in keys.")
        ),
        Column("uniform", "value", "The same of uniform rows."),
        Column(
            "null", "value", "The same of rows whose scores are normal quantiles with the row's own variance."
        ),
        *_N,
    ),
    "by_length": (
        LAYER,
        Column("position", "position", "Fewest keys of the bin.", "keys"),
        Column("position_end", "position", "Most keys of the bin.", "keys"),
        _METRIC,
        *_OVER_HEADS,
        *_REFERENCES,
        *_N,
    ),
    "heads": (
        LAYER,
        _HEAD,
        Column(
            "class",
            "label",
            "previous token: previous >= 50 %; else sink: first > 30 %; local: local >= 80 %; mixed.",
        ),
        *_SHARES_OF_HEAD,
        Column("sink_rate", "fraction", "alpha_1: mean weight on the first key over all rows of a window."),
        Column(
            "sink_rate_64",
            "fraction",
            "alpha_1 over the first 64 rows of windows that long; empty for encoders.",
        ),
        Column(
            "density_90",
            "fraction",
            "Mean share of the keys that hold 90 % of a row (or the share nearest to it).",
        ),
        Column("entropy_normalized", "fraction", "Mean of entropy / ln t."),
    ),
    "dose_response": (
        Column(
            "rule",
            "group",
            "Keys that a row keeps: 'top-p', 'local' (last w, first four), 'random' (as many as top-p).",
        ),
        Column("setting", "value", "Share p (top-p, random) or width w (local)."),
        Column(
            "sparsity", "fraction", "1 - kept pairs / pairs that may attend, over all layers, heads and rows."
        ),
        Column("density", "fraction", "Kept pairs / pairs that may attend."),
        Column("rise", "value", "Mean rise of the loss per token.", "nats"),
        Column("low", "value", "Lower end of the paired document bootstrap interval.", "nats", low_of="rise"),
        Column("high", "value", "Upper end.", "nats", high_of="rise"),
        Column("fitted", "value", "The rise after isotonic regression over the levels of the rule.", "nats"),
        Column("perplexity_ratio", "value", "exp(rise)."),
        Column("rows", "count", "Tokens whose loss was measured."),
        Column("documents", "count", "Documents behind the number."),
    ),
    "critical": (
        Column("rule", "group", "Which keys a row keeps."),
        Column("sparsity", "fraction", "Where the fitted rise reaches ln(1 + tolerance); empty if censored."),
        Column(
            "low",
            "fraction",
            "Lower end of the paired bootstrap interval; a censored resample counts as that end.",
            low_of="sparsity",
        ),
        Column("high", "fraction", "Upper end.", high_of="sparsity"),
        Column(
            "left_censored",
            "label",
            "yes: the smallest sparsity measured already costs more than the tolerance.",
        ),
        Column(
            "right_censored", "label", "yes: the largest sparsity measured costs no more than the tolerance."
        ),
        Column("smallest", "fraction", "Smallest sparsity measured."),
        Column("largest", "fraction", "Largest sparsity measured."),
        Column(
            "non_inferior", "fraction", "Largest sparsity up to which all upper ends are below the tolerance."
        ),
        Column("documents", "count", "Documents behind the number."),
    ),
}

_SINK = "Gu et al. 2024, arXiv:2410.10781"
_FRONTIER = "The Sparse Frontier 2025, arXiv:2504.17768"

ANALYSIS = Analysis(
    name="attention_sparsity",
    place=60,
    version="1",
    title="Attention sparsity",
    summary="How few keys a query uses, where they are (sinks, local windows, lines, blocks), and how "
    "many it can do without.",
    params=AttentionSparsityParams,
    compute="sparsescope.analysis.attention_sparsity.compute",
    view_module="sparsescope.analysis.attention_sparsity.views",
    views=(
        View(
            "entropy_grid",
            "Entropy of every head",
            "Normalized entropy of each head, averaged over rows: 1 is a row that spreads evenly over all "
            "keys it may see, 0 a row that looks at one key.",
            table="per_head",
            formula="h = -sum_j A_ij ln A_ij;  h / ln t,  t = keys that the row may see",
        ),
        View(
            "sink_grid",
            "Attention sink of every head",
            "Mean weight on the first key of the window. A head above 30 % counts as a sink head. A "
            "uniform causal row gives H_T / T, so the number falls with the window length T by itself: "
            "compare equal lengths only.",
            table="per_head",
            formula="alpha_1 = (1/T) sum_i A_i1 over all rows of a window;  Sink_eps = share of heads with "
            "alpha_1 > eps, eps = 0.3",
            citation=_SINK,
        ),
        View(
            "entropy_by_length",
            "Entropy against the number of keys",
            "Mean entropy (in nats) of rows with t keys, one line for each layer, against t. Dashed: uniform "
            "rows, ln t. Dotted: the null, rows whose scores are normal quantiles with the row's own "
            "variance. A line below the null owes its concentration to a few keys that stand out; a line on "
            "it only to the spread of the scores.",
            table="by_length",
            formula="h = -sum_j A_ij ln A_ij, averaged over rows with t in the bin",
        ),
        View(
            "coverage",
            "Keys that hold the mass, by layer",
            "Mean share of the keys that is needed for a given part of a row's mass, by layer, with the null "
            "(dotted: rows of normal scores with the same variance). A uniform row needs as many percent of "
            "its keys as of its mass.",
            table="per_layer",
            formula="k_p / t,  k_p = min{k: the k largest weights sum to at least p}",
        ),
        View(
            "output_error",
            "What the output needs",
            "Mass ignores how long the value vectors are. Left: relative error of the head's output when "
            "only the top-p set is kept, not rescaled. Right: share of the keys that must be kept so "
            "that the error stays within a level, keys being dropped in order of their contribution. "
            "Measured on every n-th row.",
            table="per_layer",
            formula="error = ||sum over dropped j of A_ij v_j|| / ||o_i||;  contribution = ||A_ij v_j||",
        ),
        View(
            "mass_profile",
            "Where the mass is",
            "Mean mass of a row by place, by layer: first key (sink), keys 2-4, previous key, the query "
            "itself, the rest of the keys less than 16 away, and everything else. Of rows with 20 keys or "
            "more the parts do not overlap.",
            table="per_layer",
            formula="sums of A_ij over keys j, averaged over rows and heads",
        ),
        View(
            "structure",
            "Vertical, slash and block structure",
            "Left: share of the mass on the 1 % heaviest columns (keys) and diagonals (distances) of a "
            "window, which vertical-slash methods keep. Right: share of the blocks that hold 95 % of the "
            "mass of each query block. Dotted: null, each row's weights dealt at random to its keys. Short "
            "windows have few blocks: at T = 256 and B = 64 only 10, and half a block row is always needed.",
            table="per_layer",
            formula="block density = sum over query blocks of the fewest key blocks with 95 % of the "
            "mass / causal block pairs",
            citation=_FRONTIER,
        ),
        View(
            "dose_response",
            "Loss against attention sparsity",
            "Rise of the loss when rows keep only some keys, in all layers, kept weights rescaled to sum to "
            "one. Rules use the weights themselves (top-p) or only positions (local); random keeps as many "
            "keys as top-p. Bands: paired document bootstrap. Diamonds: critical sparsity, where the "
            "isotonic fit reaches the tolerated rise.",
            table="dose_response",
            formula="sparsity = 1 - kept pairs / pairs that may attend;  critical: fitted "
            "rise = ln(1 + tolerance)",
            citation=_FRONTIER,
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.attention_sparsity.statements",
    headline=(
        "mean_entropy_normalized",
        "mean_density_top_90",
        "mean_sparsity_top_90",
        "share_sink_heads",
        "mean_share_local_16",
        "mean_density_output",
    ),
    requires=frozenset({"attention"}),
    presets={
        "quick": {
            "windows": 16,
            "dose_shares": (0.9, 0.95, 0.99),
            "dose_widths": (64, 192),
            "dose_random": (0.99,),
        },
    },
    citations=(
        Citation(
            "Gu et al. 2024, When Attention Sink Emerges in Language Models",
            "https://arxiv.org/abs/2410.10781",
        ),
        Citation(
            "The Sparse Frontier: Sparse Attention Trade-offs in Transformer LLMs (2025)",
            "https://arxiv.org/abs/2504.17768",
        ),
    ),
)
