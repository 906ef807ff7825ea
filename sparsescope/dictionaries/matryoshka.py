"""Matryoshka autoencoders (Bussmann et al., arXiv:2503.17547): prefixes of the features reconstruct too.

With prefixes F_1 < ... < F_G = F and one allocation z (BatchTopK): loss = mean_g FVU(x, z_{<F_g}
W_dec,{<F_g} + b). The parts between prefixes are decoded once and added up, so the nested losses cost one
decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sparsescope.dictionaries.autoencoder import Step
from sparsescope.dictionaries.choice import BatchTopKSAE
from sparsescope.dictionaries.entries import Entries, decode_entries
from sparsescope.errors import SpecError


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK autoencoder with nested prefixes.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        prefixes: Widths F_1 < ... < F_G = width; None for 1/16, 1/8, 1/4, 1/2 and all of it.
        **settings: See ``BatchTopKSAE``.

    Raises:
        SpecError: The prefixes do not ascend to ``width``.
    """

    architecture = "matryoshka"
    settings = ("k", "aux_k", "aux_weight", "prefixes")

    def __init__(
        self, d_in: int, width: int, *, prefixes: Sequence[int] | None = None, **settings: Any
    ) -> None:
        super().__init__(d_in, width, **settings)
        if prefixes is None:
            prefixes = sorted({max(1, width // part) for part in (16, 8, 4, 2, 1)})
        self.prefixes = list(prefixes)
        if (
            not self.prefixes
            or any(type(prefix) is not int for prefix in self.prefixes)
            or self.prefixes != sorted(set(self.prefixes))
            or self.prefixes[0] < 1
            or self.prefixes[-1] != width
        ):
            raise SpecError(
                "the prefixes are not possible",
                where="MatryoshkaSAE(prefixes)",
                allowed=f"ascending widths from 1 on, the last one {width}",
                got=str(list(prefixes))[:120],
            )

    def error(
        self, values: torch.Tensor, entries: Entries, target: torch.Tensor, step: Step
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the errors of the prefixes, and the residual of all features."""
        residual = target - self.decoder_bias
        errors, low = [], 0
        for high in self.prefixes:
            inside = (entries.indices >= low) & (entries.indices < high)
            part = entries.where(inside)
            part = Entries(part.indices - low, part.scores, part.offsets, high - low)
            residual = residual - decode_entries(values[inside], self.decoder[low:high], part)
            errors.append(residual.square().sum() / (len(target) * step.variance))
            low = high
        return torch.stack(errors).mean(), residual.detach()
