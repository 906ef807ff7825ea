"""Parameters and tables of ``pathways``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sparsescope.core.columns import Column
from sparsescope.core.onset_tables import ONSET_TABLES, SERIES
from sparsescope.core.spec import Params
from sparsescope.core.tables import LAYER, with_interval


class PathwaysParams(Params):
    """Parameters of ``pathways``."""

    seeds: tuple[Annotated[str, Field(min_length=1, max_length=300)], ...] = Field(
        (),
        description="Further series of the same recipe (other seeds), by name or folder: leads and swap test "
        "are over series.",
        max_length=20,
        json_schema_extra={"role": "series"},
    )
    samples: int = Field(256, ge=8, le=4096, description="Most samples of each group.")
    sample_tokens: int = Field(64, ge=3, le=4096, description="Tokens of a sample of text; all have as many.")
    positions: Literal["scored", "all"] = Field(
        "scored",
        description="Tokens whose routing makes the profile: those where a loss is taken (of pairs the "
        "last), "
        "or all after the first.",
    )
    tau: float = Field(
        0.7, gt=0, lt=1, description="A pathway keeps the fewest experts that hold this share of the weight."
    )
    unit: Literal["expert", "character"] = Field(
        "expert", description="What is edited: experts, or characters of the written pathway."
    )
    weights: Literal["softmax", "renormalized"] = Field(
        "softmax",
        description="Weights of a mixture: probabilities over all experts, or weights of the chosen ones "
        "brought to a sum of 1.",
    )
    partition: Literal["alike", "neighbors"] = Field(
        "alike",
        description="Blocks of a dense layer: neurons with alike input weights (balanced k-means), "
        "or neighbors.",
    )
    blocks: int = Field(16, ge=2, le=1024, description="Blocks of neurons of a dense layer.")
    partition_from: Literal["memorized", "last"] = Field(
        "memorized",
        description="Checkpoint whose weights make the blocks: the first from t_mem on, or the last, which "
        "looks ahead.",
    )
    random_partitions: int = Field(
        3, ge=0, le=50, description="Random partitions of a dense model: the null."
    )
    least_samples: int = Field(30, ge=2, description="Samples that a group needs.")
    eps: float | None = Field(
        None,
        gt=0,
        description="Largest loss of a memorized sample, in nats; chosen by memorized_share when left out.",
    )
    delta: float = Field(0.05, gt=0, description="Largest distance of its loss from its last one, in nats.")
    memorized_share: float = Field(
        0.225, gt=0, lt=1, description="Share of the training samples that eps is chosen for."
    )
    null_draws: int = Field(20, ge=2, le=1000, description="Draws of each null of pathways.")
    permutations: int = Field(99, ge=19, le=10_000, description="Labels of samples dealt anew.")
    resamples: int = Field(300, ge=50, le=10_000, description="Bootstrap resamples of the units of samples.")
    draws: int = Field(
        2000, ge=100, le=100_000, description="Monotone surrogates, permutations and planted links."
    )
    accuracy: float = Field(0.99, gt=0, le=1, description="Accuracy that must be held for t_mem and t_gen.")
    logs: int = Field(3, ge=1, le=50, description="Consecutive logs that must hold it.")
    level: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of samples, nulls, resamples and surrogates.")


_STEP = Column("step", "step", "Optimizer step of the checkpoint.")
_GROUP = Column(
    "group", "group", "Samples: pairs that were trained on (train) or not (test), or windows of text."
)
_DISTANCE = "Mean edit distance of the pathways of two samples, of different units"
_OVER_UNITS = "the bootstrap interval over units of samples"


def _value(name: str, description: str, unit: str = "") -> Column:
    return Column(name, "value", description, unit)


_MEASURES: tuple[Column, ...] = (
    _value("loss", "Mean loss of the samples.", "nats"),
    Column("accuracy", "fraction", "Share of right predictions."),
    *with_interval(
        _value("distance", f"{_DISTANCE}, in the unit and of the weights of the run.", "edits"),
        _OVER_UNITS,
        "distance_",
    ),
    _value("distance_null", "The same of samples that draw their experts at the mean profile.", "edits"),
    _value("distance_z", "(distance - null) / standard deviation of the null over draws."),
    *with_interval(
        Column(
            "excess", "fraction", "(null - distance) / null: positive where samples are closer than that."
        ),
        _OVER_UNITS,
        "excess_",
    ),
    Column("normalized", "fraction", "Mean of the edit distance over the length of the longer pathway."),
    *with_interval(
        _value("weighted_jaccard", "Mean weighted Jaccard distance of profiles, over pairs and layers."),
        _OVER_UNITS,
        "jaccard_",
    ),
    *with_interval(
        _value("contrast", "Weighted Jaccard distance of pairs of two labels minus that of one label."),
        _OVER_UNITS,
        "contrast_",
    ),
    _value("contrast_p", "Share of labels dealt anew to units with as large a contrast, itself included."),
    _value("set_size", "Mean experts that a pathway keeps in a layer."),
    _value("path_entropy", "Mean entropy of a profile, over samples and layers.", "nats"),
    _value("effective_experts", "Mean of exp(entropy) of a profile."),
    *with_interval(
        _value(
            "smoothness",
            "Mean cosine of the mixed router rows of a layer and the next, rows less their mean: higher is "
            "smoother. NaN for one layer.",
        ),
        _OVER_UNITS,
        "smoothness_",
    ),
    _value("smoothness_null", "The same with the samples of each layer exchanged."),
    _value("smoothness_z", "(smoothness - null) / standard deviation of the null over draws."),
    _value(
        "roughness",
        "1 - mean / largest of the cosines of raw rows, the 'consistency' of arXiv 2506.21551: higher is "
        "rougher. NaN below four layers.",
    ),
    *with_interval(
        _value(
            "dimension",
            "Effective dimension tr H (H + lambda I)^-1 of the routing kernel H = P P^T, lambda = 0.01 tr H "
            "/ "
            "n; mean over layers, at most the number of experts.",
        ),
        "the jackknife interval over folds of units",
        "dimension_",
    ),
    _value("dimension_null", "The same with the weights of each expert exchanged among samples."),
    _value("dimension_z", "(dimension - null) / standard deviation of the null over draws."),
    Column("paths", "count", "Paths of first choices that tokens take."),
    _value(
        "effective_paths", "exp(entropy) of these paths, Miller-Madow; nears the tokens, whatever is routed."
    ),
    Column(
        "markov_gain",
        "fraction",
        "I(S_l; S_l+1) / H(S_l+1) of first choices, mean over layers: what a layer tells about the next.",
    ),
    Column("markov_null", "fraction", "The same with the tokens of each layer exchanged."),
    Column("samples", "count", "Samples."),
    Column("units", "count", "Independent units: pairs with a + b and b + a as one, or documents."),
)
_WEIGHTS = Column("weights", "label", "softmax or renormalized; mass of blocks of neurons in a dense model.")
_MEASURE = Column("measure", "metric", "The measure.")

TABLES: dict[str, tuple[Column, ...]] = {
    "checkpoints": (
        SERIES,
        Column("own", "label", "'yes' for the series under study, 'no' for further ones."),
        _STEP,
        _GROUP,
        *_MEASURES,
    ),
    "variants": (
        SERIES,
        _STEP,
        _GROUP,
        _WEIGHTS,
        Column("unit", "label", "What is edited: experts, or characters of the written pathway."),
        _value("distance", f"{_DISTANCE}.", "edits"),
        _value("null_mean", "The same of samples that draw their experts at the mean profile.", "edits"),
        _value("z", "(distance - null_mean) / standard deviation of the null."),
        Column("excess", "fraction", "(null_mean - distance) / null_mean."),
        Column("normalized", "fraction", "Mean over the length of the longer pathway."),
        _value("set_size", "Mean experts that a pathway keeps in a layer."),
    ),
    "labels": (
        SERIES,
        _STEP,
        _GROUP,
        _MEASURE,
        _value("same", "Mean distance of pairs of one label: the same answer, or domain."),
        _value("other", "Mean distance of pairs of two labels."),
        *with_interval(
            _value("difference", "other - same: positive where one label means a closer path."), _OVER_UNITS
        ),
        _value("z", "(difference - mean) / standard deviation over labels dealt anew to units."),
        _value("p", "Share of these with as large a difference, itself included."),
    ),
    "layers": (
        _STEP,
        _GROUP,
        LAYER,
        _value("distance", "Mean edit distance of this layer alone.", "edits"),
        _value("set_size", "Mean experts that a pathway keeps."),
        _value("path_entropy", "Mean entropy of a profile.", "nats"),
        _value("effective_experts", "Mean of exp(entropy) of a profile."),
        _value("participation", "(tr H)^2 / tr H^2 of the routing kernel."),
        _value("stable_rank", "tr H / largest eigenvalue of it."),
    ),
    "dimensions": (
        _STEP,
        _GROUP,
        LAYER,
        Column("ridge", "value", "c of lambda = c tr H / n."),
        _value("dimension", "tr H (H + lambda I)^-1 of the routing kernel."),
    ),
    "memorized": (
        _value("memorized_at", "t*: checkpoint from which a training sample is memorized.", "steps"),
        Column("samples", "count", "Samples of this t*; groups below least_samples are left out."),
        _value("eps", "Largest loss of a memorized sample.", "nats"),
        _STEP,
        _value("relative", "step - t*.", "steps"),
        _value("distance", f"{_DISTANCE}.", "edits"),
        Column("excess", "fraction", "(null - distance) / null."),
        Column("normalized", "fraction", "Mean over the length of the longer pathway."),
    ),
    "random_partitions": (
        SERIES,
        _STEP,
        _MEASURE,
        _value("value", "The measure with the partition of the run."),
        _value("random_mean", "Mean over random partitions into blocks of the same sizes."),
        _value("random_sd", "Their standard deviation."),
    ),
    "flow": (
        _STEP,
        LAYER,
        Column("expert", "expert", "First choice in this layer."),
        Column("next_expert", "expert", "First choice in the next layer."),
        Column("share", "fraction", "Share of the tokens that go from one to the other."),
        Column("tokens", "count", "Tokens that do."),
    ),
    **ONSET_TABLES,
    "steady": ONSET_TABLES["correlations"],
    "swap": (
        _MEASURE,
        Column(
            "over",
            "label",
            "'all' checkpoints, or 'steady' ones: without leaps, at which the training accuracy is below the "
            "level again after t_mem.",
        ),
        Column("score", "label", "What it is correlated with."),
        Column("of", "label", "'values', or 'differences' between neighboring checkpoints."),
        _value("own", "Mean Pearson correlation with the score of the same series."),
        _value("other", "Mean with the scores of the other series, at the same steps."),
        _value("p", "Share of ways to deal the scores to the series that do as well; at least 1 / series!."),
        Column("series", "count", "Series."),
        Column("n", "count", "Checkpoints that all have, from the last t_mem on."),
    ),
    "power": (
        _MEASURE,
        Column("over", "label", "'all' checkpoints, or 'steady' ones, as of swap."),
        _value("strength", "Planted correlation of the increments of measure and score."),
        Column("differences", "fraction", "Share in which the correlation of the differences has p < 0.05."),
        Column(
            "beyond_trend",
            "fraction",
            "Share in which the correlation lies beyond 95 % of monotone surrogates.",
        ),
        Column("n", "count", "Checkpoints."),
    ),
    "foretelling": (
        _MEASURE,
        _value("spearman", "Rank correlation over series of the measure at t_mem and t_gen."),
        _value("p", "Its exact two-sided permutation p."),
        Column("series", "count", "Series that memorized and generalized."),
    ),
}
