"""Sparse product of one token: y = W (m * x), where only the columns of W that the mask m keeps are read.

Input i is kept unless |x_i| <= limit_i, with limit_i = threshold / c_i for the scores |x_i| c_i of WINA, WAS
and TEAL; selection is part of the product. Matrices that read one input (q, k, v; gate, up) are stacked in
``WeightRows`` and share the mask; the down projection is the same product with its own. A limit below 0 keeps
every input: the dense product with the same weights. A NaN is kept.

Backends: ``reference`` (torch), ``numba`` (CPU; float32, bfloat16 and int8 weights), ``triton`` (GPU).

Shapes: x [K]; limits [K] or a number; weights by channel, N outputs; y float32 [N].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.errors import KernelError, SpecError
from sparsescope.kernels.backends import Backend, check_backend
from sparsescope.kernels.weight_rows import WeightRows

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SparseGemv:
    """The product of stored matrices with one token, prepared for many tokens: what does not change is
    checked once.

    Args:
        weight: By channel.
        limits: float32 [K], or one number.
        bias: Added to the outputs, [N].
        backend: ``reference``, ``numba`` or ``triton``; never replaced by another one.

    Raises:
        SpecError: Shapes do not fit, or weights are stored by output.
        KernelError: The backend cannot be used on this machine.
    """

    def __init__(
        self,
        weight: WeightRows,
        limits: torch.Tensor | float,
        *,
        bias: torch.Tensor | None = None,
        backend: Backend = "numba",
    ) -> None:
        check_backend(backend, weight.data.device)
        check_by_channel(weight)
        self.weight, self.backend = weight, backend
        self.limits = limits_of(limits, weight.n_inputs, weight.data.device)
        if bias is not None and bias.shape != (weight.n_outputs,):
            raise SpecError(
                "there is one bias for each output",
                where="bias",
                allowed=f"[{weight.n_outputs}]",
                got=list(bias.shape),
                next_step="stack the biases in the order of the matrices",
            )
        self.bias = None if bias is None else bias.to(weight.data.device, torch.float32)
        if backend == "numba":
            self._words, self._limits = words(weight), self.limits.numpy()
            self._scale = None if weight.scale is None else weight.scale.numpy()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply with the inputs of a token that are above their limits.

        Args:
            x: [K], of any floating type; compared and multiplied as float32.

        Returns:
            float32 [N].

        Raises:
            SpecError: x has another length, or there are several tokens.
            KernelError: x is on another device.
        """
        weight = self.weight
        check_input(x, weight, most=1)
        values = x.detach().reshape(-1).float().contiguous()
        if self.backend == "numba":
            out = np.empty(weight.data.shape[1], np.float32)
            loops().gemv(self._words, values.numpy(), self._limits, threads(), out)
            y = torch.from_numpy(
                out[: weight.width] if self._scale is None else out[: weight.width] * self._scale
            )
        elif self.backend == "reference":
            y = weight.dense() @ torch.where(values.abs() <= self.limits, 0.0, values)
        else:
            from sparsescope.kernels.sparse_products_triton import gemv

            y = gemv(values, weight, self.limits)
        return y if self.bias is None else y + self.bias


def sparse_gemv(
    x: torch.Tensor,
    weight: WeightRows,
    limits: torch.Tensor | float,
    *,
    bias: torch.Tensor | None = None,
    backend: Backend = "numba",
) -> torch.Tensor:
    """Multiply stored matrices with the inputs of one token above their limits; see ``SparseGemv``.

    Args:
        x: [K], of any floating type.
        weight: By channel.
        limits: float32 [K], or one number.
        bias: Added to the outputs, [N].
        backend: ``reference``, ``numba`` or ``triton``.

    Returns:
        float32 [N].

    Raises:
        SpecError: Shapes do not fit, weights are stored by output, or there are several tokens.
        KernelError: The backend cannot be used on this machine.

    Example:
        >>> from sparsescope.kernels.weight_rows import rows_by_channel
        >>> weight = rows_by_channel([torch.tensor([[1.0, 2.0, 4.0]])])
        >>> sparse_gemv(torch.tensor([1.0, -0.1, 2.0]), weight, 0.5, backend="reference")
        tensor([9.])
    """
    return SparseGemv(weight, limits, bias=bias, backend=backend)(x)


def product_bytes(weight: WeightRows, kept: float) -> float:
    """Bytes of weights that a product must read: kept rows, and the scales of int8.

    Args:
        weight: The stored matrices.
        kept: Rows that are kept.
    """
    return kept * weight.row_bytes + (0 if weight.scale is None else 4 * weight.n_outputs)


def check_by_channel(weight: WeightRows) -> None:
    """Check that a product can skip rows of stored weights.

    Raises:
        SpecError: They are stored by output.
    """
    if weight.by != "channel":
        raise SpecError(
            "a sparse product reads rows by input channel, and these are by output",
            where="weight",
            allowed="rows_by_channel(matrices)",
            got="rows by output",
            next_step="store them by channel; the product would be another one, not slower only",
        )


def check_input(x: torch.Tensor, weight: WeightRows, most: int) -> None:
    """Check inputs against stored weights.

    Raises:
        SpecError: Other inputs than the weights have, or too many tokens.
        KernelError: They are on another device.
    """
    inputs = weight.n_inputs
    if x.ndim not in (1, 2) or x.shape[-1] != inputs:
        raise SpecError(
            "the input has another length than the matrices read",
            where="x",
            allowed=f"[{inputs}]" if most == 1 else f"[1 to {most}, {inputs}]",
            got=list(x.shape),
            next_step="give what these matrices read",
        )
    check_tokens(x, most)
    check_device(x, weight)


def check_tokens(x: torch.Tensor, most: int) -> None:
    """Check how many tokens a kernel gets, x [T, K] or [K].

    Raises:
        SpecError: None, or too many.
    """
    tokens = x.numel() // max(x.shape[-1], 1)
    if not 0 < tokens <= most:
        raise SpecError(
            "this kernel does not take so many tokens" if tokens else "there is no token",
            where="x",
            allowed="one token" if most == 1 else f"1 to {most} tokens",
            got=list(x.shape),
            next_step="shared_mask_gemm takes 2 to 8 tokens, weight.product(x) any number, dense"
            if most == 1
            else "weight.product(x) takes any number of tokens, dense",
        )


def check_device(x: torch.Tensor, weight: WeightRows) -> None:
    """Check that a tensor is where the weights are.

    Raises:
        KernelError: It is on another device.
    """
    if x.device != weight.data.device:
        raise KernelError(
            "inputs and weights are on different devices",
            where="x",
            allowed=str(weight.data.device),
            got=str(x.device),
            next_step="move one of them",
        )


def limits_of(limits: torch.Tensor | float, inputs: int, device: torch.device) -> torch.Tensor:
    """Limits as float32 [K].

    Raises:
        SpecError: There are other ones than inputs.
    """
    if not isinstance(limits, torch.Tensor):
        return torch.full((inputs,), float(limits), device=device)
    found = limits.to(device, torch.float32)
    if found.ndim > 1 or (found.ndim and len(found) != inputs):
        raise SpecError(
            "there is one limit for each input",
            where="limits",
            allowed=f"a number, or [{inputs}]",
            got=list(found.shape),
            next_step="thresholds / scales of the calibration: Mask.limits",
        )
    return found.expand(inputs).contiguous()


def words(weight: WeightRows) -> NDArray[Any]:
    """Stored rows as the words that compiled kernels read: the type says what is in them."""
    if weight.stored == "float32":
        return weight.data.numpy()
    if weight.stored == "bfloat16":
        return weight.data.view(torch.int16).numpy().view(np.uint32)
    return weight.data.numpy().view(np.int32)


@cache
def loops() -> Any:
    """The compiled loops."""
    from sparsescope.kernels import sparse_products_compiled

    return sparse_products_compiled


@cache
def token_loops() -> Any:
    """The compiled loops of several tokens."""
    from sparsescope.kernels import token_products_compiled

    return token_products_compiled


def threads() -> int:
    """Parts that a compiled kernel is split into: the threads of torch, as far as numba has them."""
    import numba

    config: Any = numba.config
    return min(torch.get_num_threads(), int(config.NUMBA_NUM_THREADS))
