"""Hash routing: the experts of a token are a fixed table of its id (Roller et al. 2021, arXiv:2106.04426).

It knows the word and nothing of its context, so it is the null model of experts that specialize in
vocabulary. Nothing is learned. Chosen here: k different experts with weight 1/k each; the first is dealt so
that each expert has as many ids as any other, give or take one (by count, not by frequency in text), the
others are random.

Knob of the active experts: ``k``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from transformers import initialization as init

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.structure.gates.base import Gate, GateOptions, Gating


class HashOptions(GateOptions):
    """Options of ``hash``."""

    k: int = Field(2, ge=1, description="Experts per token: the knob of the active experts.")


class HashGate(Gate[HashOptions]):
    """The gate; see the head of the file.

    Attributes:
        table: Experts of each id, stored int64 [V, k].
    """

    options_model: ClassVar[type[GateOptions]] = HashOptions
    reads_ids: ClassVar[bool] = True
    table: torch.Tensor

    def __init__(self, width: int, experts: int, options: HashOptions, *, vocabulary: int = 0) -> None:
        super().__init__(width, experts, options, vocabulary=vocabulary)
        if vocabulary < 1:
            raise SpecError(
                "a hash gate needs to know how many token ids there are",
                where="make_gate(vocabulary)",
                allowed="a whole number from 1 on",
                got=vocabulary,
                next_step="give the size of the vocabulary",
            )
        self.register_buffer("table", torch.zeros(vocabulary, options.k, dtype=torch.int64))

    def reset(self, generator: torch.Generator, std: float) -> None:
        """Deal the ids to the experts, then draw the other choices of each id from the experts that are
        left.
        """
        first = torch.randperm(self.vocabulary, generator=generator) % self.experts
        keys = torch.rand(self.vocabulary, self.experts, generator=generator)
        keys.scatter_(-1, first[:, None], 2.0)
        init.copy_(self.table, keys.topk(self.options.k, dim=-1).indices)

    def forward(self, states: torch.Tensor, token_ids: torch.Tensor | None = None) -> Gating:
        """Decide; see ``Gate.forward``.

        Raises:
            SubjectError: There are no token ids, or one is beyond the table.
        """
        if token_ids is None or (token_ids.numel() and int(token_ids.max()) >= self.vocabulary):
            raise SubjectError(
                "a hash gate chooses by token ids",
                where="HashGate.forward(token_ids)",
                allowed=f"ids from 0 to {self.vocabulary - 1}",
                got=None if token_ids is None else int(token_ids.max()),
                next_step="call the model with input_ids, not with inputs_embeds",
            )
        index = self.table[token_ids]
        weights = torch.zeros(len(index), self.experts, device=index.device)
        weights = weights.scatter(-1, index, 1 / self.options.k)
        return Gating(weights, weights, weights.new_zeros(()))

    def _own_numbers(self) -> dict[str, float]:
        ids = self.table.flatten().bincount(minlength=self.experts)
        return {"ids_least": float(ids.min()), "ids_most": float(ids.max())}
