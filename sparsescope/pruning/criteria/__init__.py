"""What decides which weights go: one file for each criterion, found by its name.

A criterion gives a matrix of scores (small ones go), or solves for mask and weights together. Importing the
records needs no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from sparsescope.errors import SpecError, unknown_name

if TYPE_CHECKING:
    import torch

    from sparsescope.pruning.inputs import InputStatistics
    from sparsescope.pruning.patterns import Pattern

    #: Called as ``score(weight, inputs, generator)``: weight float32 [out, in], scores of its shape.
    Score = Callable[[torch.Tensor, InputStatistics | None, torch.Generator], torch.Tensor]
    #: Called as ``solve(weight, inputs, count, pattern, name)``; see ``sparsegpt.solve``.
    Solve = Callable[[torch.Tensor, InputStatistics, int, Pattern | None, str], "Solved"]

Reads = Literal["", "norms", "gram"]


@dataclass(frozen=True, slots=True)
class Solved:
    """What a criterion that changes weights gives back.

    Attributes:
        keep: bool [out, in].
        weight: [out, in], zero where ``keep`` is not.
        damping: What was added to the diagonal of the Gram matrix, as a share of its mean.
    """

    keep: torch.Tensor
    weight: torch.Tensor
    damping: float


@dataclass(frozen=True, slots=True)
class Criterion:
    """A rule that says which weights of a matrix go.

    Attributes:
        name: How it is asked for.
        title: How people read it.
        summary: One sentence.
        equation: The score, as text.
        source: The paper.
        reads: What it needs of the inputs of a matrix: nothing, their norms, or their Gram matrix.
        groups: Whether weights compete in the whole matrix or within their row.
        score: The scores; of a criterion that solves they only order weights for an allocation.
        solve: Chooses mask and weights together, where the criterion does.
        drawn: Whether the scores are drawn from the seed.
    """

    name: str
    title: str
    summary: str
    equation: str
    source: str
    score: Score
    reads: Reads = ""
    groups: Literal["matrix", "row"] = "matrix"
    solve: Solve | None = None
    drawn: bool = False


@cache
def criteria() -> dict[str, Criterion]:
    """Every criterion by name: the ``CRITERION`` of each module of this package."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        declared = getattr(importlib.import_module(f"{__name__}.{module.name}"), "CRITERION", None)
        if isinstance(declared, Criterion):
            found[declared.name] = declared
    order = ("magnitude", "random", "wanda", "ria", "sparsegpt")
    return {name: found[name] for name in [*order, *sorted(found.keys() - set(order))]}


def find_criterion(name: str | Criterion) -> Criterion:
    """Return the criterion of this name.

    Raises:
        SpecError: There is none.
    """
    if isinstance(name, Criterion):
        return name
    known = criteria()
    if name not in known:
        raise unknown_name(
            "criterion", str(name), known, next_step="see: sparsescope prune --help", error=SpecError
        )
    return known[name]
