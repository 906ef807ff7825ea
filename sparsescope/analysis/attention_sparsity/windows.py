"""Which windows of a corpus are measured: spread over domains and documents, the same for the same seed.

A chosen window is the one window of a document of a small corpus of its own, so that everything that reads a
corpus reads it, with document numbers kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SubjectError

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus, TokenizedDocument


def choose(corpus: TokenizedCorpus, count: int, shortest: int, seed: int) -> TokenizedCorpus:
    """Return up to ``count`` windows of at least ``shortest`` positions.

    The first window of every document comes before a second of any; domains take turns.

    Args:
        corpus: The text.
        count: Most windows.
        shortest: Fewest positions of a window, special tokens included.
        seed: Seed of an own generator.

    Raises:
        SubjectError: If no window is long enough.
    """
    generator = np.random.default_rng(seed)
    special = corpus.context - corpus.window
    queues: dict[str, list[list[TokenizedDocument]]] = {}
    for place in generator.permutation(len(corpus.documents)):
        document = corpus.documents[place]
        offsets = [
            o
            for o in range(0, len(document), corpus.window)
            if min(len(document) - o, corpus.window) + special >= shortest
        ]
        parts = (
            [_part(document, offset, corpus.window) for offset in generator.permutation(offsets)]
            if offsets
            else []
        )
        for turn, part in enumerate(parts):
            rounds = queues.setdefault(document.domain, [])
            while len(rounds) <= turn:
                rounds.append([])
            rounds[turn].append(part)
    lines = {domain: [part for turn in rounds for part in turn] for domain, rounds in queues.items()}
    chosen = []
    for turn in range(max(map(len, lines.values()), default=0)):
        chosen += [lines[domain][turn] for domain in corpus.domains if turn < len(lines.get(domain, ()))]
    if not chosen:
        raise SubjectError(
            "no window of the text is long enough to measure attention",
            where=f"corpus {corpus.name}",
            allowed=f"at least one window of {shortest} tokens",
            got=f"{corpus.n_windows} windows of at most {corpus.context}",
            next_step="read longer documents, or lower t_min",
        )
    return replace(corpus, documents=tuple(chosen[:count]))


def _part(document: TokenizedDocument, offset: int, window: int) -> TokenizedDocument:
    return replace(document, ids=document.ids[offset : offset + window], whole=False)
