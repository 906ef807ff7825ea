"""Wanda: weights that are small times the norm of what they read go, compared within a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.pruning.criteria import Criterion
from sparsescope.pruning.inputs import input_norms

if TYPE_CHECKING:
    import torch

    from sparsescope.pruning.inputs import InputStatistics


def score(weight: torch.Tensor, inputs: InputStatistics | None, generator: torch.Generator) -> torch.Tensor:
    """Return |W_ij| times the root mean square of input j over the calibration tokens, [out, in].

    The paper has the norm, which is this times the square root of the number of tokens; within a matrix the
    order is the same, and over matrices (a global allocation, experts with few tokens) only this compares.
    """
    return weight.abs() * input_norms(inputs, weight)


CRITERION = Criterion(
    name="wanda",
    title="Wanda",
    summary="Weights go by magnitude times the norm of their input, row by row.",
    equation="S_ij = |W_ij| ||X_j||_2, compared within row i",
    source="Sun et al., arXiv:2306.11695, eq. 1",
    score=score,
    reads="norms",
    groups="row",
)
