"""What names a corpus: SHA-256 over everything that changes its tokens, equal on every platform.

Every part is written with its length in front, so that no two lists of parts give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.tokenized import TokenizedDocument

# Changes when the same arguments and texts come to select other tokens.
SELECTION_VERSION = 1


def corpus_digest(documents: Iterable[Document], arguments: tuple[object, ...]) -> str:
    """Return the SHA-256 of every text, id and domain, and of the arguments that change the tokens."""
    digest = hashlib.sha256(json.dumps([SELECTION_VERSION, *arguments]).encode())
    for document in documents:
        for part in (document.id, document.domain, document.text):
            raw = part.encode()
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def stream_digest(
    corpus_digest: str,
    vocabulary: str,
    prefix: tuple[int, ...],
    suffix: tuple[int, ...],
    documents: Iterable[TokenizedDocument],
) -> str:
    """Return the SHA-256 of corpus, vocabulary, special tokens and all token ids (little-endian int32)."""
    digest = hashlib.sha256(json.dumps([corpus_digest, vocabulary, prefix, suffix]).encode())
    for document in documents:
        digest.update(json.dumps([document.id, document.domain, len(document)]).encode())
        digest.update(document.ids.astype("<i4").tobytes())
        if len(document.before):  # of other documents nothing is added: their digests are in stored runs
            digest.update(json.dumps(["before", document.before.tolist()]).encode())
    return digest.hexdigest()
