"""Do tokens near each other choose the same experts?

Repetition at a lag: P(first choice of t = first choice of t + lag), the mean share of experts in common, and
P(any in common) (Jiang et al. 2024, arXiv 2401.04088, table 5, for lag 1). Chance is what the loads give,
sum_e q_e^2 of first choices and sum_e p_e^2 / k of sets, not 1 / E; the shift null keeps the loads of each
document and takes the order away. Sparsity of tokens and chunks (BlockFFN, arXiv 2507.08771): TLS is the mean
share of inactive experts, fixed to 1 - k / E by a top-k router; CLS_n the share inactive for all of n tokens,
TLS^n if tokens were independent.

Shapes: selections int [N, k] in the order of the text and of the router; documents int [N], ascending from 0,
d of them; windows int [W, n], rows of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.routing import overlap

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Repetition:
    """Sums over pairs of tokens, by document, for ``DocumentBootstrap.ratio(sums, pairs)``.

    Attributes:
        first: [d, lag], pairs with the same first choice.
        shared: [d, lag], sum of |S & S'| / k.
        any: [d, lag], pairs that share one expert at least.
        pairs: [d, lag].
    """

    first: Array
    shared: Array
    any: Array
    pairs: Array

    def means(self) -> Array:
        """First choice, share, any: [3, lag]; NaN where no document is long enough."""
        with np.errstate(invalid="ignore"):
            return np.stack([self.first, self.shared, self.any]).sum(1) / self.pairs.sum(0)


def repetition(selections: NDArray[np.integer], documents: NDArray[np.integer], lags: int) -> Repetition:
    """Compare tokens with those 1, 2, ... ``lags`` later in the same document.

    Where tokens are missing within a document (between two windows), give its windows as documents, and
    add up their sums.

    Raises:
        SpecError: If documents are not ascending numbers from 0, one for each token.

    Example:
        >>> chosen = np.array([[0, 1], [0, 2], [3, 2], [0, 1]])
        >>> repetition(chosen, np.array([0, 0, 0, 0]), lags=1).means().round(2).T.tolist()
        [[0.33, 0.33, 0.67]]
    """
    count = _documents(selections, documents)
    found = np.zeros((4, count, lags))
    for lag in range(1, min(lags, len(documents) - 1) + 1):
        here = np.flatnonzero(documents[lag:] == documents[:-lag])
        found[:, :, lag - 1] = _sums(selections, here, here + lag, documents, count)
    return Repetition(*found)


def repetition_chance(counts: ArrayLike, first_counts: ArrayLike) -> Array:
    """First choice sum_e q_e^2 and share sum_e p_e^2 / k of independent tokens with these loads: [..., 2].

    Args:
        counts: [..., E], tokens that choose each expert.
        first_counts: [..., E], tokens whose first choice it is.

    Example:
        >>> repetition_chance([50, 50, 50, 50], [25, 25, 25, 25]).tolist()  # two of four, all alike
        [0.25, 0.5]
    """
    n, first = np.asarray(counts, np.float64), np.asarray(first_counts, np.float64)
    tokens = first.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (first**2).sum(-1) / tokens**2
        return np.stack([same, (n**2).sum(-1) / (n.sum(-1) * tokens)], axis=-1)


def shifted_repetition(
    selections: NDArray[np.integer],
    documents: NDArray[np.integer],
    lags: int,
    draws: int = 100,
    seed: int = 0,
) -> Array:
    """Null of repetition: every token is compared with one far from it, around the end of its document.

    Each document is turned by its own random shift, more than ``lags`` tokens in either direction, so loads
    of the document stay and order goes. Documents of fewer than 2 lags + 2 tokens cannot be turned so far:
    left out.

    Args:
        selections: int [N, k].
        documents: int [N].
        lags: Largest lag that the null is for.
        draws: Shifts of all documents.
        seed: Seed of an own generator.

    Returns:
        [draws, 3]: first choice, share, any; NaN where all documents are too short. For ``against_null``.

    Raises:
        SpecError: If documents are not ascending numbers from 0, one for each token.

    Example:
        >>> chosen, documents = np.array([[0]] * 8 + [[1]] * 8), np.zeros(16, np.int64)  # one switch
        >>> repeated = repetition(chosen, documents, lags=1).means()[0, 0]
        >>> null = shifted_repetition(chosen, documents, lags=1, draws=50)[:, 0]
        >>> round(float(repeated), 2), bool(repeated > null.max())
        (0.93, True)
    """
    count = _documents(selections, documents)
    lengths = np.bincount(documents, minlength=count)
    starts = np.cumsum(lengths) - lengths
    here = np.flatnonzero(lengths[documents] >= 2 * lags + 2)
    own = documents[here]
    generator = np.random.default_rng(seed)
    found = np.full((draws, 3), np.nan)
    for draw in range(draws if len(here) else 0):
        shifts = generator.integers(lags + 1, np.maximum(lengths - lags, lags + 2))
        there = starts[own] + (here - starts[own] + shifts[own]) % lengths[own]
        sums = _sums(selections, here, there, documents, count).sum(-1)
        found[draw] = sums[:3] / sums[3]
    return found


def windows(documents: NDArray[np.integer], length: int) -> NDArray[np.int64]:
    """Rows of tokens in windows of a length that do not overlap and lie within a document: int [W, length].

    What is left at the end of a document is left out. ``documents[windows[:, 0]]`` are the documents.

    Raises:
        SpecError: If the length is below 1.

    Example:
        >>> windows(np.array([0, 0, 0, 1, 1]), length=2).tolist()
        [[0, 1], [3, 4]]
    """
    if length < 1:
        raise SpecError("a window has one token at least", where="length", allowed="1 or more", got=length)
    lengths = np.bincount(documents)
    whole = lengths // length
    within = np.arange(whole.sum()) - np.repeat(np.cumsum(whole) - whole, whole)
    starts = np.repeat(np.cumsum(lengths) - lengths, whole) + within * length
    return (starts[:, None] + np.arange(length)).astype(np.int64)


def chunk_sparsity(active: NDArray[np.bool_], spans: NDArray[np.int64]) -> Array:
    """CLS_n: share of experts that none of the tokens of a window uses; TLS for windows of one token.

    Args:
        active: bool [N, E], for example of a ReLU router or of ``expert_mask``.
        spans: int [W, n], see ``windows``.

    Returns:
        [W]; the mean over windows never exceeds TLS.

    Example:
        >>> active = expert_mask(np.array([[0], [0], [1], [2]]), experts=4)
        >>> chunk_sparsity(active, windows(np.zeros(4, np.int64), length=2)).tolist()
        [0.75, 0.5]
    """
    used = np.zeros((len(spans), active.shape[1]), bool)
    for column in spans.T:
        used |= active[column]
    return 1 - used.mean(-1)


def chunk_sparsity_chance(rates: ArrayLike, length: int) -> Array:
    """CLS_n of independent tokens: TLS^n with all experts alike, and mean (1 - p_e)^n, each at its own rate.

    Args:
        rates: [..., E], share of the tokens that use each expert.
        length: n.

    Returns:
        [..., 2]; the second is never smaller (Jensen's inequality).

    Example:
        >>> chunk_sparsity_chance([0.5, 0.5, 0.0, 0.0], length=2).tolist()
        [0.5625, 0.625]
    """
    idle = 1 - np.asarray(rates, np.float64)
    return np.stack([idle.mean(-1) ** length, (idle**length).mean(-1)], axis=-1)


def expert_mask(selections: NDArray[np.integer], experts: int) -> NDArray[np.bool_]:
    """Which experts each token chooses: bool [..., E] from ids [..., k], of which those below 0 are none.

    Example:
        >>> expert_mask(np.array([[2, 0], [1, -1]]), experts=3).astype(int).tolist()
        [[1, 0, 1], [0, 1, 0]]
    """
    mask = np.zeros((*selections.shape[:-1], experts + 1), bool)
    np.put_along_axis(mask, np.where(selections < 0, experts, selections), True, axis=-1)
    return mask[..., :experts]


def _sums(
    selections: NDArray[np.integer],
    here: NDArray[np.int64],
    there: NDArray[np.int64],
    documents: NDArray[np.integer],
    count: int,
) -> Array:
    """Same first choice, share in common, any in common, pairs: sums by document, [4, d]."""
    one, two = selections[here], selections[there]
    common = overlap(one, two)
    values = (one[:, 0] == two[:, 0], common, common > 0, np.ones(len(here)))
    return np.stack([np.bincount(documents[here], v, count) for v in values])


def _documents(selections: NDArray[np.integer], documents: NDArray[np.integer]) -> int:
    """Number of documents, where they are as they must be."""
    fine = documents.shape == selections.shape[:1] and len(documents) and documents[0] >= 0
    if not fine or (np.diff(documents) < 0).any():
        raise SpecError(
            "tokens must stand in the order of the text",
            where="documents",
            allowed="one ascending number from 0 for each token",
            got=f"{list(documents.shape)} for selections {list(selections.shape)}",
            next_step="sort the tokens by document and position",
        )
    return int(documents[-1]) + 1
