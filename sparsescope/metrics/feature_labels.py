"""What a feature fires on, said by tokens, and how well that predicts where it fires.

A label is a short set of token types (of the token itself, or of the one before it) or one class of tokens
(digits, punctuation). It is chosen on some documents as the set whose indicator tells most about firing: the
largest G^2 = 2 N I (likelihood ratio of independence; N tokens, I nats of mutual information) less a price
for each member that is chosen among T, which is what chance gives to the best of T in 5 % of the cases. It is
judged on other documents: the area under the ROC curve (AUROC) of "fires" against the score that the label
gives a token. A label that says nothing has 0.5.

Shapes: T token types; N tokens, K of them fire; D documents; L levels of a score; B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import chi2

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

MOST_TYPES = 8
LEAST_FIRINGS = 2
"""Firings of a type below which it is no part of a label."""


@dataclass(frozen=True, slots=True)
class TypeLabel:
    """A set of token types.

    Attributes:
        types: int64 [m], those that tell most first.
        weights: float64 [m], log odds of firing on each.
        gain: G^2 of "the token is one of them" and "the feature fires", less the price of the choice.
        firing_share: Share of the firings that are on them.
        precision: Share of their tokens on which the feature fires.
    """

    types: NDArray[np.int64]
    weights: Array
    gain: float
    firing_share: float
    precision: float


def indicator_information(both: ArrayLike, named: ArrayLike, fires: float, tokens: float) -> Array:
    """Mutual information of two events, in bits, from counts.

    Args:
        both: Tokens with both events, any shape.
        named: Tokens with the first.
        fires: Tokens with the second.
        tokens: All tokens.

    Example:
        >>> indicator_information([5, 2.5], [5, 5], 5, 10).round(3).tolist()
        [1.0, 0.0]
    """
    a = np.asarray(both, np.float64)
    n = np.asarray(named, np.float64)
    cells = np.stack([a, n - a, fires - a, tokens - n - fires + a], axis=-1) / tokens
    one = np.stack([n, n, tokens - n, tokens - n], axis=-1) / tokens
    two = np.array([fires, tokens - fires, fires, tokens - fires]) / tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(cells > 0, cells * np.log2(cells / (one * two)), 0.0)
    return np.maximum(terms.sum(-1), 0.0)


def type_label(
    firing: ArrayLike, tokens: ArrayLike, *, most: int = MOST_TYPES, least: int = LEAST_FIRINGS
) -> TypeLabel | None:
    """The short set of token types that tells most about firing.

    Types come in the order of what each alone adds, k log(k N / (n K)); of the sets of the first 1, 2, ...
    the one with the largest gain is taken. Types on which the feature fires less often than elsewhere are no
    part of it.

    Args:
        firing: [T], tokens of each type on which the feature fires.
        tokens: [T], tokens of each type.
        most: Most types.
        least: Least firings of a type.

    Returns:
        The label; None where no type is worth its price, or the feature fires everywhere.

    Raises:
        SpecError: The arrays do not belong together.

    Example:
        >>> found = type_label([90, 1, 0, 20], [100, 500, 1000, 30])
        >>> found.types.tolist(), round(found.firing_share, 3), round(found.precision, 3)
        ([0, 3], 0.991, 0.846)
        >>> type_label([5, 5, 5], [50, 51, 49]) is None  # nothing but chance
        True
    """
    k, n = np.asarray(firing, np.float64), np.asarray(tokens, np.float64)
    if k.shape != n.shape or k.ndim != 1 or bool((k > n).any()):
        raise SpecError(
            "firings and tokens do not belong together",
            where="type_label",
            allowed="two arrays [T], no more firings than tokens",
            got=f"{list(k.shape)}, {list(n.shape)}",
        )
    fires, total = float(k.sum()), float(n.sum())
    usable = np.flatnonzero((k >= least) & (k * total > n * fires))
    if not len(usable) or fires >= total:
        return None
    gain = k[usable] * np.log(k[usable] * total / (n[usable] * fires))
    order = usable[np.argsort(-gain, kind="stable")][:most]
    both, named = np.cumsum(k[order]), np.cumsum(n[order])
    gains = 2 * total * np.log(2) * indicator_information(both, named, fires, total)
    gains -= choice_price(int((n > 0).sum())) * np.arange(1, len(order) + 1)
    count = int(np.argmax(gains)) + 1
    if gains[count - 1] <= 0:
        return None
    chosen = order[:count]
    weights = np.log((k[chosen] + 0.5) / (n[chosen] - k[chosen] + 0.5))
    return TypeLabel(
        chosen.astype(np.int64),
        weights,
        float(gains[count - 1]),
        float(both[count - 1] / fires),
        float(both[count - 1] / named[count - 1]),
    )


def choice_price(candidates: int, chance: float = 0.05) -> float:
    """What G^2 must rise by for one member that is chosen among candidates: what the best of them exceeds by
    chance (chi-square with one degree of freedom, one side, Bonferroni).

    Args:
        candidates: T.
        chance: How often the best of T, none of which has to do with firing, may exceed it.

    Example:
        >>> round(choice_price(1), 2), round(choice_price(1000), 2)
        (2.71, 15.14)
    """
    return float(chi2.isf(min(1.0, 2 * chance / max(1, candidates)), 1))


def levels_auroc(positive: ArrayLike, negative: ArrayLike) -> Array:
    """Area under the ROC curve of a score with few levels; ties count one half.

    Args:
        positive: [..., L], tokens that fire at each level of the score, lowest first.
        negative: [..., L], tokens that do not.

    Returns:
        [...]; NaN where there is no positive or no negative.

    Example:
        >>> levels_auroc([[0, 5], [2, 2]], [[5, 0], [3, 3]]).tolist()
        [1.0, 0.5]
    """
    p, n = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    below = np.cumsum(n, axis=-1) - n
    with np.errstate(invalid="ignore", divide="ignore"):
        return (p * (below + 0.5 * n)).sum(-1) / (p.sum(-1) * n.sum(-1))


def matched_types(tokens: ArrayLike, wanted: float, order: NDArray[np.integer]) -> NDArray[np.int64]:
    """Random token types that are together about as frequent as a label.

    Args:
        tokens: [T], tokens of each type.
        wanted: Tokens that they shall have together.
        order: A random order of the types.

    Returns:
        int64 [m], at least one; types that alone are more than wanted are passed over unless nothing else is
        left.

    Example:
        >>> matched_types([50, 3, 2, 10], 5, np.array([0, 1, 2, 3])).tolist()
        [1, 2]
    """
    n = np.asarray(tokens, np.float64)
    fitting = order[(n[order] <= wanted) & (n[order] > 0)]
    if not len(fitting):
        present = order[n[order] > 0]
        return present[np.argmin(n[present])][None].astype(np.int64)
    reached = np.cumsum(n[fitting])
    count = int(np.searchsorted(reached, wanted * (1 - 1e-12))) + 1
    return fitting[: min(count, len(fitting))].astype(np.int64)
