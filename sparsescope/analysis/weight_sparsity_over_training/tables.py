"""Columns of the tables of ``weight_sparsity_over_training``."""

from __future__ import annotations

from sparsescope.core.columns import Column
from sparsescope.core.tables import ends_of, with_interval

_STEP = Column("step", "step", "Optimizer step of the checkpoint.")
_CURVE = Column("curve", "label", "Criterion, and allocation where it is not uniform; 'Random' is the null.")
_RULE = Column(
    "rule", "label", "Tolerated rise of the loss: nats, or a share of what the checkpoint gains on chance."
)
_N = Column(
    "documents",
    "count",
    "Held-out documents, the independent units; of modular addition equations, a + b and b + a as one.",
)
_PAIRED = "its paired document-cluster bootstrap interval"

TABLES: dict[str, tuple[Column, ...]] = {
    "per_checkpoint": (
        _STEP,
        *with_interval(Column("loss", "value", "Mean loss of the dense checkpoint.", "nats")),
        Column("accuracy", "fraction", "Share of targets that are the most probable token."),
        Column(
            "chance",
            "value",
            "Loss without knowledge on the same targets: of text the frequencies of tokens in other "
            "documents of the series, of modular addition log p.",
            "nats",
        ),
        Column("signal", "label", "'yes'; or why there is no drop point."),
        Column("documents", "count", _N.description),
        Column("tokens", "count", "Held-out targets."),
    ),
    "damage": (
        _STEP,
        _CURVE,
        Column(
            "asked",
            "fraction",
            "Sparsity that was asked for: the levels, and what halves the gap around a drop point.",
        ),
        Column("sparsity", "fraction", "Zeros of the masks / weights in scope, exact."),
        *with_interval(
            Column(
                "damage",
                "value",
                "Mean loss of the pruned checkpoint minus that of the dense one on the same targets; of "
                "random masks the mean over draws.",
                "nats",
            ),
            _PAIRED,
            "damage_",
        ),
        _N,
    ),
    "drop_points": (
        _STEP,
        _CURVE,
        _RULE,
        Column("tolerance", "value", "The same at this checkpoint.", "nats"),
        *(
            (at := Column("sparsity", "fraction", "Largest sparsity within the tolerance, isotonic fit.")),
            *ends_of(at, "its interval, an inverted bootstrap test"),
        ),
        Column("bracket", "fraction", "Distance between the two measured levels around it."),
        Column("censored", "label", "'no', or why there is no number, or only a bound."),
        Column("lowest", "value", "Smallest damage of any level: below 0 where pruning improves.", "nats"),
        Column("least_mask", "fraction", "Of random masks: the smallest drop point of one draw."),
        Column("most_mask", "fraction", "Of random masks: the largest drop point of one draw."),
        _N,
    ),
    "excess": (
        _STEP,
        _CURVE,
        _RULE,
        *with_interval(
            Column("excess", "value", "Drop point minus that of random masks on the same checkpoint."),
            _PAIRED,
        ),
        Column("bound", "label", "'no'; 'at least' or 'at most' where one of the two is only a bound."),
        _N,
    ),
    "abruptness": (
        _CURVE,
        _RULE,
        Column("checkpoints", "count", "Checkpoints with signal; 12 are needed."),
        Column("before", "value", "Checkpoint before the largest rise of the drop point.", "steps"),
        Column("after", "value", "Checkpoint after it.", "steps"),
        *with_interval(
            Column("jump", "value", "Drop point after it minus before it."), _PAIRED, "jump_"
        ),
        Column("resolution", "value", "Distances between the levels around both drop points, added."),
        *with_interval(
            Column("beyond_random", "value", "The same of the excess over random masks."), _PAIRED, "beyond_"
        ),
        Column("share", "fraction", "The jump / sum of all absolute changes between neighbors."),
        Column(
            "p_value",
            "value",
            "Chance of as large a share in a gradual course: independent increments (a gamma process in "
            "logarithmic steps), at the same checkpoints.",
        ),
        Column("verdict", "label", "'abrupt', 'not abrupt', or why nothing can be said."),
    ),
}  # fmt: skip
