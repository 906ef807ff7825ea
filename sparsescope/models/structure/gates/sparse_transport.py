"""Sparsity-constrained optimal transport (Liu, Puigcerver and Blondel, ICLR 2023, arXiv:2209.15466) as a
gate.

Over the tokens of a batch: the plan T [E, N] >= 0 that is largest in <T, C> - gamma/2 ||T||^2 with column
sums 1 (each token is spread over experts), row sums N/E (each expert gets the same), and at most k nonzeros
in a column. C are the logits x . w. The semi-dual has one potential a_e for each expert: column n is then
the projection of (C_n + a) / gamma onto the simplex with at most k nonzeros (``token_rule``: the k largest,
projected onto the simplex), and the gradient of the semi-dual in a is T 1 - N/E. It is solved in E
variables by L-BFGS from the potentials of the steps before. Column sums are exact; row sums up to the
tolerance of the solver, and up to tokens that sit at a tie of the k-th expert, where the semi-dual has a
kink.

The plan of a batch depends on all its tokens, those to come included. So it is used in training alone. In
evaluation the potentials stay fixed at their moving average over training steps, and ``token_rule`` decides
each token by itself (``by_token``): no token changes the weights of another.

Chosen here: mass is N/E for each expert and 1 for each token; potentials sum to zero; no gradient goes
through the potentials, only through the projection at them; there is no penalty.

Knob of the active experts: ``gamma``, with k above it. A token uses one expert where its two best scores,
potentials included, are gamma or more apart; k = 2 and a gamma that is large against the spread of the
logits give close to 2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import minimize
from transformers import initialization as init

from sparsescope.models.structure.gates.base import GateOptions, Gating, LinearGate, active


class SparseTransportOptions(GateOptions):
    """Options of ``sparse_transport``."""

    k: int = Field(2, ge=1, description="The most experts of a token.")
    gamma: float = Field(1.0, gt=0, description="Weight of the squared norm: the knob of the active experts.")
    iterations: int = Field(30, ge=1, le=1000, description="The most steps of L-BFGS in a training step.")
    tolerance: float = Field(
        1e-3, gt=0, description="Largest gradient of the semi-dual at its end, as a share of tokens."
    )
    average: float = Field(0.9, ge=0, lt=1, description="Part of the old potentials in a moving average.")


def token_rule(scores: torch.Tensor, potentials: torch.Tensor, gamma: float, k: int) -> torch.Tensor:
    """Project (scores + potentials) / gamma onto the simplex with at most k nonzeros, token by token.

    Args:
        scores: [N, E].
        potentials: [E].
        gamma: Above 0.
        k: Most nonzeros.

    Returns:
        Weights [N, E]; rows sum to 1.
    """
    values = (scores + potentials) / gamma
    best = values.topk(k, dim=-1)
    top = best.values - best.values[..., :1].detach()  # the same projection, and no cancellation
    sums = top.cumsum(-1)
    counts = torch.arange(1, k + 1, device=top.device)
    support = (1 + counts * top > sums).sum(-1, keepdim=True)
    threshold = (sums.gather(-1, support - 1) - 1) / support
    return torch.zeros_like(values).scatter(-1, best.indices, (top - threshold).clamp_min(0))


@torch.no_grad()
def solve_potentials(
    scores: torch.Tensor,
    start: torch.Tensor,
    gamma: float,
    k: int,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> torch.Tensor:
    """Minimize the semi-dual sum_n max_t (<t, C_n + a> - gamma/2 ||t||^2) - (N/E) sum_e a_e over a.

    Args:
        scores: C, [N, E].
        start: Where to begin, [E].
        gamma: Above 0.
        k: Most nonzeros of t.
        iterations: Most steps.
        tolerance: Largest gradient at the end, as a share of N.

    Returns:
        Potentials [E] that sum to zero; ``start`` where the solver finds no finite ones.
    """
    given = scores.double()
    n, experts = given.shape

    def semi_dual(point: Any) -> tuple[float, Any]:
        shifted = given + torch.from_numpy(point).to(given)
        plan = token_rule(given, torch.from_numpy(point).to(given), gamma, k)
        value = (plan * shifted).sum() - gamma / 2 * plan.square().sum() - n / experts * float(point.sum())
        gradient = plan.sum(0).cpu().numpy() - n / experts
        return float(value) / n, gradient / n

    begin = start.double().cpu().numpy()
    options = {"maxiter": iterations, "gtol": tolerance, "ftol": 0.0}
    found = minimize(semi_dual, begin, jac=True, method="L-BFGS-B", options=options).x
    if not np.isfinite(found).all():
        return start
    return torch.from_numpy(found - found.mean()).to(start)


class SparseTransportGate(LinearGate[SparseTransportOptions]):
    """The gate; see the head of the file.

    Attributes:
        potentials: Of the experts, averaged over training steps, stored float32 [E].
    """

    options_model: ClassVar[type[GateOptions]] = SparseTransportOptions
    potentials: torch.Tensor

    def __init__(
        self, width: int, experts: int, options: SparseTransportOptions, *, vocabulary: int = 0
    ) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        self.register_buffer("potentials", torch.zeros(experts))
        self._solved: list[torch.Tensor] = []

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw ``weight``; potentials begin at zero."""
        super().reset(generator, std)
        init.zeros_(self.potentials)

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``. In training the plan of these tokens, else the rule by token."""
        scores = self.scores(states)
        if not self._learning:
            return Gating(scores, self.by_token()(scores), scores.new_zeros(()))
        potentials = self.solve(scores)
        self._solved.append(potentials)
        weights = token_rule(scores, potentials, self.options.gamma, self.options.k)
        return Gating(scores, weights, scores.new_zeros(()))

    def solve(self, scores: torch.Tensor) -> torch.Tensor:
        """Potentials [E] of the plan of these tokens."""
        options = self.options
        return solve_potentials(
            scores.detach(), self.potentials, options.gamma, options.k, options.iterations, options.tolerance
        )

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Take the potentials of the step into their moving average."""
        solved, self._solved = self._solved, []
        if solved:
            self.potentials.lerp_(torch.stack(solved).mean(0), 1 - self.options.average)

    def by_token(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The rule of evaluation: scores [n, E] to weights [n, E], at the averaged potentials."""
        return partial(
            token_rule, potentials=self.potentials.clone(), gamma=self.options.gamma, k=self.options.k
        )

    def _own_numbers(self) -> dict[str, float]:
        return {
            "potential_least": float(self.potentials.min()),
            "potential_most": float(self.potentials.max()),
        }

    def _token_numbers(self, states: torch.Tensor, token_ids: torch.Tensor | None) -> dict[str, float]:
        scores = self.scores(states)
        plans = {
            "plan": token_rule(scores, self.solve(scores), self.options.gamma, self.options.k),
            "by_token": self.by_token()(scores),
        }
        found: dict[str, float] = {}
        for name, plan in plans.items():
            share = plan.double().sum(0) * self.experts / len(plan)  # 1 for each expert where it fits
            found[f"{name}_marginal_residual"] = float((share - 1).abs().max())
            found[f"{name}_cardinality_most"] = float(active(plan).max())
            found[f"{name}_cardinality_mean"] = float(active(plan).double().mean())
        return found
