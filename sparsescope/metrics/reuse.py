"""What independent tokens would reuse, and how unequally units are used.

Shapes: rates p [unit] are shares of tokens on which a unit is active.
Sources: Mirzadeh et al. 2023 (arXiv:2310.04564) for the aggregated share; Gini (1912) and Lorenz
(1905) for inequality.
"""

from __future__ import annotations

import numpy as np


def union_nulls(rates: np.ndarray, levels: int) -> np.ndarray:
    """Share of units that any of 1, 2, 4, ... independent tokens uses.

    Args:
        rates: [..., unit].
        levels: Number of chunk lengths k: 1, 2, ... 2^(levels - 1).

    Returns:
        [..., level, 2]: 1 - (1 - mean p)^k, all units alike, and mean_j 1 - (1 - p_j)^k, each at its own
        rate. The second is never larger (Jensen's inequality).

    Example:
        >>> union_nulls(np.array([0.5, 0.5, 0.0, 0.0]), levels=2).tolist()  # 1 token, 2 tokens
        [[0.25, 0.25], [0.4375, 0.375]]
    """
    alike, own = 1 - rates.mean(-1), 1 - rates
    found = []
    for _ in range(levels):
        found.append(np.stack([1 - alike, 1 - own.mean(-1)], axis=-1))
        alike, own = alike * alike, own * own
    return np.stack(found, axis=-2)


def gini_of_rates(rates: np.ndarray) -> np.ndarray:
    """Gini coefficient of rates [..., unit]: 0 where all are equal, NaN where all are zero.

    Example:
        >>> gini_of_rates(np.array([[0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.0, 0.4]])).tolist()
        [0.0, 0.75]
    """
    from sparsescope.metrics.sparsity import gini

    return gini(rates)


def hot_share(rates: np.ndarray, share: float = 0.8) -> np.ndarray:
    """Smallest share of units that has a share of all firings.

    Args:
        rates: [..., unit].
        share: Share of the firings.

    Returns:
        [...], in (0, 1]; NaN where nothing fires.

    Example:
        >>> float(hot_share(np.array([0.9, 0.1, 0.0, 0.0])))  # one of four units has 80 % of the firings
        0.25
    """
    from sparsescope.metrics.sparsity import top_p_density

    return np.where(rates.sum(-1) > 0, top_p_density(rates, share), np.nan)


def lorenz_curve(rates: np.ndarray, points: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Share of all firings that the most used units have.

    Args:
        rates: [unit].
        points: Points of the curve, at most one more than there are units.

    Returns:
        Shares of the units from 0 to 1, and the shares of firings, each [point]; NaN where nothing fires.

    Example:
        >>> units, firings = lorenz_curve(np.array([0.6, 0.2, 0.1, 0.1]), points=5)
        >>> units.tolist(), firings.round(6).tolist()
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 0.6, 0.8, 0.9, 1.0])
    """
    ordered = -np.sort(-rates)
    held = np.concatenate([[0.0], np.cumsum(ordered)])
    places = np.unique(np.linspace(0, len(rates), points).round().astype(int))
    with np.errstate(invalid="ignore"):
        return places / len(rates), held[places] / held[-1]
