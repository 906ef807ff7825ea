"""The compiled loops of sparse products of several tokens: every kept row of weights is read once.

Rows are taken eight at once, piece by piece: a piece is turned into floats in the nearest cache and then
added to the sums of each token. Storage and planes as in ``sparse_products_compiled``.

Shapes: T tokens; K inputs; P padded outputs.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import numpy as np
from numba import njit, prange

from sparsescope.kernels import sparse_products_compiled as loops
from sparsescope.kernels.sparse_products_compiled import ask_for_rows, keyed

OPTIONS, ZERO, words_of, read_row = loops.OPTIONS, loops.ZERO, loops.words_of, loops.read_row
TOGETHER = 8  # rows that are taken at once
COLUMNS = 1024  # of them: with their sums they fit into the nearest cache


@njit(cache=True, **OPTIONS)
def _mix(buffer, values, first, sums):
    """Sums += the eight rows of the buffer times eight values from ``first`` on."""
    n = len(sums)
    w0, w1, w2, w3 = buffer[0, :n], buffer[1, :n], buffer[2, :n], buffer[3, :n]
    w4, w5, w6, w7 = buffer[4, :n], buffer[5, :n], buffer[6, :n], buffer[7, :n]
    a0, a1, a2, a3 = values[first], values[first + 1], values[first + 2], values[first + 3]
    a4, a5, a6, a7 = values[first + 4], values[first + 5], values[first + 6], values[first + 7]
    for j in range(n):
        sums[j] += (a0 * w0[j] + a1 * w1[j] + (a2 * w2[j] + a3 * w3[j])) + (
            (a4 * w4[j] + a5 * w5[j]) + (a6 * w6[j] + a7 * w7[j])
        )


@njit(cache=True, **OPTIONS)
def _mix_in_place(data, indices, begin, values, first, sums):
    """The same from eight rows of floats, from entry ``begin`` on."""
    n, end = len(sums), begin + len(sums)
    i0, i1, i2, i3 = indices[first], indices[first + 1], indices[first + 2], indices[first + 3]
    i4, i5, i6, i7 = indices[first + 4], indices[first + 5], indices[first + 6], indices[first + 7]
    w0, w1, w2, w3 = data[i0, begin:end], data[i1, begin:end], data[i2, begin:end], data[i3, begin:end]
    w4, w5, w6, w7 = data[i4, begin:end], data[i5, begin:end], data[i6, begin:end], data[i7, begin:end]
    a0, a1, a2, a3 = values[first], values[first + 1], values[first + 2], values[first + 3]
    a4, a5, a6, a7 = values[first + 4], values[first + 5], values[first + 6], values[first + 7]
    for j in range(n):
        sums[j] += (a0 * w0[j] + a1 * w1[j] + (a2 * w2[j] + a3 * w3[j])) + (
            (a4 * w4[j] + a5 * w5[j]) + (a6 * w6[j] + a7 * w7[j])
        )


@njit(cache=True, **OPTIONS)
def _mix_one(row, value, sums):
    for j in range(len(sums)):
        sums[j] += value * row[j]


@keyed
def add_kept_rows_of_tokens(version):
    @njit(cache=True, parallel=True, **OPTIONS)
    def add_kept_rows_of_tokens(data, indices, values, kept, threads, partial, out):
        """Sum the kept rows for several tokens: each row is read once.

        Args:
            values: float32 [T, kept or more], what each token multiplies the rows with.
            partial: float32 [threads, T, P]. out: float32 [T, P], in order.
        """
        version  # noqa: B018  part of the key of the cache
        tokens, words, entries = values.shape[0], data.shape[1], words_of(data)
        step = COLUMNS // entries
        for part in prange(threads):
            low, high = kept * part // threads, kept * (part + 1) // threads
            buffer = np.empty((TOGETHER, COLUMNS), np.float32)
            mine = partial[part]
            mine[:] = ZERO
            r = low
            while r < high:
                together = min(TOGETHER, high - r)
                for begin in range(0, words, step):
                    end = min(words, begin + step)
                    at, n = begin * entries, (end - begin) * entries
                    whole = together == TOGETHER
                    if entries > 1:
                        ask_for_rows(data, indices, r + together, min(high, r + 2 * TOGETHER), begin, end)
                    if not (whole and entries == 1):  # floats are read in their place
                        for g in range(together):
                            read_row(data, indices[r + g], begin, end, buffer[g, :n])
                    for t in range(tokens):
                        if whole and entries == 1:
                            _mix_in_place(data, indices, begin, values[t], r, mine[t, at : at + n])
                        elif whole:
                            _mix(buffer, values[t], r, mine[t, at : at + n])
                        else:
                            for g in range(together):
                                _mix_one(buffer[g, :n], values[t, r + g], mine[t, at : at + n])
                r += together
        for t in range(tokens):
            for begin in range(0, words, step):
                end = min(words, begin + step)
                n = end - begin
                for plane in range(entries):
                    at = begin * entries + plane * n
                    for j in range(n):
                        s = partial[0, t, at + j]
                        for part in range(1, threads):
                            s += partial[part, t, at + j]
                        out[t, (begin + j) * entries + plane] = s

    return add_kept_rows_of_tokens


@njit(cache=True, **OPTIONS)
def _dots(buffer, x, row, out):
    """out[row + g] = row g of the buffer . x, for four rows."""
    w0, w1, w2, w3 = buffer[0], buffer[1], buffer[2], buffer[3]
    s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
    for j in range(len(x)):
        s0 += w0[j] * x[j]
        s1 += w1[j] * x[j]
        s2 += w2[j] * x[j]
        s3 += w3[j] * x[j]
    out[row], out[row + 1], out[row + 2], out[row + 3] = s0, s1, s2, s3


@keyed
def dot_kept_rows_of_tokens(version):
    @njit(cache=True, parallel=True, **OPTIONS)
    def dot_kept_rows_of_tokens(data, x, rows, kept, threads, planes, out):
        """out[t, r] = data[rows[r]] . x[t]: each row is read once; x [T, K], planes [T, P], out [T, kept]."""
        version  # noqa: B018  part of the key of the cache
        tokens, entries, words = x.shape[0], words_of(data), data.shape[1]
        for t in range(tokens):
            planes[t] = ZERO
            for i in range(x.shape[1]):
                planes[t, i % entries * words + i // entries] = x[t, i]
        for part in prange(threads):
            low, high = kept * part // threads, kept * (part + 1) // threads
            buffer = np.zeros((4, words * entries), np.float32)
            said = np.empty(4, np.float32)
            r = low
            while r < high:
                together = min(4, high - r)
                for g in range(together):
                    read_row(data, rows[r + g], 0, words, buffer[g])
                for t in range(tokens):
                    _dots(buffer, planes[t], 0, said)
                    for g in range(together):
                        out[t, r + g] = said[g]
                r += together

    return dot_kept_rows_of_tokens


@njit(cache=True, nogil=True)
def select_of_tokens(x, limits, joint, indices, values):
    """List the inputs that some token keeps.

    Args:
        x: [T, K]. limits: [K].
        joint: Whether the root mean square over the tokens is compared, and every token uses what is
            kept; else each token keeps its own, and what it drops is zero in ``values`` [T, K + 1].

    Returns:
        How many were listed.
    """
    kept, tokens = 0, x.shape[0]
    for i in range(x.shape[1]):
        indices[kept] = i
        if joint:
            energy = np.float32(0)
            for t in range(tokens):
                energy += x[t, i] * x[t, i]
                values[t, kept] = x[t, i]
            stays = not np.sqrt(energy / np.float32(tokens)) <= limits[i]
        else:
            stays = False
            for t in range(tokens):
                own = not abs(x[t, i]) <= limits[i]
                values[t, kept] = x[t, i] if own else np.float32(0)
                stays |= own
        kept += stays
    return kept


@njit(cache=True, **OPTIONS)
def weigh_hidden(hidden, weights, rows, kept, width, scale):
    """Hidden [T, kept]: SiLU of each, by the weight of its expert for the token, weights [T, E]."""
    for t in range(hidden.shape[0]):
        for r in range(kept):
            row = rows[r]
            weight = weights[t, row // width]
            value = hidden[t, r] * scale[row]
            hidden[t, r] = weight * value / (np.float32(1) + np.exp(-value)) if weight != 0 else np.float32(0)


@keyed
def gemm(version):
    @njit(cache=True, nogil=True)
    def gemm(data, x, limits, joint, threads, out):
        """Select and multiply for several tokens: out [T, P]."""
        version  # noqa: B018  part of the key of the cache
        tokens, inputs = x.shape
        indices, values = np.empty(inputs + 1, np.int32), np.empty((tokens, inputs + 1), np.float32)
        partial = np.empty((threads, tokens, out.shape[1]), np.float32)
        kept = select_of_tokens(x, limits, joint, indices, values)
        add_kept_rows_of_tokens(data, indices, values, kept, threads, partial, out)

    return gemm


@keyed
def block_ffn_token(version):
    @njit(cache=True, nogil=True)
    def block_ffn_token(up, down, x, weights, width, scale, threads, out):
        """The layer for one token: x [d], weights [1, E], out [P] in order, without the scale of down."""
        version  # noqa: B018  part of the key of the cache
        rows, kept = np.empty(len(up), np.int32), 0
        for expert in range(weights.shape[1]):
            if weights[0, expert] != 0:  # a NaN is used
                for k in range(width):
                    rows[kept] = expert * width + k
                    kept += 1
        hidden = np.empty((1, max(kept, 1)), np.float32)
        planes = np.empty(up.shape[1] * words_of(up), np.float32)
        loops.dot_kept_rows(up, x, rows, kept, threads, planes, hidden[0])
        weigh_hidden(hidden, weights, rows, kept, width, scale)
        partial = np.empty((threads, len(out)), np.float32)
        loops.add_kept_rows(down, rows, hidden[0], kept, 0, down.shape[1], threads, partial, out)

    return block_ffn_token
