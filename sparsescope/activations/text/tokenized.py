"""Tokenized documents and the batches that a model reads.

A batch never holds two documents, so a stream that is split at any document boundary gives the very same
forward passes. Document numbers refer to the whole corpus and survive ``select`` and ``split``, so that
statistics of the parts merge.

A document may be read after tokens that are not of it (``TokenizedDocument.before``): what a model wrote is
read after its prompt, which is a document of its own.

Shapes: batch = windows in the batch, pos = longest window of the batch (at most the context length).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsescope.core.shown import Shown
from sparsescope.errors import SpecError, SubjectError

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Windows of one document, padded to the same length.

    Args:
        index: Running number of the batch in its stream.
        input_ids: int64 [batch, pos].
        attention_mask: bool [batch, pos]; False at padding.
        document: int32 [batch]; number of the document in the whole corpus.
        domain: int16 [batch]; index into ``TokenizedCorpus.domains``.
        offset: int32 [batch]; the window's first text token, counted from the start of its document.
        n_prefix: Tokens before the text of every window: special ones (BOS, CLS), then ``n_before``.
        n_suffix: Special tokens (SEP, EOS) after it.
        n_before: How many of the ``n_prefix`` are of ``TokenizedDocument.before``.
    """

    index: int
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.bool_]
    document: NDArray[np.int32]
    domain: NDArray[np.int16]
    offset: NDArray[np.int32]
    n_prefix: int = 0
    n_suffix: int = 0
    n_before: int = 0

    @property
    def position(self) -> NDArray[np.int32]:
        """Position of every token in its window as the model counts it, int32 [batch, pos]; -1 at padding."""
        counted = np.cumsum(self.attention_mask, axis=1, dtype=np.int32) - np.int32(1)
        return np.where(self.attention_mask, counted, np.int32(-1))

    @property
    def text_mask(self) -> NDArray[np.bool_]:
        """Tokens of the text, bool [batch, pos]: neither padding nor BOS, CLS, SEP.

        Statistics over tokens use this mask; BOS attracts massive activations and is a stratum of its own.
        """
        position = self.position
        ends = self.attention_mask.sum(axis=1, keepdims=True) - self.n_suffix
        return (position >= self.n_prefix) & (position < ends)

    @property
    def kept_mask(self) -> NDArray[np.bool_]:
        """Tokens whose activations are kept, bool [batch, pos]: those of the text, and the first position of
        a window even where it is BOS.

        Where a document is read after another, that first position is the other's.
        """
        return self.text_mask | ((self.position == 0) & (self.n_before == 0))

    @property
    def text_position(self) -> NDArray[np.int32]:
        """Index of every token in its document's text, int32 [batch, pos]; -1 where ``text_mask`` is False.

        (document, text_position) names a token of the corpus, whatever the batch size and padding side.
        """
        counted = self.position - np.int32(self.n_prefix) + self.offset[:, None]
        return np.where(self.text_mask, counted, np.int32(-1))

    @property
    def n_tokens(self) -> int:
        """Number of text tokens."""
        return int(self.text_mask.sum())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TokenizedDocument(Shown):
    """The part of a document that is used, as token ids.

    Args:
        index: Number of the document in the whole tokenized corpus.
        id: Id of the document.
        domain: Domain of the document.
        ids: int32 [n_tokens], text tokens only.
        whole: Whether the document ends here; False where the budget or a cap cut it.
        before: int32 [n_before], tokens that every window reads first, as context: they are not of the text.
    """

    index: int
    id: str
    domain: str
    ids: NDArray[np.int32]
    whole: bool
    before: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.ids)

    def _shown(self) -> dict[str, object]:
        return {"id": self.id, "domain": self.domain, "tokens": len(self), "whole": self.whole}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TokenizedCorpus(Shown):
    """A corpus as one tokenizer sees it. Made by ``Corpus.tokenize``.

    Args:
        name: Name of the corpus.
        documents: In stream order; domains are interleaved: every prefix has all of them in proportion.
        domains: All domains of the whole corpus; ``TokenBatch.domain`` indexes them.
        context: Longest window, special tokens included.
        prefix: Ids of special tokens before every window.
        suffix: Ids of special tokens after every window.
        pad_id: Id at padding (masked, so any valid id will do).
        tokenizer_hash: SHA-256 of the tokenizer's vocabulary.
        digest: SHA-256 of the corpus, the vocabulary and every token id.
        provenance: What ``describe`` adds: the corpus' description, the counts of what was left out.
    """

    name: str
    documents: tuple[TokenizedDocument, ...]
    domains: tuple[str, ...]
    context: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    tokenizer_hash: str
    digest: str
    provenance: Mapping[str, Any]

    def _shown(self) -> dict[str, object]:
        return {
            "name": self.name,
            "tokens": self.n_tokens,
            "documents": len(self.documents),
            "domains": ", ".join(self.domains),
            "windows": self.n_windows,
            "context": self.context,
            "digest": self.digest[:12],
        }

    @property
    def n_tokens(self) -> int:
        """Number of text tokens; special tokens and padding are not counted."""
        return sum(map(len, self.documents))

    @property
    def window(self) -> int:
        """Text tokens that fit in one window of any document."""
        before = max((len(document.before) for document in self.documents), default=0)
        return self.context - len(self.prefix) - len(self.suffix) - before

    def window_of(self, document: TokenizedDocument) -> int:
        """Text tokens that fit in one window of a document, after what it is read after."""
        return self.context - len(self.prefix) - len(self.suffix) - len(document.before)

    @property
    def n_windows(self) -> int:
        """Number of windows, each one sequence for the model."""
        return sum(-(-len(document) // self.window_of(document)) for document in self.documents)

    @property
    def n_kept(self) -> int:
        """Number of tokens in the ``kept_mask`` of all batches."""
        if not self.prefix:
            return self.n_tokens
        begins = [document for document in self.documents if not len(document.before)]
        return self.n_tokens + sum(-(-len(document) // self.window_of(document)) for document in begins)

    def n_batches(self, batch_tokens: int = 2048, padding_side: PaddingSide | None = "right") -> int:
        """Number of batches that ``batches(batch_tokens, padding_side)`` yields (for progress bars)."""
        padded = padding_side is not None
        return sum(1 for document in self.documents for _ in self._row_groups(document, batch_tokens, padded))

    def pads(self, batch_tokens: int = 2048) -> bool:
        """Whether any of ``batches(batch_tokens)`` has padding."""
        return self.n_batches(batch_tokens) != self.n_batches(batch_tokens, None)

    def batches(
        self, batch_tokens: int = 2048, padding_side: PaddingSide | None = "right"
    ) -> Iterator[TokenBatch]:
        """Return an iterator over the batches, in stream order.

        Args:
            batch_tokens: Most positions (padding included) in one batch; a single window is never cut, so a
                batch of one window may have up to ``context`` positions.
            padding_side: ``"right"``, or ``"left"`` for models that generate; None for models that take no
                padding (``Subject.takes_padding``): a window of another length is then a batch of its own.

        Raises:
            SpecError: If an argument is not valid. Raised here, not at the first batch.
        """
        if padding_side not in ("left", "right", None):
            raise SpecError(
                "unknown padding side",
                where="padding_side",
                allowed=("left", "right", "None"),
                got=repr(padding_side),
            )
        if not isinstance(batch_tokens, int | np.integer) or batch_tokens < 1:
            raise SpecError(
                "a batch needs room for a token",
                where="batch_tokens",
                allowed="an int >= 1",
                got=repr(batch_tokens),
            )
        return self._batches(int(batch_tokens), padding_side)

    def _batches(self, batch_tokens: int, padding_side: PaddingSide | None) -> Iterator[TokenBatch]:
        number = 0
        for document in self.documents:
            for offsets in self._row_groups(document, batch_tokens, padding_side is not None):
                yield self._batch(number, document, offsets, padding_side or "right")
                number += 1

    def _row_groups(
        self, document: TokenizedDocument, batch_tokens: int, padded: bool
    ) -> Iterator[list[int]]:
        """Yield the window offsets of each batch of a document."""
        window = self.window_of(document)
        longest = min(len(document), window) + self.context - window
        step = window * max(1, batch_tokens // longest)
        for start in range(0, len(document), step):
            offsets = list(range(start, min(start + step, len(document)), window))
            if padded or len(offsets) == 1 or len(document) - offsets[-1] >= window:
                yield offsets
            else:  # only the last window of a document is shorter than the others
                yield offsets[:-1]
                yield offsets[-1:]

    def _batch(
        self, number: int, document: TokenizedDocument, offsets: list[int], padding_side: PaddingSide
    ) -> TokenBatch:
        window, first = self.window_of(document), [*self.prefix, *document.before]
        rows = [[*first, *document.ids[start : start + window], *self.suffix] for start in offsets]
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.bool_)
        for n, row in enumerate(rows):
            place = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
            ids[n, place] = row
            mask[n, place] = True
        return TokenBatch(
            index=number,
            input_ids=ids,
            attention_mask=mask,
            document=np.full(len(rows), document.index, np.int32),
            domain=np.full(len(rows), self.domains.index(document.domain), np.int16),
            offset=np.array(offsets, np.int32),
            n_prefix=len(first),
            n_suffix=len(self.suffix),
            n_before=len(document.before),
        )

    def select(self, document_indices: Iterable[int]) -> TokenizedCorpus:
        """Return the corpus of some documents, in stream order, with their numbers kept.

        Args:
            document_indices: Numbers of documents in the whole corpus (``TokenizedDocument.index``); repeats
                count once.

        Raises:
            SpecError: If none is given, or one is not in this corpus.
        """
        wanted = {int(index) for index in document_indices}
        absent = sorted(wanted - {document.index for document in self.documents})
        if absent or not wanted:
            raise SpecError(
                "no document is selected" if not wanted else "the corpus has no such document",
                where="document_indices",
                allowed=f"numbers of the {len(self.documents)} documents here",
                got=", ".join(map(str, absent[:10])) or "none",
                next_step="take numbers from [document.index for document in corpus.documents]",
            )
        if len(wanted) == len(self.documents):
            return self
        kept = tuple(document for document in self.documents if document.index in wanted)
        digest = hashlib.sha256(f"{self.digest} {[document.index for document in kept]}".encode()).hexdigest()
        return replace(self, documents=kept, digest=digest)

    def split(self, n: int) -> list[TokenizedCorpus]:
        """Cut the stream into consecutive parts of about equal token counts, at document boundaries.

        Batches of the parts, one part after the other, are the batches of the whole.

        Args:
            n: Parts wanted. There are fewer where documents are too few or too unequal: no part is empty.

        Raises:
            SpecError: If ``n`` is not positive.
        """
        if n < 1:
            raise SpecError(
                "a corpus is split into at least one part", where="n", allowed="an int >= 1", got=n
            )
        total, seen = self.n_tokens, 0
        parts: dict[int, list[int]] = {}
        for document in self.documents:
            middle = seen + len(document) / 2
            parts.setdefault(int(middle / total * n), []).append(document.index)
            seen += len(document)
        return [self.select(indices) for indices in parts.values()]

    def document(self, index: int) -> TokenizedDocument:
        """Return the document with a number of the whole corpus.

        Raises:
            SubjectError: If it is not in this corpus.
        """
        for document in self.documents:
            if document.index == index:
                return document
        raise SubjectError(
            "the corpus has no such document",
            where="index",
            got=index,
            allowed="document.index of a document here",
        )

    def describe(self) -> dict[str, Any]:
        """Return plain values for reports.

        The keys of ``Corpus.describe`` with, for each domain, the ``documents`` and ``tokens`` used, and:
        ``documents``, ``tokens``, ``windows``, ``special_tokens`` (a window), ``tokenizer_hash``, ``digest``,
        and how many documents are ``cut``, left out as ``near_duplicates`` or as ``too_short``.
        """
        domains = {
            name: {**entry, "documents": 0, "tokens": 0} for name, entry in self.provenance["domains"].items()
        }
        for document in self.documents:
            domains[document.domain]["documents"] += 1
            domains[document.domain]["tokens"] += len(document)
        return {
            **self.provenance,
            "domains": domains,
            "documents": len(self.documents),
            "tokens": self.n_tokens,
            "windows": self.n_windows,
            "special_tokens": len(self.prefix) + len(self.suffix),
            "cut": sum(not document.whole for document in self.documents),
            "tokenizer_hash": self.tokenizer_hash,
            "digest": self.digest,
        }
