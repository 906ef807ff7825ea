"""Sigmoid scores with a bias that balances the load without a loss (Wang et al. 2024, arXiv:2408.15664;
DeepSeek-AI 2024, arXiv:2412.19437).

The experts of a token are the k largest of s_e + b_e, with s_e the sigmoid of its logit; their weights are
made of s_e alone. After each training step b_e += u * sign(mean load - load_e), where the load of an expert
counts the tokens of that step. No gradient goes through the bias.

Chosen here: weights are s_e over the sum of those chosen (``renormalize``), the rule of DeepSeek-V3; no
groups of experts, no factor on the weights, no loss within a sequence.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from transformers import initialization as init

from sparsescope.models.structure.gates.base import GateOptions, Gating, LinearGate


class SigmoidBiasOptions(GateOptions):
    """Options of ``sigmoid_bias``."""

    k: int = Field(2, ge=1, description="Experts per token: the knob of the active experts.")
    renormalize: bool = Field(True, description="Whether the weights of a token sum to 1.")
    update: float = Field(1e-3, ge=0, description="u, the step of the bias.")
    update_until: float = Field(
        1.0, ge=0, le=1, description="Share of the training after which the bias stays."
    )


class SigmoidBiasGate(LinearGate[SigmoidBiasOptions]):
    """The gate; see the head of the file.

    Attributes:
        e_score_correction_bias: b, stored float32 [E], under the name that transformers gives it.
        load: Tokens of each expert since the last ``after_step``, float32 [E]; not stored.
    """

    options_model: ClassVar[type[GateOptions]] = SigmoidBiasOptions
    e_score_correction_bias: torch.Tensor
    load: torch.Tensor

    def __init__(self, width: int, experts: int, options: SigmoidBiasOptions, *, vocabulary: int = 0) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw ``weight``; the bias begins at zero."""
        super().reset(generator, std)
        init.zeros_(self.e_score_correction_bias)
        init.zeros_(self.load)

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``."""
        scores = self.scores(states)
        shares = scores.sigmoid()
        index = (shares.detach() + self.e_score_correction_bias).topk(self.options.k, dim=-1).indices
        values = shares.gather(-1, index)
        if self.options.renormalize:
            values = values / values.sum(-1, keepdim=True).clamp_min(1e-20)
        weights = torch.zeros_like(shares).scatter(-1, index, values)
        if self._learning:
            self.load += index.flatten().bincount(minlength=self.experts)
        return Gating(scores, weights, scores.new_zeros(()))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the bias toward an even load."""
        if progress <= self.options.update_until:
            self.e_score_correction_bias += self.options.update * (self.load.mean() - self.load).sign()
        self.load.zero_()

    def _own_numbers(self) -> dict[str, float]:
        bias = self.e_score_correction_bias
        return {"bias_least": float(bias.min()), "bias_most": float(bias.max())}
