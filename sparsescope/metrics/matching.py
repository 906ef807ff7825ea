"""Whether two dictionaries hold the same directions: best matches, one-to-one matching, and what chance
gives.

- MMCS from one dictionary to another: mean over its directions of the largest cosine with any direction of
  the other (Sharkey et al. 2022). It is not symmetric, and many may share one best match.
- MCC: mean cosine of the pairs of the one-to-one matching that makes it largest (Hungarian method;
  arXiv:2505.20254). Dictionaries may differ in size: min(F, F') pairs are matched.
- Stable share: share of these pairs with a cosine of at least 0.7 (0.9).

Cosines are signed, or absolute where a direction and its opposite are the same feature. Directions are rows,
[F, d] and [F', d]; they need no unit norm. A row of zeros has no direction: its cosines are 0, and it is
counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

STABLE = (0.7, 0.9)
EXACT_ENTRIES = 2**25
"""Pairs of directions up to which all of them are looked at: 5,792 by 5,792, about ten seconds."""
NEIGHBOURS = 50
_TILE = 2**25  # entries of the cosine matrix that are held at a time


@dataclass(frozen=True, slots=True)
class BestMatches:
    """The nearest direction of the other dictionary, for every direction of both.

    Attributes:
        forward: MMCS from the first dictionary to the second.
        backward: MMCS from the second to the first.
        first_nearest: int64 [F], the row of the second dictionary.
        second_nearest: int64 [F'], the row of the first.
        first_cosines: float64 [F], with the nearest; absolute when not signed.
        second_cosines: float64 [F'].
    """

    forward: float
    backward: float
    first_nearest: NDArray[np.int64]
    second_nearest: NDArray[np.int64]
    first_cosines: NDArray[np.float64]
    second_cosines: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matching:
    """A one-to-one matching of two dictionaries, with its best matches.

    Attributes:
        first: int64 [pair], rows of the first dictionary, ascending.
        second: int64 [pair], their partners.
        cosines: float64 [pair], absolute when not signed.
        mcc: Their mean.
        mmcs_forward: Mean largest cosine from the first dictionary to the second.
        mmcs_backward: The same from the second to the first.
        stable_70: Share of pairs with a cosine of 0.7 or more.
        stable_90: The same for 0.9.
        weighted_70: The same as ``stable_70`` where each pair counts by the usage of its first feature; NaN
            without usage.
        weighted_90: The same for 0.9.
        signed: Whether opposite directions count as different.
        exact: Whether all pairs were candidates. If not, ``mcc`` is a lower bound of the best one.
        bound: An upper bound of the best mean cosine, from the best matches of either side.
        zero_first: Rows of zeros in the first dictionary.
        zero_second: The same in the second.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float64]
    mcc: float
    mmcs_forward: float
    mmcs_backward: float
    stable_70: float
    stable_90: float
    weighted_70: float
    weighted_90: float
    signed: bool
    exact: bool
    bound: float
    zero_first: int
    zero_second: int

    def by_feature(self, features: int) -> NDArray[np.float64]:
        """float64 [features], the matched cosine of every feature of the first dictionary; NaN where it has
        none.

        Args:
            features: F.
        """
        out = np.full(features, np.nan)
        out[self.first] = self.cosines
        return out


@dataclass(frozen=True, slots=True)
class Chance:
    """What random directions of the same number and width agree by.

    Attributes:
        mcc: Mean over draws.
        mcc_sd: Standard deviation over draws; NaN for one draw.
        mmcs_forward: Mean over draws.
        mmcs_backward: Mean over draws.
        stable_70: Mean share of pairs with a cosine of 0.7 or more.
        asymptotic: sqrt(2 ln F' / d), the large-number value of ``mmcs_forward`` for directions that are
            uniform on the sphere; somewhat above the sampled one. NaN with a covariance.
        draws: Pairs of dictionaries drawn.
        seed: Their seed.
        signed: As of ``Matching``.
        from_covariance: Whether the directions have the covariance of the data and not a uniform
            distribution.
    """

    mcc: float
    mcc_sd: float
    mmcs_forward: float
    mmcs_backward: float
    stable_70: float
    asymptotic: float
    draws: int
    seed: int
    signed: bool
    from_covariance: bool


def best_matches(
    first: NDArray[np.floating], second: NDArray[np.floating], *, signed: bool = True
) -> BestMatches:
    """MMCS in both directions.

    Args:
        first: [F, d].
        second: [F', d].
        signed: Whether opposite directions count as different.

    Raises:
        SpecError: If the widths differ, a dictionary is empty or a number is not finite.

    Example:
        >>> found = best_matches(np.eye(2), np.array([[1.0, 0.0], [2.0, 0.0]]))  # the second twice the same
        >>> found.forward, found.backward
        (0.5, 1.0)
    """
    return _nearest(*_units(first, second), signed)


def match(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    signed: bool = True,
    usage: ArrayLike | None = None,
    exact: bool | None = None,
    neighbours: int = NEIGHBOURS,
) -> Matching:
    """The one-to-one matching with the largest mean cosine, and all that is said about agreement.

    Above ``EXACT_ENTRIES`` pairs only the ``neighbours`` nearest directions of each one are candidates; the
    few that are left without a partner are matched among each other.

    Args:
        first: [F, d].
        second: [F', d].
        signed: Whether opposite directions count as different.
        usage: float [F], for example density times mean activation of each feature of the first dictionary.
        exact: Look at all pairs, or not; by size when None.
        neighbours: Candidates of each direction where not all pairs are.

    Raises:
        SpecError: If the widths differ, a dictionary is empty or a number is not finite.

    Example:
        >>> found = match(np.eye(3), np.eye(3)[[2, 0, 1]] * 5)
        >>> found.mcc, found.second.tolist(), found.stable_90, found.exact
        (1.0, [1, 2, 0], 1.0, True)
        >>> round(match(np.eye(3), -np.eye(3)).mcc, 6), match(np.eye(3), -np.eye(3), signed=False).mcc
        (0.0, 1.0)
    """
    one, two = _units(first, second)
    nearest = _nearest(one, two, signed)
    whole = len(one) * len(two) <= EXACT_ENTRIES if exact is None else exact
    rows, columns = (
        _assign(_cosines(one, two, signed)) if whole else _pruned(one, two, signed, max(1, neighbours))
    )
    order = np.argsort(rows)
    rows, columns = rows[order].astype(np.int64), columns[order].astype(np.int64)
    cosines = np.einsum("fd,fd->f", one[rows], two[columns], dtype=np.float64).clip(-1, 1)
    cosines = cosines if signed else np.abs(cosines)
    pairs = len(rows)
    # No matching can be better than the best partner of each, on the side that is used up; on the other
    # side, than the best of those.
    bounds = [np.sort(side)[::-1][:pairs].mean() for side in (nearest.first_cosines, nearest.second_cosines)]
    weights = np.full(len(one), np.nan) if usage is None else np.asarray(usage, np.float64)
    if weights.shape != (len(one),):
        raise SpecError("usage is not one number for each feature", where="usage", got=weights.shape)
    used = weights[rows]
    weighted = [float(used @ (cosines >= at) / used.sum()) if used.sum() != 0 else math.nan for at in STABLE]
    return Matching(
        first=rows,
        second=columns,
        cosines=cosines,
        mcc=float(cosines.mean()),
        mmcs_forward=nearest.forward,
        mmcs_backward=nearest.backward,
        stable_70=float((cosines >= STABLE[0]).mean()),
        stable_90=float((cosines >= STABLE[1]).mean()),
        weighted_70=weighted[0],
        weighted_90=weighted[1],
        signed=signed,
        exact=whole,
        bound=float(min(1.0, *bounds)),
        zero_first=int((~one.any(1)).sum()),
        zero_second=int((~two.any(1)).sum()),
    )


def asymptotic_mmcs(directions: int, width: int) -> float:
    """sqrt(2 ln F' / d), at most 1: the largest cosine of a direction with F' random ones, for many of them.

    The largest of F' independent normal numbers of variance 1 / d is below it by a few percent at usual
    sizes.

    Args:
        directions: F', directions of the other dictionary.
        width: d.

    Example:
        >>> round(asymptotic_mmcs(12_288, 768), 3)
        0.157
    """
    return min(1.0, math.sqrt(2 * math.log(directions) / width))


def chance(
    first: int,
    second: int,
    width: int,
    *,
    draws: int = 3,
    seed: int = 0,
    signed: bool = True,
    covariance: NDArray[np.floating] | None = None,
    exact: bool | None = None,
) -> Chance:
    """Agreement of random dictionaries of this shape.

    Args:
        first: F.
        second: F'.
        width: d.
        draws: Pairs of dictionaries; one of 4,608 by 4,608 takes seconds.
        seed: Seed of an own generator.
        signed: As of ``match``.
        covariance: [d, d] of the activations, or their second moments about zero: directions are then drawn
            normal with it. Activations fill few of their dimensions, so that two dictionaries of
            random data directions agree far better than uniform ones: a stronger null.
        exact: As of ``match``.

    Raises:
        SpecError: If a number is not positive, or the covariance is no [d, d] matrix that is positive
            semidefinite.

    Example:
        >>> uniform = chance(64, 64, 32)
        >>> narrow = chance(64, 64, 32, covariance=np.diag([1.0] * 4 + [1e-4] * 28))
        >>> 0.3 < uniform.mcc < 0.45 < uniform.asymptotic, narrow.mcc > 0.7
        (True, True)
    """
    if min(first, second, width, draws) < 1:
        raise SpecError("chance needs directions", allowed="1 or more", got=(first, second, width, draws))
    root = None if covariance is None else _root(np.asarray(covariance, np.float64), width)
    generator = np.random.default_rng(seed)

    def drawn(number: int) -> NDArray[np.floating]:
        normal = generator.standard_normal((number, width), np.float32)
        return normal if root is None else normal @ root

    found = [match(drawn(first), drawn(second), signed=signed, exact=exact) for _ in range(draws)]
    mccs = np.array([one.mcc for one in found])
    return Chance(
        mcc=float(mccs.mean()),
        mcc_sd=float(mccs.std(ddof=1)) if draws > 1 else math.nan,
        mmcs_forward=float(np.mean([one.mmcs_forward for one in found])),
        mmcs_backward=float(np.mean([one.mmcs_backward for one in found])),
        stable_70=float(np.mean([one.stable_70 for one in found])),
        asymptotic=asymptotic_mmcs(second, width) if covariance is None else math.nan,
        draws=draws,
        seed=seed,
        signed=signed,
        from_covariance=covariance is not None,
    )


def _units(
    first: NDArray[np.floating], second: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Both dictionaries with rows of unit norm, in float64 where both are; rows of zeros stay."""
    dtype = np.float64 if first.dtype == second.dtype == np.float64 else np.float32
    flat = first.ndim != 2 or second.ndim != 2
    if flat or first.shape[1] != second.shape[1] or not first.size * second.size:
        raise SpecError(
            "dictionaries cannot be compared",
            where="matching",
            allowed="[F, d] and [F', d] of the same d, not empty",
            got=f"{first.shape} and {second.shape}",
        )
    out = []
    for directions in (first, second):
        if not np.isfinite(directions).all():
            raise SpecError("a direction has entries that are not finite", where="matching")
        exact = directions.astype(np.float64)
        largest = np.abs(exact).max(1, keepdims=True)
        exact = np.divide(exact, largest, out=np.zeros_like(exact), where=largest > 0)
        norms = np.linalg.norm(exact, axis=1, keepdims=True)
        out.append(np.divide(exact, norms, out=np.zeros_like(exact), where=norms > 0).astype(dtype))
    return out[0], out[1]


def _cosines(one: NDArray[np.floating], two: NDArray[np.floating], signed: bool) -> NDArray[np.floating]:
    """All cosines, [F, F']."""
    cosines = one @ two.T
    return cosines if signed else np.abs(cosines, out=cosines)


def _tiles(
    one: NDArray[np.floating], two: NDArray[np.floating], signed: bool
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """First row and cosines of some rows at a time."""
    step = max(1, _TILE // len(two))
    for begin in range(0, len(one), step):
        yield begin, _cosines(one[begin : begin + step], two, signed)


def _nearest(one: NDArray[np.floating], two: NDArray[np.floating], signed: bool) -> BestMatches:
    """The best match of every direction."""
    first, second = np.zeros(len(one), np.int64), np.zeros(len(two), np.int64)
    best_first, best_second = np.zeros(len(one)), np.full(len(two), -np.inf)
    for begin, cosines in _tiles(one, two, signed):
        part = slice(begin, begin + len(cosines))
        first[part] = cosines.argmax(1)
        best_first[part] = cosines[np.arange(len(cosines)), first[part]]
        rows = cosines.argmax(0)
        here = cosines[rows, np.arange(len(two))]
        second = np.where(here > best_second, rows + begin, second)
        best_second = np.maximum(here, best_second)
    best_first, best_second = best_first.clip(-1, 1), best_second.clip(-1, 1)
    means = float(best_first.mean()), float(best_second.mean())
    return BestMatches(*means, first, second, best_first, best_second)


def _assign(cosines: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the best one-to-one matching."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cosines, maximize=True)


def _pruned(
    one: NDArray[np.floating], two: NDArray[np.floating], signed: bool, neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A matching among the nearest directions of each; those left over are matched among each other.

    Every row of the smaller side also has a column of its own that no one else may take, at the cost of
    cosine -1 and more: so there is always a full matching, and who takes it is left over.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if len(one) > len(two):
        columns, rows = _pruned(two, one, signed, neighbours)
        return rows, columns
    edges = [_top(one, two, signed, neighbours), _top(two, one, signed, neighbours)]
    keys = np.unique(np.r_[edges[0][0] * len(two) + edges[0][1], edges[1][1] * len(two) + edges[1][0]])
    rows, columns = keys // len(two), keys % len(two)
    near = np.empty(len(keys))
    for begin in range(0, len(keys), 2**18):
        part = slice(begin, begin + 2**18)
        near[part] = np.einsum("fd,fd->f", one[rows[part]], two[columns[part]])
    near = near if signed else np.abs(near)
    own = np.arange(len(one))
    costs = np.r_[2.0 - near, np.full(len(one), 4.0)]  # all positive: zeros would be no edges
    graph = coo_array(
        (costs, (np.r_[rows, own], np.r_[columns, len(two) + own])), shape=(len(one), len(two) + len(one))
    )
    rows, columns = min_weight_full_bipartite_matching(graph.tocsr())
    found = columns < len(two)
    spare_rows = rows[~found]
    rows, columns = rows[found], columns[found]
    if len(spare_rows):
        spare_columns = np.setdiff1d(np.arange(len(two)), columns)
        more, others = _assign(_cosines(one[spare_rows], two[spare_columns], signed))
        rows = np.r_[rows, spare_rows[more]]
        columns = np.r_[columns, spare_columns[others]]
    return rows, columns


def _top(
    one: NDArray[np.floating], two: NDArray[np.floating], signed: bool, neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the nearest directions of each row."""
    count = min(neighbours, len(two))
    columns = np.concatenate(
        [
            np.argpartition(cosines, len(two) - count, axis=1)[:, len(two) - count :]
            for _, cosines in _tiles(one, two, signed)
        ]
    )
    return np.repeat(np.arange(len(one)), count), columns.reshape(-1).astype(np.int64)


def _root(covariance: NDArray[np.float64], width: int) -> NDArray[np.float32]:
    """A matrix R with R^T R the covariance, [d, d], of unit mean variance."""
    fits = covariance.shape == (width, width) and bool(np.isfinite(covariance).all())
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2) if fits else (np.zeros(1), np.zeros(1))
    if not fits or values.max() <= 0 or values.min() < -1e-6 * values.max():
        raise SpecError(
            "not the covariance of activations",
            where="covariance",
            allowed=f"[{width}, {width}], positive semidefinite and not zero",
            got=f"{covariance.shape}, smallest eigenvalue {values.min():.3g}",
        )
    scale = np.sqrt(values.clip(0) / values.clip(0).mean())
    return (scale[:, None] * vectors.T).astype(np.float32)
