"""ReLU with an L1 penalty: z = max(pre, 0), loss FVU + lambda sum_f z_f ||d_f|| / variance units.

Bricken et al., "Towards Monosemanticity" (2023); Cunningham et al., arXiv:2309.08600. The penalty is
divided by the root of the variance, as the activations grow with it, so that lambda has no unit.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sparsescope.dictionaries.autoencoder import SparseAutoencoder, Step, check_number
from sparsescope.dictionaries.entries import Entries
from sparsescope.kernels import sparse_codes as kernels


class ReLUSAE(SparseAutoencoder):
    """Sparse autoencoder with a ReLU and an L1 penalty.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        l1: lambda, the weight of mean_row sum_f z_f / sqrt(variance); it rises from 0 in the warm-up.
        **settings: See ``SparseAutoencoder``.
    """

    architecture = "relu"
    settings = ("l1",)

    def __init__(self, d_in: int, width: int, *, l1: float = 0.1, **settings: Any) -> None:
        check_number(self, l1=l1)
        super().__init__(d_in, width, **settings)
        self.l1 = l1

    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every positive score."""
        return kernels.entries_above(scores, scores.new_zeros(()))

    def penalty(
        self, values: torch.Tensor, entries: Entries, rows: torch.Tensor, residual: torch.Tensor, step: Step
    ) -> dict[str, torch.Tensor]:
        """The L1 norm, weighted with the norms of the decoder rows, which are 1 while training."""
        strength = self.l1 * step.warmup / (len(rows) * math.sqrt(step.variance))
        return {"l1": strength * values.sum()}
