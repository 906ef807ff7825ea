"""The local engine: one pass over a source that feeds every accumulator, and goes on after an interruption.

The state of all accumulators is stored every ``SAVE_SECONDS`` and on Ctrl-C. A run that was killed
continues at the batch after the last stored one and ends with the same numbers, because batches are the
same and states are exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from sparsescope.activations.accumulators import Accumulator
from sparsescope.activations.capture import ActivationBatch, ActivationSource
from sparsescope.core.interrupts import held_interrupts
from sparsescope.core.run_store import Store

SAVE_SECONDS = 30.0
STEP = "pass"
# Changes with what accumulators store: a state of another version is not used.
STATE_VERSION = 2
# The same of the steps of analyses with passes of their own.
STEPS_VERSION = 1


class ProgressCallback(Protocol):
    """Told what is going on, how much of it is done and how much there is."""

    def __call__(self, phase: str, done: int, total: int, unit: str = "tokens") -> None:
        """Show it."""


def one_pass(
    source: ActivationSource,
    accumulators: Mapping[str, Accumulator],
    *,
    store: Store | None = None,
    progress: ProgressCallback | None = None,
    events: list[dict[str, Any]] | None = None,
) -> dict[str, Exception]:
    """Feed every batch of a source to all accumulators.

    An accumulator that raises is left out from then on; the others go on.

    Args:
        source: What to run.
        accumulators: By the digest of the run that each belongs to.
        store: Where unfinished work is kept; None keeps none.
        progress: Told after every batch.
        events: Log lines are appended here.

    Returns:
        What was raised, by the digest of the run.

    Raises:
        SubjectError: If an activation is not finite.
        ArtifactError: If the state cannot be stored.
    """
    log = events if events is not None else []
    start, done, failures = _resume(source, accumulators, store)
    if start:
        log.append({"time": time.time(), "event": "resumed", "batch": start, "tokens": done})
    saved, number, whole = time.monotonic(), start, True
    fed = {digest: entry for digest, entry in accumulators.items() if digest not in failures}
    with held_interrupts() as interrupt:
        try:
            for batch in source.batches(start):
                whole = False
                for digest, accumulator in accumulators.items():
                    if digest in fed and (error := _feed(accumulator, batch)) is not None:
                        failures[digest] = error
                        del fed[digest]
                if not fed:
                    break
                number, whole = batch.index + 1, True
                done += len(batch.token_ids)
                if progress is not None:
                    progress("forward pass", min(done, source.n_tokens), source.n_tokens)
                if store is not None and time.monotonic() - saved > SAVE_SECONDS:
                    failures |= _save(source, fed, store, number, done)
                    saved = time.monotonic()
                    log.append({"time": time.time(), "event": "saved", "batch": number, "tokens": done})
                interrupt.raise_if_asked()
        except KeyboardInterrupt:
            # A state that has counted a part of a batch would count it twice when it goes on.
            if store is not None and whole and number > start:
                _save(source, fed, store, number, done)
            raise
    log.append(
        {
            "time": time.time(),
            "event": "pass finished",
            "batches": source.n_batches,
            "tokens": source.n_tokens,
        }
    )
    return failures


def kept_steps(
    store: Store, digest: str
) -> Callable[[str, Callable[[], dict[str, np.ndarray]]], dict[str, np.ndarray]]:
    """Return ``step(name, make)`` for ``Context``: what a finished step made is read back
    instead of made again.
    """
    expected = {"state": STEPS_VERSION}

    def step(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        found = store.load_step(digest, name)
        if found is not None and found[1] == expected:
            return found[0]
        arrays = make()
        store.save_step(digest, name, arrays, expected)
        return arrays

    return step


def _feed(accumulator: Accumulator, batch: ActivationBatch) -> Exception | None:
    """Give a batch to an accumulator; return what it raises."""
    try:
        accumulator.update(batch)
    except Exception as error:
        return error
    return None


def _fingerprint(source: ActivationSource) -> dict[str, Any]:
    """What must be equal for a stored state to continue with this source."""
    return {"state": STATE_VERSION, **source.fingerprint}


def _save(
    source: ActivationSource,
    fed: dict[str, Accumulator],
    store: Store,
    next_batch: int,
    tokens: int,
) -> dict[str, Exception]:
    """Store the state of every accumulator; one that cannot say its state is no longer fed.

    Returns:
        What was raised, by the digest of the run.

    Raises:
        ArtifactError: If a state cannot be stored.
    """
    failures: dict[str, Exception] = {}
    for digest, accumulator in list(fed.items()):
        try:
            arrays, meta = accumulator.state()
        except Exception as error:
            failures[digest] = error
            del fed[digest]
            continue
        place = {"next_batch": next_batch, "tokens": tokens, "source": _fingerprint(source)}
        store.save_step(digest, STEP, arrays, {**place, "state": meta})
    return failures


def _resume(
    source: ActivationSource, accumulators: Mapping[str, Accumulator], store: Store | None
) -> tuple[int, int, dict[str, Exception]]:
    """Restore all accumulators if all were stored at the same batch.

    Returns:
        The batch to start from, tokens before it, and what was raised, by the digest of the run.
    """
    if store is None:
        return 0, 0, {}
    expected = _fingerprint(source)
    found = {}
    for digest in accumulators:
        step = store.load_step(digest, STEP)
        if step is None or step[1].get("source") != expected:
            return 0, 0, {}
        found[digest] = step
    starts = {meta.get("next_batch") for _, meta in found.values()}
    if len(starts) != 1:
        return 0, 0, {}
    failures: dict[str, Exception] = {}
    for digest, accumulator in accumulators.items():
        arrays, meta = found[digest]
        try:
            accumulator.restore(arrays, meta["state"])
        except Exception as error:
            failures[digest] = error
    place = found[digest][1]
    # States of older versions do not say the tokens
    return int(place["next_batch"]), int(place.get("tokens", 0)), failures
