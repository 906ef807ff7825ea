"""Delete-a-group jackknife over documents, for numbers that are no means over tokens.

A number such as a rank or a coefficient over units cannot be resampled from sums of each document. Documents
are put into a few folds by a hash of their number; the number is computed again without each fold in turn.
Source: Kott (2001), The delete-a-group jackknife, Journal of Official Statistics 17:521.
"""

from __future__ import annotations

import numpy as np

FOLDS = 8
JACKKNIFE = "delete-a-group jackknife over folds of documents"
_MASK = (1 << 64) - 1


def mixed(value: int) -> int:
    """Scramble a whole number into 64 bits (the finalizer of splitmix64): equal in every process.

    Example:
        >>> hex(mixed(0))
        '0xe220a8397b1dcdaf'
    """
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def fold_of(document: int, folds: int = FOLDS) -> int:
    """Fold of a document, from its number in the whole corpus. Domains alternate in a stream, so
    the number is mixed.

    Example:
        >>> [fold_of(document, folds=4) for document in range(8)]
        [3, 1, 2, 1, 2, 2, 0, 3]
    """
    return mixed(document) % folds


def jackknife_interval(
    whole: np.ndarray, replicates: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Interval whole +- t se with se^2 = (G - 1) / G sum_g (replicate_g - mean)^2 and G - 1
    degrees of freedom.

    Args:
        whole: [...], the number from all documents.
        replicates: [G, ...], the number without each fold that has documents. Entries that
            are NaN are left out.
        level: Coverage, for example 0.95.

    Returns:
        low, high, each of the shape of ``whole``; NaN where fewer than two replicates are finite.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # of a mean it is Student's interval
        >>> low, high = jackknife_interval(values.mean(), (values.sum() - values) / 4, level=0.95)
        >>> round(float(low), 2), round(float(high), 2)
        (1.04, 4.96)
    """
    from scipy.stats import t

    replicates = np.asarray(replicates, dtype=np.float64).reshape(-1, *np.shape(whole))
    present = np.isfinite(replicates)
    groups = present.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(present, replicates, 0.0).sum(0) / groups
        squares = np.where(present, (replicates - mean) ** 2, 0.0).sum(0)
        error = np.sqrt((groups - 1) / groups * squares)
        reach = np.where(groups >= 2, t.ppf((1 + level) / 2, np.maximum(groups - 1, 1)) * error, np.nan)
    return whole - reach, whole + reach
