"""What the pathways of one group of samples at one checkpoint measure, with intervals and nulls.

Shapes: S samples, L layers, E experts or blocks, B resamples; profiles [S, L, E]; pairs bool [S, S].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sparsescope.analysis.pathways.read import MASS, WEIGHTS
from sparsescope.metrics.estimates import DocumentBootstrap
from sparsescope.metrics.information import effective_number, entropy
from sparsescope.metrics.jackknife import FOLDS, fold_of, jackknife_interval
from sparsescope.metrics.null_comparison import NullComparison, against_null
from sparsescope.metrics.pathway_distances import levenshtein, pair_means, weighted_jaccard
from sparsescope.metrics.pathway_nulls import draw_margins, set_sizes, shuffle_layers
from sparsescope.metrics.pathways import (
    RIDGES,
    EffectiveDimension,
    consecutive_cosines,
    effective_dimension,
    roughness,
    routing_kernel,
    top_p_sets,
)
from sparsescope.metrics.statistics import mean_over_present
from sparsescope.metrics.token_paths import markov_gain, path_counts, transition_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.pathways import PathwaysParams
    from sparsescope.analysis.pathways.samples import Samples

    Array = NDArray[np.float64]
    Arrays = Mapping[str, NDArray[Any]]
Unit = Literal["expert", "character"]

UNITS: tuple[Unit, ...] = get_args(Unit)
RIDGE = RIDGES[1]  # of the number that stands for all ridges
_CELLS = 2**24  # of profiles of pairs that are compared at a time


@dataclass(frozen=True)
class Group:
    """The samples of a group and all that is drawn for them once, the same for every checkpoint.

    Attributes:
        name: Name of the group.
        rows: Places of its samples.
        label: [S].
        unit: [S], from 0.
        params: Parameters of the analysis.
    """

    name: str
    rows: NDArray[np.int64]
    label: NDArray[np.int64]
    unit: NDArray[np.int64]
    params: PathwaysParams

    @classmethod
    def of(cls, samples: Samples, name: str, params: PathwaysParams, rows: Any = None) -> Group:
        """A group of samples, or some of its rows."""
        rows = samples.rows(name) if rows is None else rows
        unit = np.unique(samples.unit[rows], return_inverse=True)[1]
        return cls(name, rows, samples.label[rows], unit, params)

    @property
    def units(self) -> int:
        """Independent units."""
        return int(self.unit.max(initial=-1)) + 1

    @cached_property
    def pairs(self) -> NDArray[np.bool_]:
        """Pairs of samples of different units."""
        return self.unit[:, None] != self.unit[None]

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """Of these, pairs of one label."""
        return self.pairs & (self.label[:, None] == self.label[None])

    @cached_property
    def bootstrap(self) -> DocumentBootstrap:
        """Resamples of units."""
        strata = np.zeros(self.units, np.int64)
        return DocumentBootstrap.draw(strata, self.params.resamples, self.params.seed, self.params.level)

    @cached_property
    def weights(self) -> Array:
        """How often each sample is drawn, [B, S]."""
        return self.bootstrap.weights[:, self.unit]

    @cached_property
    def permuted(self) -> list[NDArray[np.int64]]:
        """Labels dealt anew to units."""
        of_unit = np.zeros(self.units, np.int64)
        of_unit[self.unit] = self.label
        generator = np.random.default_rng(self.params.seed)
        return [generator.permutation(of_unit)[self.unit] for _ in range(self.params.permutations)]

    def ends(self, replicates: Array) -> tuple[float, float]:
        """Percentile interval of replicates, [B]."""
        low, high = self.bootstrap.ends(replicates)
        return float(low), float(high)

    def jackknife(self, value: Callable[[NDArray[np.bool_]], float]) -> tuple[float, float]:
        """Interval of a number that is no mean, from folds of units that are left out."""
        fold = np.array([fold_of(int(unit)) for unit in range(self.units)])[self.unit]
        left = np.array([value(fold != number) for number in range(FOLDS) if (fold == number).any()])
        whole = value(np.ones(len(fold), bool))
        low, high = jackknife_interval(np.asarray(whole), left, self.params.level)
        return float(low), float(high)


def kinds_of(arrays: Arrays) -> tuple[str, ...]:
    """Kinds of weights that a checkpoint has."""
    return (MASS,) if MASS in arrays else WEIGHTS


def kind_of(arrays: Arrays, params: PathwaysParams) -> str:
    """The kind of weights that the measures are taken of."""
    return MASS if MASS in arrays else params.weights


def jaccard_matrix(profiles: Array) -> Array:
    """Weighted Jaccard distance of all pairs, mean over layers: [S, S] from [S, L, E]."""
    step = max(1, _CELLS // max(profiles.size, 1))
    return np.concatenate(
        [
            weighted_jaccard(profiles[start : start + step, None], profiles[None]).mean(-1)
            for start in range(0, len(profiles), step)
        ]
    )


def mean_over(distances: Array, pairs: NDArray[np.bool_]) -> float:
    """Mean distance over pairs; NaN where there is none."""
    return float(distances[pairs].mean()) if pairs.any() else math.nan


def margin_null(group: Group, profiles: Array, sizes: NDArray[np.int64], unit: Unit) -> list[float]:
    """Mean distances of samples that draw their experts at the mean profile of the group."""
    generator, params = np.random.default_rng(group.params.seed), group.params
    whole = profiles.mean(0)
    draws = (draw_margins(whole, sizes, generator) for _ in range(params.null_draws))
    return [mean_over(levenshtein(sets, unit), group.pairs) for sets in draws]


@dataclass(frozen=True, slots=True)
class Distance:
    """Mean edit distance of a group beside its null.

    Attributes:
        matrix: [S, S].
        null: The comparison with samples at the margins.
        low, high: Interval of the mean.
        excess_low, excess_high: Interval of the reduction against the null, which counts as known.
        normalized: Mean of the distance over the length of the longer pathway.
        size: Mean experts of a set.
    """

    matrix: Array
    null: NullComparison
    low: float
    high: float
    excess_low: float
    excess_high: float
    normalized: float
    size: float


def distance_of(group: Group, profiles: Array, unit: Unit) -> Distance:
    """Edit distance of the pathways of a group; see ``metrics.pathway_distances``."""
    sets = top_p_sets(profiles, group.params.tau)
    matrix = levenshtein(sets, unit)
    sizes = set_sizes(sets)
    null = against_null(mean_over(matrix, group.pairs), margin_null(group, profiles, sizes, unit))
    replicates = pair_means(matrix, group.pairs, group.weights)
    low, high = group.ends(replicates)
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = group.ends(1 - replicates / null.mean if null.mean else np.full_like(replicates, np.nan))
    normalized = mean_over(levenshtein(sets, unit, normalized=True), group.pairs)
    return Distance(matrix, null, low, high, *excess, normalized, float(sizes.mean()))


@dataclass(frozen=True, slots=True)
class Contrast:
    """Distances of pairs of one label and of two; see ``contrast``."""

    same: float
    other: float
    low: float
    high: float
    null: NullComparison

    @property
    def difference(self) -> float:
        """Other - same: positive where samples of one label are closer."""
        return self.other - self.same


def contrast(group: Group, distances: Array) -> Contrast:
    """Compare pairs of one label with pairs of two, and with labels that are dealt anew to units."""
    other = group.pairs & ~group.same
    same_mean, other_mean = mean_over(distances, group.same), mean_over(distances, other)
    replicates = pair_means(distances, other, group.weights) - pair_means(
        distances, group.same, group.weights
    )
    total, count = distances[group.pairs].sum(), group.pairs.sum()
    draws = []
    for label in group.permuted:
        same = group.pairs & (label[:, None] == label[None])
        inside, n = distances[same].sum(), same.sum()
        draws.append((total - inside) / (count - n) - inside / n if 0 < n < count else math.nan)
    null = against_null(other_mean - same_mean, draws)
    return Contrast(same_mean, other_mean, *group.ends(replicates), null)


@dataclass(frozen=True, slots=True)
class Smooth:
    """Smoothness of a group with its interval, its null, and the roughness of the paper."""

    mean: float
    low: float
    high: float
    null: NullComparison
    roughness: float


def smooth_of(group: Group, profiles: Array, rows: Array) -> Smooth:
    """Smoothness of the samples of a group, of centered rows; roughness of raw ones.

    Null of the layers: the profiles of each layer are exchanged among the samples, so that the layers of a
    sample are not those of one sample.
    """
    nan = math.nan
    if profiles.shape[1] < 2 or not rows.shape[2]:
        return Smooth(nan, nan, nan, against_null(nan, []), nan)
    values = consecutive_cosines(profiles, rows).mean(-1)
    generator = np.random.default_rng(group.params.seed)
    draws = [
        float(np.nanmean(consecutive_cosines(shuffle_layers(profiles, generator), rows)))
        for _ in range(group.params.null_draws)
    ]
    replicates = (group.weights @ np.nan_to_num(values)) / (group.weights @ np.isfinite(values))
    rough = roughness(consecutive_cosines(profiles, rows, "raw"))
    known = rough[np.isfinite(rough)]
    return Smooth(
        float(np.nanmean(values)),
        *group.ends(replicates),
        against_null(float(np.nanmean(values)), draws),
        float(known.mean()) if len(known) else nan,
    )


@dataclass(frozen=True, slots=True)
class Dimension:
    """Effective dimension of the routing of a group, mean over layers."""

    layers: list[EffectiveDimension]
    low: float
    high: float
    null: NullComparison

    @property
    def mean(self) -> float:
        """At ``RIDGE``, mean over layers."""
        return _at_ridge(self.layers)


def _at_ridge(found: list[EffectiveDimension]) -> float:
    return float(np.mean([layer.dimensions[RIDGES.index(RIDGE)] for layer in found]))


def dimension_of(group: Group, profiles: Array) -> Dimension:
    """Effective dimension of the routing kernel, layer by layer.

    Null: the weights of each expert are exchanged among the samples on their own and profiles brought back to
    a sum of 1, which keeps how each expert is used and takes away what it is used with.
    """

    def layers(kept: Array) -> list[EffectiveDimension]:
        n, count, experts = kept.shape
        if experts < n:  # the same eigenvalues, of a smaller matrix
            duals = np.einsum("nle,nlf->lef", kept, kept)
            return [effective_dimension(dual, samples=n) for dual in duals]
        return [effective_dimension(routing_kernel(kept[:, layer])) for layer in range(count)]

    generator = np.random.default_rng(group.params.seed)
    draws = []
    for _ in range(group.params.null_draws):
        moved = generator.permuted(profiles, axis=0)
        sums = moved.sum(-1, keepdims=True)  # of weights of few experts a sample may be dealt none
        draws.append(_at_ridge(layers(moved / np.where(sums > 0, sums, 1))))
    found = layers(profiles)
    low, high = group.jackknife(lambda kept: _at_ridge(layers(profiles[kept])))
    return Dimension(found, low, high, against_null(_at_ridge(found), draws))


#: Columns of ``checkpoints`` in the order of ``values`` of ``measure_checkpoint``.
VALUES = (
    "loss", "accuracy", "distance", "distance_low", "distance_high", "distance_null", "distance_z", "excess",
    "excess_low", "excess_high", "normalized", "weighted_jaccard", "jaccard_low", "jaccard_high", "contrast",
    "contrast_low", "contrast_high", "contrast_p", "set_size", "path_entropy", "effective_experts",
    "smoothness", "smoothness_low", "smoothness_high", "smoothness_null", "smoothness_z", "roughness",
    "dimension", "dimension_low", "dimension_high", "dimension_null", "dimension_z", "paths",
    "effective_paths", "markov_gain", "markov_null", "samples", "units",
)  # fmt: skip
#: Measures that random partitions of the neurons have too, in the order of ``random``.
PARTITIONED = (
    "distance",
    "excess",
    "normalized",
    "weighted_jaccard",
    "contrast",
    "set_size",
    "effective_experts",
)


def measure_checkpoint(groups: Sequence[Group], arrays: Arrays, experts: int) -> dict[str, NDArray[Any]]:
    """Measure all groups at a checkpoint.

    Args:
        groups: The groups, G.
        arrays: From ``read.read_checkpoint``.
        experts: E.

    Returns:
        ``values`` [G, len(VALUES)]; ``variants`` [G, weights, units, 6]: distance, mean of the null, z,
        excess, normalized, size; ``contrasts`` [G, 2, 7] of edits and weighted Jaccard: same, other,
        difference and its ends, z, p; ``layers`` [G, L, 6]: distance, size, entropy, effective experts,
        participation, stable rank; ``dimensions`` [G, L, ridges]; ``random`` [R, len(PARTITIONED)] of the
        first group; ``flow`` [L - 1, E, E], tokens of all groups.
    """
    found = [_measure(group, arrays, experts) for group in groups]
    out = {name: np.stack([each[name] for each in found]) for name in found[0]}
    first = groups[0]
    drawn = [_partitioned(first, _exact(profiles[first.rows])) for profiles in arrays.get("random", ())]
    out["random"] = np.array(drawn).reshape(-1, len(PARTITIONED))
    out["flow"] = transition_counts(arrays["first"].astype(np.int64), experts)
    return out


def _partitioned(group: Group, profiles: Array) -> list[float]:
    distance, jaccard = distance_of(group, profiles, group.params.unit), jaccard_matrix(profiles)
    known = contrast(group, jaccard)
    return [
        distance.null.observed, distance.null.reduction, distance.normalized, mean_over(jaccard, group.pairs),
        known.difference, distance.size, float(effective_number(profiles).mean()),
    ]  # fmt: skip


def _measure(group: Group, arrays: Arrays, experts: int) -> dict[str, NDArray[Any]]:
    params, kind = group.params, kind_of(arrays, group.params)
    profiles = _exact(arrays[kind][group.rows])
    kinds = kinds_of(arrays)
    distances = {
        (name, unit): distance_of(group, _exact(arrays[name][group.rows]), unit)
        for name in kinds
        for unit in UNITS
    }
    distance, jaccard = distances[kind, params.unit], jaccard_matrix(profiles)
    edits, known = contrast(group, distance.matrix), contrast(group, jaccard)
    smooth = smooth_of(group, profiles, arrays["rows"].astype(np.float64))
    dimension = dimension_of(group, profiles)
    paths = arrays["first"][np.isin(arrays["owner"], group.rows)].astype(np.int64)
    counts = path_counts(paths)
    values = [
        float(arrays["loss"][group.rows].mean()), float(arrays["right"][group.rows].mean()),
        distance.null.observed, distance.low, distance.high, distance.null.mean, distance.null.z,
        distance.null.reduction, distance.excess_low, distance.excess_high, distance.normalized,
        mean_over(jaccard, group.pairs), *group.ends(pair_means(jaccard, group.pairs, group.weights)),
        known.difference, known.low, known.high, known.null.p_above, distance.size,
        float(entropy(profiles).mean()), float(effective_number(profiles).mean()),
        smooth.mean, smooth.low, smooth.high, smooth.null.mean, smooth.null.z, smooth.roughness,
        dimension.mean, dimension.low, dimension.high, dimension.null.mean, dimension.null.z,
        counts.distinct, counts.effective, *_markov(group, paths, experts), len(group.rows), group.units,
    ]  # fmt: skip
    variants = [
        [
            [d.null.observed, d.null.mean, d.null.z, d.null.reduction, d.normalized, d.size]
            for d in (distances[name, unit] for unit in UNITS)
        ]
        for name in kinds
    ]
    contrasts = [
        [c.same, c.other, c.difference, c.low, c.high, c.null.z, c.null.p_above] for c in (edits, known)
    ]
    sets = top_p_sets(profiles, params.tau)
    layers = [
        [
            mean_over(levenshtein(sets[:, [layer]], params.unit), group.pairs),
            float(set_sizes(sets[:, layer]).mean()),
            float(entropy(profiles[:, layer]).mean()),
            float(effective_number(profiles[:, layer]).mean()),
            found.participation,
            found.stable_rank,
        ]
        for layer, found in enumerate(dimension.layers)
    ]
    return {
        "values": np.array(values, np.float64),
        "variants": np.array(variants),
        "contrasts": np.array(contrasts),
        "layers": np.array(layers),
        "dimensions": np.stack([found.dimensions for found in dimension.layers]),
    }


def _markov(group: Group, paths: NDArray[np.int64], experts: int) -> tuple[float, float]:
    """Markov gain of the paths of tokens, mean over layers, and that of layers exchanged among the tokens."""
    if paths.shape[1] < 2:
        return math.nan, math.nan

    def gain(of: NDArray[np.int64]) -> float:
        return float(mean_over_present(markov_gain(transition_counts(of, experts)), axis=0))

    generator = np.random.default_rng(group.params.seed)
    draws = [gain(shuffle_layers(paths, generator)) for _ in range(group.params.null_draws)]
    return gain(paths), float(np.mean(draws))


def _exact(profiles: Any) -> Array:
    """Float64 profiles that add up to 1 again after they were kept in float32."""
    found = np.asarray(profiles, np.float64)
    return found / found.sum(-1, keepdims=True)
