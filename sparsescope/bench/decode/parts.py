"""What a dense step of our loop consists of, each part measured alone on the same arrays (Amdahl)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from sparsescope.inference.decode import Decoder

_REPEATS = 15


def parts_of_step(decoder: Decoder, prompt: int) -> list[dict[str, Any]]:
    """Seconds of the matrices of the blocks, the output head and attention, and what is left of the step.

    Args:
        decoder: A dense one.
        prompt: Tokens in the cache.
    """
    step = decoder.compiled_step
    decoder.begin([token % 50 for token in range(prompt)])

    def again() -> None:
        decoder.length = prompt
        decoder.step(1)

    whole = _median(again)
    found = {
        "matrices of the blocks": _median(step.matrices),
        "output head": _median(step.output_head),
        "attention": _median(lambda: step.attention(decoder.length)),
    }
    found["norms, activations, positions"] = max(0.0, whole - sum(found.values()))
    return [{"part": part, "seconds": took, "share": took / whole} for part, took in found.items()]


def _median(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))
