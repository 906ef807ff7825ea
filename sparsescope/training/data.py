"""What a training run reads: batches, the examples that it is measured on, and the probe set of its series.

Batches are drawn from a generator that is passed in, whose state is saved with the run. Splits depend on the
recipe and the texts alone. Targets: of modular addition the last position only; of text every byte after the
first of its window.

Shapes: tokens int64 [n, pos], targets int64 [n] (addition) or [n, pos] (text, the tokens themselves).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from sparsescope.training.recipe import ModularAddition


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows that a model is measured on.

    Attributes:
        split: ``train``, ``test`` or ``validation``.
        part: Domain, or empty where there is one only.
        tokens: int64 [n, pos].
        targets: int64 [n], or [n, pos] for a loss at every position.
    """

    split: str
    part: str
    tokens: torch.Tensor
    targets: torch.Tensor


class Data(Protocol):
    """What the trainer asks of a data set."""

    vocabulary: int

    def batch(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens and targets of a step, which depend on nothing else."""

    def examples(self, *, whole: bool) -> list[Examples]:
        """Return what is measured: at a checkpoint the ``whole`` of it, along training perhaps less."""

    def probe(self) -> dict[str, torch.Tensor]:
        """Return ``tokens`` and the other arrays of the probe set."""

    def probe_examples(self) -> list[Examples]:
        """Return the probe set as examples, where it is not the union of the others: a series can
        then be checked alone.
        """

    def describe(self) -> dict[str, Any]:
        """Return plain values for ``series.json``, with ``kind``."""

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Return the losses of simple models on the same targets, by part."""


class AdditionData:
    """All pairs of residues, split once by a seeded permutation."""

    def __init__(self, recipe: ModularAddition) -> None:
        p = recipe.modulus
        self.recipe, self.vocabulary = recipe, p + 1
        pairs = torch.arange(p * p)
        a, b = pairs // p, pairs % p
        self.tokens = torch.stack([a, b, torch.full_like(a, p)], 1)
        self.answers = (a + b) % p
        order = torch.randperm(p * p, generator=torch.Generator().manual_seed(recipe.split_seed))
        n_train = int(recipe.train_fraction * p * p)
        # Ascending, so that a full batch is the same tensor whatever the order of the permutation.
        self.train, self.test = order[:n_train].sort().values, order[n_train:].sort().values
        self._batch = self.tokens[self.train], self.answers[self.train]

    def batch(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all training pairs, or as many as the recipe says.

        Without replacement, a pass over the pairs has an order of its own, drawn from the seed of the
        generator and the number of the pass: the state of the generator does not count. The last batch of a
        pass may be smaller.
        """
        tokens, answers = self._batch
        size = self.recipe.batch_size
        if size is None:
            return tokens, answers
        if self.recipe.replacement:
            rows = torch.randint(len(tokens), (size,), generator=generator)
        else:
            number, part = divmod(step, -(-len(tokens) // size))
            own = torch.Generator().manual_seed(generator.initial_seed() * 1_000_003 + number)
            rows = torch.randperm(len(tokens), generator=own)[part * size : (part + 1) * size]
        return tokens[rows], answers[rows]

    def examples(self, *, whole: bool) -> list[Examples]:
        """Return every pair of both splits."""
        return [
            Examples(split, "", self.tokens[rows], self.answers[rows])
            for split, rows in (("train", self.train), ("test", self.test))
        ]

    def probe(self) -> dict[str, torch.Tensor]:
        """Return all p^2 pairs in order: ``tokens`` [p^2, 3], ``answer`` and ``train`` [p^2]."""
        train = torch.zeros(len(self.tokens), dtype=torch.int64)
        train[self.train] = 1
        return {"tokens": self.tokens, "answer": self.answers, "train": train}

    def probe_examples(self) -> list[Examples]:
        """Return nothing: the probe set is training and test pairs together."""
        return []

    def describe(self) -> dict[str, Any]:
        """Return modulus, vocabulary and the sizes of both splits."""
        return {
            "kind": "modular_addition",
            "modulus": self.recipe.modulus,
            "vocabulary": f"id r is the residue r, id {self.recipe.modulus} is '='",
            "train_pairs": len(self.train),
            "test_pairs": len(self.test),
        }

    def baselines(self) -> Mapping[str, Mapping[str, float]]:
        """Return nothing: chance is log p."""
        return {}
