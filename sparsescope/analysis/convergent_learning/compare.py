"""Two sets of units on the same rows, compared; the null shifts the rows of one against those of the other.

A shift is circular and keeps what neighbouring rows have in common (tokens of a document, pairs with the same
first number); what it breaks is that both saw the same input.
Shapes: U [row, p], V [row, q].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.dictionaries.snmf import SNMF
from sparsescope.metrics import fourier
from sparsescope.metrics.unit_matching import (
    CLASSES,
    SAME,
    FewPredictors,
    UnitMatching,
    blocks,
    classify,
    correlations,
    few_predictors,
    linear_cka,
    match_units,
    mean_canonical_correlation,
    standardized,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.convergent_learning import ConvergentLearningParams

    Array = NDArray[np.float64]

RANKS = 50
FEWEST = 5
_ITERATIONS = 60


def compare(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    group: NDArray[np.int64],
    modulus: int,
    same_neurons: bool,
    params: ConvergentLearningParams,
) -> dict[str, NDArray[Any]]:
    """Compare the units of two layers.

    Args:
        first: U.
        second: V.
        group: int64 [row]; rows of a group are fitted together or judged together.
        modulus: p of modular addition; 0 for other inputs.
        same_neurons: Whether unit i of both is the same neuron at two times.
        params: Parameters of the analysis.

    Returns:
        Arrays by name; see the tables that ``report.py`` makes of them.
    """
    random = np.random.default_rng([params.seed, 41])
    u, v = (_varying(part) for part in (first, second))
    shifts = random.choice(np.arange(1, len(u)), min(params.shifts, len(u) - 1), replace=False)
    targets = np.sort(random.permutation(v.shape[1])[: params.targets])
    fit = np.isin(group, random.permutation(np.unique(group))[: max(1, len(np.unique(group)) // 2)])
    c = correlations(u, v)
    found = match_units(c)
    path = _paths(u, v, fit, targets, params)
    classes = classify(found, path, targets)
    out: dict[str, NDArray[Any]] = {
        "units": np.array([u.shape[1], v.shape[1]]),
        "classes": classes,
        "best": np.sort(found.best_values)[::-1],
        "partner": np.sort(found.partner_values[np.isfinite(found.partner_values)])[::-1],
        "explained": _mean(path.explained),
        "dense": np.array([np.nanmean(path.dense)]),
        "likeness": np.array([linear_cka(u, v), mean_canonical_correlation(u, v)]),
    }
    out |= _null(u, v, fit, targets, shifts, params)
    out |= _blocks(c, u, v, first, second, found, modulus, shifts, params, random)
    if params.components:
        out |= _dictionaries(first, second, same_neurons, shifts, params)
    return out


def _varying(units: NDArray[np.float32]) -> Array:
    """Units that vary, standardized."""
    values = standardized(units)
    return values[:, values.any(0)]


def _paths(
    u: Array, v: Array, fit: NDArray[np.bool_], targets: NDArray[np.int64], params: ConvergentLearningParams
) -> FewPredictors:
    # Five rows for each candidate at least: with fewer, what all say of other rows is mostly noise
    candidates = max(FEWEST, min(params.candidates, int(fit.sum()) // FEWEST))
    return few_predictors(u, v, fit, targets, most=params.predictors, candidates=candidates)


def _mean(explained: Array) -> Array:
    """Mean over targets of R^2 by the number of units; a path that ended stays where it was."""
    filled = explained.copy()
    for size in range(1, filled.shape[1]):
        missing = np.isnan(filled[:, size])
        filled[missing, size] = filled[missing, size - 1]
    return np.nanmean(filled, axis=0)


def _null(
    u: Array,
    v: Array,
    fit: NDArray[np.bool_],
    targets: NDArray[np.int64],
    shifts: NDArray[np.int64],
    params: ConvergentLearningParams,
) -> dict[str, NDArray[Any]]:
    best, partner, likeness, shares, explained = [], [], [], [], []
    for number, shift in enumerate(shifts.tolist()):
        turned = np.roll(v, shift, axis=0)
        found = match_units(correlations(u, turned))
        best.append(np.sort(found.best_values)[::-1])
        partner.append(np.nanmean(found.partner_values))
        likeness.append(linear_cka(u, turned))
        if number < params.path_shifts:
            path = _paths(u, turned, fit, targets, params)
            classes = classify(found, path, targets)
            shares.append([(classes == place).mean() for place in range(len(CLASSES))])
            explained.append(_mean(path.explained))
    return {
        "null_best": np.mean(best, axis=0),
        "null_partner": np.array(partner),
        "null_cka": np.array(likeness),
        "null_shares": np.array(shares),
        "null_explained": np.mean(explained, axis=0),
    }


def _blocks(
    c: Array,
    u: Array,
    v: Array,
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    found: UnitMatching,
    modulus: int,
    shifts: NDArray[np.int64],
    params: ConvergentLearningParams,
    random: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    count = min(params.blocks, *c.shape)
    if count < 2:
        return {}
    made = blocks(c, count, seed=params.seed)
    null = [
        blocks(correlations(u, np.roll(v, shift, axis=0)), count, seed=params.seed).within
        for shift in shifts[: params.path_shifts].tolist()
    ]
    truth = np.full(4, np.nan)
    if modulus:
        from sklearn.metrics import adjusted_mutual_info_score

        labels = [_frequencies(part) for part in (first, second)]
        truth[0] = adjusted_mutual_info_score(labels[0], made.first)
        truth[1] = adjusted_mutual_info_score(labels[1], made.second)
        paired = found.partner >= 0
        ours, theirs = labels[1][paired], labels[0][found.partner[paired]]
        known = (ours > 0) & (theirs > 0)
        if known.any():
            truth[2] = (ours == theirs)[known].mean()
            dealt = [(ours[known] == random.permutation(theirs[known])).mean() for _ in range(200)]
            truth[3] = np.mean(dealt)
    return {"blocks": np.array([count, made.within, made.between, np.nanmean(null)]), "truth": truth}


def _frequencies(units: NDArray[np.float32]) -> NDArray[np.int64]:
    """Dominant frequency of every unit that varies; 0 for none."""
    kept = standardized(units).any(0)
    return fourier.dominant_frequencies(fourier.neuron_energies(units[:, kept])[0], 0.8)


def _dictionaries(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    same_neurons: bool,
    shifts: NDArray[np.int64],
    params: ConvergentLearningParams,
) -> dict[str, NDArray[Any]]:
    """Mean correlation of features, and the share that are the same, observed and with rows shifted."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    components = min(params.components, len(first) // 2, first.shape[1], second.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a coarse description will do
        fitted = [
            SNMF(components, sparsity=0.1, max_iter=_ITERATIONS, random_state=params.seed).fit(
                np.asarray(part, np.float32)
            )
            for part in (first, second)
        ]
    ours = fitted[0].transform(first)
    rows = []
    ways = [(1, fitted[1].transform(second))]
    if same_neurons:
        ways.insert(0, (0, fitted[0].transform(second)))
    for way, theirs in ways:
        values = [_matched(ours, theirs, way)]
        null = [_matched(ours, np.roll(theirs, shift, axis=0), way) for shift in shifts.tolist()]
        rows.append([way, components, *values[0], *np.mean(null, axis=0)])
    return {"dictionaries": np.array(rows)}


def _matched(ours: NDArray[np.floating], theirs: NDArray[np.floating], way: int) -> tuple[float, float]:
    """Mean correlation of counterparts, and the share with ``SAME`` or more."""
    c = correlations(ours, theirs)
    values = np.diag(c) if way == 0 else np.nan_to_num(match_units(c, signed=True).partner_values)
    return float(values.mean()), float((values >= SAME).mean())


def quantiles(values: Array) -> Iterator[tuple[float, float]]:
    """Places of sorted values, at most ``RANKS`` of them."""
    places = np.unique(np.linspace(0, len(values) - 1, min(RANKS, len(values))).round().astype(int))
    for place in places.tolist():
        yield place / max(1, len(values) - 1), float(values[place])
