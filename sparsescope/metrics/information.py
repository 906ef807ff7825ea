"""Entropies and mutual information of counts: how much one label tells about another.

Plug-in estimates from counts n of N events, H = -sum p ln p with p = n / N, in nats. Those of few events are
too small for entropies and too large for mutual information; Miller & Madow (1955) add (K - 1) / (2 N) to
each entropy, K the number of cells that occur. That is right for independent events. Tokens of a document are
not, so a claim needs a null over documents (``metrics.document_nulls``) as well.

Shapes: counts [..., A], joint counts [..., A, B], with a condition [..., X, A, B]; leading axes are kept.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


def shares(counts: ArrayLike) -> Array:
    """Counts [..., A] over their sum; NaN where the sum is zero.

    Example:
        >>> shares([3, 1, 0, 0]).tolist()
        [0.75, 0.25, 0.0, 0.0]
    """
    n = np.asarray(counts, np.float64)
    with np.errstate(invalid="ignore"):
        return n / n.sum(-1, keepdims=True)


def entropy(counts: ArrayLike, *, miller_madow: bool = False) -> Array:
    """Entropy of counts, or of a distribution, in nats.

    Args:
        counts: [..., A], not negative.
        miller_madow: Add (K - 1) / (2 N); for counts only.

    Returns:
        [...]; NaN where there is nothing.

    Example:
        >>> entropy([[2, 2, 0], [4, 0, 0]]).round(4).tolist()
        [0.6931, 0.0]
    """
    n = np.asarray(counts, np.float64)
    p = shares(n)
    found = 0.0 - np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1)
    if not miller_madow:
        return found
    with np.errstate(invalid="ignore", divide="ignore"):
        return found + (np.count_nonzero(n, axis=-1) - 1) / (2 * n.sum(-1))


def effective_number(counts: ArrayLike, *, miller_madow: bool = False) -> Array:
    """exp(entropy): the number of equally frequent values of equal entropy, such as effective experts.

    Example:
        >>> effective_number([1, 1, 1, 1]).round(6).tolist()
        4.0
    """
    return np.exp(entropy(counts, miller_madow=miller_madow))


def mutual_information(joint: ArrayLike, *, miller_madow: bool = False) -> Array:
    """I(A; B) = H(A) + H(B) - H(A, B), in nats.

    Args:
        joint: [..., A, B] counts.
        miller_madow: Correct each of the three entropies; the result can then be below zero.

    Returns:
        [...].

    Example:
        >>> mutual_information([[[5, 0], [0, 5]], [[5, 5], [5, 5]]]).round(4).tolist()
        [0.6931, 0.0]
    """
    n = np.asarray(joint, np.float64)
    whole = n.reshape(*n.shape[:-2], n.shape[-2] * n.shape[-1])
    one, two, both = (entropy(v, miller_madow=miller_madow) for v in (n.sum(-1), n.sum(-2), whole))
    return one + two - both


def conditional_mutual_information(joint: ArrayLike, *, miller_madow: bool = False) -> Array:
    """I(A; B | X) = sum_x N_x / N I(A; B | X = x), in nats.

    Args:
        joint: [..., X, A, B] counts; a value of X that never occurs has no weight.
        miller_madow: Correct the entropies given each x with its own count N_x.

    Returns:
        [...].

    Example:
        >>> x_tells_all = [[[5, 0], [0, 0]], [[0, 0], [0, 5]]]  # given x, A and B do not vary
        >>> float(conditional_mutual_information(x_tells_all))
        0.0
    """
    n = np.asarray(joint, np.float64)
    given = mutual_information(n, miller_madow=miller_madow)
    return np.sum(np.nan_to_num(given) * np.nan_to_num(shares(n.sum((-1, -2)))), axis=-1)


def uncertainty_coefficient(joint: ArrayLike) -> Array:
    """Theil's U of A given B: the share I(A; B) / H(A) of the entropy of A that B explains, [...].

    Theil (1970), American Journal of Sociology 76:103. That of B given A is ``uncertainty_coefficient`` of
    the transposed counts.

    Args:
        joint: [..., A, B] counts.

    Returns:
        [...], in [0, 1]; NaN where A does not vary.

    Example:
        >>> uncertainty_coefficient([[2, 2, 0, 0], [0, 0, 2, 2]]).round(6).tolist()  # B tells A
        1.0
        >>> uncertainty_coefficient(np.transpose([[2, 2, 0, 0], [0, 0, 2, 2]])).round(6).tolist()  # half of B
        0.5
    """
    n = np.asarray(joint, np.float64)
    uncertain = entropy(n.sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(uncertain > 0, mutual_information(n) / uncertain, np.nan)


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> Array:
    """Jensen-Shannon divergence H((p + q) / 2) - (H(p) + H(q)) / 2, in bits (Lin 1991).

    Args:
        p: [..., A], not negative; brought to a sum of 1.
        q: [..., A], broadcast against ``p``.

    Returns:
        [...], in [0, 1]: 0 for the same distribution, 1 for distributions without common support.

    Example:
        >>> jensen_shannon([[1, 1, 0], [1, 0, 0]], [[1, 1, 0], [0, 1, 1]]).round(6).tolist()
        [0.0, 1.0]
    """
    one, two = shares(p), shares(q)
    nats = entropy((one + two) / 2) - (entropy(one) + entropy(two)) / 2
    return np.clip(nats / math.log(2), 0, 1)
