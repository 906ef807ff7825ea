"""How far confidence and accuracy of top predictions are apart, and how far chance alone puts them.

Expected calibration error: ECE = sum over bins of (n_b / n) |accuracy_b - confidence_b|, 15 bins of equal
width on the largest probability, the last bin closed at 1 (Guo et al. 2017, arXiv:1706.04599). A perfectly
calibrated model has ECE > 0 on a finite sample, so it always stands beside its null: labels drawn again from
the predicted confidences.
Shapes: n predictions, b bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsescope.errors import SpecError

BINS = 15


@dataclass(frozen=True, slots=True)
class Bins:
    """Sums over the predictions of each bin.

    Attributes:
        count: int64 [b].
        confidence: float64 [b], mean confidence; NaN in an empty bin.
        accuracy: float64 [b], share of correct predictions; NaN in an empty bin.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability_bins(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Bins:
    """Sort predictions into bins of equal width: [0, 1/b), ..., [1 - 1/b, 1].

    Args:
        confidence: [n], largest probability of each prediction, in [0, 1].
        correct: bool [n].
        bins: b.

    Raises:
        SpecError: If there is nothing, the lengths differ, or a confidence is not in [0, 1].

    Example:
        >>> confidence, correct = np.array([0.2, 0.3, 0.7, 0.9]), np.array([False, True, True, True])
        >>> found = reliability_bins(confidence, correct, bins=2)
        >>> found.confidence.round(6).tolist(), found.accuracy.tolist()  # surer, and right more often
        ([0.25, 0.8], [0.5, 1.0])
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0 or bins < 1:
        got = f"{confidence.shape}, {correct.shape}, {bins} bins"
        raise SpecError(
            "confidences and outcomes must be two lists of one length", where="reliability_bins", got=got
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise SpecError(
            "a confidence is not a probability",
            allowed="0 to 1",
            got=f"{confidence.min()} to {confidence.max()}",
        )
    where = bin_of(confidence, bins)
    count = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(where, confidence, bins) / count
        share = np.bincount(where, correct, bins) / count
    return Bins(count, mean, share)


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each confidence; 1 belongs to the last.

    Example:
        >>> bin_of(np.array([0.0, 0.5, 0.99, 1.0]), bins=2).tolist()
        [0, 1, 1, 1]
    """
    return np.minimum((np.asarray(confidence, np.float64) * bins).astype(np.int64), bins - 1)


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """ECE, in [0, 1]; see the head of this file.

    Example:
        >>> sure, correct = np.array([0.9, 0.9]), np.array([True, False])
        >>> round(expected_calibration_error(sure, correct), 6)  # 0.9 sure, right half of the time
        0.4
    """
    found = reliability_bins(confidence, correct, bins)
    gap = np.abs(np.nan_to_num(found.accuracy - found.confidence))
    return float((found.count * gap).sum() / found.count.sum())


def null_calibration_errors(confidence: np.ndarray, draws: int, seed: int, bins: int = BINS) -> np.ndarray:
    """ECE of a perfectly calibrated model with these confidences, [draws]: outcomes are drawn
    with the confidence.

    Draws are independent between predictions, so the null is too narrow where predictions of
    one document agree.

    Example:
        >>> errors = null_calibration_errors(np.full(100, 0.8), draws=200, seed=0)
        >>> round(float(errors.mean()), 2)  # by chance alone, of 100 predictions
        0.03
    """
    confidence = np.asarray(confidence, np.float64)
    generator = np.random.default_rng(seed)
    where = bin_of(confidence, bins)
    expected = np.bincount(where, confidence, bins)
    errors = np.empty(draws)
    for draw in range(draws):
        hits = np.bincount(where, generator.random(len(confidence)) < confidence, bins)
        errors[draw] = np.abs(hits - expected).sum() / len(confidence)
    return errors
