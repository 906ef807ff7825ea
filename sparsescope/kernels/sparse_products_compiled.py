"""The compiled loops of sparse products on a CPU; imported when one is first used.

Rows of weights come as float32, as pairs of bfloat16 in a uint32, or as four bytes in an int32 (int8 + 128).
A pair or a quad is taken apart by shifts and masks, so that a vector of words gives vectors of floats
without moving entries between lanes; its entries are ``planes``: of the words of a row all first entries,
then all second ones, ... Sums are kept in planes and put in order once, at the end. Every product is made and
summed in float32.

A product of kept rows is split over the rows, each thread with sums of its own that stay in its cache, added
up in the order of threads; products with very many outputs are split over the outputs instead. So results are
the same from run to run, and differ in rounding with the number of threads.

Shapes: data [rows, P / entries of a word]; indices int32 [kept]; values float32 [kept].
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
# mypy: disallow-incomplete-defs=False, disable-error-code="call-arg"

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

# OpenMP first: its threads are started once and shared by all kernels; what is set by the user stays
_config: Any = numba.config
if _config.THREADING_LAYER == "default":
    _config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
# They are started here: numba starts them for a cached loop with threads, but not for cached code that was
# compiled when the loops that it calls came from the cache. Loading that ends the process: "Symbol not found"
numba.get_num_threads()

# Sums may be vectorized; NaN and infinity stay what they are, but that an infinite input gives NaN with int8
_LOOSE = {"reassoc", "contract", "nsz"}
OPTIONS: Any = {"nogil": True, "fastmath": _LOOSE, "error_model": "numpy"}
_MANY = 16_384  # outputs from which on a product is split over them: sums of a thread leave its cache
# Words of a row of bfloat16 or int8 up to which the next rows are asked for ahead: the processor does so by
# itself within a page of 4 kB only, and does not get going in a short row. On longer rows, and on float32, it
# costs more than it gives
_SHORT = 1024
_PIECE = 128  # words that are asked for at once: the memory works while a piece is summed
_LINE = 16  # words of a line of the cache
ZERO = np.float32(0)
HIGH, HALF = np.uint32(0xFFFF0000), np.uint32(16)
FIRST, SECOND, THIRD, BYTES = np.uint32(0xFF), np.uint32(0xFF00), np.uint32(0xFF0000), np.uint32(24)
_PLANE = np.array([1, 1 / 256, 1 / 65536, 1], np.float32)  # what masked bytes are too large by
_BIAS = np.float32(128)


@intrinsic
def as_float(context, word):
    """The bits of a word as a float."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def to_float(context, word):
    """A word below 2^31 as a float; signed conversion is one instruction."""

    def generate(context, builder, signature, args):
        return builder.sitofp(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _ask_for(context, data, row, word):
    """Have the memory bring the line of an entry; nothing waits for it, and nothing is read."""

    def generate(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = cgutils.get_item_pointer(
            context, builder, signature.args[0], array, args[1:], wraparound=False
        )
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(ask, [builder.bitcast(place, byte), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(data, types.intp, types.intp), generate


@njit(inline="always")
def ask_for_rows(data, indices, first, last, begin, end):
    """Ask for words begin to end of the rows from ``first`` to ``last``."""
    for r in range(first, last):
        for word in range(begin, end, _LINE):
            _ask_for(data, indices[r], word)


# Functions whose body raises are names alone: numba puts the loop for the type of the words in their place
# (``overload``), and Python never calls them.


def words_of(data):
    """Entries of a word; compiled code has one for each type."""
    raise NotImplementedError


@overload(words_of)
def _words_of(data):
    entries = {types.float32: 1, types.uint32: 2, types.int32: 4}[data.dtype]
    return lambda data: entries


def _add_rows(data, indices, values, low, high, begin, end, sums):
    raise NotImplementedError


@overload(_add_rows, jit_options=OPTIONS)
def _add_rows_of(data, indices, values, low, high, begin, end, sums):
    """Sum values[r] * data[indices[r], begin:end] over r from low to high, in planes; words begin to end."""
    if data.dtype == types.float32:
        return _add_floats
    return _add_pairs if data.dtype == types.uint32 else _add_quads


def _add_floats(data, indices, values, low, high, begin, end, sums):
    n = end - begin
    for j in range(n):
        sums[j] = ZERO
    r = low
    while r + 8 <= high:
        w0, w1 = data[indices[r], begin:end], data[indices[r + 1], begin:end]
        w2, w3 = data[indices[r + 2], begin:end], data[indices[r + 3], begin:end]
        w4, w5 = data[indices[r + 4], begin:end], data[indices[r + 5], begin:end]
        w6, w7 = data[indices[r + 6], begin:end], data[indices[r + 7], begin:end]
        a0, a1, a2, a3 = values[r], values[r + 1], values[r + 2], values[r + 3]
        a4, a5, a6, a7 = values[r + 4], values[r + 5], values[r + 6], values[r + 7]
        for j in range(n):
            sums[j] += (a0 * w0[j] + a1 * w1[j] + (a2 * w2[j] + a3 * w3[j])) + (
                (a4 * w4[j] + a5 * w5[j]) + (a6 * w6[j] + a7 * w7[j])
            )
        r += 8
    while r < high:
        w0, a0 = data[indices[r], begin:end], values[r]
        for j in range(n):
            sums[j] += a0 * w0[j]
        r += 1


def _add_pairs(data, indices, values, low, high, begin, end, sums):
    n = end - begin
    even, odd = sums[:n], sums[n : 2 * n]
    for j in range(n):
        even[j] = ZERO
        odd[j] = ZERO
    step = _PIECE if n <= _SHORT else n
    r = low
    while r + 4 <= high:
        i0, i1, i2, i3 = indices[r], indices[r + 1], indices[r + 2], indices[r + 3]
        a0, a1, a2, a3 = values[r], values[r + 1], values[r + 2], values[r + 3]
        for first in range(begin, end, step):
            last = min(end, first + step)
            if step < n:
                ask_for_rows(data, indices, r + 4, min(high, r + 8), first, last)
            w0, w1, w2, w3 = (
                data[i0, first:last],
                data[i1, first:last],
                data[i2, first:last],
                data[i3, first:last],
            )
            s0, s1 = even[first - begin : last - begin], odd[first - begin : last - begin]
            for j in range(last - first):
                u0, u1, u2, u3 = w0[j], w1[j], w2[j], w3[j]
                s0[j] += (a0 * as_float(u0 << HALF) + a1 * as_float(u1 << HALF)) + (
                    a2 * as_float(u2 << HALF) + a3 * as_float(u3 << HALF)
                )
                s1[j] += (a0 * as_float(u0 & HIGH) + a1 * as_float(u1 & HIGH)) + (
                    a2 * as_float(u2 & HIGH) + a3 * as_float(u3 & HIGH)
                )
        r += 4
    while r < high:
        w0, a0 = data[indices[r], begin:end], values[r]
        for j in range(n):
            even[j] += a0 * as_float(w0[j] << HALF)
            odd[j] += a0 * as_float(w0[j] & HIGH)
        r += 1


def _add_quads(data, indices, values, low, high, begin, end, sums):
    n = end - begin
    p0, p1, p2, p3 = sums[:n], sums[n : 2 * n], sums[2 * n : 3 * n], sums[3 * n : 4 * n]
    for j in range(4 * n):
        sums[j] = ZERO
    step = _PIECE if n <= _SHORT else n
    r = low
    while r + 4 <= high:
        i0, i1, i2, i3 = indices[r], indices[r + 1], indices[r + 2], indices[r + 3]
        a0, a1, a2, a3 = values[r], values[r + 1], values[r + 2], values[r + 3]
        for first in range(begin, end, step):
            last = min(end, first + step)
            if step < n:
                ask_for_rows(data, indices, r + 4, min(high, r + 8), first, last)
            w0, w1, w2, w3 = (
                data[i0, first:last],
                data[i1, first:last],
                data[i2, first:last],
                data[i3, first:last],
            )
            s0, s1 = p0[first - begin : last - begin], p1[first - begin : last - begin]
            s2, s3 = p2[first - begin : last - begin], p3[first - begin : last - begin]
            for j in range(last - first):
                u0, u1, u2, u3 = np.uint32(w0[j]), np.uint32(w1[j]), np.uint32(w2[j]), np.uint32(w3[j])
                s0[j] += (a0 * to_float(u0 & FIRST) + a1 * to_float(u1 & FIRST)) + (
                    a2 * to_float(u2 & FIRST) + a3 * to_float(u3 & FIRST)
                )
                s1[j] += (a0 * to_float(u0 & SECOND) + a1 * to_float(u1 & SECOND)) + (
                    a2 * to_float(u2 & SECOND) + a3 * to_float(u3 & SECOND)
                )
                s2[j] += (a0 * to_float(u0 & THIRD) + a1 * to_float(u1 & THIRD)) + (
                    a2 * to_float(u2 & THIRD) + a3 * to_float(u3 & THIRD)
                )
                s3[j] += (a0 * to_float(u0 >> BYTES) + a1 * to_float(u1 >> BYTES)) + (
                    a2 * to_float(u2 >> BYTES) + a3 * to_float(u3 >> BYTES)
                )
        r += 4
    while r < high:
        w0, a0 = data[indices[r], begin:end], values[r]
        for j in range(n):
            u0 = np.uint32(w0[j])
            p0[j] += a0 * to_float(u0 & FIRST)
            p1[j] += a0 * to_float(u0 & SECOND)
            p2[j] += a0 * to_float(u0 & THIRD)
            p3[j] += a0 * to_float(u0 >> BYTES)
        r += 1


@njit(cache=True, **OPTIONS)
def put_in_order(data, partial, parts, begin, end, total, out):
    """Add up the sums of parts, [parts, P] in planes of words begin to end, and write their entries in order.

    Args:
        total: Sum of the values that rows were multiplied with: bytes are too large by 128 of it.
    """
    words, n = words_of(data), end - begin
    shift = total * _BIAS if words == 4 else ZERO
    for plane in range(words):
        factor = _PLANE[plane] if words == 4 else np.float32(1)
        at = begin * words + plane * n
        for j in range(n):
            s = partial[0, at + j]
            for part in range(1, parts):
                s += partial[part, at + j]
            out[(begin + j) * words + plane] = s * factor - shift


@njit(cache=True, nogil=True)
def select(x, limits, indices, values):
    """List the inputs that are not up to their limit (a NaN is kept), without a branch.

    Args:
        x: [K]. limits: [K]. indices: int32 [K + 1]. values: float32 [K + 1].

    Returns:
        How many were kept.
    """
    kept = 0
    for i in range(len(x)):
        indices[kept], values[kept] = i, x[i]
        kept += not abs(x[i]) <= limits[i]
    return kept


@njit(cache=True, parallel=True, **OPTIONS)
def add_kept_rows(data, indices, values, kept, first, last, threads, partial, out):
    """Sum words ``first`` to ``last`` of the kept rows: out [P] in order; partial float32 [threads, P]."""
    words = last - first
    total = ZERO
    for r in range(kept):
        total += values[r]
    if words * words_of(data) < _MANY or threads == 1:
        at = first * words_of(data)
        for part in prange(threads):
            low, high = kept * part // threads, kept * (part + 1) // threads
            _add_rows(data, indices, values, low, high, first, last, partial[part, at:])
        put_in_order(data, partial, threads, first, last, total, out)
        return
    unit = 64 // words_of(data)
    units = -(-words // unit)
    blocks = max(threads, (words * words_of(data) // (_MANY // 2) + threads - 1) // threads * threads)
    for block in prange(blocks):
        begin = first + min(words, units * block // blocks * unit)
        end = first + min(words, units * (block + 1) // blocks * unit)
        at = begin * words_of(data)
        _add_rows(data, indices, values, 0, kept, begin, end, partial[0, at : end * words_of(data)])
        put_in_order(data, partial, 1, begin, end, total, out)


@njit(cache=True, nogil=True)
def gemv(data, x, limits, threads, out):
    """Select and multiply: out [P]."""
    indices, values = np.empty(len(x) + 1, np.int32), np.empty(len(x) + 1, np.float32)
    partial = np.empty((threads, len(out)), np.float32)
    kept = select(x, limits, indices, values)
    add_kept_rows(data, indices, values, kept, 0, data.shape[1], threads, partial, out)


def _dot_rows(data, planes, rows, low, high, out):
    raise NotImplementedError


@overload(_dot_rows, jit_options=OPTIONS)
def _dot_rows_of(data, planes, rows, low, high, out):
    """out[r] = data[rows[r]] . x for r from low to high; x in planes, bytes without their zero."""
    if data.dtype == types.float32:
        return _dot_floats
    return _dot_pairs if data.dtype == types.uint32 else _dot_quads


def _dot_floats(data, planes, rows, low, high, out):
    n = data.shape[1]
    r = low
    while r + 4 <= high:
        w0, w1, w2, w3 = data[rows[r]], data[rows[r + 1]], data[rows[r + 2]], data[rows[r + 3]]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for j in range(n):
            x = planes[j]
            s0 += w0[j] * x
            s1 += w1[j] * x
            s2 += w2[j] * x
            s3 += w3[j] * x
        out[r], out[r + 1], out[r + 2], out[r + 3] = s0, s1, s2, s3
        r += 4
    while r < high:
        w0, s0 = data[rows[r]], ZERO
        for j in range(n):
            s0 += w0[j] * planes[j]
        out[r] = s0
        r += 1


def _dot_pairs(data, planes, rows, low, high, out):
    n = data.shape[1]
    even, odd = planes[:n], planes[n : 2 * n]
    r = low
    while r + 4 <= high:
        w0, w1, w2, w3 = data[rows[r]], data[rows[r + 1]], data[rows[r + 2]], data[rows[r + 3]]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for j in range(n):
            x, y, u0, u1, u2, u3 = even[j], odd[j], w0[j], w1[j], w2[j], w3[j]
            s0 += as_float(u0 << HALF) * x + as_float(u0 & HIGH) * y
            s1 += as_float(u1 << HALF) * x + as_float(u1 & HIGH) * y
            s2 += as_float(u2 << HALF) * x + as_float(u2 & HIGH) * y
            s3 += as_float(u3 << HALF) * x + as_float(u3 & HIGH) * y
        out[r], out[r + 1], out[r + 2], out[r + 3] = s0, s1, s2, s3
        r += 4
    while r < high:
        w0, s0 = data[rows[r]], ZERO
        for j in range(n):
            s0 += as_float(w0[j] << HALF) * even[j] + as_float(w0[j] & HIGH) * odd[j]
        out[r] = s0
        r += 1


def _dot_quads(data, planes, rows, low, high, out):
    n = data.shape[1]
    p0, p1, p2, p3 = planes[:n], planes[n : 2 * n], planes[2 * n : 3 * n], planes[3 * n : 4 * n]
    for r in range(low, high):
        w, s, t = data[rows[r]], ZERO, ZERO
        for j in range(n):
            u = np.uint32(w[j])
            s += to_float(u & FIRST) * p0[j] + to_float(u & SECOND) * p1[j]
            t += to_float(u & THIRD) * p2[j] + to_float(u >> BYTES) * p3[j]
        out[r] = s + t


@njit(cache=True, **OPTIONS)
def to_planes(data, x, planes):
    """Put a vector in the order that rows are read in; the padding is zero.

    Returns:
        What a dot product with bytes is too large by.
    """
    words, n = words_of(data), data.shape[1]
    total = ZERO
    planes[:] = ZERO
    for plane in range(words):
        factor = _PLANE[plane] if words == 4 else np.float32(1)
        for j in range(n):
            i = j * words + plane
            if i < len(x):
                planes[plane * n + j] = x[i] * factor
                total += x[i]
    return total * _BIAS if words == 4 else ZERO


@njit(cache=True, parallel=True, **OPTIONS)
def dot_kept_rows(data, x, rows, kept, threads, planes, out):
    """out[r] = data[rows[r]] . x for the first ``kept`` rows; scales are left to the caller."""
    shift = to_planes(data, x, planes)
    for part in prange(threads):
        low, high = kept * part // threads, kept * (part + 1) // threads
        _dot_rows(data, planes, rows, low, high, out)
        for r in range(low, high):
            out[r] -= shift


def read_row(data, row, begin, end, buffer):
    """Words begin to end of a row as float32; compiled code has one for each type."""
    raise NotImplementedError


@overload(read_row, jit_options=OPTIONS)
def _read_row_overload(data, row, begin, end, buffer):
    """Words begin to end of a row as float32 in planes, the true values but for scales."""
    if data.dtype == types.float32:

        def read(data, row, begin, end, buffer):
            for j in range(end - begin):
                buffer[j] = data[row, begin + j]

    elif data.dtype == types.uint32:

        def read(data, row, begin, end, buffer):
            n, w = end - begin, data[row, begin:end]
            for j in range(n):
                buffer[j] = as_float(w[j] << HALF)
                buffer[n + j] = as_float(w[j] & HIGH)

    else:

        def read(data, row, begin, end, buffer):
            n, w = end - begin, data[row, begin:end]
            for j in range(n):
                u = np.uint32(w[j])
                buffer[j] = to_float(u & FIRST) - _BIAS
                buffer[n + j] = to_float((u >> np.uint32(8)) & FIRST) - _BIAS
                buffer[2 * n + j] = to_float((u >> HALF) & FIRST) - _BIAS
                buffer[3 * n + j] = to_float(u >> BYTES) - _BIAS

    return read


def keyed(build):
    """Compile a loop of another file that calls loops of this one: ``build(version)`` returns it, compiled.

    Numba keeps compiled functions as long as their own file is unchanged and does not look into what they
    call; the digest of this file, which ``build`` closes over, is in the key of the cache. Each loop has a
    builder of its own: a compiled function that is closed over would make another key in every process.
    """
    return build(hashlib.sha256(Path(__file__).read_bytes()).hexdigest())
