"""Which features are near each other: in direction, and by firing on the same tokens; and a map.

Shapes: directions [F, d]; F features; P tokens.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.core.feature_store import FeatureStore

COUNT = 5
MOST_ON_MAP = 6000
LEAST_TOGETHER = 5
"""Tokens on which two features must fire together to be called neighbours."""
_TILE = 512


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest features of each.

    Attributes:
        features: int32 [F, COUNT], -1 where there are fewer.
        values: float32 [F, COUNT], cosine or Jaccard index.
    """

    features: NDArray[np.int32]
    values: NDArray[np.float32]


def by_direction(directions: NDArray[np.float32], live: NDArray[np.bool_]) -> Neighbours:
    """Features with the largest cosines.

    Args:
        directions: [F, d].
        live: bool [F]; others are nobody's neighbours.
    """
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    units = directions / np.where(norms > 0, norms, 1)
    found = []
    for begin in range(0, len(units), _TILE):
        cosines = units[begin : begin + _TILE] @ units.T
        cosines[:, ~live] = -np.inf
        own = np.arange(len(cosines))
        cosines[own, begin + own] = -np.inf
        found.append(_largest(cosines))
    return _joined(found)


def by_firing(store: FeatureStore, thresholds: NDArray[np.float32], rows: int) -> Neighbours:
    """Features that fire on the same tokens, by the Jaccard index.

    Args:
        store: The activations.
        thresholds: float32 [F], above which features fire.
        rows: Tokens looked at, from the beginning of the text, in whole shards.
    """
    parts: list[scipy.sparse.csr_array] = []
    for codes, begin in store.shards():
        if parts and begin >= rows:
            break
        counts = np.diff(codes.indptr)
        fires = codes.data > np.repeat(np.maximum(thresholds, 0), counts)
        columns = np.repeat(np.arange(codes.shape[1]), counts)[fires]
        shape = codes.shape
        ones = np.ones(len(columns), np.float32)
        parts.append(scipy.sparse.coo_array((ones, (codes.indices[fires], columns)), shape).tocsr()[:rows])
    whole = scipy.sparse.vstack(parts, format="csc")
    sizes = np.asarray(whole.sum(0)).ravel()
    turned = whole.T.tocsr()
    found = []
    for begin in range(0, whole.shape[1], _TILE):
        both = (turned[begin : begin + _TILE] @ whole).toarray()
        union = sizes[begin : begin + len(both), None] + sizes - both
        jaccard = np.where(both >= LEAST_TOGETHER, both / np.maximum(union, 1), -np.inf)
        own = np.arange(len(both))
        jaccard[own, begin + own] = -np.inf
        found.append(_largest(jaccard))
    return _joined(found)


def counterparts(first: FeatureStore, second: FeatureStore, rows: int) -> Neighbours:
    """Features of another dictionary that are active alike, by Pearson's correlation over the same tokens.

    Args:
        first: Activations of one dictionary.
        second: Those of another, on the same text.
        rows: Tokens looked at, from the beginning of the text, in whole shards.

    Returns:
        For each feature of the first the nearest of the second; pairs that are active together on fewer than
        ``LEAST_TOGETHER`` tokens are no neighbours: rare features correlate by chance.
    """
    one, two = (_beginning(store, rows) for store in (first, second))
    both = first.counted[: one.shape[0]] & second.counted[: one.shape[0]]
    one, two = one.tocsr()[both], two.tocsr()[both].tocsc()
    tokens = max(1, int(both.sum()))
    turned = one.T.tocsr()
    alike = (turned != 0).astype(np.float32), (two != 0).astype(np.float32)
    means = [np.asarray(part.mean(0)).ravel() for part in (one, two)]
    spreads = [
        np.sqrt(np.maximum(np.asarray(part.multiply(part).mean(0)).ravel() - mean**2, 0))
        for part, mean in zip((one, two), means, strict=True)
    ]
    found = []
    for begin in range(0, one.shape[1], _TILE):
        part = slice(begin, begin + _TILE)
        products = (turned[part] @ two).toarray() / tokens
        together = (alike[0][part] @ alike[1]).toarray()
        scale = spreads[0][part, None] * spreads[1]
        usable = (together >= LEAST_TOGETHER) & (scale > 0)
        r = (products - means[0][part, None] * means[1]) / np.where(usable, scale, 1)
        found.append(_largest(np.where(usable, r, -np.inf)))
    return _joined(found)


def _beginning(store: FeatureStore, rows: int) -> scipy.sparse.csr_array:
    """Codes of the first tokens, in whole shards, float64 [P, F]."""
    parts: list[scipy.sparse.csr_array] = []
    for codes, begin in store.shards():
        if parts and begin >= rows:
            break
        parts.append(codes.astype(np.float64).tocsr())
    return scipy.sparse.vstack(parts, format="csr")[:rows]


def _largest(values: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """The COUNT largest of each row, largest first; ties by number."""
    count = min(COUNT, values.shape[1])
    places = np.argpartition(-values, count - 1, axis=1)[:, :count]
    places.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, places, 1), axis=1, kind="stable")
    places = np.take_along_axis(places, order, 1)
    return places, np.take_along_axis(values, places, 1)


def _joined(found: list[tuple[NDArray[np.int64], NDArray[np.floating]]]) -> Neighbours:
    places, values = (np.concatenate(part) for part in zip(*found, strict=True))
    missing = ~np.isfinite(values)
    features = np.where(missing, -1, places).astype(np.int32)
    shown = np.where(missing, np.nan, values).astype(np.float32)
    gap = COUNT - features.shape[1]
    if gap > 0:
        features = np.pad(features, ((0, 0), (0, gap)), constant_values=-1)
        shown = np.pad(shown, ((0, 0), (0, gap)), constant_values=np.nan)
    return Neighbours(features, shown)


def flat_map(directions: NDArray[np.float32], live: NDArray[np.bool_], seed: int) -> NDArray[np.float32]:
    """Places of directions in two dimensions, by t-SNE of their cosines; NaN for what is not live.

    Args:
        directions: [F, d].
        live: bool [F]; the first ``MOST_ON_MAP`` of them are placed.
        seed: Of the optimization.

    Returns:
        float32 [F, 2].
    """
    from sklearn.manifold import TSNE

    out = np.full((len(directions), 2), np.nan, np.float32)
    chosen = np.flatnonzero(live)[:MOST_ON_MAP]
    if len(chosen) < 8:
        return out
    rows = directions[chosen]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        placed = TSNE(
            perplexity=perplexity, init="pca", metric="euclidean", random_state=seed, max_iter=500
        ).fit_transform(rows)
    out[chosen] = placed
    return out
