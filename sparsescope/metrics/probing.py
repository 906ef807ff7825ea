"""Sparse probing: how much few features of a dictionary say about a label.

For every binary task the K features with the largest |mean over positives - mean over negatives| are chosen
on the train half (Gurnee et al. 2023, arXiv:2305.01610), and a logistic regression with an L2 penalty on
them is tried on the other half. Halves are drawn by document, since tokens of one document are alike.
Beside every number stand the rate of the more frequent class and what the same procedure gives for permuted
labels.

Codes are scaled to unit standard deviation first, so that the penalty does not depend on their unit.
Accuracy is that at probability 1/2; balanced accuracy, the mean of the two recalls, that at the rate of the
train half, since a rare label would never have a probability of 1/2.
Shapes: R rows, F features, T tasks, S sizes; codes CSR [R, F] or an array.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import ArrayLike, NDArray

SIZES = (1, 2, 5, 10)
MEASURES = ("accuracy", "balanced_accuracy", "auroc", "f1")
LEAST_OF_A_CLASS = 10


class Split(NamedTuple):
    """Rows of the two halves, int64, ascending."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SparseProbes:
    """Probes of every task and size.

    Attributes:
        sizes: S, the numbers of features.
        scores: float64 [T, S, measure] on the test half, in the order of ``MEASURES``; NaN for a task that
            has too few rows of a class.
        null: The same for permuted labels, the mean over permutations; NaN without any.
        null_sd: Its standard deviation over permutations; NaN for fewer than two.
        majority: float64 [T], rate of the more frequent class in the test half: the accuracy of saying
            nothing.
        positives: int64 [T, 2], positive rows of the train and the test half.
        rows: int64 [2], rows of the two halves.
        features: int64 [T, largest size], the features, best first; -1 where there are none.
        gaps: float64 [T, largest size], mean over positives - mean over negatives of each, in the unit of
            the codes.
        permutations: How many.
        seed: Of split and permutations.
        least: Rows of the rarer class that either half must have.
    """

    sizes: tuple[int, ...]
    scores: NDArray[np.float64]
    null: NDArray[np.float64]
    null_sd: NDArray[np.float64]
    majority: NDArray[np.float64]
    positives: NDArray[np.int64]
    rows: NDArray[np.int64]
    features: NDArray[np.int64]
    gaps: NDArray[np.float64]
    permutations: int
    seed: int
    least: int


@dataclass(frozen=True, slots=True)
class LinearProbes:
    """Probes on all columns at once: the ceiling for sparse ones, and directions in activation space.

    Attributes:
        directions: float64 [T, d], in the space of the activations; a row fires where <x, direction> + bias
            > 0. NaN for a task that has too few rows of a class.
        biases: float64 [T].
        scores: float64 [T, measure] on the test half.
        majority: float64 [T].
        split: The halves.
    """

    directions: NDArray[np.float64]
    biases: NDArray[np.float64]
    scores: NDArray[np.float64]
    majority: NDArray[np.float64]
    split: Split


def split_by_document(documents: ArrayLike, seed: int, train: float = 0.5) -> Split:
    """Divide rows so that no document is in both parts.

    Args:
        documents: int [R], the document of each row.
        seed: Seed of an own generator.
        train: Share of the rows that the train part gets at least, as nearly as whole documents allow.

    Raises:
        SpecError: If there is only one document.

    Example:
        >>> halves = split_by_document([5, 5, 6, 6, 7, 7, 8, 8], seed=0)
        >>> len(halves.train), len(halves.test)
        (4, 4)
    """
    numbers, place = np.unique(np.asarray(documents), return_inverse=True)
    if len(numbers) < 2:
        raise SpecError(
            "one document cannot be divided",
            where="documents",
            allowed="two documents or more",
            got=len(numbers),
            next_step="take more text, or give each row a number of its own",
        )
    order = np.random.default_rng(seed).permutation(len(numbers))
    reached = np.cumsum(np.bincount(place)[order])
    enough = int(np.searchsorted(reached, train * reached[-1], side="left")) + 1
    chosen = np.zeros(len(numbers), bool)
    chosen[order[: min(max(1, enough), len(numbers) - 1)]] = True
    return Split(np.flatnonzero(chosen[place]), np.flatnonzero(~chosen[place]))


def class_gaps(
    codes: scipy.sparse.csr_array | NDArray[np.floating], labels: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Mean over positives - mean over negatives of every feature, for every task.

    Args:
        codes: [R, F].
        labels: bool [R, T].

    Returns:
        float64 [T, F]; NaN for a task without positives or negatives.

    Example:
        >>> from scipy.sparse import csr_array
        >>> codes = csr_array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
        >>> class_gaps(codes, np.array([[True], [True], [False]])).tolist()
        [[2.0, 2.0]]
    """
    positive = labels.astype(np.float64)
    count = positive.sum(0)[:, None]
    inside = np.asarray(codes.T.astype(np.float64) @ positive).T
    total = np.asarray(codes.sum(0, dtype=np.float64)).reshape(1, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return inside / count - (total - inside) / (len(labels) - count)


def sparse_probes(
    codes: scipy.sparse.csr_array | NDArray[np.floating],
    labels: NDArray[np.bool_],
    documents: ArrayLike | None = None,
    *,
    sizes: Sequence[int] = SIZES,
    permutations: int = 2,
    penalty: float = 1.0,
    least: int = LEAST_OF_A_CLASS,
    seed: int = 0,
    split: Split | None = None,
) -> SparseProbes:
    """Sparse probes of several binary tasks.

    Args:
        codes: [R, F], for example of tokens, or pooled over texts. An array [R, d] of activations gives the
            baseline of single neurons or channels.
        labels: bool [R, T].
        documents: int [R]; every row is a document of its own when None.
        sizes: Numbers K of features, ascending.
        permutations: How often labels are permuted, within each half, for the null; features are chosen anew.
        penalty: Strength of the L2 penalty, 1 / C of scikit-learn.
        least: Rows of the rarer class that either half must have.
        seed: Seed of split and permutations.
        split: Halves that are given, in place of ``documents``.

    Raises:
        SpecError: If shapes do not belong together or sizes are no ascending positive numbers.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> labels = generator.random((400, 1)) < 0.5
        >>> codes = np.c_[generator.random((400, 3)), labels[:, 0] * 2.0]  # the last one is the label
        >>> found = sparse_probes(codes, labels, sizes=(1,))
        >>> found.features.tolist(), found.scores[0, 0].tolist(), bool(found.null[0, 0, 0] < 0.6)
        ([[3]], [1.0, 1.0, 1.0, 1.0], True)
    """
    labels, sizes = np.asarray(labels, bool), tuple(int(size) for size in sizes)
    if labels.ndim != 2 or codes.shape[0] != len(labels) or list(sizes) != sorted({*sizes}) or sizes[0] < 1:
        raise SpecError(
            "labels, codes or sizes do not belong together",
            where="sparse_probes",
            allowed="codes [R, F], labels [R, T], ascending sizes",
            got=f"{codes.shape}, {labels.shape}, {sizes}",
        )
    halves = split or split_by_document(np.arange(len(labels)) if documents is None else documents, seed)
    data = _Halves(codes, halves)
    scores, features, gaps = _probe(data, labels, sizes, penalty, least)
    generator = np.random.default_rng([seed, 1])
    shuffled = []
    for _ in range(permutations):
        mixed = labels.copy()
        for half in halves:  # each in itself, so that both keep their rates
            mixed[half] = labels[generator.permutation(half)]
        shuffled.append(_probe(data, mixed, sizes, penalty, least)[0])
    null = np.stack(shuffled) if shuffled else np.full((1, *scores.shape), np.nan)
    rate = labels[halves.test].mean(0)
    return SparseProbes(
        sizes=sizes,
        scores=scores,
        null=null.mean(0),
        null_sd=null.std(0, ddof=1) if permutations > 1 else np.full_like(scores, np.nan),
        majority=np.maximum(rate, 1 - rate),
        positives=np.stack([labels[half].sum(0) for half in halves], 1).astype(np.int64),
        rows=np.array([len(half) for half in halves], np.int64),
        features=features,
        gaps=gaps,
        permutations=permutations,
        seed=seed,
        least=least,
    )


def linear_probes(
    values: NDArray[np.floating],
    labels: NDArray[np.bool_],
    documents: ArrayLike | None = None,
    *,
    penalty: float = 1.0,
    least: int = LEAST_OF_A_CLASS,
    seed: int = 0,
    split: Split | None = None,
) -> LinearProbes:
    """A logistic regression on all columns, for several binary tasks.

    Columns are scaled to unit standard deviation for the fit; directions are given back in the unit of
    ``values``, so that <x, direction> + bias is the logit.

    Args:
        values: [R, d], for example activations.
        labels: bool [R, T].
        documents: int [R]; every row is a document of its own when None.
        penalty: Strength of the L2 penalty.
        least: Rows of the rarer class that either half must have.
        seed: Seed of the split.
        split: Halves that are given, in place of ``documents``.

    Raises:
        SpecError: If the shapes do not belong together.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((400, 4))
        >>> found = linear_probes(x, (x @ [3.0, 0, 4.0, 0] > 0)[:, None])
        >>> direction = found.directions[0] / np.linalg.norm(found.directions[0])
        >>> bool(direction @ [0.6, 0, 0.8, 0] > 0.98), bool(found.scores[0, 0] > 0.94)
        (True, True)
    """
    labels = np.asarray(labels, bool)
    if labels.ndim != 2 or values.ndim != 2 or len(values) != len(labels):
        raise SpecError(
            "labels and values do not belong together",
            where="linear_probes",
            allowed="values [R, d], labels [R, T]",
            got=f"{values.shape}, {labels.shape}",
        )
    halves = split or split_by_document(np.arange(len(labels)) if documents is None else documents, seed)
    train, test = (np.asarray(values[half], np.float64) for half in halves)
    centre, scale = train.mean(0), _scale(train)
    train, test = (train - centre) / scale, (test - centre) / scale
    tasks = labels.shape[1]
    directions, biases = np.full((tasks, values.shape[1]), np.nan), np.full(tasks, np.nan)
    scores = np.full((tasks, len(MEASURES)), np.nan)
    for task in np.flatnonzero(_enough(labels, halves, least)):
        y, truth = labels[halves.train, task], labels[halves.test, task]
        weights, intercept = _fit(train, y, penalty, "lbfgs")
        scores[task] = _score(test @ weights + intercept, truth, y.mean())
        directions[task] = weights / scale
        biases[task] = intercept - centre @ directions[task]
    rate = labels[halves.test].mean(0)
    return LinearProbes(directions, biases, scores, np.maximum(rate, 1 - rate), halves)


def sparse_probe_scores(
    columns: NDArray[np.floating], label: NDArray[np.bool_], *, penalty: float = 1.0
) -> dict[str, float]:
    """All measures of one probe on the rows that it was fitted on, by name.

    Few columns and many rows leave little to overfit; what is reported should be of rows not seen.

    Args:
        columns: [R, K].
        label: bool [R], of both classes.
        penalty: Strength of the L2 penalty.

    Example:
        >>> label = np.arange(100) % 4 == 0
        >>> sparse_probe_scores(np.c_[label * 1.0], label)["f1"]
        1.0
    """
    exact = np.asarray(columns, np.float64)
    scaled = (exact - exact.mean(0)) / _scale(exact)
    weights, intercept = _fit(scaled, label, penalty, "newton-cholesky")
    found = _score(scaled @ weights + intercept, label, label.mean())
    return dict(zip(MEASURES, found.tolist(), strict=True))


class _Halves:
    """Codes of the two halves, by rows for sums and by columns for picking features."""

    def __init__(self, codes: scipy.sparse.csr_array | NDArray[np.floating], split: Split) -> None:
        self.split = split
        self.train = codes[split.train]
        self._columns = [
            codes[half] if isinstance(codes, np.ndarray) else codes[half].tocsc() for half in split
        ]

    def picked(self, features: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some columns of both halves as arrays, [row, K], scaled by the train half."""
        found = [half[:, features] for half in self._columns]
        train, test = (
            np.asarray(half if isinstance(half, np.ndarray) else half.toarray(), np.float64) for half in found
        )
        centre, scale = train.mean(0), _scale(train)
        return (train - centre) / scale, (test - centre) / scale


def _probe(
    data: _Halves, labels: NDArray[np.bool_], sizes: tuple[int, ...], penalty: float, least: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Scores [T, S, measure], features and gaps [T, largest size]; NaN and -1 for tasks with too few rows."""
    train, test = (labels[half] for half in data.split)
    gaps = class_gaps(data.train, train)
    tasks, most = labels.shape[1], min(sizes[-1], gaps.shape[1])
    scores = np.full((tasks, len(sizes), len(MEASURES)), np.nan)
    features, kept = np.full((tasks, sizes[-1]), -1, np.int64), np.full((tasks, sizes[-1]), np.nan)
    for task in np.flatnonzero(_enough(labels, data.split, least)):
        best = np.argsort(-np.abs(gaps[task]), kind="stable")[:most]
        features[task, :most], kept[task, :most] = best, gaps[task, best]
        seen, unseen = data.picked(best)
        y, truth = train[:, task], test[:, task]
        for place, size in enumerate(sizes):
            weights, intercept = _fit(seen[:, :size], y, penalty, "newton-cholesky")
            scores[task, place] = _score(unseen[:, :size] @ weights + intercept, truth, y.mean())
    return scores, features, kept


def _enough(labels: NDArray[np.bool_], split: Split, least: int) -> NDArray[np.bool_]:
    """Tasks with enough rows of either class in both halves, bool [T]."""
    counts = [labels[half].sum(0) for half in split]
    return np.all(
        [np.minimum(n, len(half) - n) >= max(1, least) for n, half in zip(counts, split, strict=True)], 0
    )


def _fit(
    x: NDArray[np.float64], y: NDArray[np.bool_], penalty: float, solver: str
) -> tuple[NDArray[np.float64], float]:
    """Weights and intercept of a logistic regression."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Separable classes have no last step; where the search ends, the order of the rows is settled.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / penalty, solver=solver, max_iter=200).fit(x, y)
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def _score(logits: NDArray[np.float64], truth: NDArray[np.bool_], rate: float) -> NDArray[np.float64]:
    """All measures of a probe on rows it did not see; ``rate`` is that of positives where it was fitted."""
    from scipy.stats import rankdata

    says = logits > 0
    positives, negatives = truth.sum(), (~truth).sum()
    level = np.log(rate) - np.log1p(-rate)
    recalls = ((logits > level) & truth).sum() / positives, ((logits <= level) & ~truth).sum() / negatives
    area = (rankdata(logits)[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    f1 = 2 * (says & truth).sum() / (says.sum() + positives)
    return np.array([(says == truth).mean(), sum(recalls) / 2, area, f1])


def _scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of every column; 1 for a constant one."""
    spread = values.std(0)
    return np.where(spread > 0, spread, 1.0)
