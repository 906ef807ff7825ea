"""Top-k: the k largest of a softmax over all experts (Shazeer et al. 2017, arXiv:1701.06538, without its
noise).

Weights are the softmax over all experts at the chosen ones, as in OLMoE, or those over their sum
(``renormalize``), as in Mixtral. The weights of a token then sum to 1; without it to less.

Penalty: ``balance`` times E * sum_e f_e P_e, where f_e is the share of tokens that chose expert e (the sum
of all is k) and P_e its mean probability (Fedus et al. 2021, arXiv:2101.03961; k choices as in
transformers): k where tokens are spread evenly. It is taken in each layer, not over all layers pooled as
transformers does. And ``z_loss`` times the mean squared log-sum-exp of the logits (Zoph et al. 2022,
arXiv:2202.08906).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from sparsescope.models.structure.gates.base import GateOptions, Gating, LinearGate


class TopKOptions(GateOptions):
    """Options of ``top_k``."""

    k: int = Field(2, ge=1, description="Experts per token: the knob of the active experts.")
    renormalize: bool = Field(False, description="Whether the weights of a token sum to 1.")
    balance: float = Field(0.01, ge=0, description="Weight of the load-balancing loss.")
    z_loss: float = Field(0.0, ge=0, description="Weight of the z-loss.")


def balancing_loss(probabilities: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """E * sum_e f_e P_e, a scalar; the experts per token where the load is even.

    Args:
        probabilities: [N, E], rows sum to 1.
        weights: [N, E], zero where an expert was not chosen.
    """
    chosen = (weights.detach() != 0).float().mean(0)
    return probabilities.shape[-1] * (chosen * probabilities.mean(0)).sum()


class TopKGate(LinearGate[TopKOptions]):
    """The gate; see the head of the file. Exactly k experts are active, but for probabilities that
    underflow.
    """

    options_model: ClassVar[type[GateOptions]] = TopKOptions

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``."""
        scores, options = self.scores(states), self.options
        probabilities = scores.softmax(-1)
        best = probabilities.topk(options.k, dim=-1)
        values = best.values
        if options.renormalize:
            values = values / values.sum(-1, keepdim=True)
        weights = torch.zeros_like(probabilities).scatter(-1, best.indices, values)
        penalty = options.balance * balancing_loss(probabilities, weights)
        if options.z_loss:
            penalty = penalty + options.z_loss * scores.logsumexp(-1).square().mean()
        return Gating(scores, weights, penalty)
