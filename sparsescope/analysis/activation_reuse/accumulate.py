"""Sums behind ``activation_reuse``: unions over chunks, overlaps of neighbours, and samples for the permuted orders.

Chunks never cross a window, and the first token of a window is in none. Everything is kept by document, in whole numbers
where it is a count, so that parts of a stream merge into the sums of the whole.
Shapes: C documents, L sites, R = 2 rules, K chunk lengths 1, 2, 4, ..., U units, F folds.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sparsescope.activations.accumulators import MAX_CLUSTERS
from sparsescope.activations.samples import TokenSample, token_keys
from sparsescope.errors import SpecError
from sparsescope.kernels.use_sets import RULES, count_units, overlaps, union_sizes, use_bits, words_of
from sparsescope.metrics.jackknife import FOLDS, fold_of

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.sites import Site

# Tokens of one document that are put into random order, and tokens of all documents together.
WITHIN, ACROSS = 128, 2048


class ReuseAccumulator:
    """Reuse of units by consecutive tokens, at dense sites.

    Args:
        sites: Sites to measure; all see every token.
        use_share: Share of the energy that defines "in use".
        context: Longest window; chunks have up to ``context - 1`` tokens.
        seed: Seed of the permuted orders.
        threads: Threads; the number of cores when None.

    Attributes:
        clusters: Place of each (domain, document) in the arrays by document.
        sums: By name, arrays [C, ...]: ``union`` and ``first`` int64 [C, L, R, K] (sizes of unions over all whole chunks, and
            over the first chunk of each window), ``chunks`` and ``firsts`` int64 [C, K], ``overlap`` float64 and ``pairs`` int64
            [C, L, R] (Jaccard index of neighbours), ``within`` float64 [C, L, R] (of permuted tokens, for as many pairs).
        fired: For each site int64 [F, R, U].
        fold_tokens: int64 [F].
        sample: Tokens of all documents for the order across them.
    """

    def __init__(self, sites: tuple[Site, ...], use_share: float, context: int, seed: int, threads: int | None = None) -> None:
        self.sites, self.use_share, self.context, self.seed = tuple(sites), use_share, context, seed
        self.levels = max((context - 1).bit_length(), 1)
        self.clusters: dict[tuple[int, int], int] = {}
        self.documents: set[int] = set()
        shape = (0, len(self.sites), len(RULES))
        self.sums = {
            "union": np.zeros((*shape, self.levels), np.int64),
            "first": np.zeros((*shape, self.levels), np.int64),
            "chunks": np.zeros((0, self.levels), np.int64),
            "firsts": np.zeros((0, self.levels), np.int64),
            "overlap": np.zeros(shape),
            "pairs": np.zeros(shape, np.int64),
            "within": np.zeros(shape),
        }
        self.fired = [np.zeros((FOLDS, len(RULES), site.width), np.int64) for site in self.sites]
        self.fold_tokens = np.zeros(FOLDS, np.int64)
        parts = {str(n): ((len(RULES), words_of(site.width)), np.uint64) for n, site in enumerate(self.sites)}
        self.sample = TokenSample(ACROSS, parts)
        self._parts = parts
        self._open: tuple[int, int, int] | None = None  # document, its cluster, its tokens so far
        self._open_sample = TokenSample(WITHIN, parts)
        self._open_pairs = np.zeros(shape[1:], np.int64)
        self._threads = threads or os.cpu_count() or 1
        self._executor: Executor | None = None

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch (whole windows of one document).

        Raises:
            SpecError: If a document comes twice.
        """
        opened = self._open
        if opened is None or opened[0] != batch.document:
            opened = self._begin(batch.domain, batch.document)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads)
        document, cluster, seen = opened
        rows = np.flatnonzero(batch.positions > 0)
        self._open = (document, cluster, seen + len(batch.positions))
        if len(rows) == 0:
            return
        keys = token_keys(self.seed, document, seen, len(batch.positions))[rows]
        # Two tokens are neighbours if they stand next to each other in a window.
        ends = np.append(np.flatnonzero(np.diff(batch.positions[rows]) != 1) + 1, len(rows)).astype(np.int64)
        left = np.setdiff1d(np.arange(len(rows)), ends - 1)
        fold = fold_of(document % MAX_CLUSTERS)  # documents of one cluster are in one fold
        self.fold_tokens[fold] += len(rows)
        plans = [(sample, *sample.plan(keys, document)) for sample in (self.sample, self._open_sample)]
        for n, site in enumerate(self.sites):
            bits = use_bits(batch.values[site.name], rows, self.use_share, self._executor)
            union, chunks, first, firsts = union_sizes(bits, ends, self.levels)
            overlap, pairs = overlaps(bits, left, left + 1)
            self.sums["union"][cluster, n] += union
            self.sums["first"][cluster, n] += first
            self.sums["overlap"][cluster, n] += overlap
            self.sums["pairs"][cluster, n] += pairs
            self._open_pairs[n] += pairs
            if n == 0:
                self.sums["chunks"][cluster] += chunks
                self.sums["firsts"][cluster] += firsts
            self.fired[n][fold] += count_units(bits, site.width)
            for sample, chosen, slots in plans:
                sample.parts[str(n)][slots] = bits[:, chosen].transpose(1, 0, 2)

    def _begin(self, domain: int, document: int) -> tuple[int, int, int]:
        """Open a document: its number, its place in the arrays, its tokens so far."""
        self._close()
        if document in self.documents:
            raise SpecError(
                "a document came twice, or in pieces that are not consecutive",
                where=f"document {document}",
                next_step="split streams at document boundaries",
            )
        self.documents.add(document)
        return document, self._cluster(domain, document), 0

    def _cluster(self, domain: int, document: int) -> int:
        """Place of a document in the arrays, made on first sight."""
        key = (domain, document % MAX_CLUSTERS)
        if key not in self.clusters:
            self.clusters[key] = len(self.clusters)
            held = len(self.sums["chunks"])
            if len(self.clusters) > held:
                for name, array in self.sums.items():
                    spare = np.zeros((max(held, 16), *array.shape[1:]), array.dtype)
                    self.sums[name] = np.concatenate([array, spare])
        return self.clusters[key]

    def _close(self) -> None:
        """Finish the open document: its tokens in random order, weighted to as many pairs as it has neighbours."""
        if self._open is None:
            return
        self._open_sample.sort()
        order = np.arange(len(self._open_sample))
        for n in range(len(self.sites)):
            bits = np.ascontiguousarray(self._open_sample.parts[str(n)].transpose(1, 0, 2))
            total, pairs = overlaps(bits, order[:-1], order[1:])
            mean = np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)
            self.sums["within"][self._open[1], n] += mean * self._open_pairs[n]
        self._open = None
        self._open_sample = TokenSample(WITHIN, self._parts)
        self._open_pairs = np.zeros_like(self._open_pairs)

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self.

        Raises:
            SpecError: If the two measure different things, or saw the same document.
        """
        mine = ([s.name for s in self.sites], self.use_share, self.context, self.seed)
        if mine != ([s.name for s in other.sites], other.use_share, other.context, other.seed):
            raise SpecError("accumulators of different measures cannot be merged", where="ReuseAccumulator.merge")
        both = self.documents & other.documents
        if both:
            raise SpecError(
                "both accumulators saw the same document",
                where="ReuseAccumulator.merge",
                got=sorted(both)[:8],
                next_step="split streams at document boundaries: corpus.split(n)",
            )
        self._close()
        other._close()
        self.documents |= other.documents
        places = [self._cluster(*key) for key in other.clusters]
        for name, theirs in other.sums.items():
            for place, source in zip(places, other.clusters.values(), strict=True):
                self.sums[name][place] += theirs[source]
        self.fired = [a + b for a, b in zip(self.fired, other.fired, strict=True)]
        self.fold_tokens = self.fold_tokens + other.fold_tokens
        self.sample.merge(other.sample)
        return self

    def finish(self) -> Self:
        """Close the last document, bring the sample into its random order, and return self."""
        self._close()
        self._trim()
        self.sample.sort()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        return self

    def _trim(self) -> None:
        self.sums = {name: array[: len(self.clusters)] for name, array in self.sums.items()}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""
        self._trim()
        arrays = {f"sums/{name}": array for name, array in self.sums.items()}
        arrays |= {f"fired/{n}": fired for n, fired in enumerate(self.fired)}
        arrays |= {"fold_tokens": self.fold_tokens, "open_pairs": self._open_pairs}
        arrays |= self.sample.state("sample") | self._open_sample.state("open_sample")
        meta = {
            "clusters": [[*key, index] for key, index in self.clusters.items()],
            "documents": sorted(self.documents),
            "open": self._open,
        }
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.clusters = {(domain, bucket): index for domain, bucket, index in meta["clusters"]}
        self.documents = set(meta["documents"])
        self._open = None if meta["open"] is None else tuple(meta["open"])
        self.sums = {name: arrays[f"sums/{name}"].copy() for name in self.sums}
        self.fired = [arrays[f"fired/{n}"].copy() for n in range(len(self.fired))]
        self.fold_tokens, self._open_pairs = arrays["fold_tokens"].copy(), arrays["open_pairs"].copy()
        self.sample.restore("sample", arrays)
        self._open_sample.restore("open_sample", arrays)
