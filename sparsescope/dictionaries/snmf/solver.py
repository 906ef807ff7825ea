"""Semi-nonnegative matrix factorization X ~ G H with codes G >= 0 and a dictionary H whose rows are sparse.

min |w^(1/2) (X - G H)|^2 with at most s non-zero entries in each row of H (or k s in all). The published
method truncates the least squares dictionary to its largest entries and does not fit again
(arXiv:2506.10920). Here the dictionary step works on the sums S = G^T w G and B = G^T w X only: the
truncated solution is refitted on its support, rows then choose their support one after the other, each to
its exact minimum over all supports of s entries, and nothing is accepted that raises the loss. The loss
comes from the same sums in float64.
Shapes: n rows, d neurons, k components; G [n, k]; H [k, d]; S [k, k]; B [k, d].
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from sparsescope.dictionaries.snmf.rows import Array, Rows, Sums, threads, worth_sparse

Mask = NDArray[np.bool_]
State = TypeVar("State")
#: Weight of the old dictionary in a least squares step, relative to the mean of diag S. It makes the step
#: solvable where components depend on each other, and leaves its fixed points where they were.
PROXIMAL = 1e-9
_SWEEPS = 2


@dataclass(frozen=True, slots=True)
class Settings:
    """How a factorization is made.

    Attributes:
        support: s, the non-zero entries of a row of H.
        scope: ``"row"``: s in each row; ``"global"``: k s in all rows together.
        rule: ``"hals"`` or ``"mu"`` for the codes.
        inner: Sweeps over the codes in each iteration.
        refit: Fit the dictionary again on its support.
        monotone: Accept only dictionaries that do not raise the loss.
        anneal: Iterations in which the support shrinks from d to s.
    """

    support: int
    scope: Literal["row", "global"] = "row"
    rule: Literal["hals", "mu"] = "hals"
    inner: int = 3
    refit: bool = True
    monotone: bool = True
    anneal: int = 0

    def at(self, iteration: int, neurons: int) -> int:
        """Support in an iteration, counted from 0."""
        if iteration >= self.anneal:
            return self.support
        return max(self.support, round(neurons * (self.support / neurons) ** ((iteration + 1) / self.anneal)))


@dataclass(frozen=True, slots=True)
class Iterate:
    """Where a factorization stands.

    Attributes:
        codes: G, [n, k]; the next iteration overwrites it.
        components: H, float64 [k, d].
        loss: Squared error in float64.
        sums: Those of these codes.
        moved: The support is another one than an iteration before.
        annealed: The support has its final size.
    """

    codes: np.ndarray
    components: Array
    loss: float
    sums: Sums
    moved: bool
    annealed: bool


def support_size(sparsity: float, neurons: int) -> int:
    """Entries that a row of the dictionary keeps: ceil(sparsity d), at least 1.

    Example:
        >>> support_size(0.07, 100)  # 0.07 * 100 is 7.000000000000001
        7
    """
    return min(neurons, max(1, math.ceil(sparsity * neurons - 1e-9)))


def largest(values: Array, size: int) -> Mask:
    """The ``size`` largest magnitudes of each row; of equal ones those of lower index, bool [k, d]."""
    n = values.shape[1]
    if size >= n:
        return np.ones(values.shape, bool)
    magnitude = np.abs(values)
    limit = np.partition(magnitude, n - size, axis=1)[:, n - size, None]
    above, tied = magnitude > limit, magnitude == limit
    return above | (tied & (tied.cumsum(1) <= size - above.sum(1, keepdims=True)))


def factorize(rows: Rows, codes: np.ndarray, settings: Settings, iterations: int) -> Iterator[Iterate]:
    """Improve codes and dictionary in turn.

    Args:
        rows: What is factored.
        codes: The start, [n, k], not negative, in the type of the rows; overwritten.
        settings: How.
        iterations: At most so many; fewer where rounding leaves nothing to gain.

    Yields:
        The state after each iteration: a dictionary step, then a code step.
    """
    total, _ = rows.energy()
    sums = rows.sums(codes, total)
    components = np.zeros_like(sums.products)
    before = math.inf
    with threads() as executor:
        for number in range(iterations):
            support = settings.at(number, rows.x.shape[1])
            annealed = number + 1 >= settings.anneal
            found = dictionary_step(sums, components, settings, support)
            if settings.rule == "mu":
                norms = np.sqrt(np.diag(sums.codes))
                codes *= np.divide(1, norms, where=norms > 0, out=np.ones_like(norms)).astype(codes.dtype)
                found = found * np.where(norms > 0, norms, 1)[:, None]
                rows.multiply(codes, found, settings.inner, executor)
            else:
                rows.improve(codes, found, settings.inner, executor)
            sums = rows.sums(codes, total)
            loss = sums.loss(found)
            if settings.monotone and annealed and loss > before:
                return  # what is left to gain is below the rounding of the sums
            before = loss if annealed else math.inf
            moved = bool(((found != 0) != (components != 0)).any())
            components = found
            yield Iterate(codes, components, loss, sums, moved, annealed)


def dictionary_step(sums: Sums, current: Array, settings: Settings, support: int | None = None) -> Array:
    """Return a better dictionary for the same codes, float64 [k, d].

    Args:
        sums: S, B and T of the codes.
        current: The dictionary so far; zeros at the start.
        settings: How it is chosen.
        support: s, where it is not that of the settings.
    """
    size = settings.support if support is None else support
    joint = _least_squares(sums, current)
    if size >= current.shape[1]:
        return joint
    mask = _winners(joint, sums.codes, size, settings.scope)
    best = _refit(sums, mask, current * mask) if settings.refit else joint * mask
    if not settings.monotone:
        return best
    if np.count_nonzero(current) > size * len(current):  # while the support shrinks
        current = current * _winners(current, sums.codes, size, settings.scope)
    reached = sums.change(current)
    if sums.change(best) > reached:
        best = current
    sizes = np.full(len(best), size)
    if settings.scope == "global":  # rows trade entries, then each chooses again with as many as it has
        best = _sweep_all(sums, best, size)
        sizes = (best != 0).sum(1)
    swept = _sweep_rows(sums, best, sizes)
    choices = [best, swept]
    if settings.refit:
        choices.append(_refit(sums, swept != 0, swept))
    chosen = min(choices, key=sums.change)
    return chosen if sums.change(chosen) <= reached else current


def timed(states: Iterator[State]) -> Iterator[tuple[float, State]]:
    """Pair each state with the seconds spent on reaching it; what the caller does in between is not counted.

    Example:
        >>> [state for seconds, state in timed(iter("ab"))]
        ['a', 'b']
    """
    spent = 0.0
    while True:
        begin = time.perf_counter()
        try:
            state = next(states)
        except StopIteration:
            return
        spent += time.perf_counter() - begin
        yield spent, state


def _proximal(sums: Sums) -> float:
    mean = float(np.trace(sums.codes)) / len(sums.codes)
    return PROXIMAL * mean if mean > 0 else 1.0


def _least_squares(sums: Sums, current: Array) -> Array:
    """Minimize |X - G H|^2 + ridge |H - current|^2."""
    ridge = _proximal(sums)
    system = sums.codes + ridge * np.eye(len(current))
    return scipy.linalg.solve(system, sums.products + ridge * current, assume_a="pos")


def _winners(values: Array, codes: Array, size: int, scope: str) -> Mask:
    """The entries that stay. Rows compete by what removing one entry alone costs, H_cj^2 / [S^-1]_cc."""
    if scope == "row":
        return largest(values, size)
    ridge = PROXIMAL * max(float(np.trace(codes)) / len(codes), 1e-300)
    inverse = np.diag(scipy.linalg.inv(codes + ridge * np.eye(len(codes)), check_finite=False))
    cost = values / np.sqrt(np.maximum(inverse, 1e-300))[:, None]
    return largest(cost.reshape(1, -1), size * len(values)).reshape(values.shape)


def _refit(sums: Sums, mask: Mask, current: Array) -> Array:
    """Least squares on a support: neurons are independent, and each has few components."""
    ridge = _proximal(sums)
    wanted = sums.products + ridge * current
    out = np.zeros_like(current)
    users = mask.sum(0)
    for size in np.unique(users[users > 0]):
        neurons = np.flatnonzero(users == size)
        step = max(1, (1 << 22) // int(size) ** 2)  # 32 MB of systems at once
        for begin in range(0, len(neurons), step):
            some = neurons[begin : begin + step]
            members = np.nonzero(mask[:, some].T)[1].reshape(len(some), size)
            systems = sums.codes[members[:, :, None], members[:, None, :]] + ridge * np.eye(size)
            right = wanted[members, some[:, None]]
            out[members, some[:, None]] = np.linalg.solve(systems, right[:, :, None])[:, :, 0]
    return out


def _slope(sums: Sums, components: Array) -> Array:
    """B - S H, half the negative gradient of the loss."""
    if not worth_sparse(components):
        return sums.products - sums.codes @ components
    return sums.products - (scipy.sparse.csr_array(components).T @ sums.codes).T


def _sweep_rows(sums: Sums, components: Array, sizes: NDArray[np.int64]) -> Array:
    """Set one row after the other to its exact minimum over all supports of ``sizes[c]`` entries.

    For one row the loss is S_cc |h - r|^2 with r = h_c + (B - S H)_c / S_cc: the largest entries of r stay.
    """
    found, slope = components.copy(), _slope(sums, components)
    smallest = PROXIMAL * float(np.diag(sums.codes).max(initial=0))
    for _ in range(_SWEEPS):
        for c in range(len(found)):
            weight = sums.codes[c, c]
            if weight > smallest and sizes[c]:
                free = found[c] + slope[c] / weight
                new = np.where(largest(free[None], int(sizes[c]))[0], free, 0)
                step = new - found[c]
                at = np.flatnonzero(step)
                slope[:, at] -= np.outer(sums.codes[c], step[at])
                found[c] = new
    return found


def _sweep_all(sums: Sums, components: Array, size: int) -> Array:
    """Steps on diag(D) >= S with D_c = sum of |S_cj|, whose minimum over supports of k s entries is exact."""
    found = components
    bound = np.maximum(np.abs(sums.codes).sum(1), 1e-300)[:, None]
    for _ in range(_SWEEPS):
        free = found + _slope(sums, found) / bound
        keep = largest((free * np.sqrt(bound)).reshape(1, -1), size * len(found)).reshape(found.shape)
        found = np.where(keep, free, 0)
    return found
