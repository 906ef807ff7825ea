"""Blocks of neurons that stand for experts in a dense layer, so that it has pathways too.

Blocks are of equal size: neighbors, neurons with alike input weights (balanced k-means, as the parameter
clustering split of MoEfication, Zhang et al. 2022, arXiv 2110.01786), or neurons dealt at random, which is
the null: what random blocks show as well is activation sparsity and no pathway. The mass of a block at a
token is the share of what its neurons write, sum_j |a_j| ||w_out,j||, in that of all.

Shapes: f neurons, B blocks, N tokens; labels int [f], the block of each neuron.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Labels = NDArray[np.int64]

_ROUNDS = 20


def neighbors(neurons: int, blocks: int) -> Labels:
    """Blocks of neighboring neurons.

    Raises:
        SpecError: If there are fewer neurons than blocks, or fewer than two blocks.

    Example:
        >>> neighbors(5, 2).tolist()
        [0, 0, 0, 1, 1]
    """
    if not 2 <= blocks <= neurons:
        raise SpecError(
            "neurons cannot be divided into so many blocks",
            where="blocks",
            allowed=f"2 to {neurons}",
            got=blocks,
        )
    return np.repeat(np.arange(blocks), _sizes(neurons, blocks))


def dealt(neurons: int, blocks: int, generator: np.random.Generator) -> Labels:
    """Blocks of neurons that are dealt at random; see ``neighbors`` for what it raises.

    Example:
        >>> np.bincount(dealt(10, 5, np.random.default_rng(0))).tolist()
        [2, 2, 2, 2, 2]
    """
    return generator.permutation(neighbors(neurons, blocks))


def alike(weights: Array, blocks: int, seed: int = 0) -> Labels:
    """Blocks of equal size of neurons with alike weights: balanced k-means.

    k-means begins it; then neurons are assigned to the centers at the least cost under which every block is
    full (Malinen & Franti 2014, doi 10.1007/978-3-662-44415-3_4); centers are moved until nothing changes.

    Args:
        weights: [f, d], what a neuron reads: its row of the input matrix, beside that of the gate.
        blocks: B.
        seed: Seed of the beginning.

    Raises:
        SpecError: As of ``neighbors``.

    Example:
        >>> weights = np.array([[0.0], [9.0], [0.1], [9.1]])
        >>> labels = alike(weights, blocks=2)
        >>> bool(labels[0] == labels[2] != labels[1] == labels[3])
        True
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans

    rows = np.asarray(weights, np.float64)
    slots = neighbors(len(rows), blocks)
    centers = KMeans(blocks, n_init=4, random_state=seed).fit(rows).cluster_centers_
    labels = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        cost = -2 * rows @ centers.T + (centers**2).sum(1)  # + |row|^2, which every center has
        taken, slot = linear_sum_assignment(cost[:, slots])
        found = np.empty_like(labels)
        found[taken] = slots[slot]
        if (found == labels).all():
            break
        labels = found
        centers = np.stack([rows[labels == block].mean(0) for block in range(blocks)])
    return labels


def block_masses(activations: Array, written: Array, labels: Labels, blocks: int) -> Array:
    """Share of each block in what neurons write.

    Args:
        activations: [N, f].
        written: [f], ||w_out|| of each neuron.
        labels: int [f].
        blocks: B.

    Returns:
        [N, B], rows add up to 1; equal shares where no neuron is active.

    Example:
        >>> block_masses(np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]), np.ones(3), np.array([0, 1, 1]), 2)
        array([[0.5, 0.5],
               [0.5, 0.5]])
    """
    of_block = np.zeros((len(labels), blocks))
    of_block[np.arange(len(labels)), labels] = written
    masses = np.abs(np.asarray(activations, np.float64)) @ of_block
    whole = masses.sum(-1, keepdims=True)
    return np.where(whole > 0, masses / np.where(whole > 0, whole, 1), 1 / blocks)


def _sizes(neurons: int, blocks: int) -> NDArray[np.int64]:
    return np.full(blocks, neurons // blocks) + (np.arange(blocks) < neurons % blocks)
