"""Tables of ``convergent_learning``."""

from __future__ import annotations

from sparsescope.core.columns import Column

_PAIR = (
    Column(
        "pair", "label", "The two checkpoints: units of the second are looked for among those of the first."
    ),
    Column("kind", "group", "What differs: seeds, or checkpoints of one series."),
    Column("layer", "layer", "Layer."),
)

TABLES = {
    "pairs": (
        *_PAIR,
        Column("units_first", "count", "Units of the first that vary."),
        Column("units_second", "count", "Units of the second that vary."),
        Column("best", "value", "Mean over units of the second of the largest absolute correlation."),
        Column("best_null", "value", "The same with rows shifted against each other, mean over shifts."),
        Column("partner", "value", "Mean absolute correlation of the best one-to-one matching."),
        Column("partner_null", "value", "The same with rows shifted."),
        Column("cka", "value", "Linear centred kernel alignment of the two layers."),
        Column("cka_null", "value", "The same with rows shifted."),
        Column("svcca", "value", "Mean canonical correlation of the directions with 99 % of the variance."),
        Column("rows", "count", "Inputs."),
    ),
    "classes": (
        *_PAIR,
        Column("class", "group", "How a unit of the second is found among those of the first."),
        Column("share", "fraction", "Units of the class / units that are looked for."),
        Column("low", "fraction", "Lower end of its interval over units.", low_of="share"),
        Column("high", "fraction", "Upper end.", high_of="share"),
        Column("null_share", "fraction", "The same with rows shifted, mean over shifts."),
        Column("null_high", "fraction", "The largest of the shifts."),
        Column("p", "value", "Share of the shifts, the observed one included, that are as large."),
        Column("units", "count", "Units that are looked for."),
    ),
    "matched": (
        *_PAIR,
        Column("rank", "fraction", "Place of a unit, the best first / units."),
        Column("best", "value", "Largest absolute correlation, sorted."),
        Column("partner", "value", "Absolute correlation in the one-to-one matching, sorted."),
        Column("null", "value", "Largest absolute correlation with rows shifted, sorted, mean over shifts."),
    ),
    "predictors": (
        *_PAIR,
        Column("predictors", "count", "Units of the first that may be used."),
        Column("explained", "fraction", "Mean over units of the second of R^2 on rows that were not fitted."),
        Column("null", "fraction", "The same with rows shifted."),
        Column("dense", "fraction", "Mean of R^2 with all candidates."),
    ),
    "blocks": (
        *_PAIR,
        Column("blocks", "count", "Blocks of the co-clustering."),
        Column("within", "value", "Mean absolute correlation of pairs in one block."),
        Column("between", "value", "Of pairs in two blocks."),
        Column("within_null", "value", "Within blocks that are found with rows shifted."),
        Column(
            "truth_first",
            "value",
            "Adjusted mutual information of block and Fourier frequency, first; 0 is chance.",
        ),
        Column("truth_second", "value", "The same of the second."),
        Column("same_frequency", "fraction", "One-to-one partners whose dominant frequency is the same."),
        Column("same_frequency_null", "fraction", "The same for partners that are dealt at random."),
    ),
    "dictionaries": (
        *_PAIR,
        Column("way", "group", "One dictionary applied to both, or one trained on each."),
        Column("components", "count", "Features."),
        Column(
            "correlation", "value", "Mean correlation of a feature and its counterpart over the same rows."
        ),
        Column("null", "value", "The same with rows shifted."),
        Column("same", "fraction", "Share of the features with 0.7 or more."),
        Column("same_null", "fraction", "The same with rows shifted."),
    ),
}
