"""Effective rank of a cloud of points, and what a matrix of independent entries gives.

Columns are centered first: otherwise the mean, which every token shares, is the largest direction. From
singular values s of the centered matrix: entropy rank exp(-sum p ln p) with p = s / sum s (Roy & Vetterli
2007), stable rank sum s^2 / max s^2, participation ratio (sum s^2)^2 / sum s^4. References: Marchenko &
Pastur (1967), for m x n independent entries of equal variance. Shapes: points [m, n].
"""

from __future__ import annotations

import math

import numpy as np

MEASURES = ("entropy_rank", "stable_rank", "participation")
_NODES = 4000


def centered_spectrum(product: np.ndarray) -> np.ndarray:
    """Squared singular values of the centered points from all inner products between them.

    Args:
        product: float64 [m, m], X X^T of points that are not centered. Any subset of points is a subset
            of rows and columns.

    Returns:
        float64 [m], descending, not negative; the last is zero up to rounding, because the
        mean was taken off.

    Example:
        >>> points = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> centered_spectrum(points @ points.T)[:2].round(6).tolist()
        [8.0, 2.0]
    """
    means = product.mean(axis=0)
    centered = product - means[:, None] - means[None, :] + means.mean()
    return np.maximum(np.linalg.eigvalsh(centered)[::-1], 0.0)


def column_spectrum(points: np.ndarray) -> np.ndarray:
    """The same from the points [m, n], over the columns: quicker where there are fewer columns than points.

    Example:
        >>> column_spectrum(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])).round(6).tolist()
        [8.0, 2.0]
    """
    centered = points - points.mean(axis=0)
    return np.maximum(np.linalg.eigvalsh(centered.T @ centered)[::-1], 0.0)


def effective_ranks(energies: np.ndarray) -> np.ndarray:
    """Entropy rank, stable rank and participation ratio.

    Args:
        energies: Squared singular values, in any order.

    Returns:
        float64 [3], in the order of ``MEASURES``; NaN where all are zero.

    Example:
        >>> effective_ranks(np.ones(4)).round(6).tolist()  # four equal directions
        [4.0, 4.0, 4.0]
        >>> effective_ranks(np.array([9.0, 1.0])).round(2).tolist()
        [1.75, 1.11, 1.22]
    """
    total = energies.sum()
    if not total > 0:
        return np.full(3, np.nan)
    # Eigenvalues below the rounding of the largest are zero: their square roots would count as directions.
    energies = np.where(energies > energies.max() * len(energies) * np.finfo(float).eps, energies, 0.0)
    share = np.sqrt(energies) / np.sqrt(energies).sum()
    entropy = -np.sum(share * np.log(share, out=np.zeros_like(share), where=share > 0))
    return np.array([np.exp(entropy), total / energies.max(), total**2 / np.sum(energies**2)])


def independent_ranks(m: int, n: int) -> np.ndarray:
    """The same for m x n independent entries of equal variance, for large m and n.

    Stable rank m n / (sqrt m + sqrt n)^2 and participation ratio m n / (m + n) in closed form; the entropy
    rank is an integral over the Marchenko-Pastur density: k E[s] exp(-E[s ln s] / E[s]) with k = min(m, n).

    Returns:
        float64 [3], in the order of ``MEASURES``.

    Example:
        >>> independent_ranks(100, 100).round(1).tolist()  # far below 100, though nothing depends on anything
        [80.5, 25.0, 50.0]
    """
    values, weights = _marchenko_pastur(m, n)
    singular = np.sqrt(values)
    mean = weights @ singular
    entropy = weights @ (singular * np.log(singular)) / mean
    return np.array(
        [min(m, n) * mean * math.exp(-entropy), m * n / (math.sqrt(m) + math.sqrt(n)) ** 2, m * n / (m + n)]
    )


def independent_energy(m: int, n: int, components: np.ndarray) -> np.ndarray:
    """Share of the energy that the largest components of m x n independent entries hold.

    Args:
        m: Points.
        n: Columns.
        components: Numbers of components, at most min(m, n).

    Example:
        >>> shares = independent_energy(100, 100, np.array([10, 50, 100]))
        >>> shares.round(2).tolist()  # a tenth of the directions holds 31 %
        [0.31, 0.89, 1.0]
    """
    values, weights = _marchenko_pastur(m, n)
    order = np.argsort(-values)
    count = np.concatenate([[0.0], np.cumsum(weights[order])]) * min(m, n)
    held = np.concatenate([[0.0], np.cumsum(weights[order] * values[order])])
    return np.interp(components, count, held / held[-1])


def _marchenko_pastur(m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (adding up to 1) of the density sqrt((b - x)(x - a)) / (2 pi y x) of the
    eigenvalues of X X^T / n.

    With y = min / max of m and n; a, b = (1 -+ sqrt y)^2. Under x = middle + radius cos t the
    integrand is smooth.
    """
    y = min(m, n) / max(m, n)
    t = (np.arange(_NODES) + 0.5) * np.pi / _NODES
    x = (1 + y) + 2 * math.sqrt(y) * np.cos(t)
    weights = np.sin(t) ** 2 / np.maximum(x, 1e-12)
    return np.maximum(x, 1e-12), weights / weights.sum()


def ranks_and_folds(values: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effective ranks of the centered rows, the same without each fold of rows in turn, and the spectrum.

    With m < n the m x m matrix of inner products is taken once; leaving out a fold leaves out rows
    and columns of it.

    Args:
        values: float32 [m, n].
        folds: int [m], the fold of each row.

    Returns:
        Ranks [3] in the order of ``MEASURES``; those without each fold, [G, 3], brought to the size of the
        whole; squared singular values, descending.

    Example:
        >>> points, folds = np.eye(8, dtype=np.float32), np.repeat([0, 1], 4)
        >>> ranks, without, energies = ranks_and_folds(points, folds)
        >>> ranks.round(6).tolist(), without.shape  # the mean takes one of eight directions off
        ([7.0, 7.0, 7.0], (2, 3))
    """
    m, n = values.shape
    # Scaled so that squares of products stay in range; ranks do not change.
    largest = float(np.abs(values).max())
    points = values.astype(np.float64) / (largest if largest > 0 else 1.0)
    present = np.unique(folds)
    subsets = [np.flatnonzero(folds != fold) for fold in present] if len(present) > 1 else []
    subsets = [rows for rows in subsets if len(rows) >= 3]
    if m <= n:
        product = points @ points.T
        spectrum = centered_spectrum(product)
        replicates = [effective_ranks(centered_spectrum(product[np.ix_(rows, rows)])) for rows in subsets]
    else:
        spectrum = column_spectrum(points)
        replicates = [effective_ranks(column_spectrum(points[rows])) for rows in subsets]
    # Folds differ in size and ranks grow with the number of tokens: each replicate is brought to the size of
    # the whole by the ratio of the references, or the size of the folds would look like uncertainty.
    whole = independent_ranks(m - 1, n)
    scaled = [
        ranks * whole / independent_ranks(len(rows) - 1, n)
        for ranks, rows in zip(replicates, subsets, strict=True)
    ]
    return effective_ranks(spectrum), np.array(scaled).reshape(-1, len(MEASURES)), spectrum
