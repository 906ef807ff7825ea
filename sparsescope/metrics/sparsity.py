"""Scalar measures of how concentrated a vector is, and the values that chance gives.

All measures look at magnitudes x = |v| of one vector of n entries (last axis) and are invariant to
permutation and positive scale. Definitions: Hoyer (2004); Hurley & Rickard (2009), arXiv:0811.4706;
Treves & Rolls (1991), Network 2:371.
Density counts entries that matter, sparsity is 1 - density. A zero vector has density 0 and NaN for
every other measure: there is no shape to speak of.
Shapes: inputs are [..., n]; outputs are [...], float64.
"""

from __future__ import annotations

import math

import numpy as np

from sparsescope.errors import SpecError

GINI_HALF_NORMAL = math.sqrt(2) - 1
PR2_HALF_NORMAL = 2 / math.pi
PR4_HALF_NORMAL = 1 / 3
KURTOSIS_NORMAL = 3.0
TREVES_ROLLS_HALF_NORMAL = 1 - 2 / math.pi
# exp(entropy) / n of x = |z|, z normal: H = ln(n E x) - E[x ln x] / E x with E x = sqrt(2 / pi) and
# E[x ln x] / E x = (ln 2 - gamma) / 2 (x^2 / 2 is exponential under the density x exp(-x^2 / 2)).
ENTROPY_NUMBER_HALF_NORMAL = math.sqrt(2 / math.pi) * math.exp(-(math.log(2) - np.euler_gamma) / 2)
HOYER_HALF_NORMAL = 1 - math.sqrt(2 / math.pi)


def density(values: np.ndarray) -> np.ndarray:
    """Share of entries that are not exactly zero: #{j: v_j != 0} / n.

    Example:
        >>> float(density(np.array([0.0, 2.0, 0.0, -1.0])))
        0.5
    """
    return np.count_nonzero(values, axis=-1) / values.shape[-1]


def top_p_count(values: np.ndarray, share: float, power: int = 1) -> np.ndarray:
    """Size of the smallest set of entries that holds a share of the norm.

    k = min{m : c_m >= p * c_n} with c_m the sum of the m largest |v|^q. The set is defined by rank, so ties
    do not enlarge it; a zero vector has k = 0.

    Args:
        values: [..., n], any real dtype.
        share: p in (0, 1).
        power: q; 1 for the L1 norm, 2 for the energy.

    Returns:
        int64 [...].

    Raises:
        SpecError: If ``share`` or ``power`` is out of range.

    Example:
        >>> int(top_p_count(np.array([3.0, -1.0, 0.5, 0.5]), 0.7))  # 4 of 5
        2
        >>> int(top_p_count(np.array([3.0, -1.0, 0.5, 0.5]), 0.7, power=2))  # 9 of 10.5
        1
    """
    if not 0 < share < 1 or power not in (1, 2):
        raise SpecError(
            "top-p set is not defined", allowed="0 < share < 1, power 1 or 2", got=f"{share}, {power}"
        )
    mass = _unit_scaled(values)[..., ::-1] ** power
    cumulative = np.cumsum(mass, axis=-1)
    total = cumulative[..., -1:]
    count = np.sum(cumulative < share * total, axis=-1, dtype=np.int64) + 1
    return np.where(total[..., 0] > 0, count, 0)


def top_p_density(values: np.ndarray, share: float, power: int = 1) -> np.ndarray:
    """``top_p_count`` / n.

    Example:
        >>> float(top_p_density(np.array([3.0, -1.0, 0.5, 0.5]), 0.7))
        0.5
    """
    return top_p_count(values, share, power) / values.shape[-1]


def hoyer(values: np.ndarray) -> np.ndarray:
    """(sqrt(n) - L1/L2) / (sqrt(n) - 1), in [0, 1]: 0 flat, 1 one-hot. Depends on n. n >= 2.

    Example:
        >>> hoyer(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.0]])).tolist()
        [0.0, 1.0]
    """
    x, root = _unit_scaled(values), math.sqrt(values.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return (root - x.sum(-1) / np.sqrt((x * x).sum(-1))) / (root - 1)


def gini(values: np.ndarray) -> np.ndarray:
    """sum_k (2k - n - 1) x_(k) / (n sum x) with x_(1) <= ... <= x_(n), in [0, 1 - 1/n].

    Example:
        >>> gini(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.0]])).tolist()
        [0.0, 0.75]
    """
    x, n = _unit_scaled(values), values.shape[-1]
    weights = 2 * np.arange(1, n + 1) - n - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x @ weights) / (n * x.sum(-1))


def participation_ratio(values: np.ndarray, order: int = 2) -> np.ndarray:
    """Effective share of entries: PR2 = (sum x)^2 / (n sum x^2), PR4 = (sum x^2)^2 / (n sum x^4).

    Args:
        values: [..., n].
        order: 2 or 4.

    Returns:
        [...], in [1/n, 1]; 1 for a flat vector.

    Example:
        >>> participation_ratio(np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0]])).tolist()  # all, half
        [1.0, 0.5]
    """
    if order not in (2, 4):
        raise SpecError("participation ratio is not defined", allowed="order 2 or 4", got=order)
    x = _unit_scaled(values) ** (order // 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return x.sum(-1) ** 2 / (values.shape[-1] * (x * x).sum(-1))


def entropy_number(values: np.ndarray) -> np.ndarray:
    """exp(H(p)) / n with p = x / sum x and H = -sum p ln p: the share of entries of a flat
    vector of equal entropy.

    Args:
        values: [..., n].

    Returns:
        [...], in [1/n, 1]; 1 for a flat vector. NaN for a zero vector.

    Example:
        >>> entropy_number(np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 0.0, 0.0]])).round(6).tolist()
        [1.0, 0.5]
    """
    x = _unit_scaled(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = x / x.sum(-1, keepdims=True)
        return np.exp(-np.sum(p * np.log(p, out=np.zeros_like(p), where=p > 0), axis=-1)) / values.shape[-1]


def kurtosis(values: np.ndarray) -> np.ndarray:
    """Kurtosis about zero: n sum v^4 / (sum v^2)^2 = 1 / PR4, in [1, n]: 3 for a long normal
    vector, 1 for a flat one.

    The moments are about zero, not about the mean, and 3 is not subtracted: a unit at zero
    is an inactive unit.

    Example:
        >>> kurtosis(np.array([[1.0, -1.0, 1.0, -1.0], [0.0, 0.0, 5.0, 0.0]])).tolist()
        [1.0, 4.0]
    """
    return 1 / participation_ratio(values, 4)


def treves_rolls(values: np.ndarray) -> np.ndarray:
    """(1 - a) / (1 - 1/n) with a = (sum x)^2 / (n sum x^2), in [0, 1]: 0 flat, 1 one-hot
    (Treves & Rolls 1991).

    Over the units of one token it is *population* sparseness, over the tokens of one unit *lifetime*
    sparseness. It was defined for rates, which are not negative; here x = |v| stands in for the rate. n >= 2.

    Args:
        values: [..., n].

    Example:
        >>> treves_rolls(np.array([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 5.0, 0.0]])).tolist()
        [0.0, 1.0]
    """
    n = values.shape[-1]
    return (1 - participation_ratio(values)) / (1 - 1 / n)


def treves_rolls_from_sums(total: np.ndarray, squares: np.ndarray, n: float) -> np.ndarray:
    """``treves_rolls`` from the sum of x and of x^2 over n entries; NaN where all are zero or n < 2.

    Example:
        >>> float(treves_rolls_from_sums(np.array(5.0), np.array(25.0), 4))  # 0, 0, 5, 0
        1.0
    """
    if n < 2:
        return np.full(np.shape(squares), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squares > 0, (1 - total * total / (n * squares)) / (1 - 1 / n), np.nan)


def half_normal_top_p(share: float, power: int = 1) -> float:
    """Density of the top-p set of a long vector of independent normal entries.

    L1: the |v| above threshold t hold a share exp(-t^2/2) of the norm, so the density is erfc(sqrt(-ln p)).
    Energy: the share above t is erfc(t/sqrt 2) + sqrt(2/pi) t exp(-t^2/2), solved for t.

    Example:
        >>> round(half_normal_top_p(0.9), 4), round(half_normal_top_p(0.9, power=2), 4)
        (0.6462, 0.4446)
    """
    if power == 1:
        return math.erfc(math.sqrt(-math.log(share)))
    from scipy.optimize import brentq

    def excess(t: float) -> float:
        return math.erfc(t / math.sqrt(2)) + math.sqrt(2 / math.pi) * t * math.exp(-t * t / 2) - share

    return math.erfc(brentq(excess, 0.0, 40.0) / math.sqrt(2))


def half_normal_reference(metric: str) -> float:
    """Reference value for a metric id such as ``gini`` or ``density_energy_90``; NaN where there is none.

    Example:
        >>> round(half_normal_reference("gini"), 4), round(half_normal_reference("density_energy_90"), 4)
        (0.4142, 0.4446)
    """
    constants = {
        "gini": GINI_HALF_NORMAL,
        "hoyer": HOYER_HALF_NORMAL,
        "pr2": PR2_HALF_NORMAL,
        "pr4": PR4_HALF_NORMAL,
        "entropy_number": ENTROPY_NUMBER_HALF_NORMAL,
        "kurtosis": KURTOSIS_NORMAL,
        "treves_rolls": TREVES_ROLLS_HALF_NORMAL,
    }
    if metric in constants:
        return constants[metric]
    for prefix, power in (("density_l1_", 1), ("density_energy_", 2)):
        if metric.startswith(prefix):
            return half_normal_top_p(float(metric.removeprefix(prefix)) / 100, power)
    return math.nan


def _unit_scaled(values: np.ndarray) -> np.ndarray:
    """Sorted float64 magnitudes, divided by the largest so that squares neither overflow nor underflow."""
    x = np.sort(np.abs(np.asarray(values, dtype=np.float64)), axis=-1)
    largest = x[..., -1:]
    return np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
