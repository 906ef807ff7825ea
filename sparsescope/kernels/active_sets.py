"""Sets of units in use, one bit for each unit, and how sets of several tokens overlap.

Two rules: a unit is in use on a token if its value is not exactly zero; or if it is in the smallest set that
holds a share of the energy (ties go to the lower index, as in ``row_statistics``). Sets of k tokens are
joined word by word.
Shapes: values [token, unit]; bits uint64 [rule, token, word] with unit j in bit j % 64 of word j // 64.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.kernels.row_statistics import CHUNK_ROWS, row_scratch

if TYPE_CHECKING:
    import torch

RULES = ("nonzero", "in use")


def words_of(units: int) -> int:
    """Words of 64 bits that hold one bit for each unit."""
    return -(-units // 64)


def active_bits(
    values: torch.Tensor, rows: np.ndarray, use_share: float, executor: Executor | None = None
) -> np.ndarray:
    """Find the units in use on some tokens.

    Args:
        values: [token, unit], any float type, finite, on any device.
        rows: int64 [row], the tokens wanted.
        use_share: Share of the energy that the set of the second rule holds.
        executor: Threads for chunks of rows; None runs them one after the other.

    Returns:
        uint64 [2, row, word], in the order of ``RULES``.
    """
    import torch

    width = values.shape[1]
    bits = np.zeros((2, len(rows), words_of(width)), np.uint64)
    find = _compiled("_thresholds")
    host = values if values.device.type == "cpu" else values.cpu()

    def work(start: int) -> None:
        chosen = rows[start : start + CHUNK_ROWS]
        magnitude, ordered = row_scratch.fit(width)[:, : len(chosen)]
        np.abs(host[torch.from_numpy(chosen)].float().numpy(), out=magnitude)
        np.copyto(ordered, magnitude)
        ordered.sort(axis=1)
        threshold, spare = np.empty(len(chosen), np.float32), np.empty(len(chosen), np.int64)
        find(ordered, use_share, threshold, spare)
        inside = magnitude >= threshold[:, None]
        for row in np.flatnonzero(spare):  # of equal entries at the edge, those of lower index
            inside[row, np.flatnonzero(magnitude[row] == threshold[row])[spare[row] :]] = False
        for rule, member in enumerate((magnitude != 0, inside)):
            packed = np.packbits(member, axis=1, bitorder="little")
            bits[rule, start : start + len(chosen)].view(np.uint8)[:, : packed.shape[1]] = packed

    starts = range(0, len(rows), CHUNK_ROWS)
    for _ in executor.map(work, starts) if executor else map(work, starts):
        pass
    return bits


def active_bits_reference(values: np.ndarray, use_share: float) -> np.ndarray:
    """The same in plain numpy: bool [2, token, unit]; what ``active_bits`` is tested against."""
    x = np.abs(values.astype(np.float64))
    order = np.argsort(-x, axis=1, kind="stable")
    energy = np.take_along_axis(x, order, 1) ** 2
    before = np.cumsum(energy, axis=1) - energy
    inside = (before < use_share * energy.sum(1, keepdims=True)) & (energy.sum(1, keepdims=True) > 0)
    in_use = np.zeros(x.shape, bool)
    np.put_along_axis(in_use, order, inside, axis=1)
    return np.stack([x != 0, in_use])


def unpack(bits: np.ndarray, units: int) -> np.ndarray:
    """Turn bits [..., word] into bool [..., unit]."""
    flat = np.unpackbits(bits.astype("<u8").view(np.uint8), axis=-1, bitorder="little")
    return flat[..., :units].astype(bool)


def count_units(bits: np.ndarray, units: int) -> np.ndarray:
    """How many tokens use each unit: int64 [rule, unit] from bits [rule, token, word]."""
    counts = np.zeros((len(bits), words_of(units) * 64), np.int64)
    _compiled("_count_units")(bits, counts)
    return counts[:, :units]


def union_sizes(
    bits: np.ndarray, ends: np.ndarray, levels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sizes of the unions over chunks of 1, 2, 4, ... consecutive tokens that follow each other from
    each window's start.

    Args:
        bits: uint64 [rule, token, word].
        ends: int64 [window], where each window ends among the tokens; the first starts at 0.
        levels: Number of chunk lengths: 1, 2, ... 2^(levels - 1).

    Returns:
        Sum of union sizes over whole chunks, int64 [rule, level]; number of chunks, int64 [level]; and both
        for the first chunk of each window alone.
    """
    total, first = np.zeros((len(bits), levels), np.int64), np.zeros((len(bits), levels), np.int64)
    chunks, firsts = np.zeros(levels, np.int64), np.zeros(levels, np.int64)
    _compiled("_union_sizes")(bits.copy(), ends, total, chunks, first, firsts)
    return total, chunks, first, firsts


def overlaps(bits: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard index of pairs of sets |A and B| / |A or B|.

    Args:
        bits: uint64 [rule, token, word].
        first: int64 [pair], one token of each pair.
        second: int64 [pair], the other.

    Returns:
        Sum over the pairs with a union that is not empty, float64 [rule], and their number, int64 [rule].
    """
    total, pairs = np.zeros(len(bits)), np.zeros(len(bits), np.int64)
    _compiled("_overlaps")(bits, first, second, total, pairs)
    return total, pairs


@cache
def _compiled(name: str) -> Any:
    """Compile once per machine; numba keeps it in its cache folder."""
    import numba

    return numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")(
        globals()[name]
    )


def _thresholds(ordered: np.ndarray, share: float, threshold: np.ndarray, spare: np.ndarray) -> None:
    """Find the smallest magnitude in each energy set, from rows that ascend.

    Args:
        ordered: float32 [row, unit].
        share: Share of the energy.
        threshold: Out, float32 [row]; infinite for a row of zeros.
        spare: Out, int64 [row], entries equal to the threshold that are in the set; 0 where all of them are.
    """
    rows, n = ordered.shape
    for r in range(rows):
        total = 0.0
        for j in range(n):
            x = np.float64(ordered[r, j])
            total += x * x
        held, size = 0.0, 0
        while size < n and held < share * total:
            x = np.float64(ordered[r, n - 1 - size])
            held += x * x
            size += 1
        threshold[r], spare[r] = np.float32(np.inf), 0
        if size:
            threshold[r] = ordered[r, n - size]
            if size < n and ordered[r, n - size - 1] == threshold[r]:
                j = n - size
                while j < n and ordered[r, j] == threshold[r]:
                    spare[r] += 1
                    j += 1


def _count_units(bits: np.ndarray, counts: np.ndarray) -> None:
    """Add to counts [rule, 64 * word] the tokens of bits [rule, token, word]."""
    for rule in range(bits.shape[0]):
        for t in range(bits.shape[1]):
            for w in range(bits.shape[2]):
                word = bits[rule, t, w]
                for b in range(64):
                    counts[rule, 64 * w + b] += np.int64((word >> np.uint64(b)) & np.uint64(1))


def _union_sizes(
    bits: np.ndarray,
    ends: np.ndarray,
    total: np.ndarray,
    chunks: np.ndarray,
    first: np.ndarray,
    firsts: np.ndarray,
) -> None:
    """Fill the outputs of ``union_sizes``; ``bits`` is overwritten: a chunk is kept in the place
    of its first token.
    """
    start = 0
    for end in ends:
        for level in range(len(chunks)):
            k = 1 << level
            whole = (end - start) // k
            if whole == 0:
                break
            chunks[level] += whole
            firsts[level] += 1
            for rule in range(bits.shape[0]):
                for chunk in range(whole):
                    at = start + chunk * k
                    size = np.int64(0)
                    for w in range(bits.shape[2]):
                        if level:
                            bits[rule, at, w] |= bits[rule, at + k // 2, w]
                        # Number of bits that are set: pairs, then nibbles, then bytes are added up in place.
                        x = bits[rule, at, w]
                        x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
                        x = (x & np.uint64(0x3333333333333333)) + (
                            (x >> np.uint64(2)) & np.uint64(0x3333333333333333)
                        )
                        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
                        size += np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
                    total[rule, level] += size
                    if chunk == 0:
                        first[rule, level] += size
        start = end


def _overlaps(
    bits: np.ndarray, one: np.ndarray, other: np.ndarray, total: np.ndarray, pairs: np.ndarray
) -> None:
    """Fill the outputs of ``overlaps``."""
    for rule in range(bits.shape[0]):
        for p in range(len(one)):
            both, either = np.int64(0), np.int64(0)
            for w in range(bits.shape[2]):
                a, b = bits[rule, one[p], w], bits[rule, other[p], w]
                for part in range(2):
                    x = a & b if part == 0 else a | b
                    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
                    x = (x & np.uint64(0x3333333333333333)) + (
                        (x >> np.uint64(2)) & np.uint64(0x3333333333333333)
                    )
                    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
                    size = np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))
                    if part == 0:
                        both += size
                    else:
                        either += size
            if either:
                total[rule] += both / either
                pairs[rule] += 1
