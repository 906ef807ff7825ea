"""Neurons that components share: how many, whether more than by chance, and which are theirs alone.

M = Z Z^T with Z = 1[H != 0] counts shared neurons; Jaccard M_ij / (M_ii + M_jj - M_ij). Null of a pair:
supports of these sizes, drawn from all d neurons with equal chance, share m or more with the hypergeometric
probability P(M >= m); pairs are then held to a false discovery rate (Benjamini & Hochberg 1995). The null of
the number of components that use a neuron is a sum of independent draws with chances s_c / d, binomial for
equal sizes. A few neurons that all components use make most pairs significant: look at the degrees first.
Shapes: components [k, d].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sparsescope.errors import SpecError

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NeuronSharing:
    """What components share.

    Attributes:
        overlap: M, int64 [k, k]; sizes of supports on the diagonal.
        jaccard: [k, k]; 0 for two empty supports.
        p_values: [k, k], P(M >= m) under the null; 1 on the diagonal, which is no pair.
        adjusted: [k, k], smallest false discovery rate at which the pair is found; 1 on the diagonal.
        degrees: int64 [k + 1], neurons that 0, 1, ... k components use.
        expected_degrees: [k + 1], the same under the null.
    """

    overlap: Counts
    jaccard: Array
    p_values: Array
    adjusted: Array
    degrees: Counts
    expected_degrees: Array

    def pairs(self, rate: float = 0.05) -> Counts:
        """Pairs found at a false discovery rate, int64 [pair, 2], most significant first."""
        first, second = np.triu_indices(len(self.overlap), 1)
        adjusted = self.adjusted[first, second]
        order = np.argsort(adjusted, kind="stable")
        order = order[adjusted[order] <= rate]
        return np.stack([first[order], second[order]], axis=1)


def neuron_sharing(components: np.ndarray) -> NeuronSharing:
    """Return what components share.

    Args:
        components: [k, d]; only where they are not zero matters.

    Raises:
        SpecError: Not a matrix.
    """
    used = _used(components)
    k, d = used.shape
    counts = used.astype(np.int64)
    overlap = counts @ counts.T
    sizes = np.diag(overlap)
    union = sizes[:, None] + sizes - overlap
    jaccard = np.divide(overlap, union, where=union > 0, out=np.zeros((k, k)))
    first, second = np.triu_indices(k, 1)
    chance = stats.hypergeom.sf(overlap[first, second] - 1, d, sizes[first], sizes[second])
    chance = np.clip(chance, 0, 1)
    p_values, adjusted = np.ones((k, k)), np.ones((k, k))
    p_values[first, second] = p_values[second, first] = chance
    if len(chance):
        rates = stats.false_discovery_control(chance, method="bh")
        adjusted[first, second] = adjusted[second, first] = rates
    degrees = np.bincount(used.sum(0), minlength=k + 1)
    return NeuronSharing(overlap, jaccard, p_values, adjusted, degrees, d * _sum_of_draws(sizes / d))


def exclusive_neurons(components: np.ndarray, family: Sequence[int]) -> dict[int, Counts]:
    """Neurons that one component of a family uses and no other of it, by component.

    Args:
        components: [k, d].
        family: Components that are compared.

    Raises:
        SpecError: A component is not there.
    """
    used = _family(components, family)
    alone = used & (used.sum(0) == 1)
    return {c: np.flatnonzero(alone[place]) for place, c in enumerate(family)}


def core_neurons(components: np.ndarray, family: Sequence[int]) -> Counts:
    """Neurons that all components of a family use, int64.

    Args:
        components: [k, d].
        family: Components that are compared.

    Raises:
        SpecError: A component is not there.
    """
    return np.flatnonzero(_family(components, family).all(0))


def _used(components: np.ndarray) -> NDArray[np.bool_]:
    components = np.asarray(components)
    if components.ndim != 2 or not components.size:
        raise SpecError(
            "components are a matrix", where="components", allowed="[k, d]", got=str(list(components.shape))
        )
    return components != 0


def _family(components: np.ndarray, family: Sequence[int]) -> NDArray[np.bool_]:
    used = _used(components)
    wrong = [c for c in family if not 0 <= c < len(used)]
    if wrong or not len(family) or len(set(family)) < len(family):
        raise SpecError(
            "a family is a set of components",
            where="family",
            allowed=f"one or more different numbers from 0 to {len(used) - 1}",
            got=str(list(family))[:200],
        )
    return used[list(family)]


def _sum_of_draws(chances: Array) -> Array:
    """Distribution of a sum of independent draws of 0 or 1, [k + 1]."""
    out = np.ones(1)
    for chance in chances:
        out = np.convolve(out, [1 - chance, chance])
    return out
