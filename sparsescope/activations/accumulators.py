"""Mergeable streaming statistics over activation batches.

An accumulator is the unit that shares a forward pass with others and that is fanned out over workers: ``update`` takes
a batch, ``merge`` adds what another worker saw on other documents, ``state``/``restore`` carry it over a restart.
Counts merge bit for bit. Per-token statistics are summed per document, in float64, so sums of a split stream are those
of the whole stream. Shapes: C documents (clusters), P position bins, S statistics, U units of a site.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.kernels.row_statistics import SHAPE_MEASURES, RowStatistics, row_statistics
from sparsescope.metrics.jackknife import FOLDS, fold_of

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.sites import Site

# Documents beyond this many share clusters, so that memory does not grow with the corpus.
MAX_CLUSTERS = 4096
SHAPE_BINS = 2048


class Accumulator(Protocol):
    """What the runner feeds.

    Attributes:
        sites: Sites whose activations it needs.
    """

    sites: tuple[Site, ...]

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch."""

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self."""

    def finish(self) -> Any:
        """Close what is open and return what was summed."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""


@dataclass(slots=True)
class SiteStatistics:
    """What has been summed at one site.

    Attributes:
        sums: float64 [C, P, S], statistics summed over the tokens of a document and position bin.
        counts: int64 [C, P, 2], tokens, and tokens with a non-zero vector (shape measures are defined on these).
        set_histogram: int64 [1 + 2 * shares, U + 1], set sizes of tokens after the first position.
        shape_histogram: int64 [7, SHAPE_BINS], the same for the shape measures, on [0, 1] after ``unit_interval``.
        fired: int64 [2, U], tokens after the first position on which a unit was nonzero / in use.
        fired_squared: int64 [2, U], sum over documents of k_d^2.
        fired_by_length: int64 [2, U], sum over documents of k_d n_d.
        fired_documents: int64 [2, U], documents with any firing.
        magnitude: float64 [FOLDS, U], sum of |activation| over the same tokens, by fold of the document.
        energy: float64 [FOLDS, U], sum of activation^2.
        fold_tokens: int64 [FOLDS], tokens of each fold.
        lengths: int64 [3]: documents, sum n_d, sum n_d^2 over the same tokens.
        open_fired: int64 [2, U], counts of the document that is being read.
        open_length: int64 [1], its tokens so far.
    """

    sums: np.ndarray
    counts: np.ndarray
    set_histogram: np.ndarray
    shape_histogram: np.ndarray
    fired: np.ndarray
    fired_squared: np.ndarray
    fired_by_length: np.ndarray
    fired_documents: np.ndarray
    magnitude: np.ndarray
    energy: np.ndarray
    fold_tokens: np.ndarray
    lengths: np.ndarray
    open_fired: np.ndarray
    open_length: np.ndarray

    @classmethod
    def empty(cls, units: int, bins: int, shares: int) -> Self:
        """No tokens seen."""
        statistics = 1 + 2 * shares + len(SHAPE_MEASURES)
        unit = (2, units)
        return cls(
            np.zeros((0, bins, statistics)), np.zeros((0, bins, 2), np.int64),
            np.zeros((1 + 2 * shares, units + 1), np.int64), np.zeros((len(SHAPE_MEASURES), SHAPE_BINS), np.int64),
            np.zeros(unit, np.int64), np.zeros(unit, np.int64), np.zeros(unit, np.int64), np.zeros(unit, np.int64),
            np.zeros((FOLDS, units)), np.zeros((FOLDS, units)), np.zeros(FOLDS, np.int64),
            np.zeros(3, np.int64), np.zeros(unit, np.int64), np.zeros(1, np.int64),
        )  # fmt: skip

    def make_room(self, clusters: int) -> None:
        """Hold at least ``clusters`` documents; room doubles, so that a long stream is not copied for each document."""
        spare = max(2 * len(self.sums), clusters, 16) - len(self.sums)
        if clusters > len(self.sums):
            self.sums = np.concatenate([self.sums, np.zeros((spare, *self.sums.shape[1:]))])
            self.counts = np.concatenate([self.counts, np.zeros((spare, *self.counts.shape[1:]), np.int64)])

    def trim(self, clusters: int) -> None:
        """Give back the room that no document uses."""
        self.sums, self.counts = self.sums[:clusters], self.counts[:clusters]

    def close_document(self) -> None:
        """Add the counts of the finished document to the sums over documents."""
        n = self.open_length[0]
        if n == 0:
            return
        k = self.open_fired
        self.fired_squared += k * k
        self.fired_by_length += k * n
        self.fired_documents += k > 0
        self.lengths += np.array([1, n, n * n])
        self.open_fired, self.open_length = np.zeros_like(k), np.zeros_like(self.open_length)


class SparsityAccumulator:
    """Per-token and per-unit sparsity of any number of sites.

    Args:
        sites: Sites to measure.
        shares: Shares p of the top-p sets.
        use_share: Share of the energy that defines "in use".
        context: Longest window; it fixes the position bins 0, 1, 2-3, 4-7, ...
        threads: Threads for the statistics; the number of cores when None.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        shares: tuple[float, ...],
        use_share: float,
        context: int,
        threads: int | None = None,
    ) -> None:
        self.sites = tuple(sites)
        self.shares, self.use_share = tuple(shares), use_share
        self.bins = position_bins(context)
        self.clusters: dict[tuple[int, int], int] = {}
        self.documents: set[int] = set()
        self.zero_vectors = 0
        self._open_document: int | None = None
        self.statistics = {s.name: SiteStatistics.empty(s.width, len(self.bins), len(shares)) for s in self.sites}
        self._threads = threads or os.cpu_count() or 1
        self._executor: Executor | None = None

    def update(self, batch: ActivationBatch) -> None:
        """Take one batch (all tokens of one document)."""
        if batch.document != self._open_document:
            self._close()
            if batch.document in self.documents:
                raise SpecError(
                    "a document came twice, or in pieces that are not consecutive",
                    where=f"document {batch.document}",
                    next_step="split streams at document boundaries",
                )
            self._open_document = batch.document
            self.documents.add(batch.document)
        cluster, fold = self._cluster(batch.domain, batch.document), fold_of(batch.document)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads)
        bins = np.where(batch.positions == 0, 0, 1 + np.frexp(np.maximum(batch.positions, 1))[1] - 1)
        for site in self.sites:
            values, rows = batch.values[site.name], batch.rows.get(site.name)
            if len(values) == 0:
                continue
            self._add(self.statistics[site.name], cluster, fold, values, bins if rows is None else bins[rows])

    def _add(self, into: SiteStatistics, cluster: int, fold: int, values: Any, bins: np.ndarray) -> None:
        """Add the rows of one site; ``bins`` [row] are their position bins, 0 for the first token of a window."""
        found = row_statistics(values, self.shares, self.use_share, self._executor)
        width = values.shape[1]
        shaped = ~np.isnan(found.shapes[:, 0])
        self.zero_vectors += int(np.count_nonzero(~shaped))
        statistics = np.concatenate([found.counts / width, np.nan_to_num(found.shapes)], axis=1)
        member = (bins == np.arange(len(self.bins))[:, None]).astype(np.float64)
        into.sums[cluster] += member @ statistics
        into.counts[cluster, :, 0] += np.count_nonzero(member, axis=1)
        into.counts[cluster, :, 1] += (member @ shaped).astype(np.int64)
        later = bins > 0
        for index in range(found.counts.shape[1]):
            into.set_histogram[index] += np.bincount(found.counts[later, index], minlength=width + 1)
        scaled = unit_interval(found.shapes[later & shaped], width)
        shapes = np.clip((scaled * SHAPE_BINS).astype(np.int64), 0, SHAPE_BINS - 1)
        for index in range(len(SHAPE_MEASURES)):
            into.shape_histogram[index] += np.bincount(shapes[:, index], minlength=SHAPE_BINS)
        first = self._first_tokens(values, later)
        fired = np.stack([found.nonzero, found.in_use])
        moments = np.stack([found.magnitude, found.energy])
        if first is not None:
            fired = fired - np.stack([first.nonzero, first.in_use])
            # What is left of a unit that fired on first tokens only is rounding, of either sign.
            moments = np.where(fired[0] > 0, moments - np.stack([first.magnitude, first.energy]), 0.0)
        into.fired += fired
        into.open_fired += fired
        into.magnitude[fold] += moments[0]
        into.energy[fold] += moments[1]
        into.fold_tokens[fold] += np.count_nonzero(later)
        into.open_length += np.count_nonzero(later)

    def _first_tokens(self, values: Any, later: np.ndarray) -> RowStatistics | None:
        """Statistics of the first tokens of the windows: few rows, taken off the per-unit counts again.

        Subtracting them is cheaper than copying all other rows together.
        """
        rows = np.flatnonzero(~later)
        if len(rows) == 0:
            return None
        return row_statistics(values[rows], self.shares, self.use_share)

    def merge(self, other: Self) -> Self:
        """Add what ``other`` saw on other documents; return self.

        Raises:
            SpecError: If the two measure different things, or saw the same document.
        """
        mine = ([s.name for s in self.sites], self.shares, self.use_share, self.bins)
        if mine != ([s.name for s in other.sites], other.shares, other.use_share, other.bins):
            raise SpecError("accumulators of different measures cannot be merged", where="SparsityAccumulator.merge")
        both = self.documents & other.documents
        if both:
            raise SpecError(
                "both accumulators saw the same document",
                where="SparsityAccumulator.merge",
                got=sorted(both)[:8],
                next_step="split streams at document boundaries: corpus.split(n)",
            )
        self._close()
        other._close()
        self.documents |= other.documents
        self.zero_vectors += other.zero_vectors
        places = [self._cluster(*key) for key in other.clusters]
        for name, theirs in other.statistics.items():
            into = self.statistics[name]
            for place, source in zip(places, other.clusters.values(), strict=True):
                into.sums[place] += theirs.sums[source]
                into.counts[place] += theirs.counts[source]
            for attribute in _ADDITIVE:
                setattr(into, attribute, getattr(into, attribute) + getattr(theirs, attribute))
        return self

    def finish(self) -> dict[str, SiteStatistics]:
        """Close the last document and return the sums by site, documents in the order of ``clusters``."""
        self._close()
        for statistics in self.statistics.values():
            statistics.trim(len(self.clusters))
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        return self.statistics

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which ``restore`` continues exactly."""
        for statistics in self.statistics.values():
            statistics.trim(len(self.clusters))
        arrays = {
            f"{name}/{attribute}": getattr(statistics, attribute)
            for name, statistics in self.statistics.items()
            for attribute in SiteStatistics.__slots__
        }
        meta = {
            "clusters": [[*key, index] for key, index in self.clusters.items()],
            "documents": sorted(self.documents),
            "open": self._open_document,
            "zero_vectors": self.zero_vectors,
        }
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.clusters = {(domain, bucket): index for domain, bucket, index in meta["clusters"]}
        self.documents, self._open_document = set(meta["documents"]), meta["open"]
        self.zero_vectors = meta["zero_vectors"]
        for name in self.statistics:
            parts = {attribute: arrays[f"{name}/{attribute}"] for attribute in SiteStatistics.__slots__}
            self.statistics[name] = SiteStatistics(**parts)

    def _cluster(self, domain: int, document: int) -> int:
        """Index of the cluster of a document, made on first sight."""
        key = (domain, document % MAX_CLUSTERS)
        if key not in self.clusters:
            self.clusters[key] = len(self.clusters)
            for statistics in self.statistics.values():
                statistics.make_room(len(self.clusters))
        return self.clusters[key]

    def _close(self) -> None:
        """Finish the document that is being read."""
        for statistics in self.statistics.values():
            statistics.close_document()
        self._open_document = None


_ADDITIVE = (
    "set_histogram", "shape_histogram", "fired", "fired_squared", "fired_by_length", "fired_documents", "magnitude", "energy",
    "fold_tokens", "lengths",
)  # fmt: skip


def unit_interval(shapes: np.ndarray, units: int) -> np.ndarray:
    """Shape measures [row, 7] brought to [0, 1]: kurtosis, which is in [1, n], by ln k / ln n; the others are there."""
    scaled = shapes.copy()
    index = SHAPE_MEASURES.index("kurtosis")
    scaled[:, index] = np.log(np.maximum(shapes[:, index], 1.0)) / np.log(units)
    return scaled


def position_bins(context: int) -> tuple[tuple[int, int], ...]:
    """First and last position of each bin: 0, 1, 2-3, 4-7, ... up to ``context - 1``."""
    bins = [(0, 0)]
    while bins[-1][1] < context - 1:
        start = bins[-1][1] + 1
        bins.append((start, min(2 * start - 1, context - 1)))
    return tuple(bins)
