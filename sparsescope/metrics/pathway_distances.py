"""How far two samples are apart in the experts that they use.

Of profiles: weighted Jaccard (Ruzicka) 1 - sum min / sum max, which looks at all experts and has no
threshold, is the first choice; Hellinger, cosine, Jensen-Shannon (``information.jensen_shannon``). Of sets:
Jaccard; of ordered ones rank-biased overlap (Webber, Moffat & Zobel 2010, ACM TOIS 28:20) and Levenshtein, of
arXiv 2506.21551. That paper does not say whether the characters of the written pathway are edited or its
experts, which gives other numbers, so the unit is asked for. Levenshtein grows with the sets: the normalized
one is beside it. Pairs share samples, so they are not independent: samples are resampled (``pair_means``).

Shapes: profiles [..., E] broadcast; sets int [S, L, most], -1 where a set has ended; distances [S, S].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.information import shares

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]
    Sets = NDArray[np.int64]

PERSISTENCE = 0.9
_FIRST_SYMBOL = 0xE000  # code points from here on are all valid


def weighted_jaccard(p: ArrayLike, q: ArrayLike) -> Array:
    """1 - sum_e min(p, q) / sum_e max(p, q), in [0, 1]; NaN where both are zero.

    Example:
        >>> float(weighted_jaccard([0.5, 0.5, 0.0], [0.5, 0.0, 0.5]).round(4))
        0.6667
    """
    one, two = np.asarray(p, np.float64), np.asarray(q, np.float64)
    with np.errstate(invalid="ignore"):
        return 1 - np.minimum(one, two).sum(-1) / np.maximum(one, two).sum(-1)


def hellinger(p: ArrayLike, q: ArrayLike) -> Array:
    """sqrt(1 - sum_e sqrt(p q)), in [0, 1]; both are brought to a sum of 1.

    Example:
        >>> hellinger([[1, 1, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 1]]).round(6).tolist()
        [0.0, 1.0]
    """
    return np.sqrt(np.clip(1 - np.sqrt(shares(p) * shares(q)).sum(-1), 0, 1))


def cosine_distance(p: ArrayLike, q: ArrayLike) -> Array:
    """1 - cosine; NaN where one side is zero.

    Example:
        >>> cosine_distance([[2.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]).tolist()
        [0.0, 1.0]
    """
    one, two = np.asarray(p, np.float64), np.asarray(q, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (one * two).sum(-1) / (np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1))


def jaccard(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> Array:
    """1 - |A & B| / |A | B| of masks [..., E] (``routing_locality.expert_mask``); 0 where both are empty.

    Example:
        >>> jaccard(np.array([[True, True, False]]), np.array([[True, False, False]])).tolist()
        [0.5]
    """
    either = (one | two).sum(-1)
    return np.where(either > 0, 1 - (one & two).sum(-1) / np.maximum(either, 1), 0.0)


def hamming(one: NDArray[np.integer], two: NDArray[np.integer]) -> Array:
    """Share of layers whose first expert differs: [...] from paths [..., L].

    Example:
        >>> float(hamming(np.array([3, 1, 4, 1]), np.array([3, 1, 5, 1])))
        0.25
    """
    return (one != two).mean(-1)


def rank_biased(one: Sets, two: Sets, persistence: float = PERSISTENCE) -> Array:
    """1 - RBO of ordered sets, extrapolated beyond their ends (Webber et al. 2010, eq. 32).

    Args:
        one: int [..., n], ids in order, -1 where a set has ended.
        two: int [..., n'], of the same leading shape.
        persistence: p in (0, 1); first ranks count more, the less p is.

    Returns:
        [...], in [0, 1]: 0 for equal sets in equal order, 1 for disjoint ones; 1 where one of them is empty,
        0 where both are.

    Raises:
        SpecError: If ``persistence`` is out of range.

    Example:
        >>> rank_biased(np.array([[0, 1]] * 3), np.array([[0, 1], [1, 0], [2, 3]])).round(2).tolist()
        [0.0, 0.1, 1.0]
    """
    if not 0 < persistence < 1:
        raise SpecError("RBO is not defined", where="persistence", allowed="0 < p < 1", got=persistence)
    depth = max(one.shape[-1], two.shape[-1], 1)
    first, second = (
        np.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, depth - ids.shape[-1])], constant_values=-1)
        for ids in (one, two)
    )
    same = (first[..., :, None] == second[..., None, :]) & (first[..., :, None] >= 0)
    sums = same.cumsum(-1).cumsum(-2)
    common = np.concatenate([np.zeros((*sums.shape[:-2], 1)), np.diagonal(sums, axis1=-2, axis2=-1)], axis=-1)
    sizes = np.sort(np.stack([(first >= 0).sum(-1), (second >= 0).sum(-1)], axis=-1), axis=-1)
    short, long = sizes[..., :1], sizes[..., 1:]
    at_short = np.take_along_axis(common, short, axis=-1)
    at_long = np.take_along_axis(common, long, axis=-1)
    ranks = np.arange(1, depth + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        extended = np.where(ranks > short, at_short * (ranks - short) / short, 0.0)
        agreement = np.where(ranks <= long, (common[..., 1:] + extended) / ranks, 0.0)
        head = (1 - persistence) / persistence * (agreement * persistence**ranks).sum(-1)
        last = ((at_long - at_short) / long + at_short / short)[..., 0]
        distance = 1 - head - last * persistence ** long[..., 0]
    empty = sizes == 0
    return np.where(empty[..., 0], np.where(empty[..., 1], 0.0, 1.0), np.clip(distance, 0, 1))


def levenshtein(sets: Sets, unit: Literal["expert", "character"], *, normalized: bool = False) -> Array:
    """Edits that turn the pathway of a sample into that of each other one.

    Unit ``"expert"``: a symbol for each expert of each layer and one between two layers, as experts of one
    number in two layers have nothing in common. Unit ``"character"``: of the text ``3,1,5-4,2``, layers
    joined by hyphens.

    Args:
        sets: int [S, L, most]; of one layer [S, 1, most].
        unit: What is edited.
        normalized: Divide by the length of the longer of the two.

    Returns:
        [S, S], symmetric; normalized in [0, 1], 0 for two empty pathways.

    Raises:
        SpecError: If the unit is unknown.

    Example:
        >>> sets = np.array([[[3, 1], [14, -1]], [[3, 2], [4, 1]]])  # 3,1-14 and 3,2-4,1
        >>> float(levenshtein(sets, "expert")[0, 1])  # 1 > 2, 14 > 4, one more
        3.0
        >>> float(levenshtein(sets, "character")[0, 1])  # 1 > 2, then 1 > empty, then ",1"
        4.0
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    if unit not in ("expert", "character"):
        raise SpecError(
            "unknown unit of edits", where="unit", allowed=("expert", "character"), got=repr(unit)
        )
    written = _symbols(sets) if unit == "expert" else _characters(sets)
    found = np.asarray(cdist(written, written, scorer=Levenshtein.distance, dtype=np.int32), np.float64)
    if not normalized:
        return found
    lengths = np.array([len(text) for text in written])
    return found / np.maximum(np.maximum.outer(lengths, lengths), 1)


def pair_means(distances: ArrayLike, counted: NDArray[np.bool_], weights: ArrayLike) -> Array:
    """Mean distance over pairs in resamples of the samples; a pair counts by the product of their weights.

    Args:
        distances: [S, S], symmetric.
        counted: bool [S, S], symmetric: the pairs that count.
        weights: [B, S], of ``DocumentBootstrap.weights`` or ``statistics.bootstrap_weights``.

    Returns:
        [B]; NaN where no pair is drawn.

    Example:
        >>> distances, pairs = np.array([[0, 1, 3], [1, 0, 9], [3, 9, 0.0]]), ~np.eye(3, dtype=bool)
        >>> pair_means(distances, pairs, [[1, 1, 1], [1, 2, 0]]).round(2).tolist()
        [4.33, 1.0]
    """
    drawn = np.asarray(weights, np.float64)
    sums = ((drawn @ np.where(counted, distances, 0.0)) * drawn).sum(-1)
    with np.errstate(invalid="ignore"):
        return sums / ((drawn @ counted.astype(np.float64)) * drawn).sum(-1)


def _symbols(sets: Sets) -> list[str]:
    """A code point for each (layer, expert), and for the end of each layer but the last."""
    samples, layers, most = sets.shape
    experts = int(sets.max(initial=0)) + 1
    points = np.full((samples, layers, most + 1), experts)  # an end behind each layer
    points[..., :most] = sets
    points += np.where(points >= 0, _FIRST_SYMBOL + np.arange(layers)[:, None] * (experts + 1), 0)
    flat = points.reshape(samples, -1)[:, :-1].astype("<u4")
    there = (points >= 0).reshape(samples, -1)[:, :-1]
    return [row[kept].tobytes().decode("utf-32-le") for row, kept in zip(flat, there, strict=True)]


def _characters(sets: Sets) -> list[str]:
    names = [str(expert) for expert in range(int(sets.max(initial=0)) + 1)]
    return [
        "-".join([",".join([names[i] for i in layer if i >= 0]) for layer in sample])
        for sample in sets.tolist()
    ]
