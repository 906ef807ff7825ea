"""Per-token and per-unit sparsity of any number of sites, summed over a stream of documents.

Per-token statistics are summed by document and position bin, in float64; units are counted
over all documents.
Shapes: C documents (clusters), P position bins, S statistics, U units of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sparsescope.activations.accumulators import DocumentAccumulator, with_room
from sparsescope.kernels.row_statistics import SHAPE_MEASURES, RowStatistics, row_statistics
from sparsescope.metrics.jackknife import FOLDS, fold_of

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.models.structure.sites import Site

SHAPE_BINS = 2048


@dataclass(slots=True)
class SiteStatistics:
    """What has been summed at one site.

    Attributes:
        sums: float64 [C, P, S], statistics summed over the tokens of a document and position bin.
        counts: int64 [C, P, 2], tokens, and tokens with a non-zero vector (shape measures are
            defined on these).
        set_histogram: int64 [1 + 2 * shares, U + 1], set sizes of tokens after the first position.
        shape_histogram: int64 [7, SHAPE_BINS], the same for the shape measures, on
            [0, 1] after ``unit_interval``.
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
            np.zeros((0, bins, statistics)),
            np.zeros((0, bins, 2), np.int64),
            np.zeros((1 + 2 * shares, units + 1), np.int64),
            np.zeros((len(SHAPE_MEASURES), SHAPE_BINS), np.int64),
            np.zeros(unit, np.int64),
            np.zeros(unit, np.int64),
            np.zeros(unit, np.int64),
            np.zeros(unit, np.int64),
            np.zeros((FOLDS, units)),
            np.zeros((FOLDS, units)),
            np.zeros(FOLDS, np.int64),
            np.zeros(3, np.int64),
            np.zeros(unit, np.int64),
            np.zeros(1, np.int64),
        )

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


class SparsityAccumulator(DocumentAccumulator):
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
        self.shares, self.use_share = tuple(shares), use_share
        self.bins = position_bins(context)
        super().__init__(sites, (self.shares, self.use_share, self.bins), threads)
        self.zero_vectors = 0
        self.statistics = {
            s.name: SiteStatistics.empty(s.width, len(self.bins), len(shares)) for s in self.sites
        }

    def _take(self, batch: ActivationBatch, cluster: int, seen: int) -> None:
        fold = fold_of(batch.document)
        bins = np.where(batch.positions == 0, 0, 1 + np.frexp(np.maximum(batch.positions, 1))[1] - 1)
        for site in self.sites:
            values, rows = batch.values[site.name], batch.rows.get(site.name)
            if len(values):
                self._add(
                    self.statistics[site.name], cluster, fold, values, bins if rows is None else bins[rows]
                )

    def _add(self, into: SiteStatistics, cluster: int, fold: int, values: Any, bins: np.ndarray) -> None:
        """Add the rows of one site; ``bins`` [row] are their position bins, 0 for the first
        token of a window.
        """
        found = row_statistics(values, self.shares, self.use_share, self.executor)
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

    def _close(self, cluster: int) -> None:
        for statistics in self.statistics.values():
            statistics.close_document()

    def _make_room(self, clusters: int) -> None:
        for found in self.statistics.values():
            found.sums, found.counts = with_room(found.sums, clusters), with_room(found.counts, clusters)

    def _join(self, other: Self, places: list[tuple[int, int]]) -> None:
        self.zero_vectors += other.zero_vectors
        for name, theirs in other.statistics.items():
            into = self.statistics[name]
            for place, source in places:
                into.sums[place] += theirs.sums[source]
                into.counts[place] += theirs.counts[source]
            for attribute in _ADDITIVE:
                setattr(into, attribute, getattr(into, attribute) + getattr(theirs, attribute))

    def finish(self) -> dict[str, SiteStatistics]:
        """Close the last document and return the sums by site, documents in the order of ``clusters``."""
        super().finish()
        self._trim()
        return self.statistics

    def _trim(self) -> None:
        """Give back the room that no document uses."""
        n = len(self.clusters)
        for found in self.statistics.values():
            found.sums, found.counts = found.sums[:n], found.counts[:n]

    def _arrays(self) -> dict[str, np.ndarray]:
        self._trim()
        arrays = {
            f"{name}/{part}": getattr(found, part)
            for name, found in self.statistics.items()
            for part in _PARTS
        }
        return arrays | {"zero_vectors": np.array([self.zero_vectors])}

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        self.zero_vectors = int(arrays["zero_vectors"][0])
        self.statistics = {
            name: SiteStatistics(*(arrays[f"{name}/{part}"] for part in _PARTS)) for name in self.statistics
        }


_PARTS = SiteStatistics.__slots__
_ADDITIVE = (
    "set_histogram",
    "shape_histogram",
    "fired",
    "fired_squared",
    "fired_by_length",
    "fired_documents",
    "magnitude",
    "energy",
    "fold_tokens",
    "lengths",
)


def unit_interval(shapes: np.ndarray, units: int) -> np.ndarray:
    """Shape measures [row, 7] brought to [0, 1]: kurtosis, which is in [1, n], by ln k / ln n;
    the others are there.
    """
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
