"""Contexts of a feature: where in the text it is active, read from the store alone.

The strongest come from the top, no two with the same tokens; others are drawn from each quarter of the
activations, since the strongest alone make a feature look cleaner than it is; weak ones and tokens at random
say what it is not active on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.core.feature_store import FeatureStore

STRONGEST, WEAKEST, RANDOM = "strongest", "weakest", "random tokens of the text"
QUARTERS = ("upper quarter", "third quarter", "second quarter", "lowest quarter")
PER_QUARTER = 2
_LOOKED_AT = 400  # of the strongest, for ones that differ


@dataclass(frozen=True, slots=True)
class FeatureContext:
    """A piece of text around a token.

    Attributes:
        group: What it was drawn from.
        document: Number of its document.
        begin: First row.
        peak: Row of the token.
        values: float32 [token], activations from the first row on, 0 where the feature is not active.
    """

    group: str
    document: int
    begin: int
    peak: int
    values: NDArray[np.float32]

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.begin + len(self.values)


def contexts_of(
    store: FeatureStore, feature: int, *, top: int = 8, window: int = 12, seed: int = 0
) -> list[FeatureContext]:
    """The contexts of a feature, the strongest first.

    Args:
        store: The text and the activations.
        feature: Its number.
        top: Strongest contexts.
        window: Tokens on each side.
        seed: Of the draws.
    """
    rows, values = store.feature(feature)
    positive = values > 0
    rows, values = rows[positive], values[positive]
    random = np.random.default_rng([seed, feature])
    chosen: list[tuple[str, int]] = []
    order = np.argsort(-values, kind="stable")
    seen: set[bytes] = set()
    for place in order[:_LOOKED_AT]:
        if len(chosen) >= top:
            break
        around = _key(store, int(rows[place]), window)
        if around not in seen:
            seen.add(around)
            chosen.append((STRONGEST, int(rows[place])))
    taken = {row for _, row in chosen}
    for name, part in zip(QUARTERS, np.array_split(order, len(QUARTERS)), strict=True):
        left = [int(row) for row in rows[part] if int(row) not in taken] if len(part) < 4096 else rows[part]
        for row in _drawn(left, PER_QUARTER, random):
            if row not in taken:
                chosen.append((name, row))
                taken.add(row)
    if len(order) and int(rows[order[-1]]) not in taken:
        chosen.append((WEAKEST, int(rows[order[-1]])))
    chosen += [(RANDOM, row) for row in _drawn(np.flatnonzero(store.counted), 2, random)]
    return [_context(store, group, row, window, rows, values) for group, row in chosen]


def _drawn(rows: NDArray[np.int64] | list[int], count: int, random: np.random.Generator) -> list[int]:
    """Some of the rows, in the order of the text."""
    if not len(rows):
        return []
    return sorted(int(row) for row in random.choice(rows, min(count, len(rows)), replace=False))


def _key(store: FeatureStore, row: int, window: int) -> bytes:
    begin, end = store.window(row, window, window)
    return np.asarray(store.ids[begin:end]).tobytes()


def _context(
    store: FeatureStore,
    group: str,
    row: int,
    window: int,
    rows: NDArray[np.int64],
    values: NDArray[np.float32],
) -> FeatureContext:
    begin, end = store.window(row, window, window)
    low, high = np.searchsorted(rows, [begin, end])
    shown = np.zeros(end - begin, np.float32)
    shown[rows[low:high] - begin] = values[low:high]
    document = int(store.document_of(np.array([row]))[0])
    return FeatureContext(group, document, begin, row, shown)
