"""The compiled loops of sparse products of several tokens: every kept row of weights is read once.

Rows are taken eight at once, piece by piece, and added to the sums of two tokens at a time. Storage, planes
and shapes as in ``sparse_products_compiled``.

Shapes: T tokens; K inputs; P padded outputs.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
# mypy: disallow-incomplete-defs=False, disable-error-code="call-arg,var-annotated"

from __future__ import annotations

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from sparsescope.kernels import sparse_products_compiled as loops
from sparsescope.kernels.sparse_products_compiled import (
    BYTES,
    FIRST,
    HALF,
    HIGH,
    OPTIONS,
    SECOND,
    THIRD,
    ZERO,
    as_float,
    ask_for_rows,
    keyed,
    put_in_order,
    read_row,
    to_float,
    words_of,
)

TOGETHER = 8  # rows that are taken at once
COLUMNS = 2048  # of them


@njit(cache=True, **OPTIONS)
def _weigh(a, x0, x1, x2, x3, x4, x5, x6, x7):
    return (a[0] * x0 + a[1] * x1 + (a[2] * x2 + a[3] * x3)) + (
        (a[4] * x4 + a[5] * x5) + (a[6] * x6 + a[7] * x7)
    )


@njit(cache=True, **OPTIONS)
def _factors(values, r, high):
    """The values of eight rows from r on; zero behind the last one."""
    return (
        values[r],
        values[r + 1] if r + 1 < high else ZERO,
        values[r + 2] if r + 2 < high else ZERO,
        values[r + 3] if r + 3 < high else ZERO,
        values[r + 4] if r + 4 < high else ZERO,
        values[r + 5] if r + 5 < high else ZERO,
        values[r + 6] if r + 6 < high else ZERO,
        values[r + 7] if r + 7 < high else ZERO,
    )


def _add_eight(w0, w1, w2, w3, w4, w5, w6, w7, a, b, s, z):
    raise NotImplementedError


@overload(_add_eight, jit_options=OPTIONS)
def _add_eight_of(w0, w1, w2, w3, w4, w5, w6, w7, a, b, s, z):
    """Add eight rows of words to the sums s and z, in planes, of two tokens with the factors a and b."""
    if w0.dtype == types.float32:
        return _add_eight_floats
    return _add_eight_pairs if w0.dtype == types.uint32 else _add_eight_quads


def _add_eight_floats(w0, w1, w2, w3, w4, w5, w6, w7, a, b, s, z):
    for j in range(len(s)):
        x0, x1, x2, x3, x4, x5, x6, x7 = w0[j], w1[j], w2[j], w3[j], w4[j], w5[j], w6[j], w7[j]
        s[j] += _weigh(a, x0, x1, x2, x3, x4, x5, x6, x7)
        z[j] += _weigh(b, x0, x1, x2, x3, x4, x5, x6, x7)


def _add_eight_pairs(w0, w1, w2, w3, w4, w5, w6, w7, a, b, s, z):
    n = len(w0)
    s0, s1, z0, z1 = s[:n], s[n : 2 * n], z[:n], z[n : 2 * n]
    for j in range(n):
        u0, u1, u2, u3, u4, u5, u6, u7 = w0[j], w1[j], w2[j], w3[j], w4[j], w5[j], w6[j], w7[j]
        x0, x1, x2, x3 = (
            as_float(u0 << HALF),
            as_float(u1 << HALF),
            as_float(u2 << HALF),
            as_float(u3 << HALF),
        )
        x4, x5, x6, x7 = (
            as_float(u4 << HALF),
            as_float(u5 << HALF),
            as_float(u6 << HALF),
            as_float(u7 << HALF),
        )
        s0[j] += _weigh(a, x0, x1, x2, x3, x4, x5, x6, x7)
        z0[j] += _weigh(b, x0, x1, x2, x3, x4, x5, x6, x7)
        x0, x1, x2, x3 = as_float(u0 & HIGH), as_float(u1 & HIGH), as_float(u2 & HIGH), as_float(u3 & HIGH)
        x4, x5, x6, x7 = as_float(u4 & HIGH), as_float(u5 & HIGH), as_float(u6 & HIGH), as_float(u7 & HIGH)
        s1[j] += _weigh(a, x0, x1, x2, x3, x4, x5, x6, x7)
        z1[j] += _weigh(b, x0, x1, x2, x3, x4, x5, x6, x7)


def _add_eight_quads(w0, w1, w2, w3, w4, w5, w6, w7, a, b, s, z):
    n = len(w0)
    s0, s1, s2, s3 = s[:n], s[n : 2 * n], s[2 * n : 3 * n], s[3 * n : 4 * n]
    z0, z1, z2, z3 = z[:n], z[n : 2 * n], z[2 * n : 3 * n], z[3 * n : 4 * n]
    for j in range(n):
        u = w0[j], w1[j], w2[j], w3[j], w4[j], w5[j], w6[j], w7[j]
        x = _bytes(u, FIRST)
        s0[j] += _weigh(a, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        z0[j] += _weigh(b, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        x = _bytes(u, SECOND)
        s1[j] += _weigh(a, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        z1[j] += _weigh(b, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        x = _bytes(u, THIRD)
        s2[j] += _weigh(a, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        z2[j] += _weigh(b, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        x = _last_bytes(u)
        s3[j] += _weigh(a, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])
        z3[j] += _weigh(b, x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])


@njit(cache=True, **OPTIONS)
def _byte(word, mask):
    return to_float(np.uint32(word) & mask)


@njit(cache=True, **OPTIONS)
def _bytes(u, mask):
    """One byte of eight words, as the sums of ``put_in_order`` have it: too large by 128 and by its place."""
    return (
        _byte(u[0], mask), _byte(u[1], mask), _byte(u[2], mask), _byte(u[3], mask),
        _byte(u[4], mask), _byte(u[5], mask), _byte(u[6], mask), _byte(u[7], mask),
    )  # fmt: skip


@njit(cache=True, **OPTIONS)
def _last_byte(word):
    return to_float(np.uint32(word) >> BYTES)


@njit(cache=True, **OPTIONS)
def _last_bytes(u):
    return (
        _last_byte(u[0]), _last_byte(u[1]), _last_byte(u[2]), _last_byte(u[3]),
        _last_byte(u[4]), _last_byte(u[5]), _last_byte(u[6]), _last_byte(u[7]),
    )  # fmt: skip


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
            mine, spare = partial[part], np.empty(COLUMNS, np.float32)
            mine[:] = ZERO
            for r in range(low, high, TOGETHER):
                last = high - 1
                i0, i1, i2 = indices[r], indices[min(r + 1, last)], indices[min(r + 2, last)]
                i3, i4, i5 = indices[min(r + 3, last)], indices[min(r + 4, last)], indices[min(r + 5, last)]
                i6, i7 = indices[min(r + 6, last)], indices[min(r + 7, last)]
                for begin in range(0, words, step):
                    end = min(words, begin + step)
                    at, n = begin * entries, (end - begin) * entries
                    if entries > 1:
                        ask_for_rows(data, indices, r + TOGETHER, min(high, r + 2 * TOGETHER), begin, end)
                    w0, w1, w2 = data[i0, begin:end], data[i1, begin:end], data[i2, begin:end]
                    w3, w4, w5 = data[i3, begin:end], data[i4, begin:end], data[i5, begin:end]
                    w6, w7 = data[i6, begin:end], data[i7, begin:end]
                    for t in range(0, tokens, 2):
                        a, s = _factors(values[t], r, high), mine[t, at : at + n]
                        two = t + 1 < tokens  # the last of an odd number goes with itself
                        b = _factors(values[t + 1 if two else t], r, high)
                        z = mine[t + 1, at : at + n] if two else spare[:n]
                        _add_eight(w0, w1, w2, w3, w4, w5, w6, w7, a, b, s, z)
        for t in range(tokens):
            total = ZERO
            for r in range(kept):
                total += values[t, r]
            for begin in range(0, words, step):
                end = min(words, begin + step)
                put_in_order(data, partial[:, t], threads, begin, end, total, out[t])

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
