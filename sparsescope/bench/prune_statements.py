"""What the benchmark of pruning found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows

TITLES = {"{}_seconds": "Time of {}", "{}_beyond": "Time beyond its passes, {}"}


def statements(result: Result) -> list[Statement]:
    """How many forward passes pruning takes."""
    table = rows(result, "variants")
    if table is None:
        return []
    parts = [
        f"{row.variant} {row.ratio:.3g} [{row.ratio_q1:.3g}, {row.ratio_q3:.3g}] ({row.seconds:.3g} s)"
        for row in table.iloc[1:].itertuples()
    ]
    text = (
        "Pruning takes so many forward passes with logits over its calibration text, median and quartiles of "
        f"{int(table['repeats'].iloc[0])} repeats on this machine: {'; '.join(parts)}."
    )
    named = [name for name in result.scalars if name.endswith("_seconds")]
    return [Statement(text, "pruning", tuple(named[:4]))]
