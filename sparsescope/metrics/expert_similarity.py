"""How alike two experts are, in what they compute and in their weights.

Linear CKA ||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F) of outputs on the same tokens, centered over the tokens
(Kornblith et al. 2019, arXiv 1905.00414). Weights: the neurons of an expert may be numbered anyhow, so the
cosine of two flattened experts says little before the neurons are matched; the matching that makes it largest
is an assignment problem. Matching raises the cosine of unrelated experts as well: compare with experts of
random entries.

Shapes: outputs [N, d]; neurons [m, n], a row for each: its rows of the gate and up matrices and its column of
the down matrix in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Linear CKA of two experts.

    Args:
        first: [N, d], outputs for N tokens.
        second: [N, d'], for the same tokens.

    Returns:
        In [0, 1]; 1 for outputs equal up to rotation, scale and a constant; NaN where one side is constant.

    Raises:
        SpecError: If the numbers of tokens differ.

    Example:
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
        >>> round(linear_cka(x, 3 * x[:, ::-1] + 5), 6)  # columns exchanged, scaled and moved
        1.0
    """
    x, y = (np.asarray(v, np.float64) for v in (first, second))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise SpecError(
            "CKA compares outputs for the same tokens",
            where="linear_cka",
            allowed="[N, d] and [N, d']",
            got=f"{list(x.shape)} and {list(y.shape)}",
        )
    x, y = x - x.mean(0), y - y.mean(0)
    scale = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(x.T @ y) ** 2 / scale) if scale > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class AlignedCosine:
    """Cosine of the weights of two experts.

    Attributes:
        raw: With the neurons in the order that they have.
        aligned: With the neurons of the second in the order that makes it largest.
        order: int [m]; ``second[order]`` is aligned with the first.
    """

    raw: float
    aligned: float
    order: NDArray[np.int64]


def aligned_cosine(first: ArrayLike, second: ArrayLike) -> AlignedCosine:
    """Cosine of two experts, before and after matching their neurons (Hungarian method).

    Args:
        first: [m, n], neurons.
        second: [m, n].

    Returns:
        The cosines; NaN where one expert is zero.

    Raises:
        SpecError: If the shapes differ.

    Example:
        >>> neurons = np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
        >>> found = aligned_cosine(neurons, neurons[::-1])
        >>> round(found.raw, 6), round(found.aligned, 6), found.order.tolist()
        (0.0, 1.0, [1, 0])
    """
    from scipy.optimize import linear_sum_assignment

    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 2 or one.shape != two.shape:
        raise SpecError(
            "experts of different shapes have no common neurons",
            where="aligned_cosine",
            allowed=f"[m, n], {list(one.shape)} as the first",
            got=list(two.shape),
        )
    products = one @ two.T
    rows, order = linear_sum_assignment(products, maximize=True)
    scale = float(np.linalg.norm(one) * np.linalg.norm(two)) or float("nan")
    return AlignedCosine(float(np.trace(products)) / scale, float(products[rows, order].sum()) / scale, order)
