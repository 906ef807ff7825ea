"""Paths of tokens through the experts of all layers: how many, and what a layer tells about the next.

A path is the row of first choices of a token, or of any code of its sets (``np.unique`` of the sorted sets).
Of E^L possible paths N tokens can show N at most, so the effective number exp(H) nears N whatever the router
does once there are many; the Miller-Madow correction moves it up, and does not mend that. Markov gain: the
share I(S_l; S_l+1) / H(S_l+1) of the choice in the next layer that this one tells.

Shapes: paths int [N, L].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.metrics.information import effective_number, entropy, mutual_information

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PathCounts:
    """How many paths tokens take.

    Attributes:
        tokens: N.
        distinct: Paths that occur.
        entropy: H of the paths in nats, as counted.
        effective: exp(H) with the Miller-Madow correction; NaN without tokens.
        largest: Share of the tokens on the most frequent path.
    """

    tokens: int
    distinct: int
    entropy: float
    effective: float
    largest: float


def path_counts(paths: NDArray[np.integer]) -> PathCounts:
    """Count the paths of tokens.

    Args:
        paths: int [N, L].

    Example:
        >>> found = path_counts(np.array([[0, 1], [0, 1], [2, 1], [2, 1]]))
        >>> found.distinct, round(math.exp(found.entropy), 6), round(found.effective, 2), found.largest
        (2, 2.0, 2.27, 0.5)
    """
    counts = np.unique(paths, axis=0, return_counts=True)[1]
    if not len(counts):
        return PathCounts(0, 0, math.nan, math.nan, math.nan)
    return PathCounts(
        len(paths),
        len(counts),
        float(entropy(counts)),
        float(effective_number(counts, miller_madow=True)),
        float(counts.max() / len(paths)),
    )


def transition_counts(paths: NDArray[np.integer], experts: int) -> Array:
    """Tokens that go from each expert of a layer to each of the next: [L - 1, E, E].

    Args:
        paths: int [N, L], ids below E.
        experts: E.

    Example:
        >>> transition_counts(np.array([[0, 1], [0, 1], [1, 0]]), experts=2).tolist()
        [[[0.0, 2.0], [1.0, 0.0]]]
    """
    steps = paths.shape[1] - 1
    places = (paths[:, :-1].astype(np.int64) * experts + paths[:, 1:]) + experts**2 * np.arange(steps)
    counts = np.bincount(places.reshape(-1), minlength=steps * experts**2)
    return counts.reshape(steps, experts, experts).astype(np.float64)


def markov_gain(transitions: Array, *, miller_madow: bool = False) -> Array:
    """I(S_l; S_l+1) / H(S_l+1) of each pair of layers.

    Args:
        transitions: [..., E, E], from rows to columns.
        miller_madow: Correct all entropies; the gain can then be below zero.

    Returns:
        [...]: 1 where a layer decides the next, 0 where it tells nothing; NaN where the next does not vary.

    Example:
        >>> markov_gain(np.array([[[5.0, 0.0], [0.0, 5.0]], [[5.0, 5.0], [5.0, 5.0]]])).round(6).tolist()
        [1.0, 0.0]
    """
    following = transitions.sum(-2)
    uncertain = entropy(following, miller_madow=miller_madow)
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = mutual_information(transitions, miller_madow=miller_madow) / uncertain
    return np.where(np.count_nonzero(following, axis=-1) > 1, gain, np.nan)
