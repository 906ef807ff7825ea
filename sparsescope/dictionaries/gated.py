"""Gated sparse autoencoders (Rajamanoharan et al., arXiv:2404.16014): one path says which features are
active, another, with the same directions, how strongly.

    gate = W_enc (x - b_dec) + b_gate;  z_f = 1[gate_f > 0] max(exp(r_f) (W_enc (x - b_dec))_f + b_mag_f, 0)

Read from files and used; not trained here.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels


class GatedSAE(SparseAutoencoder):
    """Gated sparse autoencoder; ``encoder_bias`` is the bias of the gate.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        **settings: See ``SparseAutoencoder``.
    """

    architecture = "gated"

    def __init__(self, d_in: int, width: int, **settings: Any) -> None:
        super().__init__(d_in, width, **settings)
        self.magnitude_log = torch.nn.Parameter(torch.zeros_like(self.encoder_bias))
        self.magnitude_bias = torch.nn.Parameter(torch.zeros_like(self.encoder_bias))

    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every feature whose gate is open."""
        return kernels.entries_above(scores, scores.new_zeros(()))

    def values(self, scores: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """The magnitude path of the open gates."""
        feature = indices.long()
        plain = scores - self.encoder_bias.detach()[feature]
        found = plain * self.magnitude_log.detach().exp()[feature] + self.magnitude_bias.detach()[feature]
        return found.clamp(min=0)

    def allocate(self, rows: Any, step: Any) -> Any:
        """Gated autoencoders are read, not trained.

        Raises:
            SpecError: Always.
        """
        raise SpecError(
            "gated autoencoders are read from files, and not trained here",
            where="GatedSAE",
            allowed="relu, topk, batch_topk, feature_choice, jumprelu, matryoshka",
            next_step="train one of these",
        )

    def _scale_thresholds(self, factor: torch.Tensor | float) -> None:
        self.magnitude_bias.mul_(factor)

    @torch.no_grad()
    def rescale(self, scale_in: float, scale_out: float) -> None:
        """See ``SparseAutoencoder.rescale``."""
        super().rescale(scale_in, scale_out)
        self.magnitude_bias.mul_(scale_out)
