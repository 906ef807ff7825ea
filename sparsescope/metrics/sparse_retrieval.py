"""Retrieval with sparse vectors: an inverted index, searched exactly or in part.

A unit of text (a window, a token) is a sparse vector of non-negative weights of terms (features of a
dictionary, or token types), a query another, and the score their inner product, as in learned sparse
retrieval (SPLADE, arXiv:2107.05720) and in BM25. Units stand in blocks; of each block and term the largest
weight is known, so that a block whose bound is below what was found needs no look (block-max pruning, Mallia
et al. 2024, arXiv:2405.01117). With ``alpha`` below 1 bounds are taken for smaller than they are: fewer
postings are read and results may be missed.

Shapes: U units; T terms; B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

BLOCK = 32
_AT_ONCE = 8  # blocks that are looked at before the bar is raised


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search found.

    Attributes:
        units: int64 [k], best first; equal scores in the order of the units.
        scores: float64 [k], above zero.
        postings: Entries of the index that were read.
        all_postings: Entries of the terms of the query.
    """

    units: NDArray[np.int64]
    scores: Array
    postings: int
    all_postings: int


class SparseIndex:
    """An inverted index.

    Args:
        weights: Sparse [U, T], not negative.
        block: Units of a block.

    Raises:
        SpecError: A weight is negative or not finite.

    Example:
        >>> index = SparseIndex(scipy.sparse.csr_array(np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])))
        >>> found = index.search([1.0, 1.0], k=2)
        >>> found.units.tolist(), found.scores.tolist(), found.postings
        ([1, 2], [3.0, 3.0], 4)
    """

    def __init__(self, weights: scipy.sparse.csr_array, block: int = BLOCK) -> None:
        if weights.nnz and not (np.isfinite(weights.data).all() and weights.data.min() >= 0):
            raise SpecError(
                "weights of an index are finite and not negative",
                where="SparseIndex",
                got=str(weights.data.min()),
            )
        self.postings = weights.tocsc().astype(np.float64)
        self.postings.sort_indices()
        self.n_units, self.n_terms = weights.shape
        self.block = block
        columns = np.repeat(np.arange(self.n_terms), np.diff(self.postings.indptr))
        keys = (self.postings.indices // block).astype(np.int64)
        # Entries of a term are in the order of the units, so those of a block follow one another
        order = columns * (self.n_units // block + 1) + keys
        begins = np.flatnonzero(np.diff(order, prepend=-1))
        largest = np.maximum.reduceat(self.postings.data, begins) if len(begins) else np.zeros(0)
        counts = np.diff(np.append(begins, len(order)))
        shape = (-(-self.n_units // block), self.n_terms)
        where = (keys[begins], columns[begins])
        self.largest = scipy.sparse.coo_array((largest, where), shape).tocsc()
        self._counts = scipy.sparse.coo_array((counts.astype(np.float64), where), shape).tocsc()
        self._rows = weights.tocsr().astype(np.float64)

    def search(self, query: ArrayLike, k: int = 10, alpha: float | None = None) -> Hits:
        """Find the units with the largest scores.

        Args:
            query: [T], not negative.
            k: How many.
            alpha: None reads every posting of the terms of the query. With block-max pruning, what bounds are
                multiplied with: 1 finds the same units.

        Raises:
            SpecError: The query does not fit, or a number is out of range.
        """
        q = np.asarray(query, np.float64).reshape(-1)
        if len(q) != self.n_terms or not np.isfinite(q).all() or (len(q) and q.min() < 0):
            raise SpecError(
                "a query has one finite weight, not negative, for each term",
                where="SparseIndex.search",
                allowed=f"[{self.n_terms}]",
                got=str(q.shape),
            )
        if k < 1 or (alpha is not None and not 0 < alpha <= 1):
            raise SpecError("out of range", where="SparseIndex.search", allowed="k >= 1, 0 < alpha <= 1")
        terms = np.flatnonzero(q)
        whole = int(np.diff(self.postings.indptr)[terms].sum())
        if alpha is None:
            scores = self.postings[:, terms] @ q[terms]
            return self._best(np.arange(self.n_units), np.asarray(scores).ravel(), k, whole, whole)
        return self._pruned(q, terms, k, alpha, whole)

    def _pruned(self, q: Array, terms: NDArray[np.int64], k: int, alpha: float, whole: int) -> Hits:
        """Blocks by their bounds, until none can hold a better unit."""
        bounds = np.asarray(self.largest[:, terms] @ q[terms]).ravel()
        sizes = np.asarray(self._counts[:, terms].sum(1)).ravel()
        order = np.argsort(-bounds, kind="stable")
        order = order[bounds[order] > 0]
        units, scores = np.empty(0, np.int64), np.empty(0)
        read = 0.0
        for begin in range(0, len(order), _AT_ONCE):
            blocks = order[begin : begin + _AT_ONCE]
            bar = np.partition(scores, len(scores) - k)[len(scores) - k] if len(scores) >= k else 0.0
            blocks = blocks[alpha * bounds[blocks] >= bar]
            if not len(blocks):
                break
            rows = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
            rows = np.sort(rows[rows < self.n_units])
            units = np.concatenate([units, rows])
            scores = np.concatenate([scores, np.asarray(self._rows[rows] @ q).ravel()])
            read += float(sizes[blocks].sum())
        return self._best(units, scores, k, int(read), whole)

    @staticmethod
    def _best(units: NDArray[np.int64], scores: Array, k: int, read: int, whole: int) -> Hits:
        positive = scores > 0
        units, scores = units[positive], scores[positive]
        order = np.lexsort((units, -scores))[:k]
        return Hits(units[order], scores[order], read, whole)


def bm25_weights(counts: scipy.sparse.csr_array, k1: float = 1.2, b: float = 0.75) -> scipy.sparse.csr_array:
    """Weights of BM25 (Robertson & Zaragoza 2009): idf times saturated counts; a query has counts of terms.

    Args:
        counts: Sparse [U, T], how often each token type occurs in each unit.
        k1: Saturation.
        b: How much the length of a unit counts.

    Example:
        >>> found = bm25_weights(scipy.sparse.csr_array(np.array([[1.0, 1.0], [1.0, 0.0]])))
        >>> bool(found[0, 1] > found[0, 0] > 0)  # the rarer type says more
        True
    """
    units = counts.shape[0]
    present = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log1p((units - present + 0.5) / (present + 0.5))
    lengths = np.asarray(counts.sum(1)).ravel()
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-12))
    rows = np.repeat(np.arange(units), np.diff(counts.indptr))
    data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + norm[rows])
    return scipy.sparse.csr_array((data, counts.indices, counts.indptr), shape=counts.shape)


def feature_weights(activations: scipy.sparse.csr_array, scales: ArrayLike) -> scipy.sparse.csr_array:
    """Weights of features: log(1 + activation / scale) times idf, saturated as in SPLADE.

    Args:
        activations: Sparse [U, T], the largest activation of each feature in each unit, not negative.
        scales: [T], a usual activation of each feature.

    Example:
        >>> found = feature_weights(scipy.sparse.csr_array(np.array([[1.0, 2.0], [1.0, 0.0]])), [1.0, 1.0])
        >>> bool(found[0, 1] > found[0, 0] > 0)
        True
    """
    scale = np.asarray(scales, np.float64)
    units = activations.shape[0]
    present = np.bincount(activations.indices, minlength=activations.shape[1])
    idf = np.log1p((units - present + 0.5) / (present + 0.5))
    columns = activations.indices
    data = np.log1p(activations.data / np.maximum(scale[columns], 1e-20)) * idf[columns]
    return scipy.sparse.csr_array((data, columns, activations.indptr), shape=activations.shape)


def reciprocal_rank(hits: Hits, wanted: int) -> float:
    """1 / rank of the unit that was wanted; 0 where it was not found.

    Example:
        >>> reciprocal_rank(Hits(np.array([4, 7]), np.array([2.0, 1.0]), 2, 2), 7)
        0.5
    """
    place = np.flatnonzero(hits.units == wanted)
    return 1.0 / (1 + int(place[0])) if len(place) else 0.0


def recall(hits: Hits, exact: Hits) -> float:
    """Share of the units of an exact search that another one found; 1 where there are none.

    A unit that is as good as the worst of the exact ones counts as found too: equal scores are one rank.

    Example:
        >>> exact = Hits(np.array([4, 7]), np.array([2.0, 1.0]), 9, 9)
        >>> recall(Hits(np.array([4, 9]), np.array([2.0, 1.0]), 5, 9), exact)
        1.0
    """
    if not len(exact.units):
        return 1.0
    bar = exact.scores.min() * (1 - 1e-12)
    return min(1.0, float((hits.scores >= bar).sum()) / len(exact.units))
