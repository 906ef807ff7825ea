"""Time variants against each other: interleaved, so that slow drifts of a machine cancel in ratios."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def interleaved(
    variants: list[Callable[[], None]],
    repeats: int,
    *,
    warmed: int | None = None,
    before: Callable[[], None] | None = None,
    told: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Time every variant in every repeat, in an order that rotates from repeat to repeat.

    Args:
        variants: What is timed.
        repeats: How often.
        warmed: How many of the first variants run once beforehand, untimed; all when None.
        before: Called before each run, untimed.
        told: Told how many runs are done, of how many.

    Returns:
        Seconds, [variant, repeat].
    """
    seconds = np.empty((len(variants), repeats))
    for variant in variants[:warmed]:
        if before is not None:
            before()
        variant()
    for repeat in range(repeats):
        for step in range(len(variants)):
            index = (step + repeat) % len(variants)
            if before is not None:
                before()
            if told is not None:
                told(repeat * len(variants) + step, seconds.size)
            begin = time.perf_counter()
            variants[index]()
            seconds[index, repeat] = time.perf_counter() - begin
    return seconds


def wait(device: str) -> None:
    """Wait for an accelerator, which computes behind the back of the clock."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()
