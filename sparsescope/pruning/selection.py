"""Which weights go: exactly so many of the smallest scores, ties broken by their place.

With scores that do not depend on the level, what goes at a lower sparsity goes at a higher one too: masks are
nested. A threshold would take all weights that tie with it, of which rounded weights have many.
Shapes: scores [out, in]; masks bool [out, in], True where a weight stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange, repeat

from sparsescope.pruning.patterns import NM, Blocks, Pattern, Rows

if TYPE_CHECKING:
    from typing import Literal


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the ``count`` smallest of each row; of equal ones the first.

    Args:
        scores: [rows, n], finite.
        count: From 0 to n.

    Returns:
        bool [rows, n], with exactly ``count`` True in each row.

    Example:
        >>> smallest(torch.tensor([[3.0, 1.0, 1.0, 1.0]]), 2).tolist()
        [[False, True, True, False]]
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= scores.shape[-1]:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count, dim=-1, keepdim=True).values
    chosen = scores <= limit
    excess = chosen.count_nonzero(-1) - count
    rows = excess.nonzero().squeeze(-1)
    if rows.numel():  # more ties than places: the last of them stay
        tied = scores[rows] == limit[rows]
        places = tied.sum(-1, keepdim=True) - excess[rows, None]
        chosen[rows] = (scores[rows] < limit[rows]) | (tied & (tied.cumsum(-1) <= places))
    return chosen


def keep_mask(
    scores: torch.Tensor, count: int, pattern: Pattern | None, groups: Literal["matrix", "row"]
) -> torch.Tensor:
    """Return the mask of the weights that stay.

    Args:
        scores: float [out, in]; large ones stay.
        count: Weights that go. Whole rows and blocks go while they fit in this number; an N:M pattern says
            the number itself.
        pattern: What goes together; None for single weights.
        groups: Whether single weights compete in the whole matrix or within their row. Rows lose equally
            many, the first ones one more where the number does not divide.

    Returns:
        bool [out, in].
    """
    out, into = scores.shape
    if isinstance(pattern, NM):
        grouped = rearrange(scores, "out (n group) -> (out n) group", group=pattern.group)
        return ~smallest(grouped, pattern.group - pattern.keep).reshape(out, into)
    if isinstance(pattern, Rows):
        gone = smallest(scores.sum(1)[None], count // into)[0]
        return repeat(~gone, "out -> out into", into=into).contiguous()
    if isinstance(pattern, Blocks):
        tiles = rearrange(scores, "(a out) (b into) -> a b (out into)", out=pattern.out, into=pattern.into)
        gone = smallest(tiles.sum(-1).reshape(1, -1), count // (pattern.out * pattern.into))
        gone = gone.reshape(tiles.shape[:2])
        return ~repeat(gone, "a b -> (a out) (b into)", out=pattern.out, into=pattern.into)
    if groups == "matrix":
        return ~smallest(scores.reshape(1, -1), count).reshape(out, into)
    each, more = divmod(count, out)
    if not more:
        return ~smallest(scores, each)
    return ~torch.cat([smallest(scores[:more], each + 1), smallest(scores[more:], each)])


def compliance(keep: torch.Tensor, pattern: NM) -> float:
    """Share of the groups of a mask, or of a matrix, that hold at most N entries that are not zero.

    Args:
        keep: [out, in] with ``in`` a multiple of the group.
        pattern: The pattern.
    """
    grouped = rearrange(keep != 0, "out (n group) -> (out n) group", group=pattern.group)
    return float((grouped.sum(-1) <= pattern.keep).double().mean())


def retained_energy(weight: torch.Tensor, keep: torch.Tensor) -> float:
    """Share of the sum of squares of a matrix that the kept weights hold; of normal weights pruned by
    magnitude .929 at 50 %, .868 in 2:4.
    """
    squares = weight.float().square()
    whole = float(squares.sum(dtype=torch.float64))
    return float((squares * keep).sum(dtype=torch.float64)) / whole if whole else 1.0
