"""Inputs up to a limit are set to zero, and those that stay are counted: one pass over the activations.

Positive floating-point numbers are ordered as their bits are, so that |x| <= limit is a comparison of
integers in the precision of x; a NaN has larger bits than infinity and stays, as it does in the reference.
Entries that stay are bit-identical.

Shapes: x [n, K]; limits [K], or one number; rows bool [n]; kept int64 [n].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from sparsescope.errors import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

Backend = Literal["reference", "numba"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def supports(x: torch.Tensor) -> bool:
    """Whether the compiled backend takes these activations."""
    return x.device.type == "cpu" and x.dtype in _BITS and not x.requires_grad


def mask_inputs(
    x: torch.Tensor,
    limits: torch.Tensor | float,
    rows: torch.Tensor | None = None,
    *,
    backend: Backend = "numba",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set the entries with |x| <= limit to zero.

    Args:
        x: [n, K].
        limits: In the precision of x, rounded down to it; below 0 nothing is dropped.
        rows: Rows that are masked; the others stay, and are counted as if they were masked. All when None.
        backend: ``"reference"`` (torch), or ``"numba"`` for what ``supports`` takes.

    Returns:
        The masked inputs, [n, K], and the number of inputs above the limit, int64 [n].

    Raises:
        SpecError: Unknown backend.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS, next_step="reference is the readable one")
    if backend == "reference" or not supports(x):
        keep = ~(x.abs() <= limits)
        drop = ~keep if rows is None else ~keep & rows[:, None]
        return x.masked_fill(drop, 0), keep.sum(-1)
    flat = x.contiguous()
    bits = flat.view(_BITS[x.dtype]).numpy()
    most = torch.as_tensor(limits).to(x.dtype).expand(x.shape[-1]).contiguous()
    # Bits of a negative limit are no order; -1 is below the bits of zero
    edge = np.where((most < 0).numpy(), -1, most.view(_BITS[x.dtype]).numpy())
    out = torch.empty_like(flat)
    kept = np.empty(len(flat), np.int64)
    chosen = np.ones(len(flat), np.bool_) if rows is None else rows.cpu().numpy()
    clear = np.iinfo(bits.dtype).max  # all bits but the sign
    _compiled()(
        bits, edge.astype(bits.dtype), bits.dtype.type(clear), chosen, out.view(_BITS[x.dtype]).numpy(), kept
    )
    return out, torch.from_numpy(kept)


@cache
def _compiled() -> Callable[..., None]:
    """The compiled kernel, on one thread: it is bound by memory, and threads of numba would compete with
    those of torch, which wait busily between two products.
    """
    import numba

    @numba.njit(cache=True, nogil=True)
    def mask(x: Any, edge: Any, clear: Any, rows: Any, out: Any, kept: Any) -> None:
        n, width = x.shape
        zero = x.dtype.type(0)
        for token in range(n):
            count = 0
            masked = rows[token]
            for i in range(width):
                stays = x.dtype.type(x[token, i] & clear) > edge[i]
                count += stays
                out[token, i] = x[token, i] if stays or not masked else zero
            kept[token] = count

    return mask
