"""The protocol of a gate: states of tokens in, a dense table of weights out.

A gate holds parameters and stored buffers, no modules, and draws its initialization from a generator that
it is given (``reset``). What it learns beside gradients (a balancing bias, a temperature, the strength of a
penalty) is kept in stored buffers and changes in ``after_step`` alone, so that a training goes on exactly.
Passes without gradients leave a gate as it is.

The weight table says what a token uses: an expert is *active* where its weight is not zero (``active``).

Shapes: N tokens, d width of a token, E experts, K slots (the most experts that a token can use).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from pydantic import ConfigDict, Field
from torch import nn
from torch.nn.functional import linear
from transformers import initialization as init

from sparsescope.core.spec import Params
from sparsescope.errors import SpecError

#: Scores beyond this are cut: their squares still fit into float32.
LARGEST_SCORE = 1e15
_STRENGTHS = (1e-8, 10.0)


class GateOptions(Params):
    """Base of the options of a gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Targeted(GateOptions):
    """Options of a gate without a fixed number of experts: a penalty whose strength is steered.

    After each training step the strength grows by the factor ``rate`` where tokens used more than
    ``target`` experts, and falls by it where they used fewer: the rule of ReMoE (Wang et al. 2024,
    arXiv:2412.14711) for its L1 penalty, here for each gate's own penalty.

    A penalty on the choice of each token alone is least where all tokens choose the same, so ``balance``
    can be
    added: see ``importance_loss``.
    """

    strength: float = Field(1e-4, gt=0, description="Weight of the penalty, at the beginning.")
    target: float | None = Field(2.0, gt=0, description="Mean active experts; None keeps the strength.")
    rate: float = Field(1.05, gt=1, description="Factor of one step.")
    balance: float = Field(0.0, ge=0, description="Weight of the importance loss, which the papers lack.")


Options = TypeVar("Options", bound=GateOptions)


class Gating(NamedTuple):
    """What a gate says of tokens.

    Attributes:
        scores: [N, E], what the choice is made of: logits, or the weights where a gate has none.
        weights: [N, E], zero where an expert is not used.
        penalty: Scalar that is added to the loss, its weight included.
    """

    scores: torch.Tensor
    weights: torch.Tensor
    penalty: torch.Tensor


def active(weights: torch.Tensor) -> torch.Tensor:
    """The number of experts that each token uses, int64 [N]: weights that are not zero."""
    return (weights != 0).sum(-1)


def slots_of(weights: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts int64 [N, K] and weights [N, K] of each token, the largest first; a slot of weight zero is no
    choice.

    Args:
        weights: [N, E] with at most K entries that are not zero in a row.
        slots: K.
    """
    index = weights.detach().abs().topk(slots, dim=-1).indices
    return index, weights.gather(-1, index)


def smooth_step(values: torch.Tensor, gamma: float) -> torch.Tensor:
    """The smooth step: 0 up to -gamma/2, 1 from gamma/2, and -2t^3/gamma^3 + 3t/(2 gamma) + 1/2 between
    (Hazimeh et al. 2020, arXiv:2002.07772).
    """
    inside = values.clamp(-gamma / 2, gamma / 2) / gamma
    step = -2 * inside**3 + 1.5 * inside + 0.5
    return torch.where(values <= -gamma / 2, 0.0, torch.where(values >= gamma / 2, 1.0, step))


def entropy(shares: torch.Tensor) -> torch.Tensor:
    """-sum of p log p over the last dimension, in nats, with finite gradients at zero."""
    return -(shares * shares.clamp_min(1e-6).log()).sum(-1)


class Gate(nn.Module, ABC, Generic[Options]):
    """A gate.

    Args:
        width: d.
        experts: E.
        options: Of its ``options_model``.
        vocabulary: Number of token ids; 0 where it is not known.

    Raises:
        SpecError: The options ask for more experts than there are.
    """

    options_model: ClassVar[type[GateOptions]]
    #: Whether ``forward`` needs token ids.
    reads_ids: ClassVar[bool] = False
    #: Whether a token never uses more than k experts; else it can use all of them.
    bounded_by_k: ClassVar[bool] = True

    def __init__(self, width: int, experts: int, options: Options, *, vocabulary: int = 0) -> None:
        super().__init__()
        self.width, self.experts, self.options, self.vocabulary = width, experts, options, vocabulary
        #: The most experts that a token can use, K.
        self.slots = self.most_experts(options, experts)

    @classmethod
    def most_experts(cls, options: Any, experts: int) -> int:
        """The most of E experts that a token can use with these options.

        Raises:
            SpecError: The options ask for more experts than there are.
        """
        k = getattr(options, "k", None)
        if k is not None and k > experts:
            raise SpecError(
                "a token cannot use more experts than there are",
                where=f"option k of the gate {cls.__name__}",
                allowed=f"1 to {experts}",
                got=k,
                next_step="lower k, or give the model more experts (num_experts)",
            )
        return experts if k is None or not cls.bounded_by_k else int(k)

    @abstractmethod
    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide.

        Args:
            states: What the experts read, [N, d].
            token_ids: int64 [N]; None where they are not known.
        """

    @abstractmethod
    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw the initialization on the CPU; tensors that were loaded are left alone.

        Args:
            generator: Source of every random number.
            std: Standard deviation of a matrix.
        """

    def after_step(self, progress: float) -> None:  # most gates have nothing to do
        """Update what is not trained by gradients, after the optimizer's step.

        Args:
            progress: Share of the training that is done, up to 1.
        """

    def by_token(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """The rule of evaluation as a function of the scores [n, E] of single tokens, giving weights [n, E].

        None where ``forward`` itself looks at one token at a time, in training too.
        """
        return None

    @torch.no_grad()
    def inspect(
        self, states: torch.Tensor | None = None, token_ids: torch.Tensor | None = None
    ) -> dict[str, float]:
        """Plain numbers about the gate, and about tokens where some are given.

        Args:
            states: [N, d].
            token_ids: int64 [N].

        Returns:
            Of tokens: ``active_mean``, ``active_least``, ``active_most``; ``simplex_residual``, the largest
            difference of a row's sum from 1; ``negative_share`` of the entries; ``load_cv``, standard
            deviation over mean of the tokens of an expert; ``entropy_mean``, nats, of a token's weights.
            And what else the gate has.
        """
        if states is None:
            return self._own_numbers()
        weights = self(states, token_ids).weights.double()
        used, load = active(weights).double(), (weights != 0).sum(0).double()
        shares = weights.abs() / weights.abs().sum(-1, keepdim=True).clamp_min(1e-20)
        numbers = {
            "active_mean": used.mean(),
            "active_least": used.min(),
            "active_most": used.max(),
            "simplex_residual": (weights.sum(-1) - 1).abs().max(),
            "negative_share": (weights < 0).double().mean(),
            "load_cv": load.std(correction=0) / load.mean().clamp_min(1e-20),
            "entropy_mean": torch.special.entr(shares).sum(-1).mean(),
        }
        found = {name: float(value) for name, value in numbers.items()}
        return {**found, **self._own_numbers(), **self._token_numbers(states, token_ids)}

    def _own_numbers(self) -> dict[str, float]:
        """What ``inspect`` says of the parameters and buffers."""
        return {}

    def _token_numbers(self, states: torch.Tensor, token_ids: torch.Tensor | None) -> dict[str, float]:
        """What ``inspect`` says of tokens beyond what all gates have."""
        return {}

    @property
    def _learning(self) -> bool:
        """Whether this pass belongs to a training step."""
        return self.training and torch.is_grad_enabled()


class LinearGate(Gate[Options]):
    """A gate with one matrix, ``weight`` [E, d], as the routers of transformers have."""

    def __init__(self, width: int, experts: int, options: Options, *, vocabulary: int = 0) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        self.weight = nn.Parameter(torch.zeros(experts, width))

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Draw ``weight`` from N(0, std^2)."""
        init.copy_(self.weight, torch.randn(self.weight.shape, generator=generator) * std)

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [N, E]."""
        return bounded(linear(states, self.weight))


def importance_loss(weights: torch.Tensor) -> torch.Tensor:
    """Squared coefficient of variation, over experts, of the weights summed over tokens: a scalar, 0 where
    experts get the same, E/k - 1 where k get everything (Shazeer et al. 2017, arXiv:1701.06538).

    Args:
        weights: [N, E]; signs do not count.
    """
    importance = weights.abs().mean(0)
    return importance.var(correction=0) / importance.mean().square().clamp_min(1e-12)


def hard_share(steps: torch.Tensor) -> float:
    """Share of smooth steps that are exactly 0 or 1; 1 where there are none."""
    return float(((steps == 0) | (steps == 1)).double().mean()) if steps.numel() else 1.0


def bounded(scores: torch.Tensor) -> torch.Tensor:
    """Scores in float32, cut to ``LARGEST_SCORE``: a product that overflowed is still a number."""
    cut = LARGEST_SCORE
    return scores.float().nan_to_num(nan=0.0, posinf=cut, neginf=-cut).clamp(-cut, cut)


class Steering:
    """What a gate with ``Targeted`` options does with its ``strength``, a stored float32 scalar.

    A mixin: the gate registers the buffer by ``_register_strength``, multiplies its penalty by
    ``strength``, tells each table of weights to ``_count``, and calls ``_steer`` in ``after_step``.
    """

    options: Any
    strength: torch.Tensor
    register_buffer: Any
    _used: list[float]

    def _register_strength(self) -> None:
        self.register_buffer("strength", torch.tensor(self.options.strength, dtype=torch.float32))
        self._used = []

    def _reset_strength(self) -> None:
        init.copy_(self.strength, torch.tensor(self.options.strength, dtype=torch.float32))

    def _balance(self, weights: torch.Tensor) -> torch.Tensor:
        """What is added to the penalty for an uneven load, a scalar."""
        balance = self.options.balance
        return balance * importance_loss(weights) if balance else weights.new_zeros(())

    def _count(self, weights: torch.Tensor) -> None:
        self._used.append(float(active(weights.detach()).double().mean()))

    @torch.no_grad()
    def _steer(self) -> None:
        used, self._used = self._used, []
        if used and self.options.target is not None:
            above = sum(used) / len(used) > self.options.target
            self.strength.mul_(self.options.rate if above else 1 / self.options.rate).clamp_(*_STRENGTHS)
