"""Which experts would be missed least: scores of pruning criteria from streaming sums.

Frequency: tokens that choose the expert. Soft mass: sum of the probabilities of the router. EAN: sum over its
tokens of the norm of its output (expert activation norm). REAP: mean over its tokens of its weight times that
norm (arXiv 2510.13999). They rank experts within a layer. Super experts (arXiv 2507.23279), whose output is
among the very largest of the model, are flagged beside every ranking: a model that loses one may lose
everything, however rarely it is chosen.

Shapes: selections int [N, k]; weights and norms [N, k] in the same order; sums [E].
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.routing import check_selections

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SaliencySums:
    """Sums over tokens for each expert of a layer, each [E]; those of two texts are added by ``+``.

    Attributes:
        tokens: Tokens that choose the expert.
        mass: Sum of its probability over all tokens.
        norms: Sum of ||f_e(x)|| over its tokens.
        weighted: Sum of w_e ||f_e(x)|| over its tokens.
    """

    tokens: Array
    mass: Array
    norms: Array
    weighted: Array

    def __add__(self, other: SaliencySums) -> SaliencySums:
        return SaliencySums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def reap(self) -> Array:
        """REAP, [E]; NaN for an expert that no token chose."""
        with np.errstate(invalid="ignore"):
            return self.weighted / self.tokens


def saliency_sums(
    selections: NDArray[np.integer], weights: ArrayLike, norms: ArrayLike, probabilities: ArrayLike
) -> SaliencySums:
    """Sums of some tokens.

    Args:
        selections: int [N, k].
        weights: [N, k], the weights that the layer applies (renormalized where it does that).
        norms: [N, k], ||f_e(x_t)||_2 of the chosen experts, before the weight.
        probabilities: [N, E], of the router.

    Raises:
        SpecError: If the selections are not k different ids below E, or shapes do not fit.

    Example:
        >>> chosen, weights, soft = np.array([[0], [1]]), [[0.5], [0.5]], [[0.5, 0.5], [0.5, 0.5]]
        >>> sums = saliency_sums(chosen, weights, [[2.0], [4.0]], soft)
        >>> sums.norms.tolist(), (sums + sums).norms.tolist(), sums.reap.tolist()
        ([2.0, 4.0], [4.0, 8.0], [1.0, 2.0])
    """
    w, size, soft = (np.asarray(v, np.float64) for v in (weights, norms, probabilities))
    experts = soft.shape[-1]
    check_selections(selections, experts)
    if not selections.shape == w.shape == size.shape or soft.shape != (len(selections), experts):
        raise SpecError(
            "saliency needs a weight and a norm for each choice",
            where="saliency_sums",
            allowed=f"{list(selections.shape)}, probabilities [{len(selections)}, E]",
            got=f"{list(w.shape)}, {list(size.shape)}, {list(soft.shape)}",
        )
    chosen = selections.reshape(-1)
    sums = (
        np.bincount(chosen, v.reshape(-1), experts).astype(float) for v in (np.ones_like(w), size, w * size)
    )
    tokens, total, weighted = sums
    return SaliencySums(tokens, soft.sum(0), total, weighted)


def super_experts(
    largest: ArrayLike, layers: ArrayLike = True, *, quantile: float = 0.995, share: float = 0.1
) -> NDArray[np.bool_]:
    """Experts whose largest output is above a quantile of all and above a share of the largest.

    Of fewer than 200 experts the largest is always above the quantile 0.995: a flag there says little.

    Args:
        largest: [L, E], max |entry| of the output of each expert over tokens and dimensions; NaN where it was
            never chosen.
        layers: bool [L], layers in which massive activations form; all when left out.
        quantile: Of all experts of the model.
        share: Of the largest of the model.

    Returns:
        bool [L, E].

    Example:
        >>> outputs = np.ones((4, 64))
        >>> outputs[1, 7] = 500.0
        >>> np.argwhere(super_experts(outputs)).tolist()
        [[1, 7]]
    """
    a = np.asarray(largest, np.float64)
    if not np.isfinite(a).any():
        return np.zeros(a.shape, bool)
    found = (a > np.nanquantile(a, quantile)) & (a > share * np.nanmax(a))
    return found & np.broadcast_to(layers, a.shape[:1])[:, None]
