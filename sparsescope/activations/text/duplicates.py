"""Near-duplicate documents, found by MinHash and confirmed by the exact Jaccard index.

Definition: two documents are near-duplicates if |A & B| / |A | B| >= 0.8, where A and B are their sets of
5-grams of words (Broder 1997, "On the resemblance and containment of documents"). Candidates come from 32
bands of 4 MinHash values (locality-sensitive hashing): a pair at 0.8 is missed with probability
(1 - 0.8^4)^32 = 5e-8, and every candidate is compared exactly, so no pair below 0.8 is ever dropped.

Shapes: shingles uint64 [n_shingles] sorted, signature uint64 [128].
"""

from __future__ import annotations

import hashlib
import re
import zlib
from functools import cache

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
WORDS = 5
_BANDS, _ROWS = 32, 4
# Words longer than 16 characters are cut, so that text without blanks (Chinese, base64) has 5-grams too.
_WORD = re.compile(r"\w{1,16}|[^\w\s]")


def shingles(text: str) -> NDArray[np.uint64]:
    """Return the sorted hashes of the word 5-grams of a text, each once.

    Case is folded; a text of fewer than five words is one shingle. Equal on every platform and in every
    process (CRC-32 of words, SplitMix64 of 5-grams).
    """
    words = _WORD.findall(text.casefold())
    codes = np.fromiter(
        (zlib.crc32(word.encode("utf-8", "replace")) for word in words), np.uint64, len(words)
    )
    if len(codes) < WORDS:
        codes = np.concatenate([codes, np.zeros(WORDS - len(codes), np.uint64)])
    hashes = np.zeros(len(codes) - WORDS + 1, np.uint64)
    for shift in range(WORDS):
        hashes = _mix(hashes + codes[shift : len(codes) - WORDS + 1 + shift])
    return np.unique(hashes)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers one to one (the SplitMix64 finalizer, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _multipliers() -> tuple[np.uint64, ...]:
    """Return 128 fixed odd 64-bit integers; multiplying by one permutes the hashes."""
    digests = (hashlib.sha256(f"minhash {n}".encode()).digest()[:8] for n in range(_BANDS * _ROWS))
    return tuple(np.uint64(int.from_bytes(digest, "little") | 1) for digest in digests)


def signature(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the MinHash signature, uint64 [128]: the least hash under each of 128 permutations."""
    return np.array([(hashes * multiplier).min() for multiplier in _multipliers()], np.uint64)


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Return |A & B| / |A | B| of two sorted arrays without repeats, in [0, 1]."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    return shared / (first.size + second.size - shared)


class NearDuplicates:
    """The documents seen so far; tells of each new one whether it repeats one of them."""

    def __init__(self) -> None:
        self._shingles: dict[str, NDArray[np.uint64]] = {}
        self._buckets: dict[bytes, list[str]] = {}

    def find(self, key: str, text: str) -> str | None:
        """Return the key of an earlier document that ``text`` nearly repeats; else remember it, return None.

        Args:
            key: Id of the document.
            text: The whole of it.
        """
        hashes = shingles(text)
        bands = [
            band.tobytes() + bytes([n]) for n, band in enumerate(signature(hashes).reshape(_BANDS, _ROWS))
        ]
        candidates = dict.fromkeys(other for band in bands for other in self._buckets.get(band, ()))
        for other in candidates:
            if jaccard(hashes, self._shingles[other]) >= THRESHOLD:
                return other
        self._shingles[key] = hashes
        for band in bands:
            self._buckets.setdefault(band, []).append(key)
        return None
