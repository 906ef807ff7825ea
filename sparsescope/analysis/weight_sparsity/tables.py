"""Columns of the tables of ``weight_sparsity``."""

from __future__ import annotations

from sparsescope.core.columns import Column
from sparsescope.core.tables import LAYER, ends_of, with_interval

CURVE = Column("curve", "label", "Criterion, allocation where it is not uniform, and pattern.")
KIND = Column(
    "kind", "label", "'zero-shot' (pruned, then measured) or 'fine-tuned' (trained on with the mask fixed)."
)
_PAIRED = "its paired document-cluster bootstrap interval"
_DAMAGE = Column(
    "damage",
    "value",
    "Mean loss of the pruned model minus that of the dense one on the same held-out tokens; of fine-tuned "
    "curves both are trained on for the same steps.",
    "nats",
)

_POINTS = (
    CURVE,
    Column("asked", "fraction", "Sparsity that was asked for."),
    Column("sparsity", "fraction", "Zeros of the masks / weights in scope, exact."),
    Column("density", "fraction", "1 - sparsity."),
    *with_interval(_DAMAGE, _PAIRED, "damage_"),
    Column("perplexity", "value", "exp of the mean loss in nats."),
    Column("accuracy", "fraction", "Share of targets that are the most probable token."),
    Column("retained", "fraction", "Sum of squares of the kept weights / of all, before any update."),
    Column("documents", "count", "Held-out documents; they are the independent units."),
    Column("tokens", "count", "Held-out target tokens."),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "curve": _POINTS,
    "finetuned": _POINTS,
    "drop_points": (
        CURVE,
        KIND,
        Column("tolerance", "value", "Rise of the loss that is tolerated.", "nats"),
        *(
            (at := Column("sparsity", "fraction", "Largest sparsity within the tolerance, isotonic fit.")),
            *ends_of(at, "its interval, see the notes"),
        ),
        Column("bracket", "fraction", "Distance between the two measured levels around it."),
        Column("censored", "label", "'no', or why the number is only a bound."),
        Column(
            "non_inferior",
            "fraction",
            "Largest level up to which the upper limit of the damage stays below the tolerance.",
        ),
        Column(
            "detectable",
            "value",
            "Least damage that this text could tell from none there: 2.8 paired standard errors.",
            "nats",
        ),
        Column("documents", "count", "Held-out documents."),
    ),
    "detectors": (
        CURVE,
        KIND,
        *(
            (
                hinge := Column(
                    "hinge", "fraction", "Break of the two-line fit of the damage; NaN where none exists."
                )
            ),
            *ends_of(hinge, "its bootstrap interval", "hinge_"),
        ),
        Column("knee", "label", "Whether two lines fit better than one line and than a smooth curve (BIC)."),
        Column("kneedle", "fraction", "Kneedle, a cross-check: it moves with the end of the grid."),
        Column("grid_end", "fraction", "Largest measured sparsity, on which hinge and Kneedle depend."),
        Column("levels", "count", "Measured levels, the dense one included."),
    ),
    "comparisons": (
        Column("question", "label", "What was asked, fixed before measuring."),
        Column("first", "label", "Curve."),
        Column("second", "label", "Curve that it is compared with."),
        Column("asked", "fraction", "Sparsity of both."),
        *with_interval(
            Column("difference", "value", "Mean loss of the first minus that of the second.", "nats"), _PAIRED
        ),
        Column("verdict", "label", "'first is better', 'second is better', or 'not resolved'."),
        Column("documents", "count", "Held-out documents."),
    ),
    "per_matrix": (
        CURVE,
        LAYER,
        Column("role", "label", "Role of the matrix in its layer."),
        Column("matrix", "site", "Name of the matrix."),
        Column("sparsity", "fraction", "Share of zeros at the level at which criteria are compared."),
        Column("retained", "fraction", "Sum of squares of the kept weights / of all."),
        Column("oracle", "fraction", "The most that any mask of this sparsity and pattern retains."),
    ),
    "zeros": (
        CURVE,
        LAYER,
        Column("role", "label", "Role of the matrix in its layer; of experts the mean over them."),
        Column("sparsity", "fraction", "Share of zeros at the level at which criteria are compared."),
    ),
    "overlap": (
        Column("first", "label", "Curve, and its level where two levels are compared."),
        Column("second", "label", "Curve."),
        Column("agreement", "fraction", "Share of weights on which the masks agree."),
        Column("kappa", "value", "Agreement corrected for chance, matrix by matrix: 0 chance, 1 equal."),
        Column("jaccard", "fraction", "Weights that both remove / weights that one of them removes."),
        Column("by_chance", "fraction", "The same of independent masks of these sparsities."),
    ),
    "reconstruction": (
        LAYER,
        Column("role", "label", "Role of the matrix in its layer."),
        Column("matrix", "site", "Name of the matrix."),
        Column("masked", "fraction", "||(M o W - W) X||^2 / ||W X||^2, the mask without any update."),
        Column("error", "fraction", "||(W' - W) X||^2 / ||W X||^2 of SparseGPT."),
        Column("floor", "fraction", "The least that any weights with this mask reach (least squares)."),
        Column("rows", "count", "Rows of the matrix on which all three are computed, evenly spread."),
    ),
    "cost": (
        CURVE,
        Column("asked", "fraction", "Sparsity."),
        Column("seconds", "seconds", "Time to prune, calibration included.", "s"),
        Column("memory", "bytes", "Statistics and hidden states held at once.", "bytes"),
        Column("damage", "value", "Rise of the loss.", "nats"),
    ),
    "scope": (
        Column("part", "label", "Part of the model."),
        Column("weights", "count", "Parameters, each storage once."),
        Column("in_scope", "label", "Whether it is pruned."),
    ),
}
