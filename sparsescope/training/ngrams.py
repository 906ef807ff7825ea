"""Byte n-gram models, the baselines of byte-level language models.

Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1999, eq. 14-15): with c(h, w) the
count of byte w after the history h, N(h) their sum and T(h) the number of different bytes seen after h,

    p(w | h) = (c(h, w) + T(h) p(w | h')) / (N(h) + T(h)),

h' being h without its first byte; an unseen history leaves p(w | h') as it is, and below the unigram stands
1/256. There is no parameter to tune.

Shapes: documents are uint8 [n_bytes]; windows to score are integers [n, pos].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BYTES = 256


class NgramModel:
    """An n-gram model fitted to documents; n-grams do not cross from one document to the next.

    Args:
        documents: Training bytes.
        order: 1 for a unigram model, 3 for a trigram model.
    """

    def __init__(self, documents: Sequence[NDArray[np.uint8]], order: int) -> None:
        self.order = order
        # tables[k]: history of k bytes and next byte as one number, ascending; counts; histories with N and T
        self._tables = [_table(documents, k) for k in range(order)]

    def probabilities(
        self, histories: NDArray[np.int64], following: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return p(byte | history).

        Args:
            histories: [n, order - 1] bytes before, the nearest last; -1 where there is none.
            following: [n] the bytes.

        Returns:
            float64 [n].
        """
        found = np.full(len(following), 1 / _BYTES)
        known = np.ones(len(following), np.bool_)
        for k, (grams, counts, contexts, totals, kinds) in enumerate(self._tables):
            code = np.zeros(len(following), np.int64)
            for place in range(k):
                byte = histories[:, histories.shape[1] - k + place]
                known &= byte >= 0
                code = code * _BYTES + np.maximum(byte, 0)
            at, seen = _find(contexts, code)
            seen &= known
            gram, there = _find(grams, code * _BYTES + following)
            count = np.where(there, counts[gram], 0)
            mixed = (count + kinds[at] * found) / (totals[at] + kinds[at])
            found = np.where(seen, mixed, found)
        return found

    def mean_loss(self, windows: NDArray[np.int64]) -> float:
        """Return the mean of -log p in nats over every byte after the first of its window, with the
        context that is in it.
        """
        n, width = windows.shape
        padded = np.concatenate([np.full((n, self.order - 1), -1, np.int64), windows.astype(np.int64)], 1)
        # Column i of the padded windows is the first byte of the history of byte i of the window.
        stack = [padded[:, 1 + place : width + place].reshape(-1) for place in range(self.order - 1)]
        histories = np.stack(stack, 1) if stack else np.empty((n * (width - 1), 0), np.int64)
        return float(
            -np.log(self.probabilities(histories, windows[:, 1:].reshape(-1).astype(np.int64))).mean()
        )


def _table(documents: Sequence[NDArray[np.uint8]], k: int) -> tuple[NDArray[np.int64], ...]:
    """Count the (k + 1)-grams: codes, counts, codes of histories, and for each of these N and T."""
    codes = []
    for document in documents:
        data = document.astype(np.int64)
        code = np.zeros(max(0, len(data) - k), np.int64)
        for place in range(k + 1):
            code = code * _BYTES + data[place : len(data) - k + place]
        codes.append(code)
    grams, counts = np.unique(np.concatenate(codes), return_counts=True)
    contexts, where = np.unique(grams // _BYTES, return_inverse=True)
    totals = np.bincount(where, weights=counts).astype(np.int64)
    return grams, counts.astype(np.int64), contexts, totals, np.bincount(where).astype(np.int64)


def _find(
    ordered: NDArray[np.int64], wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each wanted number is, or would be, in ascending numbers, and whether it is there."""
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return at, ordered[at] == wanted
