"""Measures of rows of attention weights, compiled; ``metrics/attention.py`` has the
definitions in plain NumPy.

One vectorized sort of the rows, then one scan of each. All kernels write into arrays that the caller made, so
that memory does not grow with the number of rows.
Shapes: weights float32 [head, row, key], contiguous; low, high int64 [row], the keys low..high that the row
may see; positions of rows and keys are counted in the window.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsescope.metrics.attention import FIRST_KEYS, ROUNDING

SMALLEST = 1e-38
N_SHAPE = 4  # entropy, e^entropy, Gini, spread of the scores
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def row_shapes(
    weights: np.ndarray, low: np.ndarray, high: np.ndarray, shares: tuple[float, ...]
) -> np.ndarray:
    """Measures that depend on the sorted weights only.

    Returns:
        float64 [head, row, 4 + shares]: entropy (nats), e^entropy (keys), Gini (NaN for one key), standard
        deviation of the scores, then k_p for each share (keys).
    """
    out = np.empty((*weights.shape[:2], N_SHAPE + len(shares)))
    ordered = np.sort(weights, axis=2)
    compiled().shapes(weights, ordered, low, high, np.asarray(shares, np.float64), out)
    return out


def row_places(weights: np.ndarray, start: int, first_key: int, widths: tuple[int, ...]) -> np.ndarray:
    """Mass by place.

    Args:
        weights: The rows.
        start: Position of the first row.
        first_key: Position of the first key.
        widths: Widths of the local windows.

    Returns:
        float64 [head, row, 3 + widths]: first key, first four keys, previous key, then the keys
        at most w - 1 away.
    """
    out = np.zeros((*weights.shape[:2], 3 + len(widths)))
    compiled().places(weights, start, first_key, np.asarray(widths, np.int64), out)
    return out


def add_lines(
    weights: np.ndarray,
    rows: np.ndarray,
    start: int,
    first_key: int,
    columns: np.ndarray,
    diagonals: np.ndarray,
) -> None:
    """Add the weights of the rows with ``rows`` True to their columns and diagonals.

    Args:
        weights: The rows.
        rows: bool [row].
        start: Position of the first row.
        first_key: Position of the first key.
        columns: In and out, float64 [head, key of the window].
        diagonals: In and out, float64 [head, 2 * length - 1]; query - key = 0 is in the middle.
    """
    compiled().lines(weights, rows, start, first_key, columns, diagonals)


def block_mass(weights: np.ndarray, first_key: int, keys: int, block: int) -> np.ndarray:
    """Mass of each block of queries on each block of keys, float64 [head, query block, key
    block of the window].
    """
    out = np.zeros((weights.shape[0], -(-weights.shape[1] // block), -(-keys // block)))
    compiled().blocks(weights, first_key, block, out)
    return out


def shuffled_rows(weights: np.ndarray, low: np.ndarray, high: np.ndarray, seed: int) -> np.ndarray:
    """A copy in which the weights of each row are dealt anew to the keys that it may see."""
    out = weights.copy()
    compiled().shuffle(out, low, high, np.uint64(seed))
    return out


def keep_top(
    weights: np.ndarray, low: np.ndarray, high: np.ndarray, share: float, seed: int | None = None
) -> tuple[np.ndarray, int]:
    """Weights with only the smallest set of keys that holds a share of each row, scaled to sum
    to what the row did.

    Args:
        weights: The rows.
        low: First key of each row.
        high: End of its keys.
        share: Share p; ties go to the lower key.
        seed: None for the top-p set; a number for as many keys drawn at random (the null).

    Returns:
        The new weights, and how many pairs were kept.
    """
    out = np.zeros_like(weights)
    ordered = np.sort(weights, axis=2)
    kept = compiled().keep(weights, ordered, low, high, share, seed is not None, np.uint64(seed or 0), out)
    return out, int(kept)


def keep_local(
    weights: np.ndarray, low: np.ndarray, high: np.ndarray, start: int, first_key: int, width: int
) -> tuple[np.ndarray, int]:
    """Weights with only the first four keys of the window and keys less than ``width``
    away; see ``keep_top``.
    """
    out = np.zeros_like(weights)
    return out, int(compiled().local(weights, low, high, start, first_key, width, out))


def dropped_outputs(
    weights: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray,
    rows: np.ndarray, shares: tuple[float, ...], levels: tuple[float, ...],
) -> np.ndarray:  # fmt: skip
    """Output-aware measures of some rows.

    Args:
        weights: The rows.
        values: float32 [kv_head, key, head_dim].
        low: First key of each row.
        high: End of its keys.
        rows: int64, which rows.
        shares: Shares p of the top-p sets, ascending.
        levels: Error levels.

    Returns:
        float64 [head, len(rows), shares + levels]: errors, then
        fractions, as ``metrics.attention.dropped_output``.
    """
    out = np.empty((weights.shape[0], len(rows), len(shares) + len(levels)))
    compiled().dropped(
        weights, values, low, high, rows, np.asarray(shares, np.float64), np.asarray(levels, np.float64), out
    )
    return out


@cache
def compiled() -> Any:
    """Compile the kernels once per machine; numba keeps them in its cache folder."""
    import numba

    jit = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, error_model="numpy")
    return SimpleNamespace(
        shapes=jit(_shapes), places=jit(_places), lines=jit(_lines), blocks=jit(_blocks), local=jit(_local),
        shuffle=jit(_shuffle), keep=jit(_keep), dropped=jit(_dropped),
    )  # fmt: skip


def _shapes(
    weights: np.ndarray,
    ordered: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    shares: np.ndarray,
    out: np.ndarray,
) -> None:
    heads, rows, keys = weights.shape
    for h in range(heads):
        for r in range(rows):
            t = high[r] - low[r]
            total, surprise, ranked, logs, squares = 0.0, 0.0, 0.0, 0.0, 0.0
            for k in range(t):
                # Keys out of sight have weight 0 and stand first.
                w = np.float64(ordered[h, r, keys - t + k])
                log = np.log(max(w, SMALLEST))
                total += w
                surprise -= w * log
                ranked += (2 * (k + 1) - t - 1) * w
                logs += log
                squares += log * log
            out[h, r, 0] = surprise
            out[h, r, 1] = np.exp(surprise)
            out[h, r, 2] = ranked / (t * total) if t > 1 else np.nan
            out[h, r, 3] = np.sqrt(max(squares / t - (logs / t) ** 2, 0.0))
            cumulative, reached = 0.0, 0
            for k in range(t):
                cumulative += np.float64(ordered[h, r, keys - 1 - k])
                while reached < len(shares) and (
                    cumulative >= shares[reached] * total * (1 - ROUNDING) or k == t - 1
                ):
                    out[h, r, N_SHAPE + reached] = k + 1
                    reached += 1
                if reached == len(shares):
                    break


def _places(weights: np.ndarray, start: int, first_key: int, widths: np.ndarray, out: np.ndarray) -> None:
    heads, rows, keys = weights.shape
    for h in range(heads):
        for r in range(rows):
            here = start + r - first_key
            for k in range(max(min(FIRST_KEYS - first_key, keys), 0)):
                out[h, r, 1] += weights[h, r, k]
            if first_key == 0:
                out[h, r, 0] = weights[h, r, 0]
            if 1 <= here <= keys:
                out[h, r, 2] = weights[h, r, here - 1]
            for i in range(len(widths)):
                for k in range(max(here - widths[i] + 1, 0), min(here + widths[i], keys)):
                    out[h, r, 3 + i] += weights[h, r, k]


def _lines(
    weights: np.ndarray,
    wanted: np.ndarray,
    start: int,
    first_key: int,
    columns: np.ndarray,
    diagonals: np.ndarray,
) -> None:
    heads, rows, keys = weights.shape
    length = columns.shape[1]
    for h in range(heads):
        for r in range(rows):
            if wanted[r]:
                shift = start + r - first_key + length - 1
                for k in range(keys):
                    columns[h, first_key + k] += weights[h, r, k]
                    diagonals[h, shift - k] += weights[h, r, k]


def _blocks(weights: np.ndarray, first_key: int, block: int, out: np.ndarray) -> None:
    heads, rows, keys = weights.shape
    for h in range(heads):
        for r in range(rows):
            for k in range(keys):
                out[h, r // block, (first_key + k) // block] += weights[h, r, k]


def _shuffle(weights: np.ndarray, low: np.ndarray, high: np.ndarray, seed: np.uint64) -> None:
    heads, rows, _ = weights.shape
    state = seed
    for h in range(heads):
        for r in range(rows):
            for k in range(high[r] - 1, low[r], -1):
                # SplitMix64 (Steele et al. 2014): a counter, and a hash of it.
                state = state + _GOLDEN
                z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z = z ^ (z >> np.uint64(31))
                other = low[r] + np.int64((z >> np.uint64(11)) % np.uint64(k - low[r] + 1))
                held = weights[h, r, k]
                weights[h, r, k] = weights[h, r, other]
                weights[h, r, other] = held


def _keep(
    weights: np.ndarray, ordered: np.ndarray, low: np.ndarray, high: np.ndarray,
    share: float, random: bool, seed: np.uint64, out: np.ndarray,
) -> int:  # fmt: skip
    heads, rows, keys = weights.shape
    state, pairs = seed, 0
    for h in range(heads):
        for r in range(rows):
            t = high[r] - low[r]
            total, cumulative, size = 0.0, 0.0, 0
            for k in range(keys - t, keys):
                total += np.float64(ordered[h, r, k])
            while size < t and (size == 0 or cumulative < share * total * (1 - ROUNDING)):
                cumulative += np.float64(ordered[h, r, keys - 1 - size])
                size += 1
            pairs += size
            kept, left = 0.0, size
            if random:
                for k in range(low[r], high[r]):
                    state = state + _GOLDEN
                    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                    z = z ^ (z >> np.uint64(31))
                    # Selection sampling: each set of this size is equally likely.
                    if np.int64((z >> np.uint64(11)) % np.uint64(high[r] - k)) < left:
                        out[h, r, k] = weights[h, r, k]
                        kept += np.float64(weights[h, r, k])
                        left -= 1
            else:
                threshold = ordered[h, r, keys - size]
                spare = size
                for k in range(low[r], high[r]):
                    spare -= weights[h, r, k] > threshold
                for k in range(low[r], high[r]):
                    w = weights[h, r, k]
                    if w > threshold or (w == threshold and spare > 0):
                        spare -= w == threshold
                        out[h, r, k] = w
                        kept += np.float64(w)
            if kept > 0:
                scale = total / kept
                for k in range(low[r], high[r]):
                    out[h, r, k] = out[h, r, k] * scale
    return pairs


def _local(
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    start: int,
    first_key: int,
    width: int,
    out: np.ndarray,
) -> int:
    heads, rows, _ = weights.shape
    pairs = 0
    for h in range(heads):
        for r in range(rows):
            here = start + r - first_key
            kept, total = 0.0, 0.0
            for k in range(low[r], high[r]):
                w = np.float64(weights[h, r, k])
                total += w
                if first_key + k < FIRST_KEYS or abs(here - k) < width:
                    out[h, r, k] = weights[h, r, k]
                    kept += w
                    pairs += 1
            if kept > 0:
                scale = total / kept
                for k in range(low[r], high[r]):
                    out[h, r, k] = out[h, r, k] * scale
    return pairs


def _dropped(
    weights: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray,
    rows: np.ndarray, shares: np.ndarray, levels: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    heads = weights.shape[0]
    groups, keys, width = values.shape
    norms = np.empty((groups, keys))
    for g in range(groups):
        for k in range(keys):
            square = 0.0
            for d in range(width):
                square += np.float64(values[g, k, d]) * np.float64(values[g, k, d])
            norms[g, k] = np.sqrt(square)
    for h in range(heads):
        g = h // (heads // groups)
        for i in range(len(rows)):
            r = rows[i]
            a, t = low[r], high[r] - low[r]
            full = np.zeros(width)
            total = 0.0
            for k in range(a, a + t):
                w = np.float64(weights[h, r, k])
                total += w
                for d in range(width):
                    full[d] += w * np.float64(values[g, k, d])
            norm = np.sqrt((full * full).sum())
            if norm == 0:
                out[h, i] = np.nan
                continue
            order = np.argsort(weights[h, r, a : a + t])
            part, cumulative, reached = np.zeros(width), 0.0, 0
            for n in range(t):
                k = a + order[t - 1 - n]
                w = np.float64(weights[h, r, k])
                cumulative += w
                for d in range(width):
                    part[d] += w * np.float64(values[g, k, d])
                while reached < len(shares) and (
                    cumulative >= shares[reached] * total * (1 - ROUNDING) or n == t - 1
                ):
                    out[h, i, reached] = 0.0 if n == t - 1 else np.sqrt(((full - part) ** 2).sum()) / norm
                    reached += 1
                if reached == len(shares):
                    break
            order = np.argsort(weights[h, r, a : a + t] * norms[g, a : a + t])
            part[:] = 0.0
            for level in range(len(levels)):
                out[h, i, len(shares) + level] = 0.0
            done = np.zeros(len(levels), np.bool_)
            for n in range(t):
                k = a + order[n]
                w = np.float64(weights[h, r, k])
                for d in range(width):
                    part[d] += w * np.float64(values[g, k, d])
                error = np.sqrt((part * part).sum()) / norm
                open_levels = False
                for level in range(len(levels)):
                    if not done[level] and error > levels[level]:
                        out[h, i, len(shares) + level] = 1.0 - n / t
                        done[level] = True
                    open_levels = open_levels or not done[level]
                if not open_levels:
                    break
