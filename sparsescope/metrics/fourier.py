"""Fourier measures of models of addition modulo p, for any p >= 2, odd or even.

A function of (a, b) that depends on a + b mod p alone is a sum of cos w_k(a + b) and sin w_k(a + b),
w_k = 2 pi k / p. The span of both for k in K is what "restricted" logits keep and "excluded" logits lose.
Source: Nanda et al. 2023 (arXiv 2301.05217). Frequencies run from 1 to floor(p / 2); of an even p the
last one has no sine.

Shapes: logits [p^2, p] with row a p + b and one column for each residue c; sums s = a + b mod p;
hidden units [p^2, f].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def frequencies(p: int) -> NDArray[np.int64]:
    """Return 1 ... floor(p / 2), the frequencies other than the constant.

    Raises:
        SpecError: If p is below 2.

    Example:
        >>> frequencies(5).tolist(), frequencies(6).tolist()
        ([1, 2], [1, 2, 3])
    """
    if p < 2:
        raise SpecError(
            "there is no addition modulo this number", where="modulus", allowed="at least 2", got=p
        )
    return np.arange(1, p // 2 + 1)


def fourier_basis(p: int) -> Array:
    """Return the real Fourier basis of functions on the residues.

    Returns:
        float64 [p, p], orthonormal rows: the constant, then cosine and sine of each frequency; of an even p
        the cosine of p / 2 comes last, alone.

    Example:
        >>> basis = fourier_basis(5)
        >>> np.allclose(basis @ basis.T, np.eye(5))
        True
    """
    angles = 2 * np.pi * np.outer(frequencies(p), np.arange(p)) / p
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).reshape(-1, p)[: p - 1]
    rows = np.concatenate([np.ones((1, p)), rows])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def row_frequencies(p: int) -> NDArray[np.int64]:
    """Return the frequency of each row of ``fourier_basis``; 0 for the constant.

    Example:
        >>> row_frequencies(5).tolist()  # constant, cos 1, sin 1, cos 2, sin 2
        [0, 1, 1, 2, 2]
    """
    return np.concatenate([[0], np.repeat(frequencies(p), 2)])[:p]


def component_norms(matrix: Array) -> Array:
    """Norms of the Fourier components of the rows of a matrix, such as an embedding of the residues.

    Args:
        matrix: [p, d], one row for each residue.

    Returns:
        float64 [floor(p / 2)]: x_k = sqrt(||cos_k^T W||^2 + ||sin_k^T W||^2).

    Example:
        >>> residues = np.arange(5)[:, None]
        >>> component_norms(np.cos(2 * np.pi * 2 * residues / 5)).round(2).tolist()  # frequency 2 alone
        [0.0, 1.58]
    """
    p = len(matrix)
    energies = ((fourier_basis(p) @ np.asarray(matrix, np.float64)) ** 2).sum(1)
    return np.sqrt(np.bincount(row_frequencies(p), energies)[1:])


def projector(p: int, keys: Sequence[int]) -> Array:
    """Return Pi_K, the projector on functions of (a, b) spanned by cos w_k(a + b) and sin w_k(a + b), k in K.

    Rank 2 |K| (1 for k = p / 2). Only for checks: [p^2, p^2] is large. ``restrict`` does the
    same through sums.

    Example:
        >>> round(float(np.trace(projector(5, [1]))), 6)  # its rank: cosine and sine
        2.0
    """
    sums = np.add.outer(np.arange(p), np.arange(p)).ravel() % p
    return sum_filter(p, keys)[np.ix_(sums, sums)] / p


def sum_filter(p: int, keys: Sequence[int]) -> Array:
    """Return the circulant [p, p] that keeps frequencies K of a function of the sum.

    Entry (s, t) is (2 / p) sum_k cos w_k(s - t); the frequency p / 2 of an even p has weight 1 / p.

    Raises:
        SpecError: A key is no frequency of this modulus.

    Example:
        >>> wave = np.cos(2 * np.pi * 2 * np.arange(5) / 5)
        >>> np.allclose(sum_filter(5, [2]) @ wave, wave), np.allclose(sum_filter(5, [1]) @ wave, 0)
        (True, True)
    """
    known = frequencies(p)
    strange = [int(k) for k in keys if int(k) not in known]
    if strange:
        raise SpecError(
            "no such frequency", where=f"addition modulo {p}", allowed=f"1 to {p // 2}", got=strange
        )
    k = np.unique(np.asarray(list(keys), dtype=np.int64))
    weight = np.where(2 * k == p, 1.0, 2.0) / p
    profile = weight @ np.cos(2 * np.pi * np.outer(k, np.arange(p)) / p) if len(k) else np.zeros(p)
    return np.asarray(profile[np.subtract.outer(np.arange(p), np.arange(p)) % p])


def sum_means(logits: Array) -> Array:
    """Mean of the logits over the p pairs of each sum: [p^2, p] to [p, p], row s.

    Raises:
        SpecError: The shape is not that of all pairs of a modulus.

    Example:
        >>> sums = np.add.outer(np.arange(3), np.arange(3)).ravel() % 3
        >>> sum_means(10 * np.eye(3)[sums]).tolist()  # logits of a model that adds without error
        [[10.0, 0.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 10.0]]
    """
    p = logits.shape[1]
    if logits.shape != (p * p, p):
        raise SpecError(
            "logits of all pairs are needed",
            where="logits",
            allowed=f"shape ({p * p}, {p})",
            got=logits.shape,
        )
    table = rearrange(np.asarray(logits, np.float64), "(a b) c -> a b c", a=p)
    a = np.arange(p)
    return np.stack([table[a, (s - a) % p].mean(0) for s in range(p)])


def restrict(means: Array, keys: Sequence[int]) -> Array:
    """Return Pi_K Lambda as a function of the sum.

    Args:
        means: [p, p] of ``sum_means``.
        keys: The frequencies K to keep.

    Returns:
        float64 [p, p], row s; every pair (a, b) with this sum has this row.

    Example:
        >>> np.allclose(restrict(np.eye(5), [1, 2]), np.eye(5) - 1 / 5)  # every frequency but the constant
        True
    """
    return sum_filter(len(means), keys) @ means


def restricted_logits(means: Array, keys: Sequence[int]) -> Array:
    """Return the logits that keep K alone: Pi_K Lambda + the mean over pairs of (Lambda - Pi_K
    Lambda), for each class.

    Returns:
        float64 [p, p], row s.

    Example:
        >>> np.allclose(restricted_logits(np.eye(5), [1, 2]), np.eye(5))
        True
        >>> np.allclose(restricted_logits(np.eye(5), []), 1 / 5)  # the mean of each class is left
        True
    """
    return restrict(means, keys) + means.mean(0)  # Pi_K of anything has mean zero


def restricted_loss(means: Array, keys: Sequence[int], counts: NDArray[np.int64] | None = None) -> float:
    """Cross-entropy, in nats, of the restricted logits.

    Args:
        means: [p, p] of ``sum_means``.
        keys: The frequencies K.
        counts: Pairs of each sum [p] to average over; None for all pairs.

    Example:
        >>> means = 20 * np.eye(5)  # a model that adds without error
        >>> round(restricted_loss(means, [1, 2]), 2), round(restricted_loss(means, []), 2)  # ln 5
        (0.0, 1.61)
    """
    losses = cross_entropy(restricted_logits(means, keys), np.arange(len(means)))
    return float(np.average(losses, weights=counts))


def excluded_loss(logits: Array, means: Array, keys: Sequence[int], rows: NDArray[np.int64]) -> float:
    """Cross-entropy, in nats, of the logits without frequencies K on some pairs (those of training),
    no bias correction.

    Args:
        logits: [p^2, p].
        means: [p, p] of ``sum_means`` of these logits.
        keys: The frequencies K.
        rows: Pairs a p + b to average over.

    Example:
        >>> sums = np.add.outer(np.arange(5), np.arange(5)).ravel() % 5
        >>> means = 20 * np.eye(5)  # a model that adds without error, and does so by frequencies 1 and 2
        >>> round(excluded_loss(means[sums], means, [1, 2], rows=np.arange(25)), 2)  # it can only guess: ln 5
        1.61
    """
    p = logits.shape[1]
    sums = (rows // p + rows % p) % p
    return float(cross_entropy(logits[rows] - restrict(means, keys)[sums], sums).mean())


def excluded_losses(logits: Array, means: Array, rows: NDArray[np.int64]) -> Array:
    """``excluded_loss`` of each frequency alone: float64 [floor(p / 2)], to about 1e-14 nats.

    exp(Lambda - Pi_k Lambda) is a product of two factors, of which the first is the same for every k.

    Example:
        >>> sums = np.add.outer(np.arange(5), np.arange(5)).ravel() % 5
        >>> wave = np.cos(2 * np.pi * np.subtract.outer(np.arange(5), np.arange(5)) / 5)
        >>> losses = excluded_losses(10 * wave[sums], 10 * wave, rows=np.arange(25))
        >>> losses.round(2).tolist()  # it adds by frequency 1
        [1.61, 0.0]
    """
    p = logits.shape[1]
    sums = (rows // p + rows % p) % p
    order = np.argsort(sums, kind="stable")
    rows, sums = rows[order], sums[order]
    chosen = np.asarray(logits[rows], np.float64)
    most = chosen.max(1)
    factor = np.exp(chosen - most[:, None])
    own = chosen[np.arange(len(rows)), sums] - most
    present, first = np.unique(sums, return_index=True)
    bounds = [*first, len(rows)]
    found = np.empty(p // 2)
    for k in frequencies(p):
        kept = restrict(means, [int(k)])
        if np.abs(kept).max() > 300:  # the second factor would overflow
            found[k - 1] = excluded_loss(logits, means, [int(k)], rows)
            continue
        second = np.exp(-kept)
        parts = zip(present, bounds[:-1], bounds[1:], strict=True)
        total = np.concatenate([factor[begin:end] @ second[s] for s, begin, end in parts])
        found[k - 1] = (np.log(total) - own + kept[sums, sums]).mean()
    return found


def cross_entropy(logits: Array, targets: NDArray[np.int64]) -> Array:
    """Return log sum exp - logit of the target, in nats, float64 [n]; exact for losses far below 1e-8.

    Args:
        logits: [n, p].
        targets: int [n].

    Example:
        >>> losses = cross_entropy(np.array([[0.0, 0.0], [50.0, 0.0]]), np.array([0, 0]))
        >>> round(float(losses[0]), 3), f"{losses[1]:.3g}"  # ln 2, and exp(-50), far below the rounding of 1
        (0.693, '1.93e-22')
    """
    gaps = (
        np.asarray(logits, np.float64)
        - np.asarray(logits, np.float64)[np.arange(len(logits)), targets][:, None]
    )
    most = np.maximum(gaps.max(1), 0.0)
    # log1p of the others, where the target is the largest, keeps what log(1 + tiny) would lose.
    shifted = np.exp(gaps - most[:, None])
    shifted[np.arange(len(gaps)), targets] = 0.0
    others, own = shifted.sum(1), np.exp(-most)
    return np.asarray(np.where(most > 0, most + np.log(own + others), np.log1p(others)))


def cosine_coefficients(means: Array) -> Array:
    """a_k = <Lambda, cos w_k(a + b - c) / norm>, the norm over all (a, b, c): float64 [floor(p / 2)].

    Args:
        means: [p, p] of ``sum_means``; the inner product needs no more than it.

    Example:
        >>> wave = np.cos(2 * np.pi * np.subtract.outer(np.arange(5), np.arange(5)) / 5)
        >>> np.abs(cosine_coefficients(wave)).round(2).tolist()  # frequency 1 alone; sqrt(5^3 / 2)
        [7.91, 0.0]
    """
    p = len(means)
    k = frequencies(p)
    difference = np.subtract.outer(np.arange(p), np.arange(p)) % p  # s - c
    by_difference = np.bincount(difference.ravel(), means.ravel(), minlength=p)
    # Of p^3 entries cos^2, whose mean is 1/2 (1 for k = p/2)
    norms = p * np.sqrt(np.where(2 * k == p, p, p / 2))
    return np.asarray(p * (np.cos(2 * np.pi * np.outer(k, np.arange(p)) / p) @ by_difference) / norms)


def explained_variance(logits: Array, means: Array, keys: Sequence[int]) -> float:
    """FVE = sum_{k in K} a_k^2 / ||Lambda - mean||^2 with the mean of each class over all pairs.

    Args:
        logits: [p^2, p].
        means: [p, p] of ``sum_means``.
        keys: The frequencies K.

    Example:
        >>> sums = np.add.outer(np.arange(5), np.arange(5)).ravel() % 5
        >>> means = np.eye(5)  # frequencies 1 and 2 in equal parts
        >>> [round(explained_variance(means[sums], means, keys), 6) for keys in ([1], [1, 2])]
        [0.5, 1.0]
    """
    centered = np.asarray(logits, np.float64) - means.mean(0)
    total = float((centered**2).sum())
    chosen = cosine_coefficients(means)[np.asarray(sorted(set(keys)), dtype=np.int64) - 1]
    return float((chosen**2).sum() / total) if total > 0 else float("nan")


def sum_energies(means: Array) -> Array:
    """Share of the energy of the sum-dependent logits that each frequency holds: float64
    [floor(p / 2)], adds up to 1.

    ||Pi_k Lambda||^2 / sum_j ||Pi_j Lambda||^2. NaN where the logits do not depend on the sum.

    Example:
        >>> sum_energies(np.eye(5)).round(6).tolist()
        [0.5, 0.5]
    """
    p = len(means)
    energies = np.bincount(row_frequencies(p), ((fourier_basis(p) @ means) ** 2).sum(1))[1:]
    total = energies.sum()
    return np.asarray(energies / total if total > 0 else np.full(len(energies), np.nan))


def neuron_energies(hidden: NDArray[np.floating]) -> tuple[Array, Array]:
    """How far one frequency explains each hidden unit.

    The activations over all (a, b) are centered; frequency k holds the eight components cos_k and sin_k of a,
    of b, and the four products. frac_k = their energy / total energy.

    Args:
        hidden: [p^2, f] after the activation function, row a p + b.

    Returns:
        float64 [floor(p / 2), f], frac_k of each unit, and float64 [f], the total energies. A unit
        without energy has NaN.

    Example:
        >>> wave = np.cos(2 * np.pi * np.arange(5) / 5)
        >>> shares, _ = neuron_energies(np.add.outer(wave, wave).reshape(25, 1))  # cos w_1 a + cos w_1 b
        >>> shares[:, 0].round(6).tolist()
        [1.0, 0.0]
    """
    p = round(len(hidden) ** 0.5)
    if p * p != len(hidden):
        raise SpecError(
            "activations of all pairs are needed", where="hidden", allowed="p^2 rows", got=len(hidden)
        )
    values = np.asarray(hidden)
    values = rearrange(values - values.mean(0), "(a b) f -> a b f", a=p)
    basis = fourier_basis(p).astype(values.dtype)
    over_b = np.matmul(basis, values)  # [a, row, f]
    squares = np.square(np.tensordot(basis, over_b, 1), dtype=values.dtype)  # [row of a, row of b, f]
    label = row_frequencies(p)
    found = np.zeros((p // 2, values.shape[2]))
    for k in frequencies(p):
        rows = np.flatnonzero(label == k)
        block = squares[np.ix_(rows, rows)].sum((0, 1), dtype=np.float64)
        found[k - 1] = (
            block + squares[rows, 0].sum(0, dtype=np.float64) + squares[0, rows].sum(0, dtype=np.float64)
        )
    total = squares.reshape(p * p, -1).sum(0, dtype=np.float64)
    # Rounding of float32 leaves energy in a unit that is constant: compared with its scale, it has none.
    silent = total <= (1e-5 * np.abs(np.asarray(hidden)).max(0).astype(np.float64)) ** 2 * p * p
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(silent, np.nan, found / total), np.where(silent, 0.0, total)


def dominant_frequencies(fractions: Array, threshold: float) -> NDArray[np.int64]:
    """Frequency that explains each unit: the largest frac_k if it is above the threshold, else 0.

    Args:
        fractions: [floor(p / 2), f] of ``neuron_energies``.
        threshold: 0.85 in the paper.

    Example:
        >>> dominant_frequencies(np.array([[0.9, 0.5], [0.1, 0.5]]), threshold=0.85).tolist()  # second: none
        [1, 0]
    """
    filled = np.nan_to_num(fractions, nan=0.0)
    best = filled.argmax(0)
    return np.where(filled[best, np.arange(filled.shape[1])] > threshold, best + 1, 0)


def keys_of_neurons(dominant: NDArray[np.int64], share: float) -> tuple[int, ...]:
    """Key frequencies: those that explain at least a share of all hidden units.

    Args:
        dominant: [f] of ``dominant_frequencies``.
        share: 0.02 by default of the analysis.

    Example:
        >>> keys_of_neurons(np.array([3, 3, 0, 5]), share=0.3)  # 3 explains two of four units, 5 only one
        (3,)
    """
    if len(dominant) == 0:
        return ()
    counts = np.bincount(dominant)[1:]
    return tuple(int(k) for k in np.flatnonzero(counts >= max(share * len(dominant), 1)) + 1)


def keys_of_energies(energies: Array, times_flat: float) -> tuple[int, ...]:
    """Key frequencies of a model whose hidden units cannot be read: those with a multiple of their share
    of a flat spectrum.

    Args:
        energies: [floor(p / 2)], for example the squares of ``component_norms`` of the embedding.
        times_flat: For example 2.

    Example:
        >>> keys_of_energies(np.array([1.0, 8.0, 1.0]), times_flat=2)  # 8 is 2.4 times a third of 10
        (2,)
    """
    total = np.nansum(energies)
    if not total > 0:
        return ()
    return tuple(
        int(k) for k in np.flatnonzero(np.nan_to_num(energies) * len(energies) >= times_flat * total) + 1
    )
