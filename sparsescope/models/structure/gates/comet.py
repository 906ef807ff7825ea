"""COMET (Ibrahim et al., KDD 2023): k binary trees whose leaves are the experts, with a permutation of the
experts in each tree that is searched in the first part of the training.

A tree of E leaves has E - 1 splits in heap order: node n has the children 2n + 1 and 2n + 2, and nodes from
E - 1 on are leaves, for every E. A split sends a token left with probability S(x . w), S being
``base.smooth_step``; leaf e of tree j is reached with the product P_je and scores x . v_je + c_je + log
P_je. One softmax over all k E scores, then the sum over trees: where every split of a token is hard, each
tree has one leaf and at most k experts are active.

Permutations: g_j <- g_j Q_j. While ``progress`` is below ``search``, Q is Sinkhorn's scaling of log weights
with Gumbel noise, at a temperature that falls from 1e-3 to 1e-7 (a line in its logarithm) in 20 to 150
rounds; after it, and in evaluation, it is the Hungarian assignment of that matrix without noise. The noise
is drawn from the layer's seed and the progress: a training that goes on draws the same.

Penalty: ``strength`` times the sum over trees and leaves of -P log P, mean over tokens; and ``order`` times
the entropy of Q during the search.

Chosen here: splits have no bias, as in the published torch code; P below 1e-5 counts as zero, as there;
leaves are numbered by their node, which the permutation makes irrelevant; the factor of the noise, a
searched value there, is 1e-3; Q is renormalized by the sum of the weights, as there.

Knob of the active experts: ``target``, which moves ``strength``; with ``target`` None ``strength`` itself.
Hard trees have at most k, fewer where two trees send a token to the same expert.
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
from sparsescope.models.structure.gates.permutations import assignment, gumbel, permutation_entropy, sinkhorn

#: A leaf that is reached with less is not reached.
LEAST_REACH = 1e-5
_TEMPERATURES, _ROUNDS = (1e-3, 1e-7), (20, 150)


class CometOptions(Targeted):
    """Options of ``comet``."""

    k: int = Field(2, ge=1, description="Trees: the most experts once their splits are hard.")
    gamma: float = Field(10.0, gt=0, description="Width of the smooth step.")
    search: float = Field(0.25, ge=0, le=1, description="Share of the training that searches permutations.")
    noise: float = Field(1e-3, ge=0, description="Factor of the Gumbel noise on the log weights.")
    order: float = Field(1e-4, ge=0, description="Weight of the entropy of the permutations.")


class CometGate(Steering, Gate[CometOptions]):
    """The gate; see the head of the file.

    Attributes:
        split: w, [k * (E - 1), d], the splits of one tree after another.
        leaf: v, [k * E, d], and ``leaf_bias`` c, [k * E].
        order: Log weights of the permutations, [k, E, E].
        permutation: Their assignment, stored float32 [k, E, E].
        progress: Share of the training that is done, stored float32 scalar.
        noise_seed: Stored int64 scalar.
    """

    bounded_by_k: ClassVar[bool] = False  # before all is hard
    options_model: ClassVar[type[GateOptions]] = CometOptions
    permutation: torch.Tensor
    progress: torch.Tensor
    noise_seed: torch.Tensor

    def __init__(self, width: int, experts: int, options: CometOptions, *, vocabulary: int = 0) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        k = options.k
        self.split = nn.Parameter(torch.zeros(k * (experts - 1), width))
        self.leaf = nn.Parameter(torch.zeros(k * experts, width))
        self.leaf_bias = nn.Parameter(torch.zeros(k * experts))
        self.order = nn.Parameter(torch.zeros(k, experts, experts))
        self.register_buffer("permutation", torch.eye(experts).repeat(k, 1, 1))
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("noise_seed", torch.zeros((), dtype=torch.int64))
        self._register_strength()

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw splits from U(-gamma/100, gamma/100), leaves and orders from U(-0.05, 0.05), as the
        published code does; permutations begin at the assignment of the orders.
        """
        for parameter, bound in (
            (self.split, self.options.gamma / 100),
            (self.leaf, 0.05),
            (self.order, 0.05),
        ):
            init.copy_(parameter, (2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
        init.zeros_(self.leaf_bias)
        init.copy_(self.noise_seed, torch.randint(2048, (), generator=generator))  # exact in float16
        init.zeros_(self.progress)
        init.copy_(self.permutation, self._assignment(0.0))
        self._reset_strength()

    def _assignment(self, done: float) -> torch.Tensor:
        """The permutation next to Sinkhorn's matrices without noise at a share of the search."""
        if not self.options.search:
            return torch.eye(self.experts).expand_as(self.order)
        return assignment(self._soft(min(done, 1.0), 0.0))

    def reached(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities P [N, k, E] of the leaves and S [N, k, E - 1] of the splits."""
        left = smooth_step(bounded(linear(states, self.split)), self.options.gamma)
        left = rearrange(left, "n (k split) -> n k split", k=self.options.k)
        nodes = [left.new_ones(left.shape[:2])]
        for node, share in enumerate(left.unbind(-1)):
            nodes += [nodes[node] * share, nodes[node] * (1 - share)]
        return torch.stack(nodes[self.experts - 1 :], -1), left

    def permutations(self) -> torch.Tensor:
        """The matrices Q [k, E, E] of this pass."""
        progress = float(self.progress)
        if not (self._learning and progress < self.options.search):
            return self.permutation
        return self._soft(progress / self.options.search, self.options.noise)

    def _soft(self, done: float, noise: float) -> torch.Tensor:
        """Sinkhorn's matrices at a share of the search."""
        first, last = (math.log10(value) for value in _TEMPERATURES)
        rounds = int(_ROUNDS[0] + (_ROUNDS[1] - _ROUNDS[0]) * done)
        order: torch.Tensor = self.order
        if noise:
            # The bits of the float: another progress is another draw
            drawn = int(self.noise_seed) << 32 | int(self.progress.float().cpu().view(torch.int32))
            order = order + noise * gumbel(order.shape, torch.Generator().manual_seed(drawn)).to(order)
        return sinkhorn(order, 10 ** (first + (last - first) * done), rounds)

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``."""
        reached, _ = self.reached(states)
        said = bounded(linear(states, self.leaf, self.leaf_bias))
        said = rearrange(said, "n (k e) -> n k e", k=self.options.k)
        scores = torch.where(reached < LEAST_REACH, -torch.inf, said + reached.clamp_min(LEAST_REACH).log())
        shares = rearrange(
            rearrange(scores, "n k e -> n (k e)").softmax(-1), "n (k e) -> n k e", k=said.shape[1]
        )
        searching = self._learning and float(self.progress) < self.options.search
        order = self.permutations()
        weights = torch.einsum("nke,kef->nf", shares, order.to(shares.dtype))
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        penalty = self.strength * entropy(reached).sum(-1).mean() + self._balance(weights)
        if searching:
            penalty = penalty + self.options.order * permutation_entropy(order)
        if self._learning:
            self._count(weights)
        return Gating(weights, weights, penalty)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Steer the strength of the entropy; during the search, take the assignment again."""
        self._steer()
        if float(self.progress) < self.options.search:
            self.permutation.copy_(self._assignment(progress / self.options.search))
        self.progress.fill_(progress)

    def _own_numbers(self) -> dict[str, float]:
        done = min(float(self.progress) / self.options.search, 1.0) if self.options.search else 1.0
        soft = self._soft(done, 0.0) if self.options.search else self.permutation
        return {
            "strength": float(self.strength),
            "permutation_entropy": float(permutation_entropy(soft)),
            "assignment_distance": float((soft - self.permutation).norm(dim=(1, 2)).mean()),
        }

    def _token_numbers(self, states: torch.Tensor, token_ids: torch.Tensor | None) -> dict[str, float]:
        reached, left = self.reached(states)
        best = torch.einsum("nke,kef->nkf", reached, self.permutation).argmax(-1)
        k = self.options.k
        equal = (best[:, :, None] == best[:, None]).double().sum((1, 2)) - k
        by_depth = {
            f"hard_splits_depth_{depth}": hard_share(left[..., 2**depth - 1 : 2 ** (depth + 1) - 1])
            for depth in range(math.ceil(math.log2(self.experts)))
        }
        return {
            "hard_splits": hard_share(left),
            **by_depth,
            "hard_trees": float((active(reached) == 1).double().mean()),
            "tree_overlap": float((equal / max(k * (k - 1), 1)).mean()),
        }
