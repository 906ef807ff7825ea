"""Every per-token statistic of ``metrics.sparsity`` in one pass over a batch, from one sort.

The reference is ``metrics/sparsity.py``; both backends are tested against it. ``numba`` (host memory):
numpy's vectorized sort, 10 times faster than torch's at these widths, then one compiled scan per row; chunks
of rows fit the cache and run on threads. ``torch`` (accelerator memory): the same steps where the values are.
The entropy needs a logarithm of every entry: exponents are read from the bits of the float, mantissas go
through a polynomial that vectorizes, which is exact to 2e-7 in the entropy.
Shapes: values [token, unit]; per-token outputs [token]; per-unit outputs [unit]. Sums are float64.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# Three scratch arrays of 1,536 units x 128 rows x 4 bytes stay in a 2 MiB cache.
CHUNK_ROWS = 128
BLOCK = 16
SHAPE_MEASURES = ("hoyer", "gini", "pr2", "pr4", "entropy_number", "kurtosis", "treves_rolls")
# ln(1 + f) on [0, 1], interpolated at the Chebyshev nodes of degree 8: error 4e-8, with
# float32 rounding 1.2e-7.
_LOG1P = (
    3.910905549409094e-08, 0.9999936302585134, -0.4998254986434647, 0.33144665224336606, -0.2394333707458602,
    0.16499812983396112, -0.09229041738050231, 0.03426459995555095, -0.006006605050865348,
)  # fmt: skip
_LN2 = math.log(2)
# Rows whose largest entry is below this may consist of subnormal numbers, whose exponent is
# not in their bits.
_SMALL = 1e-30


@dataclass(frozen=True, slots=True)
class RowStatistics:
    """Statistics of one batch at one site.

    Attributes:
        counts: int64 [token, 1 + 2 * shares]: entries that are not zero, then top-p set sizes (L1 for each
            share, then energy for each share).
        shapes: float64 [token, 7], in the order of ``SHAPE_MEASURES``; NaN for a zero vector.
        nonzero: int64 [unit], tokens on which the unit is not zero.
        in_use: int64 [unit], tokens on which the unit is in the energy set of ``use_share``; ties go
            to the lower index.
        magnitude: float64 [unit], sum of |value| over tokens.
        energy: float64 [unit], sum of value^2 over tokens.
    """

    counts: np.ndarray
    shapes: np.ndarray
    nonzero: np.ndarray
    in_use: np.ndarray
    magnitude: np.ndarray
    energy: np.ndarray


def row_statistics(
    values: torch.Tensor, shares: tuple[float, ...], use_share: float, executor: Executor | None = None
) -> RowStatistics:
    """Compute the statistics of a batch where it lies: numba in host memory, torch on an accelerator.

    Args:
        values: [token, unit], float32, bfloat16 or float16, finite.
        shares: Shares p of the top-p sets, ascending.
        use_share: Share of the energy that defines "in use".
        executor: Threads for the chunks; None runs them one after the other.

    Returns:
        The statistics, on the host.
    """
    if values.device.type != "cpu":
        return row_statistics_torch(values, shares, use_share)
    return row_statistics_numba(values, shares, use_share, executor)


def row_statistics_numba(
    values: torch.Tensor, shares: tuple[float, ...], use_share: float, executor: Executor | None = None
) -> RowStatistics:
    """Backend ``numba``; see ``row_statistics``."""
    tokens, width = values.shape
    counts, sums = np.empty((tokens, 1 + 2 * len(shares)), np.int64), np.empty((tokens, 5))
    targets, scan = np.asarray(shares, np.float64), _compiled_scan()

    def work(start: int) -> tuple[np.ndarray, np.ndarray]:
        stop = min(start + CHUNK_ROWS, tokens)
        magnitude, ordered = row_scratch.fit(width)
        magnitude, ordered = magnitude[: stop - start], ordered[: stop - start]
        np.abs(values[start:stop].float().numpy(), out=magnitude)
        np.copyto(ordered, magnitude)
        ordered.sort(axis=1)
        units = np.zeros((2, width), np.int64)
        total = np.zeros((2, width))
        bits = ordered.view(np.int32)
        scan(magnitude, ordered, bits, targets, use_share, counts[start:stop], sums[start:stop], units, total)
        return units, total

    starts = range(0, tokens, CHUNK_ROWS)
    parts = list(executor.map(work, starts) if executor else map(work, starts))
    none = [np.zeros((2, width), np.int64), np.zeros((2, width))]
    units, total = (np.sum(part, axis=0) for part in zip(*parts, strict=True)) if parts else none
    return RowStatistics(counts, _shape_measures(sums, width), units[0], units[1], total[0], total[1])


def row_statistics_torch(values: torch.Tensor, shares: tuple[float, ...], use_share: float) -> RowStatistics:
    """Backend ``torch``; see ``row_statistics``."""
    import torch

    magnitude = values.float().abs()
    width = magnitude.shape[1]
    ordered, order = torch.sort(magnitude, dim=1, descending=True, stable=True)
    x = ordered.double()
    first, second = torch.cumsum(x, 1), torch.cumsum(x * x, 1)

    def size(cumulative: torch.Tensor, share: float) -> torch.Tensor:
        count = (cumulative < share * cumulative[:, -1:]).sum(1) + 1
        return torch.where(cumulative[:, -1] > 0, count, 0)

    counts = [(x != 0).sum(1)]
    counts += [size(first, share) for share in shares] + [size(second, share) for share in shares]
    ranks = torch.arange(width - 1, -1, -1, device=x.device, dtype=torch.float64)
    logs = torch.special.xlogy(x, x).sum(1)
    sums = torch.stack([first[:, -1], second[:, -1], (x**4).sum(1), x @ ranks, logs], 1)
    in_set = torch.arange(width, device=x.device)[None, :] < size(second, use_share)[:, None]
    member = torch.zeros_like(in_set).scatter_(1, order, in_set)
    return RowStatistics(
        torch.stack(counts, 1).cpu().numpy(),
        _shape_measures(sums.cpu().numpy(), width),
        (magnitude != 0).sum(0).cpu().numpy(),
        member.sum(0).cpu().numpy(),
        magnitude.double().sum(0).cpu().numpy(),
        magnitude.double().square().sum(0).cpu().numpy(),
    )


def _shape_measures(sums: np.ndarray, n: int) -> np.ndarray:
    """``SHAPE_MEASURES`` [row, 7] from the sums of x, x^2, x^4, (rank - 1) x and x ln x
    [row, 5]; see ``metrics.sparsity``.
    """
    l1, l2, fourth, ranked, logs = sums.T
    root = np.sqrt(n)
    with np.errstate(invalid="ignore", divide="ignore"):
        pr2 = l1 * l1 / (n * l2)
        pr4 = l2 * l2 / (n * fourth)
        return np.stack(
            [
                (root - l1 / np.sqrt(l2)) / (root - 1),
                (2 * (ranked + l1) - (n + 1) * l1) / (n * l1),
                pr2,
                pr4,
                l1 * np.exp(-logs / l1) / n,
                1 / pr4,
                (1 - pr2) / (1 - 1 / n),
            ],
            axis=1,
        )


class _Scratch(threading.local):
    """Buffers of one thread, reused from chunk to chunk: fresh ones cost page faults that
    stall the other thread.
    """

    def __init__(self) -> None:
        self.buffers = np.empty((2, CHUNK_ROWS, 0), np.float32)

    def fit(self, width: int) -> np.ndarray:
        if self.buffers.shape[2] != width:
            self.buffers = np.empty((2, CHUNK_ROWS, width), np.float32)
        return self.buffers


row_scratch = _Scratch()


@cache
def _compiled_scan() -> Any:
    """Compile the scan once per machine; numba keeps it in its cache folder."""
    import numba

    # Only re-association is allowed, so that sums vectorize; NaN and infinity keep their meaning.
    return numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")(_scan)


def _scan(
    magnitude: np.ndarray,
    ordered: np.ndarray,
    bits: np.ndarray,
    shares: np.ndarray,
    use_share: float,
    counts: np.ndarray,
    sums: np.ndarray,
    units: np.ndarray,
    total: np.ndarray,
) -> None:
    """Fill the outputs for a chunk of rows.

    Args:
        magnitude: float32 [row, unit].
        ordered: float32 [row, unit], each row of ``magnitude`` ascending.
        bits: int32 [row, unit], the bits of ``ordered``.
        shares: float64 [share], ascending.
        use_share: Share of the energy that defines "in use".
        counts: Out, int64 [row, 1 + 2 * shares].
        sums: Out, float64 [row, 5]: x, x^2, x^4, (rank - 1) x, x ln x.
        units: In and out, int64 [2, unit]: not zero, in use.
        total: In and out, float64 [2, unit]: sum of magnitudes and of their squares.
    """
    rows, n = ordered.shape
    n_shares = len(shares)
    c0, c1, c2 = np.float32(_LOG1P[0]), np.float32(_LOG1P[1]), np.float32(_LOG1P[2])
    c3, c4, c5 = np.float32(_LOG1P[3]), np.float32(_LOG1P[4]), np.float32(_LOG1P[5])
    c6, c7, c8 = np.float32(_LOG1P[6]), np.float32(_LOG1P[7]), np.float32(_LOG1P[8])
    for r in range(rows):
        l1, l2, fourth, ranked = 0.0, 0.0, 0.0, 0.0
        zeros = 0
        for j in range(n):
            x = np.float64(ordered[r, j])
            square = x * x
            l1 += x
            l2 += square
            fourth += square * square
            ranked += x * j
            zeros += ordered[r, j] == 0
        sums[r, 0], sums[r, 1], sums[r, 2], sums[r, 3] = l1, l2, fourth, ranked
        counts[r, 0] = n - zeros
        logs = 0.0
        if ordered[r, n - 1] > _SMALL:
            for j in range(n):
                # x = (1 + f) 2^e. A zero has e = -127 and f = 0 and adds nothing.
                f = np.float32(bits[r, j] & 0x7FFFFF) * np.float32(2.0**-23)
                e = np.float64((bits[r, j] >> 23) - 127)
                p = c8
                p = p * f + c7
                p = p * f + c6
                p = p * f + c5
                p = p * f + c4
                p = p * f + c3
                p = p * f + c2
                p = p * f + c1
                p = p * f + c0
                logs += np.float64(ordered[r, j]) * (e * _LN2 + np.float64(p))
        else:
            for j in range(n):
                x = np.float64(ordered[r, j])
                if x > 0:
                    logs += x * math.log(x)
        sums[r, 4] = logs
        size_in_use = 0
        if l1 == 0:
            for i in range(2 * n_shares):
                counts[r, 1 + i] = 0
        else:
            # Walk down from the largest entry; whole blocks below every open target are skipped.
            first, second, i1, i2, use_open = 0.0, 0.0, 0, 0, True
            end = n
            while end > 0 and (i1 < n_shares or i2 < n_shares or use_open):
                start = max(end - BLOCK, 0)
                block1, block2 = 0.0, 0.0
                for j in range(start, end):
                    x = np.float64(ordered[r, j])
                    block1 += x
                    block2 += x * x
                if (
                    start > 0
                    and (i1 == n_shares or first + block1 < shares[i1] * l1)
                    and (i2 == n_shares or second + block2 < shares[i2] * l2)
                    and (not use_open or second + block2 < use_share * l2)
                ):
                    first += block1
                    second += block2
                else:
                    for j in range(end - 1, start - 1, -1):
                        x = np.float64(ordered[r, j])
                        first += x
                        second += x * x
                        while i1 < n_shares and (first >= shares[i1] * l1 or j == 0):
                            counts[r, 1 + i1] = n - j
                            i1 += 1
                        while i2 < n_shares and (second >= shares[i2] * l2 or j == 0):
                            counts[r, 1 + n_shares + i2] = n - j
                            i2 += 1
                        if use_open and (second >= use_share * l2 or j == 0):
                            size_in_use = n - j
                            use_open = False
                end = start
        for j in range(n):
            x = np.float64(magnitude[r, j])
            total[0, j] += x
            total[1, j] += x * x
        if zeros:
            for j in range(n):
                units[0, j] += magnitude[r, j] != 0
        else:
            for j in range(n):
                units[0, j] += 1
        if size_in_use == 0:
            continue
        threshold = ordered[r, n - size_in_use]
        if size_in_use == n or ordered[r, n - size_in_use - 1] < threshold:
            for j in range(n):
                units[1, j] += magnitude[r, j] >= threshold
        else:
            spare = size_in_use
            for j in range(n):
                spare -= magnitude[r, j] > threshold
            for j in range(n):
                if magnitude[r, j] > threshold:
                    units[1, j] += 1
                elif magnitude[r, j] == threshold and spare > 0:
                    units[1, j] += 1
                    spare -= 1
