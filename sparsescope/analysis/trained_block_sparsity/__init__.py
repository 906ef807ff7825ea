"""What trained block sparsity costs: models of small experts (BlockFFN) beside their dense twin.

Several series read the same held-out text with their last checkpoints: models whose MLP is made of small
experts that a router turns on (``mlp.router.hook_weights``), trained with losses of several strengths, and
models without such a router, the dense twins. What is saved is read off two sparsities. TLS is the share of
experts that a token does not use; CLS_n the share that none of n consecutive tokens uses, which is what
counts where weights are read once for several tokens. If tokens chose independently, each expert at its own
rate r_e, CLS_n were the mean of (1 - r_e)^n. The first token of a window is left out and chunks never cross
a window.

Trainings (seeds) are the independent units of what is said of a recipe, with Student's t; of one training
the documents are. A rise of the loss is paired: with the dense twin of the same seed, which read the same
batches.

Shapes: D documents, N tokens after the first of each window, L layers, E experts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Citation, View
from sparsescope.core.spec import Params
from sparsescope.core.tables import LAYER, with_interval

#: Chunk lengths that are measured; 1 is a single token.
LENGTHS = (1, 2, 4, 8, 16)


class TrainedBlockSparsityParams(Params):
    """Parameters of ``trained_block_sparsity``."""

    others: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = Field(
        (),
        description="Further series, of other strengths and seeds and dense twins, by name or folder.",
        max_length=100,
        json_schema_extra={"role": "series"},
    )
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap resamples of documents.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of the resamples.")


_OVER_SEEDS = "the Student t interval over seeds; none for one seed"
_MODEL = Column("model", "label", "What was trained: strengths of the losses, or 'dense'.")
_SERIES = Column("series", "label", "Name of the series.")
_LOSS = Column("loss", "value", "Cross-entropy of the tokens after the first of each window.", "nats")
_INCREASE = Column(
    "increase",
    "fraction",
    "Loss over that of the dense twin of the same seed, minus 1; NaN where there is no such twin.",
)
_TOKEN = Column("token_sparsity", "fraction", "TLS: share of experts that a token does not use.")
_CHUNK = Column("chunk_sparsity", "fraction", "CLS_8: share that none of 8 consecutive tokens uses.")
_INDEPENDENT = Column(
    "independent", "fraction", "Null of CLS_8: independent tokens, mean over experts of (1 - r_e)^8."
)
_EXCESS = Column("excess", "fraction", "CLS_8 minus that of independent tokens: what order adds.")
_REUSE = Column("reuse", "fraction", "Share of the experts of a token that the next token uses too.")
_REUSE_NULL = Column(
    "reuse_independent", "fraction", "Null of reuse: independent tokens, sum of r_e^2 / sum of r_e."
)
_DEAD = Column("dead", "count", "Experts of all layers that no token of the text uses.")
_OWN = Column("own", "label", "'yes' for the series under study, 'no' for further ones.")
_PARAMETERS = Column("parameters", "count", "Weights of the model, those of routers included.")

TABLES: dict[str, tuple[Column, ...]] = {
    "models": (
        _MODEL,
        Column("seeds", "count", "Series of this model, n; they are the independent units."),
        _PARAMETERS,
        *with_interval(_LOSS, _OVER_SEEDS),
        *with_interval(_INCREASE, f"{_OVER_SEEDS}, paired", "increase_"),
        Column("pairs", "count", "Seeds that the model and its dense twin both have."),
        *with_interval(_TOKEN, _OVER_SEEDS, "token_"),
        *with_interval(_CHUNK, _OVER_SEEDS, "chunk_"),
        _INDEPENDENT,
        *with_interval(_EXCESS, _OVER_SEEDS, "excess_"),
        _REUSE,
        _REUSE_NULL,
        Column("dead", "value", "Experts of all layers that no token uses, mean over seeds.", "experts"),
    ),
    "runs": (
        _SERIES,
        _MODEL,
        Column("seed", "label", "Seed of the training; 'not known' for series of other trainers."),
        Column("step", "step", "Optimizer step of the last checkpoint, which is measured."),
        _PARAMETERS,
        *with_interval(_LOSS),
        *with_interval(_INCREASE, "the paired document-cluster bootstrap interval", "increase_"),
        *with_interval(_TOKEN, prefix="token_"),
        *with_interval(_CHUNK, prefix="chunk_"),
        _INDEPENDENT,
        *with_interval(_EXCESS, prefix="excess_"),
        _REUSE,
        _REUSE_NULL,
        _DEAD,
        Column("experts", "count", "Experts of all layers; 0 of a dense twin."),
        Column("tokens", "count", "Tokens after the first of each window."),
        Column("documents", "count", "Documents behind the intervals."),
    ),
    "chunks": (
        _SERIES,
        _MODEL,
        _OWN,
        Column("length", "count", "Consecutive tokens of a chunk, n."),
        *with_interval(
            Column(
                "sparsity", "fraction", "CLS_n: share of experts that none of n tokens uses; TLS for n = 1."
            )
        ),
        Column("independent", "fraction", "Null: independent tokens, mean over experts of (1 - r_e)^n."),
        Column("alike", "fraction", "Null: independent tokens, all experts used alike, TLS^n."),
        Column("chunks", "count", "Whole chunks."),
    ),
    "layers": (
        _SERIES,
        _MODEL,
        _OWN,
        LAYER,
        *with_interval(_TOKEN, prefix="token_"),
        *with_interval(_CHUNK, prefix="chunk_"),
        _INDEPENDENT,
        _REUSE,
        Column("dead", "count", "Experts of this layer that no token of the text uses."),
    ),
}

ANALYSIS = Analysis(
    name="trained_block_sparsity",
    place=119,
    version="1",
    title="Trained block sparsity",
    summary="What models of small experts with trained sparsity lose against a dense twin, and how many "
    "experts tokens and chunks of tokens need.",
    params=TrainedBlockSparsityParams,
    compute="sparsescope.analysis.trained_block_sparsity.compute",
    view_module="sparsescope.analysis.trained_block_sparsity.views",
    views=(
        View(
            "trade_off",
            "Loss against sparsity",
            "Loss on the text against TLS (left) and CLS_8 (right), a dot for each model: means over seeds, "
            "with Student's t where there are several; ticks are single trainings. Dashed: the dense twin, "
            "its interval shaded. Triangles: CLS_8 of independent tokens, each expert at its own rate.",
            table="models",
            formula="TLS = mean share of experts with weight 0;  CLS_8 = with weight 0 on 8 tokens in a row",
            citation="Song et al. 2025, arXiv:2507.08771",
        ),
        View(
            "chunks",
            "Experts that a chunk does not need",
            "Share of experts that none of n consecutive tokens uses, a line for each training, the first "
            "one thick. Dashed: the first one with independent tokens, each expert at its own rate.",
            table="chunks",
            formula="CLS_n;  null: mean over experts of (1 - r_e)^n",
            citation="Song et al. 2025, arXiv:2507.08771",
        ),
    ),
    tables=TABLES,
    statements="sparsescope.analysis.trained_block_sparsity.statements",
    headline=(
        "loss_increase",
        "token_sparsity",
        "chunk_sparsity_8",
        "chunk_sparsity_8_excess",
        "reuse",
        "dead_experts",
    ),
    inputs=("series*", "text"),
    unit="series",
    requires=frozenset({"small_experts"}),
    presets={"quick": {"resamples": 300}},
    citations=(Citation("Song et al. 2025, BlockFFN", "https://arxiv.org/abs/2507.08771"),),
)
