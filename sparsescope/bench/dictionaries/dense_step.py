"""A plain training step of a TopK autoencoder, as one would write it in torch: the opponent of ``bench
dictionaries``.

The codes are a dense [row, feature] tensor, so encoder, decoder and their gradients are dense products.
Everything else is what ``dictionaries/train.py`` does: the same start, the loss in units of the variance,
AuxK, features counted as dead, unit decoder rows with the gradient projected, Adam.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sparsescope.dictionaries.topk import TopKSAE


class DenseStep:
    """The same autoencoder with dense codes.

    Args:
        like: Whose start is taken.
        learning_rate: Of Adam.
        variance: Unit of the loss.
    """

    def __init__(self, like: TopKSAE, learning_rate: float, variance: float) -> None:
        named = ("encoder", "encoder_bias", "decoder", "decoder_bias")
        self.encoder, self.encoder_bias, self.decoder, self.decoder_bias = (
            torch.nn.Parameter(getattr(like, name).detach().clone()) for name in named
        )
        self.k, self.aux_k, self.aux_weight, self.variance = like.k, like.aux_k, like.aux_weight, variance
        self.since = torch.zeros(like.width, dtype=torch.int64)
        parameters = [self.encoder, self.encoder_bias, self.decoder, self.decoder_bias]
        self.optimizer = torch.optim.Adam(parameters, lr=learning_rate, eps=6.25e-10)

    def update(self, rows: torch.Tensor, dead: torch.Tensor) -> float:
        """One step on rows [row, d]; ``dead`` bool [feature]. Returns the FVU before it."""
        scores = (rows - self.decoder_bias) @ self.encoder.T + self.encoder_bias
        best = scores.topk(self.k, dim=1)
        codes = torch.zeros_like(scores).scatter(1, best.indices, best.values.relu())
        made = codes @ self.decoder + self.decoder_bias
        residual = rows - made
        error = residual.square().sum() / (len(rows) * self.variance)
        loss = error
        if self.aux_weight and bool(dead.any()):
            # The best dead features of each row explain what is left
            hidden = scores.masked_fill(~dead, -torch.inf)
            chosen = hidden.topk(min(self.aux_k, int(dead.sum())), dim=1)
            aux = torch.zeros_like(scores).scatter(1, chosen.indices, chosen.values) @ self.decoder
            left = residual.detach()
            share = min(int(dead.sum()) / self.aux_k, 1.0)
            loss = loss + self.aux_weight * share * (left - aux).square().sum() / left.square().sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            gradient = self.decoder.grad
            assert gradient is not None
            gradient -= (gradient * self.decoder).sum(1, keepdim=True) * self.decoder
            self.optimizer.step()
            self.decoder.div_(self.decoder.norm(dim=1, keepdim=True))
            active = (codes > 0).any(0)
            self.since += len(rows)
            self.since[active] = 0
        return float(error.detach())
