"""Uncertainty of means over tokens that come in documents.

Tokens of one document are alike, so documents are the independent units. Means are ratios of sums over
documents and are resampled by document, within domains: the share of each domain is fixed by design. Design
effect and effective sample size: Kish (1965); zero events: "rule of three" for effective tokens.
"""

from __future__ import annotations

import math

import numpy as np


def bootstrap_weights(strata: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each document is drawn in each resample, drawn within its stratum.

    A stratum of one document would always draw it and look certain, so such strata are drawn from together;
    if that still leaves one document alone, it joins the smallest other stratum.

    Args:
        strata: int [documents], the stratum (domain) of each document.
        resamples: Number of resamples B.
        seed: Seed of an own generator; the global one is not touched.

    Returns:
        float64 [B, documents]; within a stratum each row sums to the number of its documents.

    Example:
        >>> weights = bootstrap_weights(np.array([0, 0, 1, 1, 1]), resamples=4, seed=0)
        >>> weights[:, :2].sum(1).tolist()  # of the first domain two documents, in each resample
        [2.0, 2.0, 2.0, 2.0]
    """
    strata = _without_singletons(strata)
    generator = np.random.default_rng(seed)
    weights = np.zeros((resamples, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        weights[:, members] = generator.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=resamples
        )
    return weights


def _without_singletons(strata: np.ndarray) -> np.ndarray:
    """Join strata of one document, see ``bootstrap_weights``."""
    labels, inverse, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    alone = sizes[inverse] == 1
    joined = np.where(alone, len(labels), inverse)
    if alone.sum() == 1 and len(labels) > 1:
        smallest = int(np.argmin(np.where(sizes > 1, sizes, np.iinfo(sizes.dtype).max)))
        joined[alone] = smallest
    return joined


def pooled_intraclass_correlation(
    spread: float, variance: float, tokens: float, squared_tokens: float, documents: int
) -> float:
    """Intraclass correlation of yes/no events within documents, pooled over kinds of events (units).

    With rate p = K/N and k_d events among the n_d tokens of document d:
    E[sum_d (k_d - p n_d)^2] = p (1 - p) (N + ICC (sum n_d^2 - N)). Both sides are summed over
    units and solved for ICC. The left side is multiplied by D / (D - 1), because p is estimated
    from the same D documents.

    Args:
        spread: sum over units and documents of (k_d - p n_d)^2.
        variance: sum over units of p (1 - p).
        tokens: N = sum_d n_d.
        squared_tokens: sum_d n_d^2.
        documents: D.

    Returns:
        The correlation, clipped to [0, 1]; 1, the cautious value, where it cannot be estimated.

    Example:
        >>> # Two documents of two tokens; the unit is active on both tokens of one, or on one token of each.
        >>> pooled_intraclass_correlation(spread=2.0, variance=0.25, tokens=4, squared_tokens=8, documents=2)
        1.0
        >>> pooled_intraclass_correlation(spread=0.0, variance=0.25, tokens=4, squared_tokens=8, documents=2)
        0.0
    """
    spare = squared_tokens - tokens
    if spare <= 0 or variance <= 0 or documents < 2:
        return 1.0
    return min(max((spread * documents / (documents - 1) / variance - tokens) / spare, 0.0), 1.0)


def effective_tokens(tokens: float, squared_tokens: float, icc: float) -> float:
    """N / (1 + (m - 1) ICC) with m = sum n_d^2 / N, the size-weighted mean document length (Kish 1965).

    Example:
        >>> effective_tokens(1000, 10 * 100**2, icc=0.0)  # ten documents of 100 tokens, all independent
        1000.0
        >>> effective_tokens(1000, 10 * 100**2, icc=1.0)  # tokens of a document all alike
        10.0
    """
    if tokens <= 0:
        return 0.0
    return tokens / (1 + (squared_tokens / tokens - 1) * icc)


def zero_events_bound(n: float, level: float = 0.95) -> float:
    """One-sided upper bound on a rate after zero events in n independent trials: 1 - (1 - level)^(1/n) ~ 3/n.

    Example:
        >>> round(zero_events_bound(300), 4)  # never in 300 trials: at most about 1 %
        0.0099
    """
    return 1.0 if n <= 0 else -math.expm1(math.log1p(-level) / n)


def histogram_quantiles(counts: np.ndarray, edges: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    """Quantiles from a fixed-edge histogram, linear within a bin.

    Args:
        counts: int [bins].
        edges: [bins + 1].
        quantiles: In [0, 1].

    Returns:
        [quantiles]; NaN for an empty histogram. The error is at most one bin width.

    Example:
        >>> histogram_quantiles(np.array([1, 2, 1]), np.array([0.0, 1.0, 2.0, 3.0]), (0.5,)).tolist()
        [1.5]
    """
    total = counts.sum()
    if total == 0:
        return np.full(len(quantiles), np.nan)
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    wanted = np.asarray(quantiles) * total
    index = np.clip(np.searchsorted(cumulative, wanted, side="left") - 1, 0, len(counts) - 1)
    inside = (wanted - cumulative[index]) / np.maximum(counts[index], 1)
    return edges[index] + np.clip(inside, 0, 1) * (edges[index + 1] - edges[index])


def mean_over_present(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean along an axis over the finite entries; NaN where there is none (and no warning).

    Example:
        >>> float(mean_over_present(np.array([1.0, np.nan, 3.0]), axis=0))
        2.0
    """
    present = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(present, values, 0.0).sum(axis) / present.sum(axis)
