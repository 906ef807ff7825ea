"""The MLP of BlockFFN (Song et al. 2025, arXiv:2507.08771): small experts without gates, chosen by ReLU.

    A0 = W_r x;  A1 = ReLU(A0);  A = RMSNorm(A1);  y = sum_e A_e W_down^e SiLU(W_up^e x)

ReLU decides which experts a token uses, the norm over experts (one learned factor for each) how much: a loss
that asks for few experts gains nothing from making all scores small. There is no top-k and no load balancing,
and a token can use no expert at all.

The experts are stored as one pair of matrices, side by side, so that the input of ``down_proj`` is a hidden
layer as in a dense MLP, exactly zero in the experts that a token does not use.

Shapes: d width of a token, E experts of e hidden units each, N tokens.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.activations import ACT2FN


class BlockFFN(nn.Module):
    """The layer; see the head of the file.

    Args:
        width: d.
        experts: E.
        expert_size: e.
        activation: Of the hidden units, a name of transformers.
        eps: Added to the mean square in the norm of the weights.

    Attributes:
        router: W_r, a linear module d -> E.
        router_norm: RMSNorm over E.
        up_proj: W_up of all experts, d -> E e.
        down_proj: W_down of all experts, E e -> d.
        only_active: Compute nothing for experts that a token does not use. The modules ``up_proj`` and
            ``down_proj`` are then not called, so that hooks there see nothing.
    """

    def __init__(
        self, width: int, experts: int, expert_size: int, activation: str = "silu", eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.experts_number, self.expert_size = experts, expert_size
        self.router = nn.Linear(width, experts, bias=False)
        self.router_norm = nn.RMSNorm(experts, eps=eps)
        self.up_proj = nn.Linear(width, experts * expert_size, bias=False)
        self.down_proj = nn.Linear(experts * expert_size, width, bias=False)
        self.act_fn = ACT2FN[activation]
        self.only_active = False

    def forward(
        self, hidden_states: torch.Tensor, router_scores: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the output, [..., d].

        Args:
            hidden_states: [..., d].
            router_scores: A0 [..., E] is appended to it.
        """
        scores = self.router(hidden_states)
        if router_scores is not None:
            router_scores.append(scores)
        weights = self.router_norm(scores.relu())
        if self.only_active:
            return self._active_experts(hidden_states, weights)
        hidden = self.act_fn(self.up_proj(hidden_states)).unflatten(-1, (self.experts_number, -1))
        said: torch.Tensor = self.down_proj((hidden * weights[..., None]).flatten(-2))
        return said

    def _active_experts(self, hidden_states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The output from the matrices of active experts alone, each on the tokens that use it, [..., d].

        Args:
            hidden_states: [..., d].
            weights: A, [..., E].
        """
        tokens, chosen = hidden_states.flatten(0, -2), weights.flatten(0, -2)
        out = torch.zeros_like(tokens)
        for expert in (chosen != 0).any(0).nonzero().flatten().tolist():
            rows = slice(expert * self.expert_size, (expert + 1) * self.expert_size)
            users = chosen[:, expert].nonzero().flatten()
            hidden = self.act_fn(linear(tokens[users], self.up_proj.weight[rows]))
            weighted = hidden * chosen[users, expert, None]
            out = out.index_add(0, users, linear(weighted, self.down_proj.weight[:, rows]))
        return out.reshape(hidden_states.shape)
