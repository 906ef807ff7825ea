"""The compiled loops of ``sparse_codes.py``, where each is described; imported when one is first used.

They take NumPy arrays and write into them; ``begin`` and ``end`` are the rows, or the features, of one
thread.
"""

# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import numpy as np
from numba import njit

GROUPS = 512  # strided groups whose maxima bound the k-th largest score: they stay in the nearest cache
_LOOSE = {"reassoc", "contract", "nsz", "arcp"}  # sums may be vectorized; NaN stays NaN


@njit(cache=True, nogil=True)
def kth_largest(values: np.ndarray, n: int, k: int) -> np.float32:
    """The k-th largest of ``values[:n]``, which is put in another order (Hoare's selection)."""
    low, high, wanted = 0, n - 1, k - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if wanted <= j:
            high = j
        elif wanted >= i:
            low = i
        else:
            break
    return values[wanted]


@njit(cache=True, nogil=True)
def top_rows(scores: np.ndarray, k: int, indices: np.ndarray, counts: np.ndarray) -> None:
    """The k-th largest of the maxima of strided groups is at most the k-th largest score: only groups whose
    maximum reaches it are looked at again.
    """
    width = scores.shape[1]
    groups = min(GROUPS, width)
    steps = width // groups
    maxima, ranked = np.empty(groups, np.float32), np.empty(groups, np.float32)
    place, value = np.empty(width, np.int32), np.empty(width, np.float32)
    for r in range(scores.shape[0]):
        row = scores[r]
        for g in range(groups):
            maxima[g] = row[g]
        for s in range(1, steps):
            base = s * groups
            for g in range(groups):
                v = row[base + g]  # this form is vectorized, max is not
                maxima[g] = v if v > maxima[g] else maxima[g]
        for j in range(steps * groups, width):
            g = j - steps * groups
            maxima[g] = max(maxima[g], row[j])
        bound = np.float32(0)
        if k <= groups:
            for g in range(groups):
                ranked[g] = maxima[g]
            bound = max(bound, kth_largest(ranked, groups, k))
        n = 0
        for g in range(groups):
            if maxima[g] >= bound and maxima[g] > 0:
                for j in range(g, width, groups):
                    if row[j] >= bound and row[j] > 0:
                        place[n] = j
                        value[n] = row[j]
                        n += 1
        if n > k:
            least = kth_largest(value, n, k)  # mixes ``value`` only
            above = 0
            for i in range(n):
                if row[place[i]] > least:
                    above += 1
            ties = k - above
            # Of the scores that equal the k-th, those of the lowest index: find the last index that is in
            last = np.int32(width)
            equal = 0
            for i in range(n):
                if row[place[i]] == least:
                    equal += 1
            if equal > ties:
                same = np.empty(equal, np.int32)
                e = 0
                for i in range(n):
                    if row[place[i]] == least:
                        same[e] = place[i]
                        e += 1
                same.sort()
                last = same[ties - 1]
            kept = 0
            for i in range(n):
                v = row[place[i]]
                if v > least or (v == least and place[i] <= last):
                    place[kept] = place[i]
                    kept += 1
            n = kept
        chosen = place[:n]
        for i in range(1, n):  # insertion: k is small, and the groups come in order
            moved = chosen[i]
            j = i - 1
            while j >= 0 and chosen[j] > moved:
                chosen[j + 1] = chosen[j]
                j -= 1
            chosen[j + 1] = moved
        counts[r] = n
        for i in range(n):
            indices[r, i] = chosen[i]


@njit(cache=True, nogil=True)
def largest(
    scores: np.ndarray, starts: np.ndarray, indices: np.ndarray, values: np.ndarray, begin: int, end: int
) -> None:
    """The largest scores of each row, whatever their sign."""
    width = scores.shape[1]
    ranked = np.empty(width, np.float32)
    for r in range(begin, end):
        row = scores[r]
        place, wanted = starts[r], starts[r + 1] - starts[r]
        if wanted == 0:
            continue
        ranked[:] = row
        least = kth_largest(ranked, width, wanted)
        above = 0
        for j in range(width):
            above += row[j] > least
        ties = wanted - above
        for j in range(width):
            if row[j] > least or (row[j] == least and ties > 0):
                if row[j] == least:
                    ties -= 1
                indices[place] = j
                values[place] = row[j]
                place += 1


@njit(cache=True, nogil=True)
def above_rows(
    scores: np.ndarray, thresholds: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The scores above the threshold of their feature."""
    rows, width = scores.shape
    indices, values = np.empty(4 * width, np.int32), np.empty(4 * width, np.float32)
    total = 0
    for r in range(rows):
        if total + width > len(indices):
            wider = np.empty(2 * len(indices) + width, np.int32)
            wider[:total] = indices[:total]
            indices = wider
            longer = np.empty(len(wider), np.float32)
            longer[:total] = values[:total]
            values = longer
        begin = total
        for j in range(width):  # without a branch: most scores are below
            indices[total] = j
            values[total] = scores[r, j]
            total += scores[r, j] > thresholds[j]
            if total == len(indices):
                break
        counts[r] = total - begin
    return indices[:total].copy(), values[:total].copy()


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def decode(
    indices: np.ndarray,
    values: np.ndarray,
    offsets: np.ndarray,
    decoder: np.ndarray,
    out: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """The weighted sum of decoder rows of each row of codes."""
    d = decoder.shape[1]
    for r in range(begin, end):
        target = out[r]
        target[:] = 0
        first, last = offsets[r], offsets[r + 1]
        e = first
        while e + 4 <= last:  # four features at a time: the sum is loaded and stored a quarter as often
            a, b, c, f = values[e], values[e + 1], values[e + 2], values[e + 3]
            da, db = decoder[indices[e]], decoder[indices[e + 1]]
            dc, df = decoder[indices[e + 2]], decoder[indices[e + 3]]
            for i in range(d):
                target[i] += a * da[i] + b * db[i] + c * dc[i] + f * df[i]
            e += 4
        while e < last:
            a, da = values[e], decoder[indices[e]]
            for i in range(d):
                target[i] += a * da[i]
            e += 1


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def row_products(
    indices: np.ndarray,
    offsets: np.ndarray,
    rows: np.ndarray,
    features: np.ndarray,
    out: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """The scalar product of every entry."""
    d = rows.shape[1]
    for r in range(begin, end):
        row = rows[r]
        for e in range(offsets[r], offsets[r + 1]):
            feature = features[indices[e]]
            total = np.float32(0)
            for i in range(d):
                total += row[i] * feature[i]
            out[e] = total


@njit(cache=True, nogil=True)
def by_feature(
    indices: np.ndarray, offsets: np.ndarray, entries: np.ndarray, rows: np.ndarray, starts: np.ndarray
) -> None:
    """A counting sort of the entries."""
    for e in range(len(indices)):
        starts[indices[e] + 1] += 1
    for f in range(1, len(starts)):
        starts[f] += starts[f - 1]
    place = starts[:-1].copy()
    for r in range(len(offsets) - 1):
        for e in range(offsets[r], offsets[r + 1]):
            f = indices[e]
            entries[place[f]] = e
            rows[place[f]] = r
            place[f] += 1


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def feature_sums(
    entries: np.ndarray,
    numbers: np.ndarray,
    starts: np.ndarray,
    coefficients: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    begin: int,
    end: int,
) -> None:
    """The weighted sum of rows of each feature."""
    d = rows.shape[1]
    for f in range(begin, end):
        target = out[f]
        target[:] = 0
        p, last = starts[f], starts[f + 1]
        while p + 4 <= last:
            a, b = coefficients[entries[p]], coefficients[entries[p + 1]]
            c, g = coefficients[entries[p + 2]], coefficients[entries[p + 3]]
            ra, rb, rc, rg = (
                rows[numbers[p]],
                rows[numbers[p + 1]],
                rows[numbers[p + 2]],
                rows[numbers[p + 3]],
            )
            for i in range(d):
                target[i] += a * ra[i] + b * rb[i] + c * rc[i] + g * rg[i]
            p += 4
        while p < last:
            a, ra = coefficients[entries[p]], rows[numbers[p]]
            for i in range(d):
                target[i] += a * ra[i]
            p += 1
