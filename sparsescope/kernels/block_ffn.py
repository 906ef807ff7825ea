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
from sparsescope.kernels.sparse_gemv import check_device, check_tokens, threads, token_loops, words
from sparsescope.kernels.weight_rows import WeightRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TOKENS = 8


class BlockFFN:
    """The layer, prepared to be called again and again.

    Args:
        up: By output, [E * width, d].
        down: By channel, [E * width, d].
        backend: ``reference``, ``numba`` or ``triton``; never replaced by another one.

    Raises:
        SpecError: The matrices do not belong together.
        KernelError: The backend cannot be used on this machine, or they are on different devices.

    Example:
        >>> from sparsescope.kernels.weight_rows import rows_by_channel, rows_by_output
        >>> up, down = torch.eye(2), torch.tensor([[1.0, 0.0]])
        >>> layer = BlockFFN(rows_by_output(up), rows_by_channel([down]), backend="reference")
        >>> layer(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.7311])
    """

    def __init__(self, up: WeightRows, down: WeightRows, *, backend: Backend = "numba") -> None:
        check_backend(backend, up.data.device)
        _check_matrices(up, down)
        self.up, self.down, self.backend = up, down, backend
        if backend == "numba":
            self._up, self._down = words(up), words(down)
            units = len(up.data)
            self._scale = np.ones(units, np.float32) if up.scale is None else up.scale.numpy()
            self._down_scale = None if down.scale is None else down.scale.numpy()

    def __call__(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Compute the layer from what the router said.

        Args:
            x: [T, d], or [d].
            weights: A, [T, E], or [E]; zero where an expert is not used.

        Returns:
            float32 [T, d], or [d].

        Raises:
            SpecError: Shapes do not fit, or there are more than 8 tokens.
        """
        flat, gates = x.detach().float().reshape(-1, x.shape[-1]), weights.detach().float()
        flat, gates = flat.contiguous(), gates.reshape(-1, gates.shape[-1]).contiguous()
        width = self._check(flat, gates)
        if self.backend == "reference":
            hidden = silu(flat @ self.up.dense().T) * gates.repeat_interleave(width, 1)
            y = hidden @ self.down.dense().T
        elif self.backend == "numba":
            y = torch.from_numpy(self._numba(flat.numpy(), gates.numpy(), width))
        else:
            from sparsescope.kernels.sparse_products_triton import block_ffn_tokens

            y = block_ffn_tokens(flat, gates, self.up, self.down, width)
        return y.reshape(*x.shape[:-1], -1)

    def _check(self, x: torch.Tensor, weights: torch.Tensor) -> int:
        """Hidden units of an expert.

        Raises:
            SpecError: Inputs and router weights do not fit each other or the matrices.
        """
        experts, units = weights.shape[1], len(self.down.data)
        if units % max(experts, 1):
            raise _do_not_fit(self.up, self.down, experts)
        if len(weights) != len(x) or self.up.width != x.shape[1]:
            raise SpecError(
                "inputs and router weights do not fit",
                where="x, weights",
                allowed=f"x [T, {self.up.width}], weights [T, {experts}]",
                got=f"{list(x.shape)}, {list(weights.shape)}",
                next_step="give the router weights of these tokens, zero where an expert is not used",
            )
        check_tokens(x, MOST_TOKENS)
        check_device(x, self.up)
        return units // experts

    def _numba(self, x: NDArray[np.float32], weights: NDArray[np.float32], width: int) -> NDArray[np.float32]:
        tokens, padded, split = len(x), self.down.data.shape[1], threads()
        out = np.empty((tokens, padded), np.float32)
        if tokens == 1:
            token_loops().block_ffn_token(
                self._up, self._down, x[0], weights, width, self._scale, split, out[0]
            )
        else:
            used = (weights != 0).any(0).nonzero()[0]  # a NaN is used
            rows = (used[:, None] * width + np.arange(width)).reshape(-1).astype(np.int32)
            kept = len(rows)
            planes = np.empty((tokens, self.up.data.shape[1]), np.float32)
            hidden = np.empty((tokens, max(kept, 1)), np.float32)
            token_loops().dot_kept_rows_of_tokens(self._up, x, rows, kept, split, planes, hidden)
            token_loops().weigh_hidden(hidden, weights, rows, kept, width, self._scale)
            partial = np.empty((split, tokens, padded), np.float32)
            token_loops().add_kept_rows_of_tokens(self._down, rows, hidden, kept, split, partial, out)
        y = out[:, : self.down.width]
        return y if self._down_scale is None else y * self._down_scale


def block_ffn(
    x: torch.Tensor,
    weights: torch.Tensor,
    up: WeightRows,
    down: WeightRows,
    *,
    backend: Backend = "numba",
) -> torch.Tensor:
    """Compute the layer once; see ``BlockFFN``.

    Args:
        x: [T, d], or [d].
        weights: A, [T, E], or [E]; zero where an expert is not used.
        up: By output, [E * width, d].
        down: By channel, [E * width, d].
        backend: ``reference``, ``numba`` or ``triton``.

    Returns:
        float32 [T, d], or [d].

    Raises:
        SpecError: Shapes do not fit, or there are more than 8 tokens.
        KernelError: The backend cannot be used on this machine, or tensors are on different devices.
    """
    return BlockFFN(up, down, backend=backend)(x, weights)


def _check_matrices(up: WeightRows, down: WeightRows) -> None:
    """Check that two matrices are those of one layer.

    Raises:
        SpecError: They do not belong together.
        KernelError: They are on different devices.
    """
    if up.by != "output" or down.by != "channel" or len(up.data) != len(down.data):
        raise _do_not_fit(up, down, None)
    check_device(down.data, up)


def _do_not_fit(up: WeightRows, down: WeightRows, experts: int | None) -> SpecError:
    given = f"up {len(up.data)} rows by {up.by}, down {len(down.data)} rows by {down.by}"
    return SpecError(
        "the matrices of a block feed-forward layer do not fit",
        where="up, down, weights",
        allowed="up by output and down by channel, with as many rows, a multiple of the experts",
        got=given if experts is None else f"{given}, {experts} experts",
        next_step="rows_by_output(W_up), rows_by_channel([W_down])",
    )
