"""How often the features of a dictionary are active: densities, dead and dense features, and their
distribution.

The density of a feature is the share of rows on which it is active. A feature is dead in the rows counted
when it was active on none of them; that says little about rows not counted, so a bound goes with it and a
curve against the number of rows. Densities by rank follow a Zipf-Mandelbrot law where few features do most
of the work: density_r = c (r + beta)^-alpha with rank r = 1, 2, ... (Mandelbrot 1953).
Shapes: counts are int [feature].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.statistics import zero_events_bound

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import ArrayLike, NDArray

DENSITY_EDGES = np.linspace(-8.0, 0.0, 65)
"""Edges of the histogram, log10 of density: eight bins a decade, the same for every dictionary."""
NEVER = -1
"""First row of a feature that was never active."""


@dataclass(frozen=True, slots=True)
class DensityHistogram:
    """Features by log10 of their density.

    Attributes:
        edges: float64 [bin + 1], log10 of density.
        features: int64 [bin].
        dead: Features of density 0, which have no logarithm.
        below: Features that are active, but more rarely than the lowest edge.
        width: All features: ``features.sum() + dead + below``.
    """

    edges: NDArray[np.float64]
    features: NDArray[np.int64]
    dead: int
    below: int
    width: int


@dataclass(frozen=True, slots=True)
class DensityShares:
    """Shares of the features, fractions of all of them.

    Attributes:
        rows: Rows counted.
        dead: Never active in these rows.
        dead_bound: Upper bound of 95 % on the density of one dead feature: a feature rarer than this
            can look dead in so few rows.
        rare: Active, but on fewer rows than a tenth of the mean over all features.
        dense_1: Active on more than 1 % of the rows.
        dense_10: Active on more than 10 % of the rows.
        mean_active: Mean active features of a row (L0).
    """

    rows: int
    dead: float
    dead_bound: float
    rare: float
    dense_1: float
    dense_10: float
    mean_active: float


@dataclass(frozen=True, slots=True)
class ZipfMandelbrot:
    """A fit of ln density = ln scale - alpha ln(rank + beta).

    Attributes:
        alpha: Exponent; 1 is the law of Zipf. NaN where there are fewer than ``4`` features to fit.
        beta: Shift of the rank, >= 0: how many of the first features are about equally frequent.
        scale: c.
        r2: Weighted share of the variance of ln density that the fit explains.
        fitted: Features in the fit.
        left_out: Active features that were left out because they are too rare to know their density.
    """

    alpha: float
    beta: float
    scale: float
    r2: float
    fitted: int
    left_out: int


def density_histogram(
    rows_per_feature: ArrayLike, rows: int, edges: NDArray[np.float64] = DENSITY_EDGES
) -> DensityHistogram:
    """Histogram of log10 density on fixed edges.

    Args:
        rows_per_feature: int [feature], the rows on which each is active.
        rows: Rows counted.
        edges: Ascending, log10 of density; the last one at 0 holds features that are always active.

    Raises:
        SpecError: If a count is negative or above ``rows``.

    Example:
        >>> found = density_histogram([0, 1, 10, 10, 1000], rows=1000, edges=np.array([-2.0, -1.0, 0.0]))
        >>> found.features.tolist(), found.dead, found.below  # two of 1 %, one of 100 %
        ([2, 1], 1, 1)
    """
    counts = _counts(rows_per_feature, rows)
    alive = counts[counts > 0]
    logs = np.log10(alive / rows) if len(alive) else np.zeros(0)
    found = np.histogram(logs, edges)[0].astype(np.int64)
    dead = int(len(counts) - len(alive))
    return DensityHistogram(edges, found, dead, int((logs < edges[0]).sum()), len(counts))


def density_shares(rows_per_feature: ArrayLike, rows: int) -> DensityShares:
    """Shares of dead, rare and dense features.

    Args:
        rows_per_feature: int [feature].
        rows: Rows counted.

    Raises:
        SpecError: If a count is negative or above ``rows``.

    Example:
        >>> found = density_shares([0, 1, 20, 200], rows=1000)
        >>> found.dead, found.rare, found.dense_1, found.dense_10, found.mean_active
        (0.25, 0.25, 0.5, 0.25, 0.221)
        >>> round(found.dead_bound, 4)  # three in a thousand
        0.003
    """
    counts = _counts(rows_per_feature, rows)
    width = max(1, len(counts))

    def share(which: NDArray[np.bool_]) -> float:
        return int(which.sum()) / width

    return DensityShares(
        rows=rows,
        dead=share(counts == 0),
        dead_bound=zero_events_bound(rows),
        rare=share((counts > 0) & (counts < 0.1 * counts.mean())) if len(counts) else 0.0,
        dense_1=share(counts > 0.01 * rows),
        dense_10=share(counts > 0.1 * rows),
        mean_active=float(counts.sum() / rows) if rows else float("nan"),
    )


def first_active_rows(
    codes: scipy.sparse.csr_array, begin: int = 0, known: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The first row on which each feature is active, over a stream of codes.

    Args:
        codes: [row, feature]; stored zeros are not active.
        begin: The number of the first of these rows in the stream.
        known: What the call for the rows before returned.

    Returns:
        int64 [feature], ``NEVER`` for those that were not active yet.

    Example:
        >>> from scipy.sparse import csr_array
        >>> first = first_active_rows(csr_array([[0.0, 1.0, 0.0]]))
        >>> first_active_rows(csr_array([[2.0, 3.0, 0.0]]), begin=1, known=first).tolist()
        [1, 0, -1]
    """
    coordinates = codes.tocoo()
    row, feature = (axis[coordinates.data != 0] for axis in coordinates.coords)
    late = np.iinfo(np.int64).max
    first = np.full(codes.shape[1], late)
    np.minimum.at(first, feature, row.astype(np.int64) + begin)
    if known is not None:
        first = np.where(known == NEVER, first, np.minimum(known, first))
    return np.where(first == late, NEVER, first)


def dead_share_curve(first_rows: ArrayLike, rows: ArrayLike) -> NDArray[np.float64]:
    """Share of features that are not active on any of the first n rows: how long one must look.

    Args:
        first_rows: int [feature], from ``first_active_rows``.
        rows: int [point], the numbers n.

    Returns:
        float64 [point], not rising where ``rows`` rises.

    Example:
        >>> dead_share_curve([0, 3, 9, -1], rows=[1, 4, 10, 100]).tolist()
        [0.75, 0.5, 0.25, 0.25]
    """
    first = np.asarray(first_rows, np.int64)
    seen = np.sort(first[first != NEVER])
    return 1 - np.searchsorted(seen, np.asarray(rows), side="left") / max(1, len(first))


def zipf_mandelbrot(rows_per_feature: ArrayLike, rows: int, least_rows: int = 10) -> ZipfMandelbrot:
    """Fit the Zipf-Mandelbrot law to densities by rank.

    Weighted least squares of ln density on ln(rank + beta); beta is searched. The weights are those of equal
    attention to each factor of rank, 1 / rank, times the inverse variance of ln density, n / (1 + n / 100)
    for a feature of n rows: Poisson noise, to which 1 % is added so that the few most frequent features do
    not decide alone. Features of fewer than ``least_rows`` rows are left out: their ranks are those of
    chance, and the tail of a dictionary falls off more steeply.

    Args:
        rows_per_feature: int [feature].
        rows: Rows counted.
        least_rows: Rows that a feature must be active on.

    Raises:
        SpecError: If a count is negative or above ``rows``.

    Example:
        >>> rank = np.arange(1, 501)
        >>> found = zipf_mandelbrot(np.round(1e6 * 0.9 * (rank + 4.0) ** -1.2), rows=1_000_000)
        >>> round(found.alpha, 2), round(found.beta, 1), round(found.r2, 3), found.left_out
        (1.2, 4.0, 1.0, 0)
    """
    from scipy.optimize import minimize_scalar

    counts = np.sort(_counts(rows_per_feature, rows))[::-1]
    kept = counts[counts >= max(1, least_rows)].astype(np.float64)
    left_out = int((counts > 0).sum() - len(kept))
    if len(kept) < 4 or kept[0] == kept[-1]:
        nan = float("nan")
        return ZipfMandelbrot(nan, nan, nan, nan, len(kept), left_out)
    rank, logs = np.arange(1, len(kept) + 1), np.log(kept / rows)
    weights = kept / (1 + kept / 100) / rank
    weights /= weights.sum()
    spread = weights @ (logs - weights @ logs) ** 2

    def line(beta: float) -> tuple[float, float, float]:
        """Slope, intercept and weighted squared residual for a shift of the rank."""
        x = np.log(rank + beta)
        x0, y0 = weights @ x, weights @ logs
        slope = (weights @ ((x - x0) * (logs - y0))) / (weights @ (x - x0) ** 2)
        return slope, y0 - slope * x0, weights @ (logs - y0 - slope * (x - x0)) ** 2

    # The residual may have more than one valley in beta: a grid of log(1 + beta) finds the deepest one.
    grid = np.linspace(0.0, np.log1p(10.0 * len(kept)), 41)
    best = int(np.argmin([line(float(np.expm1(g)))[2] for g in grid]))
    ends = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
    found = minimize_scalar(
        lambda g: line(float(np.expm1(g)))[2], bounds=ends, method="bounded", options={"xatol": 1e-9}
    )
    beta = float(np.expm1(min((found.x, ends[0]), key=lambda g: line(float(np.expm1(g)))[2])))
    slope, intercept, residual = line(beta)
    return ZipfMandelbrot(
        float(-slope), beta, float(np.exp(intercept)), float(1 - residual / spread), len(kept), left_out
    )


def _counts(rows_per_feature: ArrayLike, rows: int) -> NDArray[np.int64]:
    """The counts, int64 [feature]."""
    counts = np.asarray(rows_per_feature).astype(np.int64)
    if counts.ndim != 1 or rows < 0 or (len(counts) and not 0 <= counts.min() <= counts.max() <= rows):
        raise SpecError(
            "counts of active rows are out of range",
            where="rows_per_feature",
            allowed=f"[feature], 0 to {rows}",
            got=f"{counts.shape}, {counts.min(initial=0)} to {counts.max(initial=0)}",
        )
    return counts
