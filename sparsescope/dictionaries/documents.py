"""Which documents a dictionary has seen: a digest of each, so that no score is computed on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedDocument

BEGINNING = 128


def document_digest(ids: NDArray[np.int32]) -> str:
    """XXH64 of the first ``BEGINNING`` token ids of a document, 16 hex digits.

    Its beginning only: how much of a document is read depends on the token budget, and it is the same
    document when more of it is read elsewhere.

    Args:
        ids: Token ids of the text, without special tokens.

    Example:
        >>> import numpy as np
        >>> long = np.arange(1000)
        >>> document_digest(long) == document_digest(long[:200]) != document_digest(long[1:])
        True
    """
    return xxhash.xxh64(np.ascontiguousarray(ids[:BEGINNING], "<i4").tobytes()).hexdigest()


def drawn(
    documents: Sequence[TokenizedDocument], share: float, seed: int
) -> tuple[list[TokenizedDocument], list[TokenizedDocument]]:
    """Documents with this share of the tokens, and the others, in stream order; neither is empty.

    Args:
        documents: At least two.
        share: Of the tokens.
        seed: Of the draw.
    """
    order = np.random.default_rng([seed, 11]).permutation(len(documents))
    reached = np.cumsum([len(documents[place]) for place in order])
    count = int(np.searchsorted(reached, share * reached[-1])) + 1
    chosen = {int(place) for place in order[: min(max(1, count), len(documents) - 1)]}
    return (
        [document for place, document in enumerate(documents) if place in chosen],
        [document for place, document in enumerate(documents) if place not in chosen],
    )
