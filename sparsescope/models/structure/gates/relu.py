"""The router of BlockFFN (Song et al. 2025, arXiv:2507.08771): A0 = x W, A1 = ReLU(A0), weights A =
RMSNorm(A1).

Every expert with a positive score is used, so each token uses as many as it needs, none included. The norm
has one learned factor for each expert; weights do not sum to 1, and one whose factor became negative is
negative.

Penalty: ``strength`` times the mean of A1 over its RMS: an L1 norm that cannot be had smaller by shrinking
all scores. Chosen here in place of the losses of the paper on runs of consecutive tokens, since a gate sees
tokens, not their order; the steering of the strength is that of ReMoE (see ``base.Targeted``). Experts here
are the gated ones that all gates share; in the paper they have no gate.

Knob of the active experts: ``target``, which moves ``strength``; with ``target`` None ``strength`` itself.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from transformers import initialization as init

from sparsescope.models.structure.gates.base import GateOptions, Gating, LinearGate, Steering, Targeted


class ReluOptions(Targeted):
    """Options of ``relu``."""

    eps: float = Field(1e-6, gt=0, description="Added to the mean square in the norm.")


class ReluGate(Steering, LinearGate[ReluOptions]):
    """The gate; see the head of the file.

    Attributes:
        norm: Factors of RMSNorm, [E].
        strength: Weight of the penalty, stored float32 scalar.
    """

    options_model: ClassVar[type[GateOptions]] = ReluOptions

    def __init__(self, width: int, experts: int, options: ReluOptions, *, vocabulary: int = 0) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        self.norm = nn.Parameter(torch.ones(experts))
        self._register_strength()

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw ``weight``; the factors of the norm begin at 1."""
        super().reset(generator, std)
        init.ones_(self.norm)
        self._reset_strength()

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``."""
        scores = self.scores(states)
        normed = nn.functional.rms_norm(scores.relu(), (self.experts,), eps=self.options.eps)
        weights = normed * self.norm.float()
        if self._learning:
            self._count(weights)
        return Gating(scores, weights, self.strength * normed.mean() + self._balance(weights))

    def after_step(self, progress: float) -> None:
        """Steer the strength of the penalty."""
        self._steer()

    def _own_numbers(self) -> dict[str, float]:
        return {"strength": float(self.strength), "norm_least": float(self.norm.min())}

    def _token_numbers(self, states: torch.Tensor, token_ids: torch.Tensor | None) -> dict[str, float]:
        return {"zero_share": float((self.scores(states) <= 0).double().mean())}
