"""What the benchmark of feature stores found, in sentences."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, defined, said

TITLES: dict[str, str] = {}


def statements(result: Result) -> list[Statement]:
    """What a store costs beside a pass, and how long one feature of it takes to open."""
    out = []
    if made := defined(result, "make_ratio"):
        text = f"Making the store takes {said(made[0])} times as long as a pass through the model, here."
        out.append(Statement(text, "", (made[0].name,)))
    if opened := defined(result, "open_longest"):
        text = f"The slowest feature opens, with its contexts, in {said(opened[0])}."
        out.append(Statement(text, "", (opened[0].name,)))
    return out
