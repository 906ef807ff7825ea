"""Sums behind ``activation_reuse``: unions over chunks, overlaps of neighbours, and samples for
the permuted orders.

Chunks never cross a window, and the first token of a window is in none. Everything is kept by document, in
whole numbers where it is a count, so that parts of a stream merge into the sums of the whole.
Shapes: C documents, L sites, R = 2 rules, K chunk lengths 1, 2, 4, ..., U units, F folds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
from einops import rearrange

from sparsescope.activations.accumulators import MAX_CLUSTERS, DocumentAccumulator, with_room
from sparsescope.activations.samples import TokenSample, token_keys
from sparsescope.kernels.active_sets import RULES, active_bits, count_units, overlaps, union_sizes, words_of
from sparsescope.metrics.jackknife import FOLDS, fold_of

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.structure.sites import Site

# Tokens of one document that are put into random order, and tokens of all documents together.
WITHIN, ACROSS = 128, 2048


class ReuseAccumulator(DocumentAccumulator):
    """Reuse of units by consecutive tokens, at dense sites.

    Args:
        sites: Sites to measure; all see every token.
        use_share: Share of the energy that defines "in use".
        context: Longest window; chunks have up to ``context - 1`` tokens.
        seed: Seed of the permuted orders.
        threads: Threads; the number of cores when None.

    Attributes:
        sums: By name, arrays [C, ...]: ``union`` and ``first`` int64 [C, L, R, K] (sizes of unions over all
            whole chunks, and over the first chunk of each window), ``chunks`` and ``firsts`` int64 [C, K],
            ``overlap`` float64 and ``pairs`` int64 [C, L, R] (Jaccard index of neighbours), ``within``
            float64 [C, L, R] (of permuted tokens, for as many pairs).
        fired: For each site int64 [F, R, U].
        fold_tokens: int64 [F].
        sample: Tokens of all documents for the order across them.
    """

    def __init__(
        self, sites: tuple[Site, ...], use_share: float, context: int, seed: int, threads: int | None = None
    ) -> None:
        super().__init__(sites, (use_share, context, seed), threads)
        self.use_share, self.seed = use_share, seed
        self.levels = max((context - 1).bit_length(), 1)
        shape = (0, len(self.sites), len(RULES))
        counts = {"union": (*shape, self.levels), "chunks": (0, self.levels), "pairs": shape}
        counts |= {"first": counts["union"], "firsts": counts["chunks"]}
        self.sums: dict[str, np.ndarray] = {name: np.zeros(size, np.int64) for name, size in counts.items()}
        self.sums |= {"overlap": np.zeros(shape), "within": np.zeros(shape)}
        self.fired = [np.zeros((FOLDS, len(RULES), site.width), np.int64) for site in self.sites]
        self.fold_tokens = np.zeros(FOLDS, np.int64)
        self._parts = {
            str(n): ((len(RULES), words_of(site.width)), np.uint64) for n, site in enumerate(self.sites)
        }
        self.sample = TokenSample(ACROSS, self._parts)
        self._open_sample = TokenSample(WITHIN, self._parts)
        self._open_pairs = np.zeros(shape[1:], np.int64)

    def _take(self, batch: ActivationBatch, cluster: int, seen: int) -> None:
        rows = np.flatnonzero(batch.positions > 0)
        if len(rows) == 0:
            return
        keys = token_keys(self.seed, batch.document, seen, len(batch.positions))[rows]
        # Two tokens are neighbours if they stand next to each other in a window.
        ends = np.append(np.flatnonzero(np.diff(batch.positions[rows]) != 1) + 1, len(rows)).astype(np.int64)
        left = np.setdiff1d(np.arange(len(rows)), ends - 1)
        fold = fold_of(batch.document % MAX_CLUSTERS)  # documents of one cluster are in one fold
        self.fold_tokens[fold] += len(rows)
        plans = [(sample, *sample.plan(keys, batch.document)) for sample in (self.sample, self._open_sample)]
        for n, site in enumerate(self.sites):
            bits = active_bits(batch.values[site.name], rows, self.use_share, self.executor)
            union, chunks, first, firsts = union_sizes(bits, ends, self.levels)
            overlap, pairs = overlaps(bits, left, left + 1)
            self._open_pairs[n] += pairs
            for name, found in (("union", union), ("first", first), ("overlap", overlap), ("pairs", pairs)):
                self.sums[name][cluster, n] += found
            if n == 0:
                self.sums["chunks"][cluster] += chunks
                self.sums["firsts"][cluster] += firsts
            self.fired[n][fold] += count_units(bits, site.width)
            for sample, chosen, slots in plans:
                sample.parts[str(n)][slots] = rearrange(bits[:, chosen], "rule token word -> token rule word")

    def _make_room(self, clusters: int) -> None:
        self.sums = {name: with_room(array, clusters) for name, array in self.sums.items()}

    def _close(self, cluster: int) -> None:
        """Put the tokens of the document into random order, weighted to as many pairs as
        it has neighbours.
        """
        self._open_sample.sort()
        order = np.arange(len(self._open_sample))
        for n in range(len(self.sites)):
            parts = rearrange(self._open_sample.parts[str(n)], "token rule word -> rule token word")
            bits = np.ascontiguousarray(parts)
            total, pairs = overlaps(bits, order[:-1], order[1:])
            mean = np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)
            self.sums["within"][cluster, n] += mean * self._open_pairs[n]
        self._open_sample = TokenSample(WITHIN, self._parts)
        self._open_pairs = np.zeros_like(self._open_pairs)

    def _join(self, other: Self, places: list[tuple[int, int]]) -> None:
        for name, theirs in other.sums.items():
            for place, source in places:
                self.sums[name][place] += theirs[source]
        self.fired = [a + b for a, b in zip(self.fired, other.fired, strict=True)]
        self.fold_tokens = self.fold_tokens + other.fold_tokens
        self.sample.merge(other.sample)

    def finish(self) -> Self:
        """Close the last document, bring the sample into its random order, and return self."""
        super().finish()
        self._trim()
        self.sample.sort()
        return self

    def _trim(self) -> None:
        self.sums = {name: array[: len(self.clusters)] for name, array in self.sums.items()}

    def _arrays(self) -> dict[str, np.ndarray]:
        self._trim()
        arrays = {f"sums/{name}": array for name, array in self.sums.items()}
        arrays |= {f"fired/{n}": fired for n, fired in enumerate(self.fired)}
        arrays |= {"fold_tokens": self.fold_tokens, "open_pairs": self._open_pairs}
        return arrays | self.sample.state("sample") | self._open_sample.state("open_sample")

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        self.sums = {name: arrays[f"sums/{name}"] for name in self.sums}
        self.fired = [arrays[f"fired/{n}"] for n in range(len(self.fired))]
        self.fold_tokens, self._open_pairs = arrays["fold_tokens"], arrays["open_pairs"]
        self.sample.restore("sample", arrays)
        self._open_sample.restore("open_sample", arrays)
