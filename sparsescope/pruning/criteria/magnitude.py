"""Magnitude: small weights go (LeCun et al. 1989 call it the naive baseline; it needs no text)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.pruning.criteria import Criterion

if TYPE_CHECKING:
    import torch

    from sparsescope.pruning.inputs import InputStatistics


def score(weight: torch.Tensor, inputs: InputStatistics | None, generator: torch.Generator) -> torch.Tensor:
    """Return |W|, [out, in]."""
    return weight.abs()


CRITERION = Criterion(
    name="magnitude",
    title="Magnitude",
    summary="Small weights go; no text is read.",
    equation="S_ij = |W_ij|, compared in the whole matrix",
    source="Han et al., arXiv:1506.02626; essential sparsity, arXiv:2306.03805",
    score=score,
)
