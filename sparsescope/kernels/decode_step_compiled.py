"""One decoded token of a Llama-like model in one compiled call; see ``decode_step.py`` for the arrays.

Nothing returns to Python between the embedding and the logits. Dense and sparse are the same code: a dense
step keeps every input.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
# mypy: disallow-incomplete-defs=False

from __future__ import annotations

import numpy as np
from numba import njit, prange

from sparsescope.kernels import sparse_products_compiled as loops
from sparsescope.kernels.sparse_products_compiled import keyed

_LOOSE = {"reassoc", "contract", "nsz"}
_ZERO, _ONE = np.float32(0), np.float32(1)
_add_kept_rows, _dot_kept_rows, _words = loops.add_kept_rows, loops.dot_kept_rows, loops.words_of


@njit(cache=True, nogil=True)
def select_around(x, limits, centre, sparse, indices, values):
    """List the inputs above their limits, less their centre; all of them, as they are, in a dense step.

    Args:
        x, limits, centre: [K].

    Returns:
        How many were listed.
    """
    kept = 0
    if not sparse:
        for i in range(len(x)):
            indices[i], values[i] = i, x[i]
        return len(x)
    for i in range(len(x)):
        value = x[i] - centre[i]
        indices[kept], values[kept] = i, value
        kept += not abs(value) <= limits[i]
    return kept


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def rms_norm(x, weight, epsilon, out):
    """Out = x / sqrt(mean(x^2) + epsilon) * weight."""
    total = _ZERO
    for i in range(len(x)):
        total += x[i] * x[i]
    factor = _ONE / np.sqrt(total / np.float32(len(x)) + epsilon)
    for i in range(len(x)):
        out[i] = x[i] * factor * weight[i]


@njit(cache=True, nogil=True)
def rotate(x, cosine, sine):
    """Rotary positions in place, one head: halves (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)."""
    half = len(cosine)
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cosine[i] - second * sine[i]
        x[half + i] = second * cosine[i] + first * sine[i]


@njit(cache=True, nogil=True, parallel=True, fastmath=_LOOSE)
def attend(query, keys, values, length, groups, scores, threads, out):
    """Attention of one token over the cache.

    Args:
        query: [heads, size]. keys, values: [kv heads, most, size]. scores: [heads, most], scratch.
        length: Tokens in the cache, with this one.
        groups: Heads that share keys.
        out: [heads, size].
    """
    heads, size = query.shape
    factor = _ONE / np.sqrt(np.float32(size))
    for part in prange(threads):
        for head in range(heads * part // threads, heads * (part + 1) // threads):
            key, value, score, q, o = (
                keys[head // groups],
                values[head // groups],
                scores[head],
                query[head],
                out[head],
            )
            top = np.float32(-np.inf)
            for s in range(length):
                k, dot = key[s], _ZERO
                for i in range(size):
                    dot += q[i] * k[i]
                score[s] = dot * factor
                top = max(top, score[s])
            total = _ZERO
            for s in range(length):
                score[s] = np.exp(score[s] - top)
                total += score[s]
            for i in range(size):
                o[i] = _ZERO
            for s in range(length):
                weight, v = score[s] / total, value[s]
                for i in range(size):
                    o[i] += weight * v[i]


@keyed
def product(version):
    @njit(cache=True, nogil=True)
    def product(data, scale, bias, x, masks, centres, joint, sparse, offsets, work, kept, threads, out):
        """One group of matrices that read x: out [P]; counts of kept inputs into ``kept`` [parts].

        Args:
            masks, centres: [parts, K], one for each matrix; the first serves all where ``joint``.
            offsets: int64 [parts + 1], where the outputs of each matrix begin.
        """
        version  # noqa: B018  part of the key of the cache
        indices, values, partial = work
        entries = _words(data)
        parts = 1 if joint else len(offsets) - 1
        for part in range(parts):
            number = select_around(x, masks[part], centres[part], sparse, indices, values)
            kept[part] += number
            first = 0 if joint else offsets[part] // entries
            last = data.shape[1] if joint else offsets[part + 1] // entries
            _add_kept_rows(data, indices, values, number, first, last, threads, partial, out)
        if len(scale):
            for i in range(len(scale)):
                out[i] *= scale[i]
        for i in range(len(bias)):
            out[i] += bias[i]

    return product


@keyed
def step(version):
    @njit(cache=True, nogil=True)
    def step(x, position, sparse, layers, masks, sizes, cache, final_norm, head, work, kept, logits):
        version  # noqa: B018  part of the key of the cache
        norms, qkv, o, gate_up, down = layers
        heads, kv_heads, size, threads, epsilon = sizes
        keys, values, cosines, sines = cache
        indices, kept_values, partial, normed, made, attended, hidden, scores, rows, planes = work
        d, f = len(x), hidden.shape[0]
        scratch = (indices, kept_values, partial)
        at = 1 if sparse else 0
        q_end, k_end = heads * size, (heads + kv_heads) * size
        for layer in range(len(norms)):
            rms_norm(x, norms[layer, 0], epsilon, normed)
            data, scale, bias, joint, offsets = qkv
            limits, centres = masks[0]
            product(
                data[layer], scale[layer], bias[at, layer], normed, limits[layer], centres[layer],
                joint, sparse, offsets, scratch, kept[layer, 0], threads, made,
            )  # fmt: skip
            cosine, sine = cosines[position], sines[position]
            for head_number in range(heads + kv_heads):
                rotate(made[head_number * size : (head_number + 1) * size], cosine, sine)
            for head_number in range(kv_heads):
                begin = head_number * size
                for i in range(size):
                    keys[layer, head_number, position, i] = made[q_end + begin + i]
                    values[layer, head_number, position, i] = made[k_end + begin + i]
            query = made[:q_end].reshape(heads, size)
            groups = heads // kv_heads
            attend(query, keys[layer], values[layer], position + 1, groups, scores, threads, attended)
            data, scale, bias, joint, offsets = o
            limits, centres = masks[1]
            product(
                data[layer], scale[layer], bias[at, layer], attended.reshape(heads * size), limits[layer],
                centres[layer], joint, sparse, offsets, scratch, kept[layer, 1], threads, made,
            )  # fmt: skip
            for i in range(d):
                x[i] += made[i]
            rms_norm(x, norms[layer, 1], epsilon, normed)
            data, scale, bias, joint, offsets = gate_up
            limits, centres = masks[2]
            product(
                data[layer], scale[layer], bias[at, layer], normed, limits[layer], centres[layer],
                joint, sparse, offsets, scratch, kept[layer, 2], threads, made,
            )  # fmt: skip
            for i in range(f):
                gate = made[i]
                hidden[i] = gate / (_ONE + np.exp(-gate)) * made[f + i]
            data, scale, bias, joint, offsets = down
            limits, centres = masks[3]
            product(
                data[layer], scale[layer], bias[at, layer], hidden, limits[layer], centres[layer],
                joint, sparse, offsets, scratch, kept[layer, 3], threads, made,
            )  # fmt: skip
            for i in range(d):
                x[i] += made[i]
        rms_norm(x, final_norm, epsilon, normed)
        data, scale = head
        _dot_kept_rows(data, normed, rows, len(rows), threads, planes, logits)
        if len(scale):
            for i in range(len(scale)):
                logits[i] *= scale[i]

    return step
