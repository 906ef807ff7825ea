"""Random, with exact counts: the null of every curve and of every overlap of masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsescope.pruning.criteria import Criterion

if TYPE_CHECKING:
    import torch

    from sparsescope.pruning.inputs import InputStatistics


def score(weight: torch.Tensor, inputs: InputStatistics | None, generator: torch.Generator) -> torch.Tensor:
    """Return uniform numbers [out, in], drawn on the CPU, the same on every device."""
    import torch

    drawn = torch.rand(tuple(weight.shape), generator=generator, dtype=torch.float32)
    return drawn.to(weight.device)


CRITERION = Criterion(
    name="random",
    title="Random",
    summary="Weights go by chance, exactly as many as asked for: the null.",
    equation="S_ij ~ U(0, 1), seeded by the name of the matrix",
    source="the null of arXiv:2306.03805; exact counts in place of Bernoulli masks",
    score=score,
    drawn=True,
)
