"""Non-negative codes of rows for a fixed dictionary: min over g >= 0 of 1/2 g Q g - p g, for each row alone.

Q = H H^T and p = x H^T with a dictionary H, [component, neuron], whose rows are sparse. A sweep of cyclic
coordinate descent (HALS; Cichocki & Phan 2009) sets one code after the other to its exact minimum
max(0, g_c - (g Q - p)_c / Q_cc); a code that stays where it was costs nothing. The exact solution continues
with the active set of Lawson & Hanson (1974) where sweeps converge slowly. What a row gets depends on that
row only: no restarts, no batches, the same order of operations in every chunk.
Shapes: x [row, neuron]; Q [component, component], symmetric; p, g [row, component], contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

CHUNK_ROWS = 512
#: Relative to the largest entry of a row's p: what the gradient may be off by in an exact solution.
EXACT = 1e-11
_SWEEPS_BEFORE_ACTIVE_SET = 40


def sparse_products(x: np.ndarray, components: scipy.sparse.csr_array, out: np.ndarray) -> None:
    """Write x H^T to ``out``, with sums in the type of the components.

    Args:
        x: float32 or float64 [row, neuron], contiguous.
        components: H, [component, neuron].
        out: [row, component], in the type of the components.
    """
    _compiled("_products")(
        x, components.indptr.astype(np.int64), components.indices.astype(np.int64), components.data, out
    )


def sparse_products_reference(x: np.ndarray, components: scipy.sparse.csr_array) -> np.ndarray:
    """The same in plain NumPy."""
    return x @ components.toarray().T


def coordinate_sweeps(p: np.ndarray, q: np.ndarray, codes: np.ndarray, sweeps: int) -> None:
    """Improve codes in place by sweeps of cyclic coordinate descent.

    Args:
        p: [row, component]; overwritten with the gradient g Q - p.
        q: [component, component].
        codes: [row, component], not negative; all three of one type.
        sweeps: How often each code is visited.
    """
    _compiled("_sweeps")(p, q, codes, sweeps)


def coordinate_sweeps_reference(p: np.ndarray, q: np.ndarray, codes: np.ndarray, sweeps: int) -> np.ndarray:
    """The same in plain NumPy: one code of all rows at a time."""
    codes = codes.copy()
    for _ in range(sweeps):
        for c in range(len(q)):
            if q[c, c] > 0:
                codes[:, c] = np.maximum(0, codes[:, c] - (codes @ q[:, c] - p[:, c]) / q[c, c])
    return codes


def nonnegative_least_squares(p: np.ndarray, q: np.ndarray, codes: np.ndarray) -> None:
    """Solve each row exactly, from zero: afterwards the KKT conditions hold to ``EXACT`` times max |p|.

    Args:
        p: float64 [row, component]; overwritten.
        q: float64 [component, component].
        codes: Out, float64 [row, component].
    """
    _compiled("_exact")(p, q, codes, EXACT, _SWEEPS_BEFORE_ACTIVE_SET)


def nonnegative_least_squares_reference(
    p: NDArray[np.float64], q: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same in plain NumPy: Lawson & Hanson's active set from zero, row by row."""
    codes = np.zeros_like(p)
    for row, wanted in enumerate(p):
        g, passive = codes[row], np.zeros(len(q), bool)
        limit = EXACT * np.abs(wanted).max(initial=0.0)
        for _ in range(3 * len(q) + 10):
            slope = wanted - q @ g
            slope[passive | (np.diag(q) <= 0)] = -np.inf
            if slope.max(initial=-np.inf) <= limit:
                break
            passive[slope.argmax()] = True
            while True:
                z = np.zeros_like(g)
                z[passive] = np.linalg.lstsq(q[np.ix_(passive, passive)], wanted[passive], rcond=None)[0]
                low = passive & (z <= 0)
                if not low.any():
                    break
                step = (g[low] / np.maximum(g[low] - z[low], 1e-300)).min()
                g += step * (z - g)
                passive &= g > EXACT * max(g.max(), 1e-300)
                g[~passive] = 0
            g[:] = z
    return codes


def kkt_residual(p: np.ndarray, q: np.ndarray, codes: np.ndarray) -> NDArray[np.float64]:
    """How far codes are from optimal: max(|g * gradient|, -min gradient) of each row, [row].

    Args:
        p: [row, component].
        q: [component, component].
        codes: [row, component], not negative.
    """
    gradient = codes @ q - p
    return np.maximum(np.abs(codes * gradient).max(1), -gradient.min(1))


def by_chunks(rows: int, work: Callable[[int, int], None], executor: Executor | None) -> None:
    """Call ``work(begin, end)`` on chunks of rows, by threads where there are any."""
    starts = range(0, rows, CHUNK_ROWS)

    def one(begin: int) -> None:
        work(begin, min(begin + CHUNK_ROWS, rows))

    for _ in executor.map(one, starts) if executor else map(one, starts):
        pass


@cache
def _compiled(name: str) -> Any:
    """Compile once per machine; numba keeps it in its cache folder.

    Kernels let go of the interpreter's lock, so chunks run in threads of the caller: numba's own pool of
    threads would abort the process when two of them start at once.
    """
    import numba

    return numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")(
        globals()[name]
    )


def _products(
    x: np.ndarray, offsets: np.ndarray, neurons: np.ndarray, values: np.ndarray, out: np.ndarray
) -> None:
    for t in range(x.shape[0]):
        for c in range(len(offsets) - 1):
            total = values.dtype.type(0)
            for e in range(offsets[c], offsets[c + 1]):
                total += values[e] * x[t, neurons[e]]
            out[t, c] = total


def _sweeps(gradient: np.ndarray, q: np.ndarray, codes: np.ndarray, sweeps: int) -> None:
    k = q.shape[0]
    for t in range(codes.shape[0]):
        slope, g = gradient[t], codes[t]
        for j in range(k):
            slope[j] = -slope[j]
        for c in range(k):
            if g[c] != 0:
                for j in range(k):
                    slope[j] += g[c] * q[c, j]
        for _ in range(sweeps):
            for c in range(k):
                if q[c, c] > 0:
                    new = max(g[c] - slope[c] / q[c, c], 0 * g[c])
                    step = new - g[c]
                    if step != 0:
                        g[c] = new
                        for j in range(k):
                            slope[j] += step * q[c, j]


def _exact(p: np.ndarray, q: np.ndarray, codes: np.ndarray, tolerance: float, first: int) -> None:
    k = q.shape[0]
    slope, z, factor = np.empty(k), np.empty(k), np.empty((k, k))
    members, inside = np.empty(k, np.int64), np.empty(k, np.bool_)
    for t in range(codes.shape[0]):
        g, wanted = codes[t], p[t]
        largest = 0.0
        for j in range(k):
            g[j], slope[j] = 0.0, -wanted[j]
            largest = max(largest, abs(wanted[j]))
        limit = tolerance * largest
        done = largest == 0
        for _ in range(first):  # a row is done when a whole sweep found every code at its minimum
            if done:
                break
            done = True
            for c in range(k):
                if q[c, c] > 0:
                    if slope[c] < -limit or (g[c] > 0 and slope[c] > limit):
                        done = False
                    new = max(g[c] - slope[c] / q[c, c], 0.0)
                    step = new - g[c]
                    if step != 0:
                        g[c] = new
                        for j in range(k):
                            slope[j] += step * q[c, j]
        if done:
            continue
        for j in range(k):
            inside[j] = g[j] > 0
        for _ in range(3 * k + 10):
            while True:  # least squares on the passive set; what would become negative leaves it
                size = 0
                for j in range(k):
                    if inside[j]:
                        members[size] = j
                        size += 1
                for a in range(size):
                    for b in range(a + 1):
                        total = q[members[a], members[b]]
                        for i in range(b):
                            total -= factor[a, i] * factor[b, i]
                        if a == b:
                            # Dependent components: the floor of the pivot leaves one solution of many
                            factor[a, a] = np.sqrt(max(total, 1e-13 * q[members[a], members[a]]))
                        else:
                            factor[a, b] = total / factor[b, b]
                for a in range(size):
                    total = wanted[members[a]]
                    for i in range(a):
                        total -= factor[a, i] * z[i]
                    z[a] = total / factor[a, a]
                for a in range(size - 1, -1, -1):
                    total = z[a]
                    for i in range(a + 1, size):
                        total -= factor[i, a] * z[i]
                    z[a] = total / factor[a, a]
                part, leaves = 1.0, -1
                for a in range(size):
                    if z[a] <= 0:
                        here = g[members[a]]
                        share = here / (here - z[a]) if here > z[a] else 0.0
                        if leaves < 0 or share < part:
                            part, leaves = share, members[a]
                if leaves < 0:
                    break
                for a in range(size):
                    j = members[a]
                    g[j] = max(g[j] + part * (z[a] - g[j]), 0.0)
                    if g[j] == 0:
                        inside[j] = False
                g[leaves], inside[leaves] = 0.0, False
            for a in range(size):
                g[members[a]] = z[a]
            worst, enters = -limit, -1
            for c in range(k):
                total = -wanted[c]
                for a in range(size):
                    total += g[members[a]] * q[members[a], c]
                if not inside[c] and q[c, c] > 0 and total < worst:
                    worst, enters = total, c
            if enters < 0:
                break
            inside[enters] = True
