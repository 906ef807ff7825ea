"""What the benchmark of kernels found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows

TITLES = {
    "speedup_{}_{}": "Speed over the best dense float32 product, {} weights, {} % dropped",
    "of_limit_{}_{}": "Share of the byte limit, {} weights, {} % dropped",
}


def statements(result: Result) -> list[Statement]:
    """How fast one token is, where sparsity begins to pay, and how many tokens may share a mask."""
    table = rows(result, "products")
    if table is None:
        return []
    found = []
    shape = table["shape"].iloc[0]
    cold = table[(table["shape"] == shape) & (table["cache"] == "cold")]
    level = min(cold[cold["target"] > 0]["target"].unique(), key=lambda target: abs(target - 0.5))
    middle = cold[cold["target"] == level]
    parts = [
        f"{row.stored} {row.speedup:.2f} [{row.speedup_q1:.2f}, {row.speedup_q3:.2f}]"
        for row in middle.itertuples()
    ]
    text = (
        f"One token, {shape}, {100 * middle['sparsity'].mean():.0f} % of the inputs dropped: so many times "
        "as fast as the best dense float32 product, by stored type (median and quartiles): "
        f"{', '.join(parts)}."
    )
    names = [f"speedup_{row.stored}_{100 * level:g}".replace(".", "_") for row in middle.itertuples()]
    found.append(Statement(text, "speedups", tuple(names)))
    even = rows(result, "break_even")
    if even is not None:
        own = even[even["shape"] == shape]
        said = [
            f"{row.stored} never"
            if row.sparsity != row.sparsity
            else f"{row.stored} {100 * row.sparsity:.0f} %"
            for row in own.itertuples()
        ]
        found.append(
            Statement(
                "Sparsity pays, beside the best dense product with the same stored weights, from so many "
                f"dropped inputs on: {', '.join(said)}.",
                "speedups",
            )
        )
    several = rows(result, "several")
    if several is not None:
        own = several[(several["rule"] == "own") & (several["stored"] == several["stored"].iloc[0])]
        wins = own.groupby("target")["speedup_q1"].min() > 1
        known = ", ".join(f"{100 * target:g} %" for target in wins[wins].index) or "none of those tried"
        counts = ", ".join(str(count) for count in own["tokens"].unique())
        found.append(
            Statement(
                f"{counts} tokens that are read together, each with its own mask ({own['stored'].iloc[0]}): "
                f"all faster than the best dense float32 product of as many at sparsities of {known}.",
                "several_tokens",
            )
        )
    return found
