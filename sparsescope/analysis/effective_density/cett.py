"""CETT: the relative error of a layer's output when its small contributions are left out, and its inverse.

Unit i adds n_i = h_i W[:, i] to the output y = sum n_i of its layer (the bias is no contribution). For a
threshold e the units with ||n_i|| < e are left out: CETT(e) = mean over tokens of ||sum of the n_i left
out|| / ||y||. Per token it may fall as e rises, because contributions cancel; its mean hardly ever does, and
the inverse uses a monotone fit.
Source: ReLU^2 Wins, arXiv:2402.03804; Sparsing Law, arXiv:2411.02335. Shapes: h [M, f], W [d, f] (out, in).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.metrics.isotonic_crossing import monotone

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Shares of contributions that are left out, from one in a thousand up to all but one in ten thousand.
GRID = np.unique(
    np.concatenate([np.linspace(0.0, 0.95, 20), 1 - np.geomspace(0.05, 1e-4, 10), [0.001, 0.01, 0.02]])
)


def column_norms(weight: torch.Tensor) -> torch.Tensor:
    """Norm of what one unit of activation adds to the output, [f]."""
    return weight.float().norm(dim=0)


def cett(hidden: torch.Tensor, weight: torch.Tensor, norms: torch.Tensor, threshold: float) -> float:
    """Mean over tokens of the relative output error; a token whose output is zero has error 0.

    Args:
        hidden: float32 [M, f].
        weight: float32 [d, f].
        norms: float32 [f], from ``column_norms``.
        threshold: Contributions with a smaller norm are left out.
    """
    left_out = hidden * (hidden.abs() * norms < threshold)
    return _mean_error(left_out @ weight.T, hidden @ weight.T)


def _mean_error(error: torch.Tensor, output: torch.Tensor) -> float:
    whole = output.norm(dim=-1).double()
    ratio = torch.where(whole > 0, error.norm(dim=-1).double() / whole.clamp(min=1e-300), 0.0)
    return float(ratio.mean())


@dataclass(frozen=True, slots=True)
class CettCurve:
    """CETT of one layer on a grid of thresholds.

    Attributes:
        thresholds: float64 [G], rising, the first below every contribution.
        values: float64 [G], CETT made monotone.
    """

    thresholds: NDArray[np.float64]
    values: NDArray[np.float64]

    def threshold(self, level: float) -> float:
        """Threshold whose CETT is ``level``, linear between grid points; 0 keeps everything, 1
        may leave out all.
        """
        if level <= 0:
            return 0.0
        if level >= self.values[-1]:
            return float("inf") if level >= 1 else float(self.thresholds[-1])
        return float(np.interp(level, self.values, self.thresholds))


def cett_curve(hidden: torch.Tensor, weight: torch.Tensor) -> CettCurve:
    """Measure CETT at thresholds that leave out given shares of the contributions of one layer.

    Args:
        hidden: float32 [M, f], activations of the calibration tokens.
        weight: float32 [d, f].
    """
    norms = column_norms(weight)
    contributions = (hidden.abs() * norms).flatten()
    thresholds = np.unique(np.quantile(contributions.cpu().numpy(), GRID).astype(np.float64))
    output = hidden @ weight.T
    values = [_mean_error((hidden * (hidden.abs() * norms < t)) @ weight.T, output) for t in thresholds]
    # Start at (0, 0): with threshold 0 nothing is left out. Duplicates would break the inverse.
    x = np.concatenate([[0.0], thresholds[thresholds > 0]])
    y = np.concatenate([[0.0], np.array(values)[thresholds > 0]])
    return CettCurve(x, monotone(y))
