"""Which documents a dictionary has seen (a digest of each, so that no score is computed on them); parts of
a text by document.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xxhash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument

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


def beginnings(corpus: TokenizedCorpus, tokens: int, of_document: int) -> TokenizedCorpus:
    """The first tokens of documents from the end of a stream, until there are enough: many documents tell
    more than long ones.

    Args:
        corpus: The documents.
        tokens: Wanted; the last document may exceed it.
        of_document: Most tokens of a document.
    """
    chosen: list[TokenizedDocument] = []
    taken = 0
    for document in reversed(corpus.documents):
        if taken >= tokens:
            break
        if len(document) + len(corpus.prefix) < 2:
            continue  # nothing in it has a context
        whole = document.whole and len(document) <= of_document
        chosen.append(replace(document, ids=document.ids[:of_document], whole=whole))
        taken += len(chosen[-1])
    return of_documents(corpus, chosen[::-1])


def of_documents(corpus: TokenizedCorpus, documents: list[TokenizedDocument]) -> TokenizedCorpus:
    """The corpus of some documents, or beginnings of them."""
    mark = f"{corpus.digest} {[(document.index, len(document)) for document in documents]}"
    return replace(corpus, documents=tuple(documents), digest=hashlib.sha256(mark.encode()).hexdigest())
