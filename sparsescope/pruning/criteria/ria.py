"""RIA: relative importance and activations, which keeps whole inputs and outputs from being wiped out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.pruning.criteria import Criterion
from sparsescope.pruning.inputs import input_norms

if TYPE_CHECKING:
    import torch

    from sparsescope.pruning.inputs import InputStatistics

POWER = 0.5


def score(weight: torch.Tensor, inputs: InputStatistics | None, generator: torch.Generator) -> torch.Tensor:
    """Return (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ||X_j||^a with a = 1/2, [out, in]."""
    size = weight.abs()
    tiny = 1e-30  # a row or a column of zeros has nothing to compare
    relative = size / size.sum(0, keepdim=True).clamp(min=tiny)
    relative += size / size.sum(1, keepdim=True).clamp(min=tiny)
    return relative * input_norms(inputs, weight).pow(POWER)


CRITERION = Criterion(
    name="ria",
    title="RIA",
    summary="Weights go by their share of their row and column, times the root of the norm of their input.",
    equation="S_ij = (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) ||X_j||_2^(1/2), compared within row i",
    source="Zhang et al., Plug-and-Play: RIA (ICLR 2024), eq. 2 to 4",
    score=score,
    reads="norms",
    groups="row",
)
