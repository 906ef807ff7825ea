"""How much can be removed before quality breaks: the drop point of a curve of paired damage.

The damage of a pruning level is the mean loss over target tokens minus that of the dense model on the same
tokens, so what a document adds to both cancels. The drop point is where the isotonic fit of the damage
reaches a tolerance (Jaiswal et al. 2023, arXiv 2306.03805, define it by the first violation and find it by
eye).

Its interval inverts a test: a level is left out if the damage there is surely below, or surely above, the
tolerance. Surely is by a studentized bootstrap over documents (Hall 1988, Annals of Statistics 16:927), at
the measured levels and at places between them, where the damage of each document is interpolated. Each end
takes the larger of the equal-tailed and the symmetric critical value. In the simulation of
``analyses/essential_sparsity/detectors.py`` (64 documents) this covers 93 to 98 % at nominal 95; percentiles
of resampled crossings cover 89 to 95 %, and 78 to 94 % if the reference is pooled over the plateau, which
paired damage does not need: its dense model is zero by definition.

No bootstrap sees the curve between two measured levels, and it is taken for straight: a corner half-way
between levels 0.05 apart is missed by 0.014, and the interval then misses it too. So ``bracket`` is to be
read with the interval, and levels are to be added there.
Shapes: K levels, level 0 is the dense model; D documents; B resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.estimates import DocumentBootstrap, Estimate
from sparsescope.metrics.isotonic_crossing import tolerance_crossing

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

INVERTED = "document-cluster bootstrap, studentized, inverted at the tolerance"
DETECTABLE = 2.8  # standard errors: 1.96 of a two-sided test at 5 %, and 0.84 for a power of 80 %
CERTAIN = 1.96
_PARTS = 4  # places in each gap between levels; without them the interval at a corner is a fifth wider


@dataclass(frozen=True, slots=True)
class DropPoint:
    """Where the damage of a curve reaches a tolerance.

    Attributes:
        tolerance: Accepted damage, nats per token.
        at: The level, interpolated; the last measured one where the curve stays within the tolerance.
        low: Lower end of its interval; NaN where there is none (fewer than two documents).
        high: Upper end.
        low_is_bound: The first pruned level may already be above the tolerance: ``low`` is level 0.
        high_is_bound: The last level may still be within the tolerance: ``high`` is that level, and the
            true end may lie anywhere beyond.
        bracket: Distance between the two measured levels around ``at``; NaN where censored on the right.
        censored: ``""``; ``"right"`` if no level exceeds the tolerance; ``"left"`` if the first pruned one
            already does, ``at`` being between it and the dense model.
        pooled: Levels of the plateau: from level 0 on, how many in a row have 0 in their interval. They are
            counted, not averaged.
        method: How the interval was made.
    """

    tolerance: float
    at: float
    low: float
    high: float
    low_is_bound: bool
    high_is_bound: bool
    bracket: float
    censored: str
    pooled: int
    method: str


def drop_point(
    levels: ArrayLike, sums: ArrayLike, counts: ArrayLike, tolerance: float, draws: DocumentBootstrap
) -> DropPoint:
    """Find where the damage reaches the tolerance; see the head of this file.

    Args:
        levels: [K], rising, the share of weights that is removed.
        sums: [K, D], loss minus that of the dense model, summed over the target tokens of each document,
            nats; level 0 is the dense model, all zero. A level with a value that is not finite is a model
            that broke down.
        counts: [D], target tokens of each document.
        tolerance: Accepted damage, nats per token, above 0. A rise of the loss by 0.01 is a perplexity higher
            by 1 %.
        draws: Resamples of the D documents.

    Raises:
        SpecError: If shapes do not fit, levels do not rise, or level 0 has damage.

    Example:
        >>> draws = DocumentBootstrap.draw(strata=[0] * 4, resamples=500, seed=0, level=0.95)
        >>> per_token = np.outer([0.0, 0.0, 0.02, 0.08], [0.9, 1.0, 1.0, 1.1])  # levels, documents
        >>> found = drop_point([0, 0.2, 0.4, 0.6], 100 * per_token, [100] * 4, tolerance=0.01, draws=draws)
        >>> round(found.at, 3), found.low < 0.3 < found.high, found.pooled
        (0.3, True, 2)
    """
    x, s, n = _checked(levels, sums, counts, tolerance, draws)
    found = tolerance_crossing(x, s.sum(1) / n.sum(), tolerance)
    at = found.at
    places, between = _between(x, s)
    band = damage_band(between, n, draws)
    plateau = band.low[::_PARTS] <= 0
    pooled = len(x) if plateau.all() else int(plateau.argmin())
    low = high = math.nan
    if np.isfinite(band.low).all():
        # The isotonic fits of a lower and a higher curve lie below and above that of the damage, up to the
        # places between levels, which the fit of the damage does not have.
        low = min(tolerance_crossing(places, band.high, tolerance).at, at)
        last = tolerance_crossing(places, band.low, tolerance)
        high = max(last.at, at)
    low_is_bound = low < x[1]
    return DropPoint(
        tolerance=float(tolerance),
        at=at,
        low=float(x[0]) if low_is_bound else low,
        high=high,
        low_is_bound=bool(low_is_bound),
        high_is_bound=bool(high >= x[-1]),
        bracket=found.bracket,
        censored="left" if at < x[1] else found.censored,
        pooled=pooled,
        method=INVERTED,
    )


def non_inferior(
    levels: ArrayLike, sums: ArrayLike, counts: ArrayLike, tolerance: float, draws: DocumentBootstrap
) -> float:
    """Largest level whose damage is surely below the tolerance.

    Levels are tested in order, and the first that fails ends it (fixed sequence), so testing many costs no
    level of significance: Maurer, Hothorn & Lehmacher (1995). Surely: the upper end of ``damage_band``, with
    an error of at most (1 - level) / 2 where the bootstrap holds.

    Args:
        levels: [K]; this and the rest as of ``drop_point``.
        sums: [K, D].
        counts: [D].
        tolerance: Accepted damage, nats per token.
        draws: Resamples of the documents.

    Returns:
        A measured level; level 0 if the first pruned one fails; NaN with fewer than two documents.

    Raises:
        SpecError: As of ``drop_point``.

    Example:
        >>> draws = DocumentBootstrap.draw(strata=[0] * 4, resamples=500, seed=0, level=0.95)
        >>> per_token = np.outer([0.0, 0.001, 0.008, 0.005], [0.5, 1.0, 1.0, 1.5])
        >>> non_inferior([0, 0.2, 0.4, 0.6], 100 * per_token, [100] * 4, tolerance=0.01, draws=draws)
        0.2
    """
    x, s, n = _checked(levels, sums, counts, tolerance, draws)
    high = damage_band(s, n, draws).high
    if not np.isfinite(high).all():
        return math.nan
    below = high < tolerance
    return float(x[-1] if below.all() else x[max(int(below.argmin()) - 1, 0)])


def minimum_detectable(levels: ArrayLike, sums: ArrayLike, counts: ArrayLike, at: float) -> float:
    """Smallest damage that these documents would show: 2.8 paired standard errors, nats per token.

    A two-sided test at 5 % finds a damage of this size with a power of 80 %. A tolerance below it cannot be
    told from none.

    Args:
        levels: [K].
        sums: [K, D], as of ``drop_point``.
        counts: [D].
        at: The standard error is that of the measured level nearest to this one.

    Returns:
        NaN with fewer than two documents, or where that level broke down.

    Example:
        >>> per_token = np.array([[0.0, 0.0, 0.0, 0.0], [0.01, 0.02, 0.02, 0.03]])  # sd 0.00816
        >>> round(minimum_detectable([0, 0.5], 100 * per_token, [100] * 4, at=0.5), 4)
        0.0114
    """
    nearest = int(np.abs(np.asarray(levels, np.float64) - at).argmin())
    n = np.asarray(counts, np.float64)
    s = np.asarray(sums, np.float64)[nearest]
    if (n > 0).sum() < 2 or not np.isfinite(s).all():
        return math.nan
    return DETECTABLE * float(_error(((s - s.sum() / n.sum() * n) ** 2).sum(), n))


def has_signal(dense_loss: float, chance_loss: float, se: float) -> bool:
    """Whether the dense model is better than chance: a model that knows nothing has nothing to lose.

    Args:
        dense_loss: Its mean loss, nats per token.
        chance_loss: That of the frequencies of the tokens alone (unigram loss).
        se: Standard error of their difference.

    Returns:
        Whether the loss is below chance by more than 1.96 standard errors; False if one is not finite.

    Example:
        >>> has_signal(dense_loss=6.9, chance_loss=7.0, se=0.01), has_signal(6.99, 7.0, 0.01)
        (True, False)
    """
    return math.isfinite(chance_loss) and dense_loss + CERTAIN * se < chance_loss


def damage_band(sums: ArrayLike, counts: ArrayLike, draws: DocumentBootstrap) -> Estimate:
    """Damage at each level with its interval, by a studentized bootstrap over documents.

    With the damage m, its standard error e, and m*, e* of a resample, t* = (m* - m) / e*. The ends are
    m - e max(q97.5(t*), q95(|t*|)) and m + e max(-q2.5(t*), q95(|t*|)), at level 0.95.

    Args:
        sums: [K, D], finite, as of ``drop_point``.
        counts: [D].
        draws: Resamples of the documents, with the level.

    Returns:
        mean, low, high, [K], nats per token; the ends are NaN with fewer than two documents. Where all
        documents have the same damage, the ends are the mean.

    Example:
        >>> draws = DocumentBootstrap.draw(strata=[0] * 4, resamples=500, seed=0, level=0.95)
        >>> found = damage_band([[0.0, 0.0, 0.0, 0.0], [8.0, 9.0, 11.0, 12.0]], [10] * 4, draws)
        >>> found.mean.tolist(), bool(found.low[1] < 0.8 < 1.2 < found.high[1]), float(found.high[0])
        ([0.0, 1.0], True, 0.0)
    """
    s, n = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    documents, many = int((n > 0).sum()), bool((n > 0).sum() > 1)
    mean = s.sum(1) / n.sum()
    if not many:
        return Estimate(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    rest = (s - mean[:, None] * n).T  # [D, K]
    error = _error((rest**2).sum(0), n)
    away = draws.replicates(rest, n[:, None])  # [B, K], m* - m
    squares = draws.totals(rest**2) - 2 * away * draws.totals(rest * n[:, None])
    squares += away**2 * draws.totals(n**2)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        t = away / _error(np.maximum(squares, 0), n, draws.totals(n)[:, None])
    t[:, error == 0] = 0
    low, high = draws.ends(t, documents)
    both = np.nanquantile(np.where(np.isfinite(t), np.abs(t), np.nan), draws.level, axis=0)
    return Estimate(mean, mean - error * np.maximum(high, both), mean + error * np.maximum(-low, both))


def _error(squares: ArrayLike, counts: Array, tokens: ArrayLike | None = None) -> Array:
    """Linearized standard error of a ratio of sums over documents, from the sum of its squared residuals."""
    documents = int((counts > 0).sum())
    total = counts.sum() if tokens is None else np.asarray(tokens)
    return np.sqrt(documents / (documents - 1) * np.asarray(squares)) / total


def _between(levels: Array, sums: Array) -> tuple[Array, Array]:
    """Levels and places that divide each gap evenly, with the sums interpolated: [P], [P, D]."""
    share = np.arange(_PARTS)[None, :] / _PARTS
    places = levels[:-1, None] + share * np.diff(levels)[:, None]
    inner = sums[:-1, None] + share[:, :, None] * np.diff(sums, axis=0)[:, None]
    return np.append(places.ravel(), levels[-1]), np.vstack([inner.reshape(-1, sums.shape[1]), sums[-1]])


def _checked(
    levels: ArrayLike, sums: ArrayLike, counts: ArrayLike, tolerance: float, draws: DocumentBootstrap
) -> tuple[Array, Array, Array]:
    """The arrays, if they fit together. A level that broke down gets the damage that the isotonic fit gives
    it, in every document.
    """
    x, s, n = (np.asarray(v, np.float64) for v in (levels, sums, counts))
    if x.ndim != 1 or len(x) < 2 or not np.all(np.diff(x) > 0):
        raise SpecError("levels do not rise", where="levels", allowed="two or more, rising", got=x.tolist())
    if s.shape != (len(x), draws.documents) or n.shape != (draws.documents,) or not n.sum() > 0:
        raise SpecError(
            "sums and counts do not fit levels and draws",
            where="sums, counts",
            allowed=f"shapes {(len(x), draws.documents)} and {(draws.documents,)}, with tokens",
            got=f"{s.shape}, {n.shape} with {n.sum():g} tokens",
        )
    if not tolerance > 0:
        raise SpecError("the tolerance must be above 0", where="tolerance", got=tolerance)
    if s[0].any():
        raise SpecError(
            "level 0 has damage",
            where="sums[0]",
            allowed="0 in every document",
            got=f"up to {np.abs(s[0]).max():g}",
            next_step="subtract the loss of the dense model, level 0, from all levels",
        )
    broken = ~np.all(np.isfinite(s), axis=1)
    worst = max(10 * tolerance, 2 * float(np.max(np.abs(s[~broken].sum(1)) / n.sum())))
    return x, np.where(broken[:, None], worst * n, s), n
