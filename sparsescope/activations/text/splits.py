"""Which documents a byte-level training reads, which it keeps for validation, and which it never reads.

Near-duplicates are left out (Jaccard index of word 5-grams at least 0.8), in the order of a hash of the
document's name; in the same order documents go to validation until they hold the asked share of the domain's
bytes, then to training until its most bytes are reached. What comes after that is read by nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.duplicates import NearDuplicates
from sparsescope.errors import DependencyError


@dataclass(frozen=True, slots=True)
class SplitRule:
    """How a domain is split; the defaults are those of ``[data] kind = "byte_text"`` in recipes.

    Attributes:
        context: Shorter documents are left out, in bytes.
        validation_fraction: Share of the bytes of the domain, in whole documents.
        max_bytes: Most bytes of training and validation together.
        seed: Orders the documents.
    """

    context: int
    validation_fraction: float = 0.1
    max_bytes: int = 1_000_000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """The documents of one domain, by name with their bytes.

    Attributes:
        train: Documents of the training, the last one cut where the bytes are reached.
        validation: Documents that the training is measured on.
        beyond: Documents that neither reads.
        near_duplicates: How many were left out.
        digest: SHA-256 of names and bytes of training and validation, in order.
    """

    train: dict[str, bytes]
    validation: dict[str, bytes]
    beyond: dict[str, bytes]
    near_duplicates: int
    digest: str


def split_documents(documents: Iterable[Document], rule: SplitRule) -> Split:
    """Split the documents of one domain; the order in which they come does not matter."""
    keyed = sorted(
        documents, key=lambda document: hashlib.sha256(f"{rule.seed} {document.id}".encode()).digest()
    )
    seen, kept, twice = NearDuplicates(), [], 0
    for document in keyed:
        if seen.find(document.id, document.text) is None:
            kept.append((document.id, document.text.encode()))
        else:
            twice += 1
    kept = [(id, data) for id, data in kept if len(data) >= rule.context]
    total = min(sum(len(data) for _, data in kept), rule.max_bytes)
    digest = hashlib.sha256()
    parts: dict[str, dict[str, bytes]] = {"validation": {}, "train": {}}
    held = {"validation": 0, "train": 0}
    used = 0
    for id, data in kept:
        part = "validation" if held["validation"] < rule.validation_fraction * total else "train"
        data = data[: rule.max_bytes - held["validation"] - held["train"]]
        if len(data) < rule.context:
            break
        used += 1
        parts[part][id] = data
        held[part] += len(data)
        digest.update(f"{part} {len(data)} {id}\n".encode() + data)
    return Split(parts["train"], parts["validation"], dict(kept[used:]), twice, digest.hexdigest())


def unread(documents: Iterable[Document], rule: SplitRule, digest: str, name: str) -> Iterator[Document]:
    """Yield the documents that a training with this split has not read: those of its validation, and those
    beyond its most bytes.

    Args:
        documents: All documents of the domain.
        rule: How that training split them.
        digest: ``Split.digest`` that the training recorded.
        name: The corpus, for the message.

    Raises:
        DependencyError: The split has another digest: on this machine the documents are others.
    """
    found = list(documents)
    split = split_documents(found, rule)
    if split.digest != digest:
        raise DependencyError(
            "the documents of this machine are not those of the training, so which of them it read is "
            "not known",
            where=f"corpus {name}",
            allowed=f"documents with the digest {digest[:12]}...",
            got=f"{split.digest[:12]}..., from another version of Python or of a package",
            next_step="use the version that the series names (sparsescope show), or its own held-out text",
        )
    wanted = {**split.validation, **split.beyond}
    yield from (document for document in found if document.id in wanted)


def as_bytes(documents: dict[str, bytes]) -> tuple[np.ndarray, ...]:
    """The bytes of documents, uint8 [n] each."""
    return tuple(np.frombuffer(data, np.uint8) for data in documents.values())
