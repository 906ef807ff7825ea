"""The bytes of a tensor, also of a quantized or packed one, and their hash."""

from __future__ import annotations

import hashlib

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def tensor_digest(tensor: torch.Tensor) -> bytes:
    """Return the SHA-256 of the raw bytes of a tensor, in C order; of a quantized one of its integers, scales
    and zero points.
    """
    digests = [
        hashlib.sha256(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
        for part in plain_tensors(tensor)
    ]
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of numbers that a tensor consists of: itself, or what a quantized one stores."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scales = torch.tensor([tensor.q_scale(), float(tensor.q_zero_point())], dtype=torch.float64)
            return [tensor.int_repr(), scales]
        axis = torch.tensor([tensor.q_per_channel_axis()])
        scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
        return [tensor.int_repr(), scales, zeros, axis]
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [part for name in names for part in plain_tensors(getattr(tensor, name))]
    return [tensor if tensor.layout is torch.strided else tensor.to_dense()]
