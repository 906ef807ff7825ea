"""Choices of a router: which experts, and how much of it two checkpoints share.

Overlap of two selections of k experts: |S & S'| / k. Router saturation is its mean over the same tokens
between a checkpoint and the last one (Muennighoff et al. 2024, arXiv 2409.02060, section 5.1); churn is 1 -
saturation with the checkpoint before. Chance: k / E if all experts are alike, sum_e p_e p'_e / k at the loads
that there are, and the same within token ids where the id alone decides. A lower learning rate lowers churn
whatever is learned.

Shapes: selections int [N, k], in the order of the router where first choices are asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


def check_selections(selections: NDArray[np.integer], experts: int) -> None:
    """Hold selections to their shape: k different ids below E for each token.

    Raises:
        SpecError: If they are something else.

    Example:
        >>> check_selections(np.array([[0, 3], [2, 1]]), experts=4)
    """
    ids = np.asarray(selections)
    fine = ids.ndim == 2 and ids.shape[1] > 0 and np.issubdtype(ids.dtype, np.integer)
    if fine and ids.size:
        ordered = np.sort(ids, axis=1)
        fine = bool(ordered[:, 0].min() >= 0 and ordered[:, -1].max() < experts)
        fine = fine and not (ordered[:, 1:] == ordered[:, :-1]).any()
    if not fine:
        raise SpecError(
            "selections are not the experts of tokens",
            where="selections",
            allowed=f"integers [N, k], k different ids from 0 to {experts - 1} in each row",
            got=f"{ids.dtype} {list(ids.shape)}"
            + (f", {ids.min()} to {ids.max()}" if ids.size and ids.dtype != object else ""),
            next_step="give the indices that the router returns, without padding",
        )


def expert_counts(selections: NDArray[np.integer], groups: NDArray[np.integer], experts: int) -> Array:
    """How often each expert is chosen in each group of tokens (document, domain, token id): [groups, E].

    Args:
        selections: int [N, k].
        groups: int [N], from 0; the last one is the largest.
        experts: E.

    Raises:
        SpecError: If the selections are not k different ids below E.

    Example:
        >>> expert_counts(np.array([[0, 1], [0, 2], [1, 2]]), np.array([0, 0, 1]), experts=3).tolist()
        [[2.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    check_selections(selections, experts)
    places = experts * groups.astype(np.int64)[:, None] + selections
    rows = int(groups.max(initial=-1)) + 1
    return np.bincount(places.reshape(-1), minlength=rows * experts).reshape(rows, experts).astype(np.float64)


def overlap(first: NDArray[np.integer], second: NDArray[np.integer]) -> Array:
    """Share |S & S'| / k of the experts that two selections of the same tokens have in common.

    Args:
        first: int [N, k].
        second: int [N, k], in the order of the same tokens.

    Returns:
        [N]; its mean is the saturation of one checkpoint at the other, 1 - mean the churn between them.

    Raises:
        SpecError: If the shapes differ.

    Example:
        >>> overlap(np.array([[0, 1], [0, 1]]), np.array([[1, 0], [1, 2]])).tolist()
        [1.0, 0.5]
    """
    if first.shape != second.shape:
        raise SpecError(
            "selections of different tokens cannot be compared",
            where="overlap",
            allowed=f"the shape {list(first.shape)} of the first",
            got=list(second.shape),
            next_step="route the same tokens with the same number of experts at both checkpoints",
        )
    return (first[:, :, None] == second[:, None, :]).sum((1, 2)) / first.shape[1]


def overlap_chance(first: ArrayLike, second: ArrayLike, occurrences: ArrayLike) -> Array:
    """Expected overlap of two selections that are drawn apart: sum_x N_x / N sum_e p(e|x) p'(e|x) / k.

    With the whole text as one id this is chance at the loads of both; with counts by token id it is what a
    router that knows the id alone would share. Counts of rare ids hold the tokens that are compared: an id
    that occurs once expects what is observed, so ids need many occurrences (as bytes have).

    Args:
        first: [..., X, E], choices of each expert at each id; [..., 1, E] for the loads.
        second: [..., X, E], at the other checkpoint.
        occurrences: [..., X], tokens of each id, N_x.

    Returns:
        [...], in [0, 1].

    Example:
        >>> float(overlap_chance([[50, 50, 50, 50]], [[50, 50, 50, 50]], [100]))  # two of four: k / E
        0.5
    """
    one, two, n = (np.asarray(v, np.float64) for v in (first, second, occurrences))
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = np.nan_to_num(
            (one * two).sum(-1) / n
        )  # N_x sum_e p(e|x) p'(e|x); ids without tokens have none
    return alike.sum(-1) / one.sum((-1, -2))


def uniform_intersection(k: int, experts: int) -> float:
    """Chance that two draws of k of E experts share one at least: 1 - C(E - k, k) / C(E, k).

    Example:
        >>> round(uniform_intersection(k=2, experts=8), 4)
        0.4643
    """
    return 1 - math.comb(experts - k, k) / math.comb(experts, k)
