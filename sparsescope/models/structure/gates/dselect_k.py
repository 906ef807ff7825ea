"""DSelect-k (Hazimeh et al. 2021, arXiv:2106.03760): k selectors, each of which spells the number of an
expert in smooth bits.

Selector i has m = ceil(log2 E) logits z_i and gives expert e the weight r_i[e] = prod_b S(z_ib) where bit b
of e is one, 1 - S(z_ib) where it is zero; the highest bit comes first. S is ``base.smooth_step``, exactly 0
or 1 outside of (-gamma/2, gamma/2): a selector whose bits are all there has one expert. The gate is sum_i
softmax(a)_i r_i. With ``conditioned``, z and a are affine in the token; else they are parameters, the same
for all tokens (the paper's gate for a task).

Penalty: ``strength`` times the entropy of each r_i, summed over selectors, mean over tokens, which pushes
bits to 0 and 1; and, where E is no power of two, ``reach`` times sum_i 1 / sum_e r_i[e], since codes from E
on belong to no expert. A token whose selectors end there gets less than 1 in all. The published code sums
over the batch; chosen here is the mean, so that the strength does not depend on the batch, and sums below
1e-6 count as that.

Knob of the active experts: ``target``, which moves ``strength``; with ``target`` None ``strength`` itself.
Once all bits are saturated no gradient reaches them, and a token has at most k experts, fewer where
selectors agree.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from einops import rearrange
from pydantic import Field
from torch import nn
from torch.nn.functional import linear
from transformers import initialization as init

from sparsescope.models.structure.gates.base import (
    Gate,
    GateOptions,
    Gating,
    Steering,
    Targeted,
    active,
    bounded,
    entropy,
    hard_share,
    smooth_step,
)

_LEAST_SUM = 1e-6


class DSelectKOptions(Targeted):
    """Options of ``dselect_k``."""

    k: int = Field(2, ge=1, description="Selectors: the most experts once their codes are hard.")
    gamma: float = Field(1.0, gt=0, description="Width of the smooth step.")
    reach: float = Field(0.1, ge=0, description="Weight of the penalty for codes of no expert.")
    conditioned: bool = Field(True, description="Whether the choice depends on the token.")


class DSelectKGate(Steering, Gate[DSelectKOptions]):
    """The gate; see the head of the file.

    Attributes:
        code_weight: [k * m, d], and ``code_bias`` [k * m], of the bits z.
        share_weight: [k, d], and ``share_bias`` [k], of the logits a.
        strength: Weight of the entropy, stored float32 scalar.
    """

    bounded_by_k: ClassVar[bool] = False  # before all is hard
    options_model: ClassVar[type[GateOptions]] = DSelectKOptions
    codes: torch.Tensor

    def __init__(self, width: int, experts: int, options: DSelectKOptions, *, vocabulary: int = 0) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        self.bits = math.ceil(math.log2(experts))
        n = options.k * self.bits
        if options.conditioned:
            self.code_weight = nn.Parameter(torch.zeros(n, width))
            self.share_weight = nn.Parameter(torch.zeros(options.k, width))
        self.code_bias = nn.Parameter(torch.zeros(n))
        self.share_bias = nn.Parameter(torch.zeros(options.k))
        self.register_buffer("codes", self._codes(), persistent=False)
        self._register_strength()

    def _codes(self) -> torch.Tensor:
        """Bits of the numbers of the experts, bool [E, m], the highest first."""
        shifts = torch.arange(self.bits - 1, -1, -1)
        return (torch.arange(self.experts)[:, None] >> shifts) % 2 == 1

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw bits from U(-gamma/100, gamma/100) and shares from U(-0.05, 0.05), as the published code
        does.
        """
        bounds = {"code": self.options.gamma / 100, "share": 0.05}
        for name, parameter in self.named_parameters():
            bound = bounds[name.partition("_")[0]]
            init.copy_(parameter, (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
        init.copy_(self.codes, self._codes())
        self._reset_strength()

    def selectors(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights r [N, k, E] of the selectors, their shares [N, k], and their bits S(z) [N, k, m]."""
        if self.options.conditioned:
            bits = linear(states, self.code_weight, self.code_bias)
            shares = linear(states, self.share_weight, self.share_bias)
        else:
            bits, shares = (part.expand(len(states), -1) for part in (self.code_bias, self.share_bias))
        steps = smooth_step(bounded(bits), self.options.gamma)
        steps = rearrange(steps, "n (k bit) -> n k bit", k=self.options.k)
        spelled = torch.where(self.codes, steps[:, :, None], 1 - steps[:, :, None])
        return spelled.prod(-1), bounded(shares).softmax(-1), steps

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``."""
        selected, shares, _ = self.selectors(states)
        weights = (shares[..., None] * selected).sum(1)
        penalty = self.strength * entropy(selected).sum(-1).mean() + self._balance(weights)
        if self.experts != 2**self.bits:
            reached = 1 / selected.sum(-1).clamp_min(_LEAST_SUM)
            penalty = penalty + self.options.reach * reached.sum(-1).mean()
        if self._learning:
            self._count(weights)
        # Shares of the reached experts: what is not a number of an expert is not part of the choice
        scores = weights / weights.sum(-1, keepdim=True).clamp_min(_LEAST_SUM)
        return Gating(scores, weights, penalty)

    def after_step(self, progress: float) -> None:
        """Steer the strength of the entropy."""
        self._steer()

    def _own_numbers(self) -> dict[str, float]:
        return {"strength": float(self.strength)}

    def _token_numbers(self, states: torch.Tensor, token_ids: torch.Tensor | None) -> dict[str, float]:
        selected, _, steps = self.selectors(states)
        single, best = active(selected) == 1, selected.argmax(-1)
        equal = (best[:, :, None] == best[:, None]).double()  # [N, k, k]
        k = self.options.k
        overlap = (equal.sum((1, 2)) - k) / max(k * (k - 1), 1)
        return {
            "hard_bits": hard_share(steps),
            "hard_selectors": float(single.double().mean()),
            "selector_overlap": float(overlap.mean()),
            "unreached_mass": float((1 - selected.sum(-1)).clamp_min(0).mean()),
        }
