"""Learned permutations: Sinkhorn's scaling of exp(log weights / temperature), and the assignment it tends to.

Gumbel-Sinkhorn (Mena et al. 2018, arXiv:1802.08665): as the temperature falls to zero, the scaled matrix
tends to the permutation with the largest sum of log weights, which the Hungarian method finds exactly. After
a few rounds at a low temperature it is still far from that; so a permutation that replaces it is the
assignment of the scaled matrix, not of the log weights.

Shapes: k permutations of E experts.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


def sinkhorn(log_weights: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """Scale rows and columns in turn to sums of 1; columns come last, so theirs are exact.

    Args:
        log_weights: float [k, E, E].
        temperature: What they are divided by.
        iterations: Rounds of rows and columns.

    Returns:
        [k, E, E] of the dtype that was given; computed in float64, since log weights over 1e-7 are large.
    """
    scaled = log_weights.double() / temperature
    for _ in range(iterations):
        scaled = scaled - scaled.logsumexp(-1, keepdim=True)
        scaled = scaled - scaled.logsumexp(-2, keepdim=True)
    return scaled.exp().to(log_weights.dtype)


def gumbel(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Standard Gumbel noise, float32."""
    drawn = torch.rand(shape, generator=generator).clamp(1e-20, 1 - 1e-7)
    return -(-drawn.log()).log()


def assignment(weights: torch.Tensor) -> torch.Tensor:
    """The permutation matrices with the largest sums of these weights, float32 [k, E, E], entries 0 and 1."""
    found = np.zeros(weights.shape, np.float32)
    for number, matrix in enumerate(weights.detach().double().cpu().numpy()):
        found[number][linear_sum_assignment(matrix, maximize=True)] = 1.0
    return torch.from_numpy(found)


def permutation_entropy(matrices: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the rows and of the columns of [k, E, E] in nats, a scalar; 0 for permutations."""
    rows = matrices / matrices.sum(-1, keepdim=True).clamp_min(1e-20)
    columns = matrices / matrices.sum(-2, keepdim=True).clamp_min(1e-20)
    both = [-(part * part.clamp_min(1e-20).log()) for part in (rows, columns)]
    return (both[0].sum(-1).mean() + both[1].sum(-2).mean()) / 2
