"""Feature absorption: a feature for something general stays silent where a more special one fires.

A dictionary may have a feature "begins with s" that does not fire on the token "snake", because the feature
for snakes carries the direction of the letter too: it is sparser, and reads as a feature with arbitrary holes
(Chanin et al. 2024, arXiv:2409.14507). For each label, such as a first letter:

1. A linear probe gives its direction p; labels whose probe has an F1 below 0.6 on held-out rows are left out.
2. The main features are those of k-sparse probing on the train half, in the order of (mean over positives -
   mean over negatives) times the norm of the decoder row: the first one, and more as long as each raises F1
   by 0.03 (a label that is split over several features).
3. Among held-out rows of the label on which the probe fires, with P = <x - bias, p> / |p| and the projection
   z_f <w_f, p> / |p| of every feature:
   - full absorption: no main feature is active, and of the others the one that projects most is aligned
     with p (cosine) and carries a share of P;
   - absorption fraction: what the aligned others carry, A (the largest few of those that are positive),
     against what the main features carry, M. Zero where A is 0, or less than a share of P.

Two parameter sets are in use, which give different numbers; each result names its own. ``PAPER``: every other
feature may absorb, the fraction is |A| / (|A| + |M|). ``CODE`` (sae_bench 0.6): cosine 0.025 and 0.1, share
0.4, three absorbers; the fraction is 0 where M >= P, 1 where M <= 0, else A' / (A' + M) with A' = min(A, P
- M). There projections use the cosine in place of <w_f, p>, which is the same for decoder rows of unit norm.
Shapes: R rows, F features, T labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.probing import MEASURES, LinearProbes, class_gaps, sparse_probe_scores

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class AbsorptionParameters:
    """What counts as absorption.

    Attributes:
        name: Of the set.
        full_cosine: Least cosine of an absorber with the probe, for full absorption.
        fraction_cosine: The same for the fraction.
        least_share: Share of P that absorbers must carry, for both.
        most_absorbers: How many are added up for the fraction; all when None.
        capped: Whether absorbers count for no more than what the main features leave.
        split_gain: F1 that one more main feature must bring.
        most_main: Main features at most.
        least_probe_f1: F1 that the probe of a label must have.
        least_labels: Labels with such a probe that a mean needs.
    """

    name: str
    full_cosine: float
    fraction_cosine: float
    least_share: float
    most_absorbers: int | None
    capped: bool
    split_gain: float = 0.03
    most_main: int = 10
    least_probe_f1: float = 0.6
    least_labels: int = 20


PAPER = AbsorptionParameters("paper", -1.0, -1.0, 0.0, None, capped=False)
CODE = AbsorptionParameters("code", 0.025, 0.1, 0.4, 3, capped=True)


@dataclass(frozen=True, slots=True)
class Absorption:
    """Absorption of every label, NaN or empty for labels that were left out.

    Attributes:
        parameters: The set that was used.
        evaluated: bool [T]; whether the probe is good enough, fires on rows of the label and there is a main
            feature.
        probe_f1: float64 [T], of the linear probe on held-out rows.
        main: T arrays of main features, int64, best first.
        main_f1: float64 [T], of the sparse probe on them, in the train half. Where it is low the dictionary
            has no feature for the label, and absorption says little.
        fired: int64 [T], held-out rows of the label on which the probe fires.
        full: float64 [T], share of them that are fully absorbed.
        fraction: float64 [T], mean absorption fraction of them.
        absorbers: T arrays of features that fully absorb some row, int64, ascending.
        mean_full: Mean over labels that were evaluated.
        mean_fraction: The same.
        split_share: Share of them that have more than one main feature.
        enough: Whether at least ``parameters.least_labels`` were evaluated; otherwise the means are of few.
    """

    parameters: AbsorptionParameters
    evaluated: NDArray[np.bool_]
    probe_f1: NDArray[np.float64]
    main: tuple[NDArray[np.int64], ...]
    main_f1: NDArray[np.float64]
    fired: NDArray[np.int64]
    full: NDArray[np.float64]
    fraction: NDArray[np.float64]
    absorbers: tuple[NDArray[np.int64], ...]
    mean_full: float
    mean_fraction: float
    split_share: float
    enough: bool


def absorption(
    values: NDArray[np.floating],
    codes: scipy.sparse.csr_array,
    decoder: NDArray[np.floating],
    labels: NDArray[np.bool_],
    probes: LinearProbes,
    *,
    parameters: AbsorptionParameters = CODE,
    bias: ArrayLike | None = None,
) -> Absorption:
    """Measure the absorption of labels.

    Args:
        values: [R, d] activations.
        codes: [R, F] of a dictionary; stored zeros are not active.
        decoder: [F, d].
        labels: bool [R, T], for example ``first_letters(texts)[:, None] == np.arange(26)``.
        probes: Of these labels, from ``linear_probes(values, labels, documents)``. Give the token ids as
            documents there: one token must not be in both halves, or the probe only has to remember it.
        parameters: ``PAPER`` or ``CODE``.
        bias: float [d], what the dictionary adds to every reconstruction; zero when None.

    Raises:
        SpecError: If the shapes do not belong together.

    Example:
        >>> from scipy.sparse import csr_array
        >>> from sparsescope.metrics.probing import linear_probes
        >>> label = np.arange(400) % 2 == 0
        >>> special = np.arange(400) % 20 == 0  # a tenth of the rows of the label
        >>> codes = csr_array(np.c_[label & ~special, special, np.arange(400) % 3 == 0].astype(float))
        >>> decoder = np.array([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
        >>> x, labels = codes @ decoder, label[:, None]
        >>> found = absorption(x, codes, decoder, labels, linear_probes(x, labels), parameters=PAPER)
        >>> found.main[0].tolist(), found.full.tolist()  # F1 rises by 0.05 with it: a split
        ([0, 1], [0.0])
    """
    _check(values, codes, decoder, labels, probes)
    tasks, train = labels.shape[1], probes.split.train
    probe_f1 = probes.scores[:, MEASURES.index("f1")]
    held_out, test_codes = values[probes.split.test], codes[probes.split.test]
    offset = np.zeros(values.shape[1]) if bias is None else np.asarray(bias, np.float64)
    norms = np.linalg.norm(decoder.astype(np.float64), axis=1)
    gaps = class_gaps(codes[train], labels[train]) * norms

    none = np.zeros(0, np.int64)
    main, absorbers = [none] * tasks, [none] * tasks
    main_f1, full, fraction = (np.full(tasks, np.nan) for _ in range(3))
    fired, evaluated = np.zeros(tasks, np.int64), np.zeros(tasks, bool)
    for task in np.flatnonzero(probe_f1 >= parameters.least_probe_f1):
        main[task], main_f1[task] = _main_features(codes[train], labels[train, task], gaps[task], parameters)
        direction = probes.directions[task]
        fires = held_out @ direction + probes.biases[task] > 0
        rows = np.flatnonzero(fires & labels[probes.split.test, task])
        fired[task], evaluated[task] = len(rows), bool(len(rows) and len(main[task]))
        if not evaluated[task]:
            continue
        unit = direction / np.linalg.norm(direction)
        along = decoder @ unit
        cosines = np.divide(along, norms, out=np.zeros(len(along)), where=norms > 0)
        projected = (held_out[rows] - offset) @ unit
        is_full, shares, who = _rows(
            test_codes[rows].tocsr(), along, cosines, projected, main[task], parameters
        )
        full[task], fraction[task] = is_full.mean(), shares.mean()
        absorbers[task] = np.unique(who[is_full])
    split = [len(main[task]) > 1 for task in np.flatnonzero(evaluated)]
    return Absorption(
        parameters=parameters,
        evaluated=evaluated,
        probe_f1=probe_f1,
        main=tuple(main),
        main_f1=main_f1,
        fired=fired,
        full=full,
        fraction=fraction,
        absorbers=tuple(absorbers),
        mean_full=float(full[evaluated].mean()) if evaluated.any() else math.nan,
        mean_fraction=float(fraction[evaluated].mean()) if evaluated.any() else math.nan,
        split_share=float(np.mean(split)) if split else math.nan,
        enough=bool(evaluated.sum() >= parameters.least_labels),
    )


def absorbed_fraction(
    absorbed: ArrayLike, main: ArrayLike, projected: ArrayLike, parameters: AbsorptionParameters
) -> NDArray[np.float64]:
    """The absorption fraction of rows from what carries the probe's direction.

    Args:
        absorbed: A, what the absorbers carry, not negative.
        main: M, what the main features carry.
        projected: P, the projection of the activation.
        parameters: ``PAPER`` or ``CODE``.

    Example:
        >>> absorbed_fraction([1.0, 1.0], [1.0, 0.0], [3.0, 2.0], PAPER).tolist()
        [0.5, 1.0]
        >>> absorbed_fraction([1.0, 1.0, 4.0], [1.0, 0.0, 1.0], [3.0, 2.0, 2.0], CODE).tolist()
        [0.0, 1.0, 0.5]
    """
    a, m, p = (np.asarray(part, np.float64) for part in (absorbed, main, projected))
    carries = (a > 0) & (p > 0) & (a >= parameters.least_share * p)
    if parameters.capped:
        carries &= m < p
        a = np.minimum(a, p - m)
        plain = np.divide(a, a + m, out=np.zeros_like(a), where=carries & (m > 0))
        return np.where(carries, np.where(m <= 0, 1.0, plain), 0.0)
    return np.where(carries, np.divide(a, a + np.abs(m), out=np.zeros_like(a), where=carries), 0.0)


def _main_features(
    codes: scipy.sparse.csr_array,
    label: NDArray[np.bool_],
    gaps: NDArray[np.float64],
    parameters: AbsorptionParameters,
) -> tuple[NDArray[np.int64], float]:
    """The main features of a label and the F1 of the sparse probe on them."""
    best = np.argsort(-gaps, kind="stable")[: parameters.most_main]
    best = best[gaps[best] > 0].astype(np.int64)
    if not len(best):
        return best, math.nan
    columns = codes.tocsc()[:, best].toarray().astype(np.float64)
    reached, taken = -math.inf, 0
    for size in range(1, len(best) + 1):
        f1 = sparse_probe_scores(columns[:, :size], label)["f1"]
        if f1 < reached + parameters.split_gain:
            break
        reached, taken = f1, size
    return best[:taken], reached


def _rows(
    codes: scipy.sparse.csr_array,
    along: NDArray[np.float64],
    cosines: NDArray[np.float64],
    projected: NDArray[np.float64],
    main: NDArray[np.int64],
    parameters: AbsorptionParameters,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Whether each row is fully absorbed, its fraction, and the other feature that projects most (-1 for
    none).
    """
    rows, kept = codes.shape[0], codes.data != 0
    row = np.repeat(np.arange(rows), np.diff(codes.indptr))[kept]
    feature, value = codes.indices[kept].astype(np.int64), codes.data[kept].astype(np.float64)
    carried, is_main = value * along[feature], np.isin(feature, main)
    by_main = np.bincount(row[is_main], carried[is_main], minlength=rows)
    silent = np.bincount(row[is_main], minlength=rows) == 0

    row, feature, carried = (part[~is_main] for part in (row, feature, carried))
    order = np.lexsort((-carried, row))
    row, feature, carried = row[order], feature[order], carried[order]
    leads = np.r_[True, row[1:] != row[:-1]] if len(row) else np.zeros(0, bool)
    top, best = np.full(rows, -1, np.int64), np.zeros(rows)
    top[row[leads]], best[row[leads]] = feature[leads], carried[leads]
    aligned = np.where(top >= 0, cosines[top], -np.inf) >= parameters.full_cosine
    share = best >= parameters.least_share * projected
    is_full = silent & aligned & share & (best > 0) & (projected > 0)

    may = (cosines[feature] >= parameters.fraction_cosine) & (carried > 0)
    row, carried = row[may], carried[may]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    few = rank < (len(along) if parameters.most_absorbers is None else parameters.most_absorbers)
    absorbed = np.bincount(row[few], carried[few], minlength=rows)
    return is_full, absorbed_fraction(absorbed, by_main, projected, parameters), top


def _check(
    values: NDArray[np.floating],
    codes: scipy.sparse.csr_array,
    decoder: NDArray[np.floating],
    labels: NDArray[np.bool_],
    probes: LinearProbes,
) -> None:
    """Refuse what does not belong together."""
    rows, width = values.shape
    got = (codes.shape, decoder.shape, labels.shape, probes.directions.shape)
    wanted = (
        (rows, len(decoder)),
        (len(decoder), width),
        (rows, labels.shape[-1]),
        (labels.shape[-1], width),
    )
    if got != wanted:
        raise SpecError(
            "codes, decoder, labels and probes do not belong together",
            where="absorption",
            allowed=f"{wanted}: [R, F], [F, d], [R, T], [T, d]",
            got=got,
        )
