"""Counts of scores |x_i - m_i| c_i on a fixed logarithmic grid: quantiles of any score from one streaming
pass.

A bin is the upper half of a float32: sign, exponent and seven bits of the mantissa, so that it is .8 % wide
at any scale, no range has to be guessed, and a bfloat16 number is a bin of its own. Scores are float32
products. Counts are exact and add up over batches and workers.

Shapes: x [n, K]; scale, centre [K]; counts int64 [BINS].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from sparsescope.errors import SpecError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BINS = 2**15
Backend = Literal["reference", "numba"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_SHIFT = 16


def new_counts() -> NDArray[np.int64]:
    """Counts of nothing, int64 [BINS]."""
    return np.zeros(BINS, np.int64)


def edges(bins: NDArray[np.int64] | int) -> NDArray[np.float64]:
    """Lower ends of bins; the upper end of a bin is the lower one of the next.

    Example:
        >>> edges(np.array([0, 16256])).tolist()  # the bits of 1.0 are 0x3f80
        [0.0, 1.0]
    """
    bits = (np.asarray(bins, np.int64) << _SHIFT).astype(np.uint32)
    return bits.view(np.float32).astype(np.float64)


def add_scores(
    counts: NDArray[np.int64],
    x: torch.Tensor,
    scale: torch.Tensor | None = None,
    centre: torch.Tensor | None = None,
    *,
    backend: Backend = "numba",
) -> None:
    """Count the scores of some tokens.

    Args:
        counts: int64 [BINS]; added to.
        x: [n, K], finite.
        scale: c, [K]; None for ones.
        centre: m, [K]; None for zeros.
        backend: ``"reference"`` (torch) or ``"numba"``; both give the same counts.

    Raises:
        SpecError: Unknown backend, or a score is not finite.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS, next_step="reference is the readable one")
    if not x.numel():
        return
    values = x.detach().float()
    if values.device.type != "cpu" or backend == "reference":
        score = values if centre is None else values - centre.to(values)
        score = score.abs() if scale is None else score.abs() * scale.to(values)
        _finite(bool(torch.isfinite(score).all()))
        bits = score.contiguous().view(torch.int32) >> _SHIFT
        counts += torch.bincount(bits.reshape(-1), minlength=BINS).cpu().numpy()
        return
    width = values.shape[-1]
    factors = np.ones(width, np.float32) if scale is None else scale.detach().float().cpu().numpy()
    middle = np.zeros(width, np.float32) if centre is None else centre.detach().float().cpu().numpy()
    found = new_counts()
    _compiled()(values.contiguous().numpy(), factors, middle, found)
    _finite(not found[BINS - 128 :].any())  # exponents of infinity and NaN
    counts += found


def _finite(fine: bool) -> None:
    if not fine:
        raise SpecError(
            "a score is not finite, so that scores cannot be ordered",
            where="add_scores",
            allowed="finite activations and scales",
            next_step="load the model in float32 or bfloat16",
        )


@cache
def _compiled() -> Callable[..., None]:
    """The compiled kernel, on one thread; see ``masked_inputs``."""
    import numba

    @numba.njit(cache=True, nogil=True)
    def count(x: Any, scale: Any, centre: Any, table: Any) -> None:
        n, width = x.shape
        row = np.empty(width, np.float32)
        for token in range(n):
            for i in range(width):
                row[i] = abs(x[token, i] - centre[i]) * scale[i]
            bits = row.view(np.uint32)
            for i in range(width):
                table[bits[i] >> 16] += 1

    return count


def quantile(counts: NDArray[np.int64], share: float) -> float:
    """The threshold up to which a share of the counted scores lies, linear inside its bin.

    Args:
        counts: int64 [BINS].
        share: In [0, 1); 0 gives a number below every score.

    Returns:
        t with share = P(score <= t); -1 for 0.

    Raises:
        SpecError: Nothing was counted, or the share is out of range.

    Example:
        >>> counts = new_counts()
        >>> add_scores(counts, torch.rand(1000, 64, generator=torch.Generator().manual_seed(0)))
        >>> round(quantile(counts, 0.25), 2)
        0.25
    """
    total = int(counts.sum())
    if not 0 <= share < 1 or not total:
        raise SpecError(
            "there is no such quantile",
            where="quantile",
            allowed="scores, and a share of at least 0 and below 1",
            got=f"{total} scores, share {share:g}",
        )
    if share == 0:
        return -1.0
    running = np.cumsum(counts)
    wanted = share * total
    place = int(np.searchsorted(running, wanted, side="left"))
    before = float(running[place - 1]) if place else 0.0
    inside = (wanted - before) / float(counts[place])
    low, high = edges(np.array([place, place + 1]))
    return float(low + inside * (high - low))


def share_below(counts: NDArray[np.int64], threshold: float) -> float:
    """Share of the counted scores up to a threshold; the inverse of ``quantile``."""
    total = int(counts.sum())
    if threshold < 0 or not total:
        return 0.0
    place = int(np.float32(threshold).view(np.uint32) >> _SHIFT)
    low, high = edges(np.array([place, place + 1]))
    inside = (threshold - low) / (high - low)
    return float((counts[:place].sum() + inside * counts[place]) / total)


def shares_below(running: NDArray[np.int64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """``share_below`` of several counts at once.

    Args:
        running: int64 [M, BINS], cumulative counts of M scores.
        thresholds: float64 [M]; below 0 nothing is dropped.
    """
    totals = np.maximum(running[:, -1], 1)
    safe = np.clip(thresholds, 0, float(np.finfo(np.float32).max) / 2).astype(np.float32)
    place = (safe.view(np.uint32) >> _SHIFT).astype(np.int64)
    rows = np.arange(len(running))
    before = np.where(place > 0, running[rows, np.maximum(place - 1, 0)], 0)
    low, high = edges(place), edges(place + 1)
    inside = (safe - low) / (high - low)
    found = (before + inside * (running[rows, place] - before)) / totals
    return np.where(thresholds < 0, 0.0, found)
