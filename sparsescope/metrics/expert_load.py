"""How evenly a router spreads tokens over experts, from how often each expert is chosen.

N_e tokens of N choose expert e, k of E experts each: shares of the slots f_e = N_e / (N k) add up to 1,
shares of the tokens p_e = N_e / N to k. Sources: coefficient of variation, importance: Shazeer et al. 2017
(arXiv 1701.06538, section 4); auxiliary loss: Fedus et al. 2021 (arXiv 2101.03961, eq. 4-6); z-loss: Zoph et
al. 2022 (arXiv 2202.08906); MaxVio: Wang et al. 2024 (arXiv 2408.15664). All are of one layer: pooled over
layers, layers that have collapsed onto different experts look balanced. MaxVio over a whole text ("global")
is smaller than over a batch.

Shapes: counts [..., E]; leading axes (layers, domains, resamples) are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.information import effective_number, entropy, shares
from sparsescope.metrics.sparsity import gini

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

TOKENS_TO_CALL_DEAD = 50
"""Choices that an expert would have in a balanced layer before one without any is called dead."""


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """The load of the experts of a layer; each [...], NaN where no token was counted.

    Attributes:
        slot_shares: f_e, [..., E].
        token_shares: p_e, [..., E].
        cv: Standard deviation of N_e over its mean: 0 balanced, sqrt(E / k - 1) if always the same k are
            chosen.
        normalized_entropy: H(f) / ln E, 1 balanced; NaN for one expert.
        effective_experts: exp(H(f)), E balanced.
        gini: 0 balanced, 1 - 1/E if all slots are of one expert.
        max_violation: MaxVio, (max N_e - mean) / mean: 0 balanced, E / k - 1 if always the same k are chosen.
        max_over_mean: max N_e / mean N_e.
        min_over_mean: min N_e / mean N_e.
        max_token_share: max_e N_e / N, the maximal routing imbalance (MRI).
        dead: Share of experts that no token chose; NaN below 50 E / k tokens, where chance leaves some out.
    """

    slot_shares: Array
    token_shares: Array
    cv: Array
    normalized_entropy: Array
    effective_experts: Array
    gini: Array
    max_violation: Array
    max_over_mean: Array
    min_over_mean: Array
    max_token_share: Array
    dead: Array


def expert_load(counts: ArrayLike, tokens: ArrayLike) -> ExpertLoad:
    """Describe the load of experts.

    Args:
        counts: N_e, [..., E].
        tokens: N, [...]; k is the sum of the counts over it.

    Raises:
        SpecError: If an expert was chosen more often than there are tokens.

    Example:
        >>> load = expert_load([[50, 50, 50, 50], [100, 100, 0, 0]], [100, 100])  # two of four, or the same
        >>> load.cv.tolist(), load.effective_experts.round(6).tolist(), load.dead.tolist()
        ([0.0, 1.0], [4.0, 2.0], [0.0, 0.5])
    """
    n, seen = np.asarray(counts, np.float64), np.asarray(tokens, np.float64)
    experts = n.shape[-1]
    if (n > seen[..., None] * (1 + 1e-9)).any():
        raise SpecError(
            "an expert cannot be chosen by more tokens than there are",
            where="expert_load",
            allowed=f"counts of at most {seen.min():g}",
            got=f"{n.max():g}",
            next_step="count each token once for each expert it chooses, and give the number of tokens",
        )
    f, mean = shares(n), n.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = n / seen[..., None]
        largest, least = n.max(-1) / mean, n.min(-1) / mean
        enough = n.sum(-1) >= TOKENS_TO_CALL_DEAD * experts
        return ExpertLoad(
            slot_shares=f,
            token_shares=p,
            cv=n.std(-1) / mean,
            normalized_entropy=entropy(f) / np.log(experts),
            effective_experts=effective_number(f),
            gini=gini(n),
            max_violation=largest - 1,
            max_over_mean=largest,
            min_over_mean=least,
            max_token_share=p.max(-1),
            dead=np.where(enough, (n == 0).mean(-1), np.nan),
        )


def squared_variation(sums: ArrayLike) -> Array:
    """Squared coefficient of variation: of importance, the sums of the weights w_e over tokens, or of load.

    Args:
        sums: [..., E].

    Returns:
        [...]: variance over squared mean (arXiv 1701.06538, eq. 7 without its factor). NaN where all are
        zero.

    Example:
        >>> squared_variation([[2.0, 2.0], [4.0, 0.0]]).tolist()
        [0.0, 1.0]
    """
    values = np.asarray(sums, np.float64)
    with np.errstate(invalid="ignore"):
        return values.var(-1) / values.mean(-1) ** 2


def auxiliary_loss(counts: ArrayLike, probabilities: ArrayLike, tokens: ArrayLike) -> Array:
    """Load-balancing loss E sum_e p_e P_e of a layer, without its factor alpha.

    Args:
        counts: N_e, [..., E].
        probabilities: Sum over tokens of the router's probabilities, [..., E]; P_e is this over N.
        tokens: N, [...].

    Returns:
        [...]: k where both are balanced, E where all probability is on k experts that all tokens choose.

    Example:
        >>> mass = [[25, 25, 25, 25], [50, 50, 0, 0]]
        >>> auxiliary_loss([[50, 50, 50, 50], [100, 100, 0, 0]], mass, [100, 100]).tolist()
        [2.0, 4.0]
    """
    n, mass = np.asarray(counts, np.float64), np.asarray(probabilities, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return n.shape[-1] * np.sum(n * mass, axis=-1) / np.asarray(tokens, np.float64) ** 2


def squared_logsumexp(logits: ArrayLike) -> Array:
    """(ln sum_e exp z_e)^2 of each token; its mean over tokens is the z-loss, without its factor.

    Args:
        logits: z, [..., E].

    Returns:
        [...].

    Example:
        >>> squared_logsumexp(np.log([[0.5, 0.5], [0.25, 0.75]])).round(6).tolist()  # normalized logits
        [0.0, 0.0]
    """
    from scipy.special import logsumexp

    return logsumexp(np.asarray(logits, np.float64), axis=-1) ** 2
