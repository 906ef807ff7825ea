"""Is a link between domain and routing more than that of documents dealt at random?

Tokens of a document are alike, so a few documents for each domain differ whatever the domain is. The null
deals the domain labels to the documents anew and leaves every document whole. It needs the counts of each
document only: the table of a domain is the sum over its documents, so all permutations (or resamples of a
bootstrap) are one product of matrices.

I(E; D | x) asks for what is left when a label x of each token (its id, its byte) is known. Domains use
different ids, permuted ones do not, so permuted tables have more cells and a larger plug-in bias: the null
errs on the careful side, by less with the Miller-Madow correction.

Shapes: d documents, D domains, E experts, X values of the condition, B sets of labels or weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.null_comparison import NullComparison, against_null
from sparsescope.metrics.routing import check_selections

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_CELLS = 2**23  # of the tables of domains that are held at a time


def domain_tables(counts: Array, labels: NDArray[np.integer], weights: Array | None = None) -> Array:
    """Counts of each domain from those of its documents.

    Args:
        counts: [d, ..., E], choices of each document.
        labels: int [d], the domain of each document from 0; or [B, d], several sets of labels.
        weights: [d] or [B, d], how often each document counts (``DocumentBootstrap.weights``).

    Returns:
        [..., D, E], or [B, ..., D, E] where labels or weights are several.

    Raises:
        SpecError: If labels or weights are not those of the documents.

    Example:
        >>> counts = np.array([[4.0, 0.0], [2.0, 2.0], [0.0, 4.0]])  # three documents, two experts
        >>> domain_tables(counts, np.array([0, 0, 1])).tolist()
        [[6.0, 2.0], [0.0, 4.0]]
    """
    members = _members(labels, len(counts), weights)  # [(B,) D, d]
    sums = members @ counts.reshape(len(counts), -1)
    return np.moveaxis(sums.reshape(*sums.shape[:-1], *counts.shape[1:]), members.ndim - 2, -2)


def document_null(
    counts_by_document: Array,
    labels: NDArray[np.integer],
    statistic: Callable[[Array], Array],
    permutations: int = 1000,
    seed: int = 0,
) -> NullComparison:
    """Compare a statistic of the table of domains with permuted labels of documents.

    Args:
        counts_by_document: [d, ..., E].
        labels: int [d], the domain of each document from 0.
        statistic: From tables [B, ..., D, E] to one number for each, [B], such as
            ``information.mutual_information``.
        permutations: Permutations of the labels.
        seed: Seed of an own generator.

    Raises:
        SpecError: If the labels are not those of the documents.

    Example:
        >>> from sparsescope.metrics.information import mutual_information
        >>> counts = np.repeat([[9.0, 1.0], [1.0, 9.0]], 10, axis=0)  # ten documents of each domain
        >>> found = document_null(counts, np.repeat([0, 1], 10), mutual_information, permutations=99, seed=1)
        >>> found.observed > 5 * found.mean, found.p_above
        (True, 0.01)
    """

    def dealt(labels: NDArray[np.integer]) -> Array:
        return statistic(domain_tables(counts_by_document, labels))

    return _permuted(labels, dealt, permutations, seed, counts_by_document[0].size)


def conditional_counts(
    selections: NDArray[np.integer],
    documents: NDArray[np.integer],
    condition: NDArray[np.integer],
    experts: int,
) -> scipy.sparse.csr_array:
    """Count the choices of experts at each value of a condition, in each document.

    Args:
        selections: int [N, k].
        documents: int [N], from 0.
        condition: int [N], from 0: token id, byte.
        experts: E.

    Returns:
        Sparse [d, X E]: the count of expert e at x stands in column x E + e.

    Raises:
        SpecError: If the selections are not k different ids below E.

    Example:
        >>> where = np.array([0, 1]), np.array([1, 0])  # documents, token ids
        >>> conditional_counts(np.array([[0], [2]]), *where, experts=3).toarray().astype(int).tolist()
        [[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]
    """
    import scipy.sparse

    check_selections(selections, experts)
    columns = (condition.astype(np.int64)[:, None] * experts + selections).reshape(-1)
    rows = np.repeat(documents, selections.shape[1])
    shape = (int(documents.max(initial=-1)) + 1, (int(condition.max(initial=-1)) + 1) * experts)
    return scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()


def conditional_information(
    counts: scipy.sparse.csr_array,
    labels: NDArray[np.integer],
    experts: int,
    *,
    weights: Array | None = None,
    miller_madow: bool = False,
) -> Array:
    """I(E; D | x) of expert and domain given the condition, in nats.

    Args:
        counts: Sparse [d, X E], see ``conditional_counts``.
        labels: int [d], the domain of each document from 0; or [B, d].
        experts: E.
        weights: [d] or [B, d], how often each document counts.
        miller_madow: Correct the entropies at each x; the result can then be below zero.

    Returns:
        [], or [B] where labels or weights are several.

    Raises:
        SpecError: If labels or weights are not those of the documents.

    Example:
        >>> tokens = np.array([[0], [0], [1], [1]]), np.array([0, 1, 0, 1])  # choices, documents
        >>> alone = conditional_counts(*tokens, condition=np.array([0, 0, 1, 1]), experts=2)
        >>> float(conditional_information(alone, np.array([0, 1]), experts=2))  # the id tells the expert
        0.0
    """
    members = _members(labels, counts.shape[0], weights)
    flat = members.reshape(-1, members.shape[-1])
    used = np.flatnonzero(counts.sum(0))
    blocks = np.flatnonzero(
        np.diff(used // experts, prepend=-1)
    )  # where the next value of the condition begins
    cells = (counts[:, used].T @ flat.T).T.reshape(*members.shape[:-1], len(used))  # [(B,) D, (x, e)]
    by_domain = np.add.reduceat(cells, blocks, axis=-1)  # [(B,) D, x]
    by_expert = cells.sum(-2)  # [(B,) (x, e)]
    by_value = by_domain.sum(-2)  # [(B,) x]
    total = by_value.sum(-1)
    # Entropies at each x weighted by N_x / N are sums of n ln n over N.
    terms = _n_log_n(cells).sum(-1) - _n_log_n(by_domain).sum(-1)
    found = terms.sum(-1) - _n_log_n(by_expert).sum(-1) + _n_log_n(by_value).sum(-1)
    if miller_madow:
        kinds = [np.count_nonzero(v, axis=-1) for v in (by_expert, by_value)]
        joint = [np.count_nonzero(v, axis=-1).sum(-1) for v in (by_domain, cells)]
        found = found + (kinds[0] + joint[0] - joint[1] - kinds[1]) / 2
    return found / total


def conditional_document_null(
    counts: scipy.sparse.csr_array,
    labels: NDArray[np.integer],
    experts: int,
    permutations: int = 1000,
    seed: int = 0,
    *,
    miller_madow: bool = False,
) -> NullComparison:
    """Compare I(E; D | x) with permuted labels of documents.

    Args:
        counts: Sparse [d, X E], see ``conditional_counts``.
        labels: int [d], the domain of each document from 0.
        experts: E.
        permutations: Permutations of the labels.
        seed: Seed of an own generator.
        miller_madow: Correct the entropies at each x, on both sides.

    Raises:
        SpecError: If the labels are not those of the documents.

    Example:
        >>> documents, ids = np.arange(40) // 2, np.arange(40) % 2
        >>> hashed = conditional_counts(ids[:, None], documents, ids, experts=2)  # the id decides
        >>> conditional_document_null(hashed, np.arange(20) % 2, experts=2, permutations=99).p_above
        1.0
    """

    def dealt(labels: NDArray[np.integer]) -> Array:
        return conditional_information(counts, labels, experts, miller_madow=miller_madow)

    return _permuted(labels, dealt, permutations, seed, int(np.count_nonzero(counts.sum(0))))


def _permuted(
    labels: NDArray[np.integer],
    statistic: Callable[[NDArray[np.integer]], Array],
    permutations: int,
    seed: int,
    cells: int,
) -> NullComparison:
    """Compare a statistic of labels [B, d] with its permutations, as many at a time as memory holds."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS // (max(cells, len(labels)) * (int(labels.max()) + 1)))
    draws = [
        statistic(generator.permuted(np.tile(labels, (min(at_once, permutations - start), 1)), axis=1))
        for start in range(0, permutations, at_once)
    ]
    return against_null(float(statistic(labels[None])[0]), np.concatenate([np.zeros(0), *draws]))


def _members(labels: NDArray[np.integer], documents: int, weights: Array | None) -> Array:
    """Weight of each document in each domain, [(B,) D, d]."""
    given = (
        labels
        if weights is None
        else np.broadcast_to(labels, np.broadcast_shapes(labels.shape, weights.shape))
    )
    fine = given.shape[-1:] == (documents,) and given.ndim <= 2 and given.size and given.min() >= 0
    if not fine:
        raise SpecError(
            "labels are not those of the documents",
            where="labels",
            allowed=f"{documents} numbers from 0, [d] or [B, d]",
            got=list(labels.shape)
            if weights is None
            else f"{list(labels.shape)}, weights {list(weights.shape)}",
            next_step="give one domain (and one weight) for each row of the counts",
        )
    members = given[..., None, :] == np.arange(given.max() + 1)[:, None]
    return members.astype(np.float64) if weights is None else members * weights[..., None, :]


def _n_log_n(counts: Array) -> Array:
    from scipy.special import xlogy

    return xlogy(counts, counts)
