"""What the benchmark of dictionaries found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows

TITLES = {
    "step_speedup": "Speed of a training step over plain torch",
    "step_speedup_bf16": "Speed over plain torch, bfloat16 scores",
    "step_fvu_ratio": "Variance unexplained, over plain torch",
    "step_fvu_ratio_bf16": "Variance unexplained over plain torch, bfloat16 scores",
    "saelens_speedup": "Speed of a training step over SAELens",
    "saelens_speedup_bf16": "Speed over SAELens, bfloat16 scores",
    "snmf_speedup": "Speed of SNMF to the published error",
    "snmf_published_seconds": "Time of the published updates",
    "nmf_speedup": "Speed to the error of scikit-learn's NMF",
    "nmf_seconds": "Time of scikit-learn's NMF",
}


def statements(result: Result) -> list[Statement]:
    """How fast, at which error."""
    found = []
    table = rows(result, "steps")
    if table is not None and len(table) > 1:
        ours = table.iloc[1]
        found.append(
            Statement(
                f"A step is {_times(result, 'step_speedup')} as fast as the same step with dense codes "
                f"(median and quartiles): {ours.rate:,.0f} activations a second.",
                "steps",
                ("step_speedup",),
            )
        )
    if "saelens_speedup" in result.scalars:
        low = "saelens_speedup_bf16"
        faster = f", {_times(result, low)} with bfloat16 scores" if low in result.scalars else ""
        found.append(
            Statement(
                f"It is {_times(result, 'saelens_speedup')} as fast as SAELens' step{faster}.",
                "steps",
                ("saelens_speedup",),
            )
        )
    if "snmf_speedup" in result.scalars:
        speedup = result.scalars["snmf_speedup"].value
        nmf = result.scalars.get("nmf_speedup")
        beside = f", and that of scikit-learn's NMF {nmf.value:.3g} times sooner" if nmf is not None else ""
        found.append(
            Statement(
                f"SNMF reaches the error of the published updates {speedup:.3g} times sooner{beside}.",
                "errors",
                ("snmf_speedup",),
            )
        )
    return found


def _times(result: Result, name: str) -> str:
    number = result.scalars[name]
    spread = number.interval
    within = f" [{spread.low:.3g}, {spread.high:.3g}]" if spread is not None else ""
    return f"{number.value:.3g}{within} times"
