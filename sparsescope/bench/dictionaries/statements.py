"""What the benchmark of dictionaries found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows

TITLES = {
    "step_speedup": "Speed of a training step over plain torch",
    "step_fvu_ratio": "Variance unexplained, over plain torch",
    "saelens_speedup": "Speed of a training step over SAELens",
    "snmf_speedup": "Speed of SNMF to the published error",
    "snmf_published_seconds": "Time of the published updates",
}


def statements(result: Result) -> list[Statement]:
    """How fast, at which error."""
    found = []
    table = rows(result, "steps")
    if table is not None and len(table) > 1:
        ours = table.iloc[1]
        found.append(
            Statement(
                f"A step is {ours.speedup:.3g} [{ours.speedup_q1:.3g}, {ours.speedup_q3:.3g}] times as "
                "fast as the same step with dense codes (median and quartiles): "
                f"{ours.rate:,.0f} activations a second.",
                "steps",
                ("step_speedup",),
            )
        )
    if "saelens_speedup" in result.scalars:
        speedup = result.scalars["saelens_speedup"].value
        found.append(
            Statement(f"It is {speedup:.3g} times as fast as SAELens' step.", "steps", ("saelens_speedup",))
        )
    if "snmf_speedup" in result.scalars:
        speedup = result.scalars["snmf_speedup"].value
        found.append(
            Statement(
                f"SNMF reaches the error of the published updates {speedup:.3g} times sooner.",
                "errors",
                ("snmf_speedup",),
            )
        )
    return found
