"""TopK sparse autoencoders with AuxK (Gao et al., arXiv:2406.04093): z = max(TopK_k(pre), 0), the k largest
scores of each row.

The error needs no penalty. Features that were not active for the dead window reconstruct the residual
(``dead_features.py``), with weight 1/32.
"""

from __future__ import annotations

from typing import Any

import torch

from sparsescope.dictionaries.autoencoder import (
    SparseAutoencoder,
    Step,
    check_number,
    check_whole,
)
from sparsescope.dictionaries.dead_features import reviving_loss
from sparsescope.dictionaries.entries import Entries
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels

AUX_WEIGHT = 1 / 32
AUX_K = 256


class WithAuxK(SparseAutoencoder):
    """What architectures with AuxK share.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        k: Active features of a row: exactly, on average, or as a target, as the architecture says.
        aux_k: Dead features that explain the residual of each row; None for the smaller of 256 and d_out / 2.
        aux_weight: Weight of that loss; 0 for none.
        **settings: See ``SparseAutoencoder``.

    Raises:
        SpecError: k is not in 1 to ``width``.
    """

    settings: tuple[str, ...] = ("k", "aux_k", "aux_weight")

    def __init__(
        self, d_in: int, width: int, *, k: int = 32, aux_k: int | None = None, aux_weight: float = AUX_WEIGHT,
        **settings: Any,
    ) -> None:  # fmt: skip
        check_whole(self, "width", width, 1)
        check_whole(self, "k", k, 1, width)
        check_number(self, aux_weight=aux_weight)
        if aux_k is not None:
            check_whole(self, "aux_k", aux_k, 1)
        super().__init__(d_in, width, **settings)
        self.k, self.aux_weight = k, aux_weight
        self.aux_k = min(AUX_K, max(1, self.d_out // 2)) if aux_k is None else aux_k

    def unused(self, step: Step) -> torch.Tensor:
        """Bool [width], the features that the auxiliary loss brings back."""
        return step.dead

    def penalty(
        self, values: torch.Tensor, entries: Entries, rows: torch.Tensor, residual: torch.Tensor, step: Step
    ) -> dict[str, torch.Tensor]:
        """AuxK."""
        if not self.aux_weight:
            return {}
        shift = self.decoder_bias if self.subtract_decoder_bias else None
        found = reviving_loss(
            self.encoder,
            self.encoder_bias,
            self.decoder,
            shift,
            rows,
            residual,
            self.unused(step),
            self.aux_k,
        )
        return {} if found is None else {"aux": self.aux_weight * found}


class TopKSAE(WithAuxK):
    """Sparse autoencoder that keeps the ``k`` largest scores of each row.

    Args:
        d_in: Width of what it reads.
        width: Number of features.
        k: Active features of each row; fewer where fewer scores are positive.
        **settings: See ``WithAuxK``.
    """

    architecture = "topk"

    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The k largest scores of each row that are positive."""
        return kernels.top_entries(scores, self.k)

    @torch.no_grad()
    def fold_decoder_norm(self) -> None:
        """See ``SparseAutoencoder.fold_decoder_norm``.

        Raises:
            SpecError: The rows have different norms, so that other features would be the k largest.
        """
        norms = self.decoder.norm(dim=1)
        norms = norms.where(norms > 0, 1)
        if float(norms.max() / norms.min()) > 1 + 16 * torch.finfo(norms.dtype).eps:
            raise SpecError(
                "the norms of the decoder rows cannot be folded: other features would be among the k largest",
                where=f"{type(self).__name__}.fold_decoder_norm",
                allowed="decoder rows of one norm",
                got=f"norms from {float(norms.min()):.4g} to {float(norms.max()):.4g}",
                next_step="leave the rows as they are; codes and reconstructions do not need unit norms",
            )
        super().fold_decoder_norm()


class AbsTopKSAE(TopKSAE):
    """Sparse autoencoder that keeps the ``k`` scores of largest magnitude, with their signs; read from
    files.
    """

    architecture = "abstopk"

    def select(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The k scores of largest magnitude of each row."""
        indices, _, counts = kernels.top_entries(scores.abs(), self.k)
        rows = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), counts)
        return indices, scores[rows, indices.long()], counts

    def allocate(self, rows: Any, step: Any) -> Any:
        """Read, not trained.

        Raises:
            SpecError: Always.
        """
        raise SpecError(
            "autoencoders of signed codes are read from files, and not trained here",
            where="AbsTopKSAE",
            next_step="train topk",
        )
