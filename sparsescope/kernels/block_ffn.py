"""The block feed-forward layer of BlockFFN: only the experts that a token uses are read.

y = sum over e of A_e W_down^(e) SiLU(W_up^(e) x), where most router weights A_e are exactly zero
(arXiv 2507.08771, section 3). Experts are stored as one pair of matrices, ``width`` hidden units each: up by
output and down by channel, so that an expert is ``width`` rows of both. Several tokens read the union of
their experts, each row once.
Backends and storage as in ``sparse_gemv``.

Shapes: x [T, d], T from 1 to 8; weights A [T, E]; up [E * width, d]; down [d, E * width]; y float32 [T, d].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import silu

from sparsescope.errors import SpecError
from sparsescope.kernels.backends import Backend, check_backend
from sparsescope.kernels.sparse_gemv import check_input, loops, threads, token_loops, words
from sparsescope.kernels.weight_rows import WeightRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TOKENS = 8


def block_ffn(
    x: torch.Tensor,
    weights: torch.Tensor,
    up: WeightRows,
    down: WeightRows,
    *,
    backend: Backend = "numba",
) -> torch.Tensor:
    """Compute the layer from what the router said.

    Args:
        x: [T, d], or [d].
        weights: A, [T, E], or [E]; zero where an expert is not used.
        up: By output, [E * width, d].
        down: By channel, [E * width, d].
        backend: ``reference``, ``numba`` or ``triton``; never replaced by another one.

    Returns:
        float32 [T, d], or [d].

    Raises:
        SpecError: Shapes do not fit, or there are more than 8 tokens.
        KernelError: The backend cannot be used on this machine.
    """
    check_backend(backend, up.data.device)
    flat, gates = x.detach().float().reshape(-1, x.shape[-1]), weights.detach().float()
    gates = gates.reshape(-1, gates.shape[-1]).contiguous()
    width = _check(flat, gates, up, down)
    if backend == "reference":
        hidden = silu(flat @ up.dense().T) * gates.repeat_interleave(width, 1)
        y = hidden @ down.dense().T
    elif backend == "numba":
        y = torch.from_numpy(_numba(flat.contiguous(), gates, up, down, width))
    else:
        from sparsescope.kernels.sparse_products_triton import block_ffn_tokens

        y = block_ffn_tokens(flat.contiguous(), gates, up, down, width)
    return y.reshape(*x.shape[:-1], -1)


def _check(x: torch.Tensor, weights: torch.Tensor, up: WeightRows, down: WeightRows) -> int:
    """Hidden units of an expert.

    Raises:
        SpecError: Something does not fit.
    """
    experts, units = weights.shape[1], len(down.data)
    if up.by != "output" or down.by != "channel" or len(up.data) != units or units % experts:
        raise SpecError(
            "the matrices of a block feed-forward layer do not fit",
            where="up, down, weights",
            allowed="up by output and down by channel, with as many rows, a multiple of the experts",
            got=f"up {len(up.data)} rows by {up.by}, down {units} rows by {down.by}, {experts} experts",
            next_step="rows_by_output(W_up), rows_by_channel([W_down])",
        )
    if len(weights) != len(x) or up.width != x.shape[1]:
        raise SpecError(
            "inputs and router weights do not fit",
            where="x, weights",
            allowed=f"x [T, {up.width}], weights [T, {experts}]",
            got=f"{list(x.shape)}, {list(weights.shape)}",
            next_step="give the router weights of these tokens, zero where an expert is not used",
        )
    check_input(x.new_zeros(1, units).expand(len(x), units), down, most=MOST_TOKENS)
    return units // experts


def _numba(
    x: torch.Tensor, weights: torch.Tensor, up: WeightRows, down: WeightRows, width: int
) -> NDArray[np.float32]:
    used = (weights != 0).any(0).numpy().nonzero()[0]  # a NaN is used
    rows = (used[:, None] * width + np.arange(width)).reshape(-1).astype(np.int32)
    kept, tokens, split = len(rows), len(x), threads()
    gates, entries = weights.numpy(), x.numpy()
    planes = np.empty((tokens, up.data.shape[1]), np.float32)
    hidden = np.empty((tokens, max(kept, 1)), np.float32)
    padded = down.data.shape[1]
    scale = np.ones(len(up.data), np.float32) if up.scale is None else up.scale.numpy()
    if tokens == 1:
        loops().dot_kept_rows(words(up), entries[0], rows, kept, split, planes[0], hidden[0])
        token_loops().weigh_hidden(hidden, gates, rows, kept, width, scale)
        out = np.empty((1, padded), np.float32)
        partial = np.empty((split, padded), np.float32)
        data = words(down)
        loops().add_kept_rows(data, rows, hidden[0], kept, 0, data.shape[1], split, partial, out[0])
    else:
        token_loops().dot_kept_rows_of_tokens(words(up), entries, rows, kept, split, planes, hidden)
        token_loops().weigh_hidden(hidden, gates, rows, kept, width, scale)
        out = np.empty((tokens, padded), np.float32)
        several = np.empty((split, tokens, padded), np.float32)
        token_loops().add_kept_rows_of_tokens(words(down), rows, hidden, kept, split, several, out)
    y = out[:, : down.width]
    return y if down.scale is None else y * down.scale.numpy()
