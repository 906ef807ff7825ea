"""Where zeros may stand: N:M groups along the inputs, whole rows, blocks. Imports no torch.

N:M means at most N weights that are not zero in every M consecutive ones along the input axis (SR-STE,
NVIDIA 2:4). Code around Wanda and SparseGPT counts the weights that are pruned instead, so that its 1:4 is
our 3:4: give ``keep=`` and ``group=`` by name.
Shapes: a matrix is [out, in]; a pattern cuts it into groups whose scores compete, or into tiles that go or
stay as a whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sparsescope.errors import SpecError

_NM = re.compile(r"(\d{1,4}):(\d{1,4})")
_BLOCKS = re.compile(r"blocks?[:@](\d{1,4})x(\d{1,4})")


@dataclass(frozen=True, slots=True, kw_only=True)
class NM:
    """At most ``keep`` of every ``group`` consecutive weights along the inputs are not zero.

    Attributes:
        keep: N, weights that stay in a group.
        group: M, weights of a group.

    Raises:
        SpecError: Unless 1 <= keep < group.

    Example:
        >>> NM(keep=2, group=4).sparsity, NM(keep=2, group=4).text
        (0.5, '2:4')
    """

    keep: int
    group: int

    def __post_init__(self) -> None:
        if not all(type(value) is int for value in (self.keep, self.group)) or not (
            1 <= self.keep < self.group
        ):
            raise SpecError(
                "an N:M pattern keeps at least one and at most all but one weight of a group",
                where="NM(keep, group)",
                allowed="integers with 1 <= keep < group",
                got=f"keep={self.keep!r}, group={self.group!r}",
                next_step="2:4 is NM(keep=2, group=4)",
            )

    @property
    def sparsity(self) -> float:
        """Share of zeros, 1 - N / M."""
        return 1 - self.keep / self.group

    @property
    def text(self) -> str:
        """As the command line takes it."""
        return f"{self.keep}:{self.group}"

    @property
    def bits(self) -> float:
        """Information of a mask, log2(C(M, N)) / M bits a weight."""
        return math.log2(math.comb(self.group, self.keep)) / self.group

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a matrix whose inputs are not a multiple of the group.

        Raises:
            SpecError: With the name of the matrix.
        """
        if shape[-1] % self.group:
            raise SpecError(
                "the groups of this pattern do not divide the inputs of a matrix",
                where=f"pattern {self.text}, {name}",
                allowed=f"a number of inputs that {self.group} divides",
                got=f"{shape[-1]} inputs",
                next_step="choose another group size, or leave this matrix out of the scope",
            )


@dataclass(frozen=True, slots=True)
class Blocks:
    """Tiles of ``out`` x ``into`` weights go or stay together; the score of a tile is the sum of its scores.

    Attributes:
        out: Rows of a tile.
        into: Columns of a tile.
    """

    out: int
    into: int

    def __post_init__(self) -> None:
        if not all(type(value) is int and value >= 1 for value in (self.out, self.into)):
            raise SpecError(
                "a block has at least one row and one column",
                where="Blocks(out, into)",
                allowed="integers >= 1",
                got=f"{self.out!r}, {self.into!r}",
            )

    @property
    def text(self) -> str:
        """As the command line takes it."""
        return f"blocks:{self.out}x{self.into}"

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Refuse a matrix that cannot be cut into such tiles.

        Raises:
            SpecError: With the name of the matrix.
        """
        if shape[-2] % self.out or shape[-1] % self.into:
            raise SpecError(
                "the blocks of this pattern do not divide a matrix",
                where=f"pattern {self.text}, {name}",
                allowed=f"multiples of {self.out} rows and {self.into} columns",
                got=f"{shape[-2]} x {shape[-1]}",
                next_step="choose another size of blocks, or leave this matrix out of the scope",
            )


@dataclass(frozen=True, slots=True)
class Rows:
    """Whole rows go: all weights into one output; the score of a row is the sum of its scores."""

    @property
    def text(self) -> str:
        """As the command line takes it."""
        return "rows"

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Every matrix has rows."""


Pattern = NM | Blocks | Rows


def read_pattern(text: str | Pattern | None) -> Pattern | None:
    """Return the pattern that a text names.

    Args:
        text: ``"2:4"`` (two kept of four), ``"rows"``, ``"blocks:16x16"``; None or ``"none"`` for single
            weights.

    Raises:
        SpecError: It names none.

    Example:
        >>> read_pattern("2:4"), read_pattern("blocks:16x8"), read_pattern("none")
        (NM(keep=2, group=4), Blocks(out=16, into=8), None)
    """
    if text is None or isinstance(text, NM | Blocks | Rows):
        return text
    if isinstance(text, str):
        if text.strip() in ("none", "unstructured"):
            return None
        if text.strip() == "rows":
            return Rows()
        if match := _NM.fullmatch(text.strip()):
            return NM(keep=int(match[1]), group=int(match[2]))
        if match := _BLOCKS.fullmatch(text.strip()):
            return Blocks(int(match[1]), int(match[2]))
    raise SpecError(
        "unknown pattern",
        where="pattern",
        allowed="KEEP:GROUP such as 2:4, rows, blocks:16x16, or none for single weights",
        got=repr(text)[:120],
        next_step="2:4 keeps two of every four weights along the inputs",
    )


def pruned_count(sparsity: float, n: int) -> int:
    """How many of n weights go: S n, rounded half down.

    Example:
        >>> pruned_count(0.5, 5), pruned_count(0.51, 5), pruned_count(0.0, 5)
        (2, 3, 0)
    """
    return max(0, math.ceil(sparsity * n - 0.5 - 1e-9))
