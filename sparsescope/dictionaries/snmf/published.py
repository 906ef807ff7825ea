"""The published iteration of SNMF, for parity and to be timed against (arXiv:2506.10920, ordavid-s's code).

Least squares with a small ridge by an explicit inverse, truncation to the largest entries of each row, codes
of unit norm, one multiplicative update (Ding, Li & Jordan 2010). It differs from the authors' loop in that
the loss is left to the caller: theirs forms a dense residual in each iteration.
Shapes: x [n, d]; codes G [n, k]; components H [k, d], F^T in the paper's orientation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsescope.dictionaries.snmf.solver import support_size

if TYPE_CHECKING:
    import torch

RIDGE, FLOOR = 1e-6, 1e-6


def published_update(
    x: NDArray[np.float64], codes: NDArray[np.float64], sparsity: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """One iteration in plain NumPy.

    Args:
        x: [n, d].
        codes: G, [n, k], positive.
        sparsity: Share of the entries of a row of H that stay; ties at the edge keep more.

    Returns:
        G of unit columns after its update, and H.
    """
    components = np.linalg.inv(codes.T @ codes + RIDGE * np.eye(codes.shape[1])) @ (codes.T @ x)
    size = support_size(sparsity, x.shape[1])
    limit = np.sort(np.abs(components), axis=1)[:, -size, None]
    components = np.where(np.abs(components) >= limit, components, 0)
    norms = np.linalg.norm(codes, axis=0)
    codes, components = codes / norms, components * norms[:, None]
    p, q = x @ components.T, components @ components.T
    up = np.maximum(p, 0) + codes @ np.maximum(-q, 0)
    down = np.maximum(-p, 0) + codes @ np.maximum(q, 0)
    return codes * np.sqrt(up / (down + FLOOR)), components


def published_updates(
    x: torch.Tensor, codes: torch.Tensor, *, sparsity: float, iterations: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same iteration in torch, on the device and in the type of x; no loss is computed.

    Args:
        x: [n, d].
        codes: G, [n, k], positive; not changed.
        sparsity: Share of the entries of a row of H that stay.
        iterations: How many.

    Yields:
        G and H after each.
    """
    import torch

    neurons = x.shape[1]
    size = support_size(sparsity, neurons)
    ridge = RIDGE * torch.eye(codes.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        components = torch.linalg.inv(codes.T @ codes + ridge) @ (codes.T @ x)
        magnitude = components.abs()
        limit = magnitude.kthvalue(neurons - size + 1, dim=1, keepdim=True).values
        components = components * (magnitude >= limit)
        norms = codes.norm(dim=0)
        codes, components = codes / norms, components * norms[:, None]
        p, q = x @ components.T, components @ components.T
        up = p.clamp_min(0) + codes @ (-q).clamp_min(0)
        down = (-p).clamp_min(0) + codes @ q.clamp_min(0)
        codes = codes * (up / (down + FLOOR)).sqrt_()
        yield codes, components
