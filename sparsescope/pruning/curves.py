"""Names of curves: ``CRITERION[+ALLOCATION][+PATTERN][+finetuned]``, for example ``wanda+owl``. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from sparsescope.errors import SpecError
from sparsescope.pruning.allocation import Allocation, Uniform, allocations, read_allocation
from sparsescope.pruning.criteria import Criterion, find_criterion
from sparsescope.pruning.patterns import NM, Pattern, read_pattern

FINETUNED = "finetuned"


@dataclass(frozen=True, slots=True)
class Curve:
    """One way to prune, at several levels.

    Attributes:
        name: As it was asked for.
        criterion: Which weights go.
        allocation: How many of each matrix.
        pattern: Where zeros may stand; None for single weights.
        finetuned: Whether the model is trained on after pruning, with the mask fixed.
    """

    name: str
    criterion: Criterion
    allocation: Allocation
    pattern: Pattern | None
    finetuned: bool

    @property
    def title(self) -> str:
        """How people read it: ``Wanda, OWL``."""
        parts = [self.criterion.title]
        if not isinstance(self.allocation, Uniform):
            parts.append(self.allocation.name.upper() if self.allocation.name != "global" else "global")
        if self.pattern is not None:
            parts.append(self.pattern.text)
        return ", ".join(parts)

    @property
    def kind(self) -> str:
        """``zero-shot`` or ``fine-tuned``: the two are never compared on one line."""
        return "fine-tuned" if self.finetuned else "zero-shot"

    @property
    def slug(self) -> str:
        """Name in scalars and steps."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)

    @property
    def nested(self) -> bool:
        """Whether scores do not depend on the level, given the inputs of the dense model."""
        return self.criterion.solve is None


def read_curve(name: str) -> Curve:
    """Read the name of a curve.

    Raises:
        SpecError: A part of it is unknown, or two parts say the same.

    Example:
        >>> read_curve("wanda+owl").title, read_curve("magnitude+2:4").title
        ('Wanda, OWL', 'Magnitude, 2:4')
    """
    first, *rest = name.split("+")
    criterion = find_criterion(first)
    allocation: Allocation | None = None
    pattern: Pattern | None = None
    finetuned = False
    for part in rest:
        if part == FINETUNED and not finetuned:
            finetuned = True
        elif part.partition("@")[0] in allocations() and allocation is None:
            allocation = read_allocation(part)
        elif pattern is None and allocation is None and not finetuned:
            pattern = read_pattern(part)
        else:
            raise SpecError(
                "the name of a curve cannot be read",
                where=repr(name)[:120],
                allowed=f"CRITERION[+ALLOCATION][+PATTERN][+{FINETUNED}]",
                got=repr(part)[:120],
            )
    if isinstance(pattern, NM) and allocation is not None:
        raise SpecError("an N:M pattern leaves nothing to allocate", where=repr(name)[:120])
    return Curve(name, criterion, allocation or Uniform(), pattern, finetuned)
