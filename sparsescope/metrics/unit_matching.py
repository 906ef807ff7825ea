"""Do two networks find the same units: one-to-one, one-to-few, many-to-many ("Convergent Learning", Li,
Yosinski, Clune, Lipson & Hopcroft, arXiv:1511.07543).

Units are compared by Pearson's correlation over the same inputs, of either sign unless said otherwise: a unit
and its negative are the same feature. Units that do not vary have no correlation; their rows are 0.

Shapes: U [row, p], V [row, q] of the same rows; C [p, q].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import solve
from scipy.optimize import linear_sum_assignment

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

SAME = 0.7
"""Correlation from which on two units count as one."""
EXPLAINED, UNEXPLAINED = 0.8, 0.5
"""Shares of the variance of a unit: from which on, and up to which, other units say what it does."""
OF_DENSE = 0.9
FEW = 5
CLASSES = ("one-to-one", "one-to-few", "distributed", "unique", "between")
_VARIES = 1e-12


def correlations(first: ArrayLike, second: ArrayLike) -> Array:
    """Pearson's correlation of every unit with every unit, [p, q]; 0 for units that do not vary.

    Raises:
        SpecError: The rows differ in number, or a number is not finite.

    Example:
        >>> u = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
        >>> correlations(u, -u).round(6).tolist()
        [[-1.0, 0.0], [0.0, 0.0]]
    """
    u, v = standardized(first), standardized(second)
    if len(u) != len(v):
        raise SpecError(
            "the units are not of the same rows", where="correlations", got=f"{len(u)} and {len(v)} rows"
        )
    return np.clip(u.T @ v / max(1, len(u)), -1, 1)


def standardized(units: ArrayLike) -> Array:
    """Columns with mean 0 and variance 1; zeros where a column does not vary.

    Raises:
        SpecError: It is no matrix, or a number is not finite.

    Example:
        >>> standardized([[1.0, 5.0], [3.0, 5.0]]).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    values = np.asarray(units, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise SpecError(
            "units are a matrix of finite numbers",
            where="units",
            allowed="[row, unit]",
            got=str(values.shape),
        )
    centred = values - values.mean(0)
    spread = np.sqrt((centred**2).mean(0))
    scale = np.abs(values).max(0, initial=0)
    varies = spread > _VARIES * np.maximum(scale, 1e-300)
    return np.where(varies, centred / np.where(varies, spread, 1), 0.0)


@dataclass(frozen=True, slots=True)
class UnitMatching:
    """How the units of V are found among those of U.

    Attributes:
        best: int64 [q], the most correlated unit of U.
        best_values: float64 [q], its correlation, absolute unless signed.
        partner: int64 [q], the unit of U in the one-to-one matching with the largest sum; -1 for none.
        partner_values: float64 [q]; NaN for none.
        mutual: bool [q], whether the best unit of U has this one as its best.
    """

    best: NDArray[np.int64]
    best_values: Array
    partner: NDArray[np.int64]
    partner_values: Array
    mutual: NDArray[np.bool_]


def match_units(correlation: ArrayLike, *, signed: bool = False) -> UnitMatching:
    """Best matches, in which many may share one, and the one-to-one matching (Hungarian method).

    Args:
        correlation: C, [p, q].
        signed: Whether a unit and its negative differ.

    Raises:
        SpecError: It is no matrix, or is empty.

    Example:
        >>> found = match_units([[0.9, 0.8], [0.1, -0.7]])
        >>> found.best.tolist(), found.partner.tolist(), found.mutual.tolist()
        ([0, 0], [0, 1], [True, False])
    """
    c = np.asarray(correlation, np.float64)
    if c.ndim != 2 or not c.size:
        raise SpecError("correlations are a matrix", where="match_units", allowed="[p, q]", got=str(c.shape))
    value = c if signed else np.abs(c)
    best = value.argmax(0)
    partner, partner_values = np.full(c.shape[1], -1), np.full(c.shape[1], np.nan)
    rows, columns = linear_sum_assignment(-value)
    partner[columns], partner_values[columns] = rows, value[rows, columns]
    mutual = value.argmax(1)[best] == np.arange(c.shape[1])
    return UnitMatching(best, value[best, np.arange(c.shape[1])], partner, partner_values, mutual)


@dataclass(frozen=True, slots=True)
class FewPredictors:
    """How well few units of U predict each unit of V, on rows that they were not fitted on.

    Attributes:
        explained: float64 [target, most + 1], R^2 with the first 0, 1, 2, ... units that enter the LASSO
            path, fitted again by least squares.
        dense: float64 [target], R^2 with all candidates (ridge).
        needed: int64 [target], fewest units with ``OF_DENSE`` of that; ``most + 1`` where more are needed.
    """

    explained: Array
    dense: Array
    needed: NDArray[np.int64]


def few_predictors(
    first: ArrayLike,
    second: ArrayLike,
    fit: NDArray[np.bool_],
    targets: NDArray[np.integer],
    *,
    most: int = 20,
    candidates: int = 200,
    ridge: float = 1e-3,
) -> FewPredictors:
    """LASSO paths from the units of U to units of V.

    The path says the order in which units enter; coefficients are fitted again by least squares on the units
    that are in, which LASSO shrinks. Only the ``candidates`` units that correlate most with a target (on the
    rows of the fit) take part.

    Args:
        first: U, [row, p].
        second: V, [row, q].
        fit: bool [row], rows that are fitted; R^2 is of the others.
        targets: Units of V.
        most: Most units.
        candidates: Most units of U that are looked at for a target.
        ridge: Penalty of the dense prediction, in units of the variance.

    Raises:
        SpecError: There is nothing to fit, or nothing to judge.

    Example:
        >>> random = np.random.default_rng(0)
        >>> u = random.normal(size=(400, 6))
        >>> v = np.stack([u[:, 2], u[:, 0] + u[:, 1]], axis=1)
        >>> found = few_predictors(u, v, np.arange(400) % 2 == 0, np.array([0, 1]))
        >>> found.needed.tolist()
        [1, 2]
    """
    from sklearn.linear_model import lars_path_gram

    u, v = standardized(first), standardized(second)[:, targets]
    if not fit.any() or fit.all():
        raise SpecError(
            "rows are needed to fit and to judge",
            where="few_predictors",
            got=f"{int(fit.sum())} of {len(fit)}",
        )
    grams, products, energies = [], [], []
    for rows in (fit, ~fit):
        a, b = u[rows], v[rows]
        a, b = a - a.mean(0), b - b.mean(0)
        grams.append(a.T @ a / len(a))
        products.append(a.T @ b / len(a))
        energies.append((b**2).mean(0))
    explained = np.full((len(targets), most + 1), np.nan)
    dense = np.full(len(targets), np.nan)
    needed = np.full(len(targets), most + 1)
    for place in range(len(targets)):
        if energies[0][place] <= _VARIES or energies[1][place] <= _VARIES:
            continue
        order = np.argsort(-np.abs(products[0][:, place]), kind="stable")[:candidates]
        order = order[grams[0][order, order] > _VARIES]
        gram, gram_out = (g[np.ix_(order, order)] for g in grams)
        xy, xy_out = (p[order, place] for p in products)

        def judged(
            chosen: NDArray[np.intp],
            weights: Array,
            xy_out: Array = xy_out,
            gram_out: Array = gram_out,
            energy: float = float(energies[1][place]),
        ) -> float:
            error = (
                energy - 2 * weights @ xy_out[chosen] + weights @ gram_out[np.ix_(chosen, chosen)] @ weights
            )
            return float(1 - error / energy)

        everything = np.arange(len(order))
        dense[place] = (
            judged(everything, solve(gram + ridge * np.eye(len(order)), xy, assume_a="pos"))
            if len(order)
            else 0.0
        )
        explained[place, 0] = judged(everything[:0], np.zeros(0))
        entered: list[int] = []
        if len(order):
            _, active, _ = lars_path_gram(
                xy, gram, n_samples=int(fit.sum()), max_iter=2 * most, method="lasso"
            )
            entered = [int(unit) for unit in active][:most]
        for size in range(1, len(entered) + 1):
            chosen = np.array(entered[:size])
            weights = solve(gram[np.ix_(chosen, chosen)] + 1e-9 * np.eye(size), xy[chosen], assume_a="pos")
            explained[place, size] = judged(chosen, weights)
        reached = np.flatnonzero(explained[place] >= OF_DENSE * dense[place])
        if len(reached) and dense[place] > 0:
            needed[place] = reached[0]
    return FewPredictors(explained, dense, needed)


def classify(
    matching: UnitMatching, predicted: FewPredictors, targets: NDArray[np.integer]
) -> NDArray[np.int64]:
    """The class of each target, an index into ``CLASSES``.

    - one-to-one: its partner in the one-to-one matching is its best match, the match is mutual, and they
      correlate by ``SAME`` or more;
    - one-to-few: at most ``FEW`` units say ``OF_DENSE`` of what all say, and all say ``EXPLAINED``;
    - distributed: all say ``EXPLAINED``, and more than ``FEW`` are needed;
    - unique: all together say less than ``UNEXPLAINED``;
    - between: all say something between the two.

    Args:
        matching: Of all units of V.
        predicted: Of the targets.
        targets: Units of V.

    Example:
        >>> u = np.random.default_rng(0).normal(size=(300, 4))
        >>> found = few_predictors(u, u, np.arange(300) % 2 == 0, np.arange(4))
        >>> [CLASSES[c] for c in classify(match_units(correlations(u, u)), found, np.arange(4))]
        ['one-to-one', 'one-to-one', 'one-to-one', 'one-to-one']
    """
    one = (
        matching.mutual[targets]
        & (matching.partner[targets] == matching.best[targets])
        & (matching.partner_values[targets] >= SAME)
    )
    well = predicted.dense >= EXPLAINED
    found = np.full(len(targets), CLASSES.index("between"))
    found[~(predicted.dense >= UNEXPLAINED)] = CLASSES.index("unique")
    found[well & (predicted.needed > FEW)] = CLASSES.index("distributed")
    found[well & (predicted.needed <= FEW)] = CLASSES.index("one-to-few")
    found[one] = CLASSES.index("one-to-one")
    return found


@dataclass(frozen=True, slots=True)
class Blocks:
    """Groups of units of both networks that belong together.

    Attributes:
        first: int64 [p], the block of each unit of U.
        second: int64 [q], of each unit of V.
        within: Mean absolute correlation of pairs in one block.
        between: Of pairs in two blocks.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    within: float
    between: float


def blocks(correlation: ArrayLike, count: int, *, power: float = 2.0, seed: int = 0) -> Blocks:
    """Spectral co-clustering of the graph with weights |C|^power (Dhillon 2001).

    Args:
        correlation: C, [p, q].
        count: Blocks.
        power: What absolute correlations are raised to.
        seed: Of the k-means at its end.

    Raises:
        SpecError: There are fewer units than blocks.

    Example:
        >>> c = np.kron(np.eye(2), np.ones((3, 3)))  # two blocks of three units on each side
        >>> found = blocks(c, 2)
        >>> bool((found.first[:3] == found.second[:3]).all()), found.within, round(found.between, 3)
        (True, 1.0, 0.0)
    """
    from sklearn.cluster import SpectralCoclustering

    c = np.abs(np.asarray(correlation, np.float64))
    if count < 2 or min(c.shape) < count:
        raise SpecError(
            "there are fewer units than blocks",
            where="blocks",
            allowed=f"2 to {min(c.shape)}",
            got=str(count),
        )
    # A unit that correlates with nothing has no place in a normalised graph
    weights = c**power + 1e-9
    made = SpectralCoclustering(n_clusters=count, random_state=seed, n_init=5).fit(weights)
    first, second = made.row_labels_.astype(np.int64), made.column_labels_.astype(np.int64)
    same = first[:, None] == second[None]
    within = float(c[same].mean()) if same.any() else float("nan")
    return Blocks(first, second, within, float(c[~same].mean()) if (~same).any() else float("nan"))


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019): |V'U|^2 / (|U'U| |V'V|), centred columns.

    It does not change under rotations and one factor for all, and does under other linear maps.

    Example:
        >>> u = np.random.default_rng(0).normal(size=(50, 3))
        >>> round(linear_cka(u, 3 * u[:, ::-1]), 6)
        1.0
    """
    u, v = (_centred(part) for part in (first, second))
    norm = np.linalg.norm(u.T @ u) * np.linalg.norm(v.T @ v)
    return float(np.linalg.norm(v.T @ u) ** 2 / norm) if norm > 0 else float("nan")


def mean_canonical_correlation(first: ArrayLike, second: ArrayLike, kept: float = 0.99) -> float:
    """Mean canonical correlation of the directions that hold most variance (SVCCA, Raghu et al. 2017).

    With ``kept`` 1 it does not change under invertible linear maps of either side.

    Args:
        first: U.
        second: V.
        kept: Share of the variance of each side.

    Example:
        >>> u = np.random.default_rng(0).normal(size=(200, 3))
        >>> map_of_u = np.array([[1.0, 2, 0], [0, 1, 0], [3, 0, 1]])
        >>> round(mean_canonical_correlation(u, u @ map_of_u, kept=1.0), 6)
        1.0
    """
    bases = []
    for part in (first, second):
        left, sizes, _ = np.linalg.svd(_centred(part), full_matrices=False)
        energy = np.cumsum(sizes**2)
        if not len(energy) or energy[-1] <= 0:
            return float("nan")
        rank = int((sizes > 1e-10 * sizes[0]).sum())
        bases.append(left[:, : min(rank, int(np.searchsorted(energy, kept * energy[-1] * (1 - 1e-12))) + 1)])
    return float(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False).clip(0, 1).mean())


def _centred(units: ArrayLike) -> Array:
    values = np.asarray(units, np.float64)
    return values - values.mean(0)
