"""How well dictionaries reconstruct activations: sums by document that can be merged, and what follows from
them.

Over rows t with activation x_t and reconstruction r_t, and x' the mean of every dimension over the whole
evaluation set:

- explained variance EV = 1 - sum |x - r|^2 / sum |x - x'|^2, and FVU = 1 - EV. Both sums are taken over all
  rows before one is divided by the other: a mean of ratios by batch depends on the batches, and variance
  about zero in place of the mean makes every dictionary look good;
- L2 ratio, mean of |r| / |x|; cosine, mean of <x, r> / (|x| |r|); both over rows with x != 0, and a row with
  r = 0 counts as 0;
- relative reconstruction bias gamma = sum |r|^2 / sum <x, r>: below 1 the reconstruction shrinks, and r /
  gamma has the least error of all multiples of r (Rajamanoharan et al. 2024, arXiv:2404.16014);
- L0, mean active features of a row;
- squared error, mean of |x - r|^2 over rows, summed over dimensions.

Rows are accumulated in float64. Shapes: rows [row, d]; weights of documents [B, D]; measures [...,
dictionary, measure] in the order of ``MEASURES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.estimates import DocumentBootstrap, Estimate

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

MEASURES = ("explained_variance", "fvu", "l2_ratio", "bias", "cosine", "l0", "squared_error")
_PARTS = ("error", "product", "energy", "ratio", "cosine", "active")
_BLOCK = 2**21  # elements that are in float64 at a time
_ROUNDING = 1e-13  # a variance below this share of the energy is the rounding of a constant


class ReconstructionSums:
    """Sums by document for several dictionaries that reconstruct the same rows.

    With ``exact`` the sum of x is kept for every document, [D, d], and explained variance is resampled by
    document without approximation. Without it only their total is kept; replicates then take the mean of the
    evaluation set for that of every resample. With N_w rows of mean x'_w in a resample, the total variance
    is then too large by N_w (|x'_w - ref|^2 - |x' - ref|^2), of second order where ``reference`` is near the
    mean; the estimate itself stays exact.

    Args:
        width: d, entries of an activation.
        names: The dictionaries, all different.
        reference: float [d], what is subtracted before sums are taken, so that a large mean costs no
            digits; zero when None. It changes no measure.
        exact: Keep the sum of x by document.

    Raises:
        SpecError: If a name comes twice, the reference has another shape or ``exact=False`` has no reference.

    Example:
        >>> x = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]])
        >>> sums = ReconstructionSums(2, ("same", "mean"))
        >>> sums.update([7, 7, 9], x, {"same": x, "mean": x * 0 + x.mean(0)}, {"same": [2, 2, 2]})
        >>> sums.measures()[:, MEASURES.index("explained_variance")].round(12).tolist()
        [1.0, 0.0]
        >>> sums.documents.tolist(), sums.measures(weights=np.array([[2.0, 0.0]])).shape
        ([7, 9], (1, 2, 7))
    """

    def __init__(
        self, width: int, names: Sequence[str], reference: ArrayLike | None = None, *, exact: bool = True
    ) -> None:
        self.width, self.names, self.exact = width, tuple(names), exact
        if len(set(self.names)) < len(self.names):
            raise SpecError("a dictionary comes twice", where="names", got=", ".join(self.names))
        if reference is None and not exact:
            raise SpecError(
                "sums without those by document need a reference",
                where="reference",
                next_step="give the mean of a sample of the activations, or exact=True",
            )
        self.reference = np.zeros(width) if reference is None else np.array(reference, np.float64)
        if self.reference.shape != (width,):
            raise SpecError(
                "the reference is of another width",
                where="reference",
                allowed=f"[{width}]",
                got=self.reference.shape,
            )
        self._places: dict[int, int] = {}
        self._arrays = {
            "rows": np.zeros(0),
            "directed": np.zeros(0),
            "squares": np.zeros(0),
            "sums": np.zeros((0 if exact else 1, width)),
            "parts": np.zeros((0, len(self.names), len(_PARTS))),
        }

    @property
    def documents(self) -> NDArray[np.int64]:
        """int64 [D], ascending: the order of the documents in weights."""
        return np.array(sorted(self._places), np.int64)

    @property
    def rows(self) -> NDArray[np.float64]:
        """float64 [D], rows of each document."""
        return self._arrays["rows"][self._order()]

    @property
    def mean(self) -> NDArray[np.float64]:
        """float64 [d], the mean activation over all rows; NaN without rows."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.reference + self._arrays["sums"].sum(0) / self._arrays["rows"].sum()

    def update(
        self,
        documents: ArrayLike,
        values: NDArray[np.floating],
        reconstructions: Mapping[str, NDArray[np.floating]],
        active: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add rows.

        Args:
            documents: int, the document of all rows, or [row].
            values: [row, d] activations, in the unit in which the reconstructions are.
            reconstructions: For every dictionary [row, d].
            active: For each dictionary that has codes, int [row], its active features; L0 is NaN without.

        Raises:
            SpecError: If dictionaries are missing or unknown, or a shape is another one.
        """
        active = active or {}
        self._check(values, reconstructions, active)
        keys = np.broadcast_to(np.asarray(documents, np.int64), len(values))
        counts = {name: np.broadcast_to(np.asarray(n, np.float64), len(values)) for name, n in active.items()}
        for part in _blocks(len(values), self.width):
            x = np.asarray(values[part], np.float64)
            energy = np.einsum("td,td->t", x, x)
            directed = energy > 0
            parts = np.zeros((len(x), len(self.names), len(_PARTS)))
            for place, name in enumerate(self.names):
                parts[:, place] = _row_parts(x, reconstructions[name][part], energy)
                parts[:, place, -1] = counts[name][part] if name in counts else np.nan
            x = x - self.reference  # a new array: x may be the memory of the caller
            squares = np.einsum("td,td->t", x, x)
            self._add(keys[part], np.ones(len(x)), directed.astype(np.float64), squares, x, parts)

    def merge(self, other: Self, renamed: Mapping[int, int] | None = None) -> Self:
        """Add the sums of another stream; return self.

        Args:
            other: Of the same dictionaries, width and reference. Documents that both saw are added up.
            renamed: The number here of each document of ``other``; the same when None.

        Raises:
            SpecError: If the two measure different things.
        """
        mine, its = ((*s.names, s.width, s.exact, s.reference.tobytes()) for s in (self, other))
        if mine != its:
            raise SpecError(
                "sums of different dictionaries, widths or references cannot be merged",
                where="ReconstructionSums.merge",
                got=f"{self.names} of {self.width} and {other.names} of {other.width}",
            )
        for key in other._places:
            self._place(key if renamed is None else renamed[key])
        for key, place in other._places.items():
            own = self._places[key if renamed is None else renamed[key]]
            for name, array in other._arrays.items():
                if name != "sums" or self.exact:
                    self._arrays[name][own] += array[place]
        if not self.exact:
            self._arrays["sums"] += other._arrays["sums"]
        return self

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which ``restore`` continues exactly."""
        order = self._order()
        kept = {
            name: array if name == "sums" and not self.exact else array[order]
            for name, array in self._arrays.items()
        }
        return {"documents": self.documents, **{name: array.copy() for name, array in kept.items()}}

    def restore(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Continue from a saved state of sums of the same arguments."""
        self._places = {int(key): place for place, key in enumerate(arrays["documents"].tolist())}
        self._arrays = {name: np.array(arrays[name], np.float64) for name in self._arrays}

    def measures(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """All measures, in the order of ``MEASURES``; NaN where one is not defined.

        Args:
            weights: float64 [B, D], how often each document counts, in the order of ``documents``; once
                when None.

        Returns:
            [dictionary, measure], or [B, dictionary, measure] with weights.

        Raises:
            SpecError: If the weights are of other documents.
        """
        order, single = self._order(), weights is None
        w = np.ones((1, len(order))) if weights is None else np.asarray(weights, np.float64)
        if w.ndim != 2 or w.shape[1] != len(order):
            raise SpecError(
                "weights are of other documents", where="weights", allowed=f"[B, {len(order)}]", got=w.shape
            )
        shape = len(self.names), len(_PARTS)
        parts = self._arrays["parts"][order].reshape(len(order), shape[0] * shape[1])
        totals = (w @ parts).reshape(len(w), *shape)
        error, product, energy, ratio, cosine, active = np.moveaxis(totals, -1, 0)
        rows = (w @ self._arrays["rows"][order])[:, None]
        directed = (w @ self._arrays["directed"][order])[:, None]
        variance = self._variance(w, order, rows[:, 0])[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            unexplained = error / variance
            out = [
                1 - unexplained,
                unexplained,
                ratio / directed,
                np.where(product != 0, energy / product, np.nan),
                cosine / directed,
                active / rows,
                error / rows,
            ]
        stacked = np.stack(out, -1)
        return stacked[0] if single else stacked

    def estimates(self, draws: DocumentBootstrap) -> dict[str, Estimate]:
        """Every measure with its interval over documents, [dictionary] each.

        Args:
            draws: Resamples of ``documents``, in their order. The same draws for two accumulators of the same
                documents make their replicates, ``measures(draws.weights)``, a paired comparison.
        """
        found, replicates = self.measures(), self.measures(draws.weights)
        behind = int(np.count_nonzero(self.rows))
        return {
            name: Estimate(found[:, at], *draws.ends(replicates[:, :, at], behind))
            for at, name in enumerate(MEASURES)
        }

    def _variance(
        self, weights: NDArray[np.float64], order: NDArray[np.int64], rows: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The total variance, sum |x - x'|^2, of each resample, [B]; NaN where it is zero up to rounding."""
        about_reference = weights @ self._arrays["squares"][order]
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.exact:
                total = weights @ self._arrays["sums"][order]
                shift = np.einsum("bd,bd->b", total, total) / rows
            else:
                mean = self._arrays["sums"][0] / self._arrays["rows"].sum()
                shift = rows * (mean @ mean)
        variance = about_reference - shift
        return np.where(variance > _ROUNDING * about_reference, variance, np.nan)

    def _order(self) -> NDArray[np.int64]:
        """Places of the documents in their order."""
        return np.array([self._places[key] for key in sorted(self._places)], np.int64)

    def _place(self, document: int) -> int:
        """Place of a document, made on first sight; room doubles, so that long streams are not copied
        often.
        """
        place = self._places.setdefault(document, len(self._places))
        for name, array in self._arrays.items():
            if place >= len(array) and (name != "sums" or self.exact):
                spare = np.zeros((max(16, len(array)), *array.shape[1:]))
                self._arrays[name] = np.concatenate([array, spare])
        return place

    def _add(
        self,
        keys: NDArray[np.int64],
        rows: NDArray[np.float64],
        directed: NDArray[np.float64],
        squares: NDArray[np.float64],
        shifted: NDArray[np.float64],
        parts: NDArray[np.float64],
    ) -> None:
        """Add a block of rows to the documents they belong to."""
        order = None if (np.diff(keys) >= 0).all() else np.argsort(keys, kind="stable")
        arrays = {"rows": rows, "directed": directed, "squares": squares, "sums": shifted, "parts": parts}
        if order is not None:
            keys = keys[order]
            arrays = {name: array[order] for name, array in arrays.items()}
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        places = [self._place(int(key)) for key in keys[starts]]
        for name, array in arrays.items():
            if name == "sums" and not self.exact:
                self._arrays[name][0] += array.sum(0)
            else:
                self._arrays[name][places] += np.add.reduceat(array, starts, axis=0)

    def _check(
        self,
        values: NDArray[np.floating],
        reconstructions: Mapping[str, NDArray[np.floating]],
        active: Mapping[str, ArrayLike],
    ) -> None:
        """Refuse rows that do not fit."""
        if set(reconstructions) != set(self.names) or not set(active) <= set(self.names):
            raise SpecError(
                "reconstructions are not those of the dictionaries",
                where="ReconstructionSums.update",
                allowed=self.names,
                got=", ".join([*reconstructions, *active]),
            )
        wrong = {n: r.shape for n, r in reconstructions.items() if r.shape != (len(values), self.width)}
        if wrong or values.shape != (len(values), self.width):
            raise SpecError(
                "rows are of another shape",
                where="ReconstructionSums.update",
                allowed=f"[{len(values)}, {self.width}]",
                got=f"activations {values.shape}, {wrong}",
            )


def reconstruction_measures(
    values: NDArray[np.floating], reconstruction: NDArray[np.floating], active: ArrayLike | None = None
) -> dict[str, float]:
    """All measures of one reconstruction, by name.

    Args:
        values: [row, d].
        reconstruction: [row, d], in the same unit.
        active: int [row], active features; L0 is NaN when None.

    Example:
        >>> x = np.array([[2.0, 0.0], [0.0, 2.0]])
        >>> found = reconstruction_measures(x, 0.5 * x)  # shrunken by half
        >>> found["bias"], found["l2_ratio"], found["cosine"], found["squared_error"]
        (0.5, 0.5, 1.0, 1.0)
    """
    sums = ReconstructionSums(values.shape[1], ("one",))
    sums.update(0, values, {"one": reconstruction}, None if active is None else {"one": active})
    return dict(zip(MEASURES, sums.measures()[0].tolist(), strict=True))


def _row_parts(
    x: NDArray[np.float64], reconstruction: NDArray[np.floating], energy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """What is summed of each row, [row, part]; the number of active features is left at zero."""
    r = np.asarray(reconstruction, np.float64)
    product, own = np.einsum("td,td->t", x, r), np.einsum("td,td->t", r, r)
    r = r - x
    error = np.einsum("td,td->t", r, r)
    size, scale = np.sqrt(energy), np.sqrt(energy * own)
    ratio = np.divide(np.sqrt(own), size, out=np.zeros_like(size), where=size > 0)
    cosine = np.divide(product, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.stack([error, product, own, ratio, cosine, np.zeros_like(error)], -1)


def _blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of rows that are small enough to be held in float64."""
    step = max(1, _BLOCK // max(1, width))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))
