"""Filling a token budget from documents: lazily, exactly, and with many documents.

Documents come in an order drawn by the seed. Of each at most ``cap`` tokens are taken, so that one
long text cannot use up the budget and intervals over documents stay possible. Nothing is tokenized or
compared with others before its turn, and of a long text only the beginning is tokenized: a budget of 8k
tokens touches some tens of documents, whatever the size of the corpus. They are compared whole, since texts
may begin alike (a licence) and differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsescope.activations.text.documents import Document
from sparsescope.activations.text.duplicates import NearDuplicates

Encode = Callable[[str], list[int]]

_CHARACTERS_PER_TOKEN = 6
_MARGIN = 32
_BLANKS = " \n\r\t"


def encode_head(encode: Encode, text: str, n: int | None) -> tuple[NDArray[np.int32], bool]:
    """Return the first ``n`` tokens of a text and whether they are all of it.

    A long text is not tokenized to its end: a head of 6 characters a token is, doubled until it holds ``n``
    tokens and 32 more. It ends before a blank where there is one, because a tokenizer may have a rule for
    whole words (WordPiece makes one [UNK] of a word of over 100 characters). The 32 are thrown away, since
    tokens may also depend on what stands near them; so the tokens are those that the whole text would begin
    with.

    Args:
        encode: Text to token ids, without special tokens.
        text: The text.
        n: Tokens wanted; all when None.

    Returns:
        int32 [<= n] and True if the text has no further token.
    """
    length = len(text) if n is None else n * _CHARACTERS_PER_TOKEN + 256
    while length < len(text):
        ids = encode(_whole_words(text, length))
        if n is not None and len(ids) >= n + _MARGIN:
            return np.array(ids[:n], np.int32), False
        length *= 2
    ids = encode(text)
    return np.array(ids[:n], np.int32), n is None or len(ids) <= n


def _whole_words(text: str, length: int) -> str:
    """The first characters of a text, without the word that goes on after them unless it is the only one."""
    cut = max(text.rfind(blank, 1, length + 1) for blank in _BLANKS)
    return text[: cut if cut > 0 else length]


def seeded_order(documents: Iterable[Document], seed: int) -> list[Document]:
    """Return the documents ordered by SHA-256 of seed and id: the same everywhere, another for each seed."""
    return sorted(documents, key=lambda document: hashlib.sha256(f"{seed}\0{document.id}".encode()).digest())


def even_shares(total: int, parts: int) -> list[int]:
    """Split a total into parts that differ by at most one, the larger first."""
    return [total // parts + (n < total % parts) for n in range(parts)]


@dataclass(slots=True)
class Taken:
    """A document in use: ``ids[:count]`` are taken, ``whole`` says whether ``ids`` is all of it."""

    document: Document
    ids: NDArray[np.int32]
    whole: bool
    count: int = 0


@dataclass(slots=True)
class LeftOut:
    """Documents not used at their turn: near-duplicates (id -> id of the earlier document) and too short."""

    near_duplicates: dict[str, str] = field(default_factory=dict)
    too_short: list[str] = field(default_factory=list)


class DomainFill:
    """The documents of one domain, taken up to a budget.

    Args:
        documents: In the order of their turn.
        encode: Text to token ids, without special tokens.
        cap: Most tokens of one document; None for all.
        hard: Whether the cap also holds when documents run out; else it is doubled until the budget is met.
        min_tokens: Documents with fewer tokens are left out.
        seen: The documents that near-duplicates are looked for in; None to keep duplicates.
        left_out: Where documents that are not used are noted.
    """

    def __init__(
        self,
        documents: list[Document],
        encode: Encode,
        *,
        cap: int | None,
        hard: bool,
        min_tokens: int,
        seen: NearDuplicates | None,
        left_out: LeftOut,
    ) -> None:
        self.taken: list[Taken] = []
        self._waiting: Iterator[Document] = iter(documents)
        self._encode, self._cap, self._hard = encode, cap, hard
        self._min_tokens, self._seen, self._left_out = min_tokens, seen, left_out

    def fill(self, n: int | None) -> int:
        """Take up to ``n`` more tokens (all when None) and return how many there were."""
        wanted = n
        missing = wanted if wanted is not None else np.iinfo(np.int64).max
        start = missing
        while missing:
            for taken in self.taken:
                missing -= self._top_up(taken, missing)
            while missing and (taken_next := self._next()) is not None:
                self.taken.append(taken_next)
                missing -= self._top_up(taken_next, missing)
            if not missing or not self._raise_cap():
                break
        return int(start - missing)

    def _top_up(self, taken: Taken, missing: int) -> int:
        """Take more of a document, up to the cap and to ``missing``; return how much."""
        more = int(min(len(taken.ids) - taken.count, missing))
        taken.count += more
        return more

    def _next(self) -> Taken | None:
        """Return the next document that can be used, None if there is none."""
        for document in self._waiting:
            needed = None if self._cap is None else max(self._cap, self._min_tokens)
            ids, whole = encode_head(self._encode, document.text, needed)
            if len(ids) < self._min_tokens:
                self._left_out.too_short.append(document.id)
                continue
            if self._seen is not None:
                earlier = self._seen.find(document.id, document.text)
                if earlier is not None:
                    self._left_out.near_duplicates[document.id] = earlier
                    continue
            if self._cap is not None and len(ids) > self._cap:
                ids, whole = ids[: self._cap], False
            return Taken(document, ids, whole)
        return None

    def _raise_cap(self) -> bool:
        """Double a soft cap once every document is used up to it; return whether that gives more tokens."""
        cut = [taken for taken in self.taken if not taken.whole]
        if self._cap is None or self._hard or not cut:
            return False
        self._cap *= 2
        for taken in cut:
            taken.ids, taken.whole = encode_head(self._encode, taken.document.text, self._cap)
        return True


def fill_evenly(domains: list[DomainFill], tokens: int | None) -> None:
    """Fill the domains with equal shares of a budget; what one lacks is split evenly over the others.

    Args:
        domains: One for each domain.
        tokens: Tokens of all domains together; None for all there are.
    """
    if tokens is None:
        for domain in domains:
            domain.fill(None)
        return
    filled = [0] * len(domains)
    not_exhausted = list(range(len(domains)))
    while not_exhausted:
        left = tokens - sum(filled[n] for n in range(len(domains)) if n not in not_exhausted)
        # A share never shrinks from one round to the next: the budget of an exhausted domain is added to it.
        shares = dict(zip(not_exhausted, even_shares(left, len(not_exhausted)), strict=True))
        for n, share in shares.items():
            filled[n] += domains[n].fill(share - filled[n])
        still = [n for n, share in shares.items() if filled[n] == share]
        if len(still) == len(not_exhausted):
            return
        not_exhausted = still


def interleave(domains: list[DomainFill]) -> list[Taken]:
    """Merge the domains so that every prefix of the list has tokens of all domains in proportion."""
    placed: list[tuple[float, int, int, Taken]] = []
    for number, domain in enumerate(domains):
        used = [taken for taken in domain.taken if taken.count]
        total, before = sum(taken.count for taken in used), 0
        for rank, taken in enumerate(used):
            placed.append((before / total, number, rank, taken))
            before += taken.count
    return [taken for _, _, _, taken in sorted(placed, key=lambda item: item[:3])]
