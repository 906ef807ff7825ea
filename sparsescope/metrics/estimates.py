"""Estimates over documents: one set of resamples for everything that an analysis says about a text.

Documents are the independent units; ``bootstrap_weights`` draws them within domains. Since every number of an
analysis is resampled with the same draws, the replicates of two numbers belong together: a function of
several (a difference, a mean over sites) is resampled by taking it of their replicates, and a difference of
two measurements of the same tokens is paired. Numbers that are no sums over documents have a jackknife
(``metrics.jackknife``) and the same notes.
Shapes: D documents, B resamples; sums are [D, ...], replicates [B, ...].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparsescope.core.numbers import Interval
from sparsescope.metrics.statistics import bootstrap_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from sparsescope.core.result import Result

BOOTSTRAP = "document-cluster bootstrap, percentile"
PAIRED_BOOTSTRAP = f"paired {BOOTSTRAP}"


class Estimate(NamedTuple):
    """A number with its interval, of any shape; the ends are NaN where there is none."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def complement(self) -> Estimate:
        """1 - the number: the sparsity of a density."""
        return Estimate(1 - self.mean, 1 - self.high, 1 - self.low)


@dataclass(frozen=True, slots=True)
class DocumentBootstrap:
    """Resamples of documents.

    Attributes:
        weights: float64 [B, D], how often each document is drawn.
        level: Coverage of the intervals, for example 0.95.
        method: What an interval says about how it was made.

    Example:
        >>> draws = DocumentBootstrap.draw(strata=[0, 0, 0, 0], resamples=500, seed=0, level=0.95)
        >>> density = draws.ratio(sums=[1, 2, 3, 4], counts=[10, 10, 10, 10])  # active units, tokens
        >>> float(density.mean), bool(0.1 <= density.low < 0.25 < density.high <= 0.4)
        (0.25, True)
    """

    weights: NDArray[np.float64]
    level: float
    method: str = BOOTSTRAP

    @classmethod
    def draw(
        cls, strata: ArrayLike, resamples: int, seed: int, level: float, method: str = BOOTSTRAP
    ) -> DocumentBootstrap:
        """Draw documents within their strata (domains), int [D]; see ``bootstrap_weights``."""
        return cls(bootstrap_weights(np.asarray(strata), resamples, seed), level, method)

    @property
    def documents(self) -> int:
        """Documents that are drawn from, D."""
        return self.weights.shape[1]

    def among(self, member: NDArray[np.bool_]) -> DocumentBootstrap:
        """The same draws, of some documents only, bool [D]."""
        return DocumentBootstrap(self.weights[:, member], self.level, self.method)

    def totals(self, sums: ArrayLike) -> NDArray[np.float64]:
        """Sum over the documents of each resample, [B, ...], from sums by document [D, ...]."""
        values = np.asarray(sums, np.float64)
        return (self.weights @ values.reshape(len(values), -1)).reshape(len(self.weights), *values.shape[1:])

    def replicates(self, sums: ArrayLike, counts: ArrayLike) -> NDArray[np.float64]:
        """Ratio of sums in each resample, [B, ...]; NaN where a resample has nothing to count.

        Args:
            sums: [D, ...] sum of a statistic over the tokens of each document.
            counts: [D, ...] tokens of each document, broadcastable to ``sums``.
        """
        values = np.asarray(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.totals(values) / self.totals(np.broadcast_to(counts, values.shape))

    def ratio(self, sums: ArrayLike, counts: ArrayLike) -> Estimate:
        """Ratio of sums over documents with its percentile interval; arguments as of ``replicates``.

        The interval is NaN where fewer than two documents have tokens: one says nothing about the
        spread between documents.
        """
        values = np.asarray(sums, np.float64)
        counted = np.broadcast_to(counts, values.shape)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = values.sum(0) / counted.sum(0)
        return Estimate(mean, *self.ends(self.replicates(values, counted), (counted > 0).sum(0)))

    def ends(
        self, replicates: NDArray[np.float64], documents: ArrayLike | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Percentile interval over the first axis, leaving out resamples in which the number is not finite.

        Args:
            replicates: [B, ...].
            documents: Documents behind each number, broadcastable to [...]; all when None.

        Returns:
            low, high, [...]; NaN where there are fewer than two documents, or no finite replicate.
        """
        flat = replicates.reshape(len(replicates), -1)
        finite = np.isfinite(flat)
        behind = np.broadcast_to(
            self.documents if documents is None else documents, replicates.shape[1:]
        ).reshape(-1)
        known = (behind >= 2) & finite.any(0)
        ends = np.full((2, flat.shape[1]), np.nan)
        tail = (1 - self.level) / 2
        if known.any():
            # Quantiles that look for NaN take each column apart, so they are kept for when there is one.
            quantile = np.quantile if finite[:, known].all() else np.nanquantile
            ends[:, known] = quantile(np.where(finite, flat, np.nan)[:, known], [tail, 1 - tail], axis=0)
        low, high = ends.reshape(2, *replicates.shape[1:])
        return low, high

    def interval(self, replicates: NDArray[np.float64], documents: int | None = None) -> Interval | None:
        """The interval of one number from its replicates, [B]; None where it has none."""
        return self.between(*self.ends(replicates, documents), documents)

    def between(self, low: ArrayLike, high: ArrayLike, documents: int | None = None) -> Interval | None:
        """The interval with these ends, from ``ends`` or from a row of a table; None where
        they are not finite.
        """
        return Interval.of(
            low, high, self.level, self.method, self.documents if documents is None else documents
        )


def note_few_documents(out: Result, documents: int, place: str, what: str = "bootstrap intervals") -> None:
    """Say in the result that there is no interval, or that ``what`` of so few documents is likely too narrow.

    Example:
        >>> from sparsescope.core.result import Result
        >>> out = Result("activation_rank")
        >>> note_few_documents(out, 4, "corpus")
        >>> out.notes[0].message
        'Only 4 documents: bootstrap intervals are likely too narrow.'
    """
    if documents < 2:
        out.note("warning", "All text is one document: no interval can be given.", place)
    elif documents < 10:
        out.note("warning", f"Only {documents} documents: {what} are likely too narrow.", place)
