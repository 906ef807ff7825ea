"""Measures of rows of attention weights, in plain NumPy: the definitions that the kernels are tested against.

A row holds the weights of one query on the t keys that it may see: w_j >= 0, sum 1. "Position" is the
place of the query in its window, from 0. In a causal model t = position + 1, or the width of its sliding
window if that is less.
Sources: sink rate, Gu et al. 2024 (arXiv:2410.10781); block sparsity, the Sparse Frontier (arXiv:2504.17768).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# Sums of float32 weights are exact to about this relative error; a share counts as reached within it.
ROUNDING = 1e-6
LOCAL_WIDTHS = (1, 16, 64, 256)
FIRST_KEYS = 4
BLOCK_SHARE = 0.95
LINE_SHARE = 0.01
SINK_LENGTH = 64
SINK_LEVEL = 0.3


def entropy(row: np.ndarray) -> float:
    """Entropy -sum w ln w of a row, in nats; 0 ln 0 = 0.

    Example:
        >>> round(math.exp(entropy(np.array([0.5, 0.5, 0.0]))), 6)  # as spread as two equal keys
        2.0
    """
    positive = np.asarray(row, np.float64)[np.asarray(row) > 0]
    return float(-(positive * np.log(positive)).sum())


def top_share_count(row: np.ndarray, share: float) -> int:
    """k_p: fewest keys that hold a share p of the row's mass; ceil(p t) for a uniform row.

    Example:
        >>> top_share_count(np.array([0.1, 0.6, 0.2, 0.1]), 0.75)  # 0.6 and 0.2
        2
        >>> top_share_count(np.full(4, 0.25), 0.75)
        3
    """
    cumulative = np.cumsum(np.sort(np.asarray(row, np.float64))[::-1])
    return int(np.searchsorted(cumulative, share * cumulative[-1] * (1 - ROUNDING)) + 1)


def gini(row: np.ndarray) -> float:
    """Gini index of t values, sum_k (2k - t - 1) w_(k) / (t sum w); NaN for t < 2 or no mass.

    Example:
        >>> gini(np.full(4, 0.25)), gini(np.array([0.0, 0.0, 0.0, 1.0]))  # equal; one key has all: 1 - 1 / t
        (0.0, 0.75)
    """
    ordered = np.sort(np.asarray(row, np.float64))
    t, total = len(ordered), ordered.sum()
    if t < 2 or total <= 0:
        return math.nan
    return float(((2 * np.arange(1, t + 1) - t - 1) * ordered).sum() / (t * total))


def normal_null(t: int, spread: float) -> np.ndarray:
    """Weights of a row whose scores are the t normal quantiles times ``spread``:
    softmax(spread * z), ascending.

    What concentration comes from the spread of the scores alone. Shuffling the scores of a row would change
    none of its entropy, coverage and Gini; this keeps their variance and takes away everything else, such as
    single keys far out.

    Example:
        >>> normal_null(3, spread=0.0).round(2).tolist()  # equal scores, uniform row
        [0.33, 0.33, 0.33]
        >>> normal_null(3, spread=3.0).round(2).tolist()
        [0.0, 0.05, 0.95]
    """
    from scipy.special import ndtri

    scores = spread * ndtri((np.arange(1, t + 1) - 0.5) / t)
    weights = np.exp(scores - scores[-1])
    return weights / weights.sum()


def log_spread(row: np.ndarray) -> float:
    """Standard deviation of the scores of a row, from ln w = score - constant; weights below
    1e-38 count as 1e-38.

    Example:
        >>> log_spread(np.array([0.5, 0.5])), round(log_spread(np.array([0.1, 0.1, 0.8])), 2)
        (0.0, 0.98)
    """
    return float(np.std(np.log(np.maximum(np.asarray(row, np.float64), 1e-38))))


def sink_of_uniform(length: int) -> float:
    """Sink rate of the first key when every causal row is uniform: H_T / T (0.0741 at T = 64).

    Example:
        >>> sink_of_uniform(2)  # the first query has one key, the second two: (1 + 1 / 2) / 2
        0.75
        >>> round(sink_of_uniform(64), 4)
        0.0741
    """
    return float((1 / np.arange(1, length + 1)).sum() / length)


def concentration(mass: np.ndarray, share: float = LINE_SHARE) -> float:
    """Share of the mass in the top ``share`` of the lines (columns or diagonals), at least one line.

    Example:
        >>> concentration(np.array([6.0, 2.0, 1.0, 1.0]), share=0.25)  # the top one of four columns
        0.6
    """
    ordered = np.sort(np.asarray(mass, np.float64))[::-1]
    return float(ordered[: math.ceil(share * len(ordered))].sum() / ordered.sum())


def blocks_needed(blocks: np.ndarray, share: float = BLOCK_SHARE) -> np.ndarray:
    """Fewest key blocks that hold a share of the mass of a block of queries, int [...] from [..., block].

    Example:
        >>> blocks_needed(np.array([[0.90, 0.06, 0.04], [0.97, 0.02, 0.01]])).tolist()  # 0.96, 0.97
        [2, 1]
    """
    cumulative = np.cumsum(-np.sort(-np.asarray(blocks, np.float64), axis=-1), axis=-1)
    return (cumulative < share * cumulative[..., -1:] * (1 - ROUNDING)).sum(-1) + 1


def causal_block_density(kept: int, blocks: int) -> float:
    """Density when each block row keeps at most ``kept`` of ``blocks``: [k(k+1)/2 + (B-k)k] / [B(B+1)/2].

    Example:
        >>> causal_block_density(1, 4)  # one block in each of four rows, of 1 + 2 + 3 + 4
        0.4
    """
    kept = min(kept, blocks)
    return (kept * (kept + 1) / 2 + (blocks - kept) * kept) / (blocks * (blocks + 1) / 2)


class Dropped(NamedTuple):
    """What leaving keys out does to the output of one row.

    Attributes:
        errors: float64 [share], ||sum over dropped keys of w_j v_j|| / ||o|| when the top-p sets are kept.
        fractions: float64 [level], smallest share of the keys to keep such that the error stays at or below
            each level, keys being dropped in order of their contribution ||w_j v_j||, smallest first.
    """

    errors: np.ndarray
    fractions: np.ndarray


def dropped_output(
    row: np.ndarray, values: np.ndarray, shares: tuple[float, ...], levels: tuple[float, ...]
) -> Dropped:
    """Output-aware measures of one row.

    Args:
        row: [key].
        values: [key, head_dim].
        shares: Shares p of the top-p sets.
        levels: Error levels.

    Example:
        >>> row, values = np.array([0.5, 0.3, 0.2]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> found = dropped_output(row, values, shares=(0.75,), levels=(0.3,))
        >>> found.errors.round(2).tolist()  # the top two keys are kept: 0.2 of sqrt(0.8^2 + 0.2^2) is missing
        [0.24]
        >>> found.fractions.round(2).tolist()  # two of three keys keep the error below 0.3
        [0.67]
    """
    w, v = np.asarray(row, np.float64), np.asarray(values, np.float64)
    parts = w[:, None] * v
    norm = np.linalg.norm(parts.sum(0))
    if norm == 0:
        return Dropped(np.full(len(shares), np.nan), np.full(len(levels), np.nan))
    by_mass = np.argsort(w, kind="stable")
    errors = [np.linalg.norm(parts[by_mass[: len(w) - top_share_count(w, p)]].sum(0)) / norm for p in shares]
    order = np.argsort(np.linalg.norm(parts, axis=1), kind="stable")
    tail = np.linalg.norm(np.cumsum(parts[order], axis=0), axis=1) / norm
    # The first k drops that all stay within the level: a later one that happens to cancel does not count.
    beyond = [np.append(tail > level, True).argmax() for level in levels]
    return Dropped(np.array(errors), 1 - np.array(beyond) / len(w))


def head_class(first: float, previous: float, local: float) -> str:
    """Kind of a head from mean shares of its weights: ``sink``, ``previous token``, ``local`` or ``mixed``.

    Args:
        first: Share on the first key. Above ``SINK_LEVEL`` = 0.3 it is a sink head (the threshold
            of the sink rate).
        previous: Share on the key just before the query; at least 0.5 makes a previous-token head.
        local: Share on keys less than 16 away, the query itself included; at least 0.8 makes a local head.

    Example:
        >>> head_class(first=0.7, previous=0.1, local=0.2), head_class(first=0.1, previous=0.2, local=0.9)
        ('sink', 'local')
    """
    if previous >= 0.5:
        return "previous token"
    if first > SINK_LEVEL:
        return "sink"
    return "local" if local >= 0.8 else "mixed"
