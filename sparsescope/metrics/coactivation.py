"""Which experts are chosen together: counts over all pairs of the k experts of a token.

N_ij tokens choose experts i and j, N_i choose i. Share of the tokens of i that choose j as well: N_ij / N_i
(Muennighoff et al. 2024, arXiv 2409.02060, section 5.2). Lift: N_ij N / (N_i N_j), 1 if independent; PMI: its
logarithm; phi: correlation of the two indicators. All k (k - 1) / 2 pairs of a token count: counts of experts
next to each other in the order of the router miss most of them.
Experts share k slots, so even without any structure lift is a little below 1: (k - 1) E / (k (E - 1)) for
equal loads.

Shapes: selections int [N, k]; pair counts [E, E], N_i on the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.routing import check_selections

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coactivation:
    """How often pairs of experts are chosen together, each [..., E, E] with NaN on the diagonal.

    Attributes:
        shares: N_ij / N_i in row i; a row adds up to k - 1. NaN where no token chose i.
        lift: N_ij N / (N_i N_j).
        pmi: ln lift, in nats; minus infinity for pairs that never meet.
        phi: (N N_ij - N_i N_j) / sqrt(N_i (N - N_i) N_j (N - N_j)).
    """

    shares: Array
    lift: Array
    pmi: Array
    phi: Array


def pair_counts(
    selections: NDArray[np.integer],
    experts: int,
    *,
    weights: ArrayLike | None = None,
    documents: NDArray[np.integer] | None = None,
) -> Array:
    """Count the tokens that choose both of two experts.

    Args:
        selections: int [N, k], the experts of each token, in any order.
        experts: E.
        weights: [N], how much each token counts; of a resample of documents: its weights at ``documents``.
        documents: int [N] from 0; counts are then kept apart, for ``DocumentBootstrap.totals``.

    Returns:
        [E, E], or [documents, E, E]; symmetric, with the tokens that choose an expert on the diagonal.

    Raises:
        SpecError: If tokens choose one expert, or the selections are not k different ids below E.

    Example:
        >>> pair_counts(np.array([[0, 1], [1, 0], [2, 1]]), experts=3).astype(int).tolist()
        [[2, 2, 0], [2, 3, 1], [0, 1, 1]]
    """
    check_selections(selections, experts)
    k = selections.shape[1]
    if k < 2:
        raise SpecError(
            "co-activation is not defined",
            where="selections",
            allowed="at least two experts for each token",
            got="k = 1",
            next_step="leave co-activation out for top-1 routers",
        )
    places = experts * selections.astype(np.int64)[:, :, None] + selections[:, None, :]
    groups = 1 if documents is None else int(documents.max(initial=-1)) + 1
    if documents is not None:
        places += experts**2 * documents.astype(np.int64)[:, None, None]
    each = None if weights is None else np.repeat(np.asarray(weights, np.float64), k * k)
    counts = np.bincount(places.reshape(-1), each, groups * experts**2).astype(np.float64)
    return counts.reshape((experts, experts) if documents is None else (groups, experts, experts))


def coactivation(pairs: ArrayLike, tokens: ArrayLike) -> Coactivation:
    """Describe pair counts.

    Args:
        pairs: [..., E, E], see ``pair_counts``.
        tokens: N, [...] (the sum of the weights where tokens have some).

    Example:
        >>> found = coactivation(pair_counts(np.array([[0, 1], [0, 1], [2, 3], [2, 3]]), experts=4), tokens=4)
        >>> found.shares[0, 1:].tolist(), found.lift[0, 1:].tolist(), found.phi[0, 1:].tolist()
        ([1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, -1.0, -1.0])
    """
    together = np.asarray(pairs, np.float64)
    n = np.asarray(tokens, np.float64)[..., None]
    own = np.diagonal(together, axis1=-2, axis2=-1)
    expected = own[..., :, None] * own[..., None, :]
    spread = own * (n - own)
    with np.errstate(invalid="ignore", divide="ignore"):
        lift = together * n[..., None] / expected
        found = (
            together / own[..., :, None],
            lift,
            np.log(lift),
            (n[..., None] * together - expected) / np.sqrt(spread[..., :, None] * spread[..., None, :]),
        )
    diagonal = np.eye(together.shape[-1], dtype=bool)
    return Coactivation(*(np.where(diagonal, np.nan, values) for values in found))


def coactivation_chance(k: int, experts: int) -> float:
    """N_ij / N_i of a router that chooses any k of E experts alike: (k - 1) / (E - 1).

    Example:
        >>> round(coactivation_chance(k=8, experts=64), 4)
        0.1111
    """
    return (k - 1) / (experts - 1)
