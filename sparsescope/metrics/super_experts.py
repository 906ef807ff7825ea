"""Experts that a ranking must not take away: those whose output is among the very largest of the model.

Frequency, soft mass, EAN (expert activation norm) and REAP (arXiv 2510.13999) rank experts within a layer,
from sums that ``activations.routing`` takes. Super experts (arXiv 2507.23279) are flagged beside every
ranking: a model that loses one may lose everything, however rarely it is chosen.

Shapes: L layers, E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


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
