"""Sparse product of 2 to 8 tokens: every kept row of weights is read once, for all of them.

Tokens that are read together (speculative decoding, small batches) read the union of what they keep. Two
rules: ``own`` gives every token exactly its own mask (y_t = W (m_t * x_t)) and reads the union; ``joint``
makes one mask for all of them from the root mean square over the tokens, and reads no more than that keeps.
Backends and storage as in ``sparse_gemv``.

Shapes: x [T, K], T from 1 to 8; limits [K] or a number; y float32 [T, N].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from sparsescope.errors import unknown_name
from sparsescope.kernels.backends import Backend, check_backend
from sparsescope.kernels.sparse_gemv import (
    check_by_channel,
    check_input,
    limits_of,
    threads,
    token_loops,
    words,
)
from sparsescope.kernels.weight_rows import WeightRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rule = Literal["own", "joint"]
RULES: tuple[Rule, ...] = get_args(Rule)
MOST_TOKENS = 8


def shared_mask_gemm(
    x: torch.Tensor,
    weight: WeightRows,
    limits: torch.Tensor | float,
    *,
    rule: Rule = "own",
    backend: Backend = "numba",
) -> torch.Tensor:
    """Multiply stored matrices with the inputs of several tokens.

    Args:
        x: [T, K], T at most 8.
        weight: By channel.
        limits: float32 [K], or one number.
        rule: ``own``: |x_ti| is compared, each token by itself. ``joint``: sqrt(mean over t of x_ti^2) is.
        backend: ``reference``, ``numba`` or ``triton``; never replaced by another one.

    Returns:
        float32 [T, N].

    Raises:
        SpecError: Shapes do not fit, or there are more than 8 tokens.
        KernelError: The backend cannot be used on this machine.
    """
    check_backend(backend, weight.data.device)
    check_by_channel(weight)
    check_input(x, weight, most=MOST_TOKENS)
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES, next_step="own equals token by token")
    values = x.detach().float().reshape(-1, weight.n_inputs).contiguous()
    edge = limits_of(limits, weight.n_inputs, x.device)
    if backend == "reference":
        return torch.where(dropped(values, edge, rule), 0.0, values) @ weight.dense().T
    if backend == "numba":
        return torch.from_numpy(_numba(values, weight, edge, rule))
    from sparsescope.kernels.sparse_products_triton import gemm

    return gemm(values, weight, edge, rule)


def dropped(x: torch.Tensor, limits: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Which inputs a rule drops, bool [T, K]."""
    if rule == "own":
        return x.abs() <= limits
    return (x.square().mean(0, keepdim=True).sqrt() <= limits).expand_as(x)


def _numba(x: torch.Tensor, weight: WeightRows, limits: torch.Tensor, rule: Rule) -> NDArray[np.float32]:
    out = np.empty((len(x), weight.data.shape[1]), np.float32)
    token_loops().gemm(words(weight), x.numpy(), limits.numpy(), rule == "joint", threads(), out)
    y = out[:, : weight.width]
    return y if weight.scale is None else y * weight.scale.numpy()
