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
    middle = cold[(cold["target"] - 0.5).abs() == (cold["target"] - 0.5).abs().min()]
    parts = [
        f"{row.stored} {row.speedup:.2f} [{row.speedup_q1:.2f}, {row.speedup_q3:.2f}]"
        for row in middle.itertuples()
    ]
    level = middle["target"].iloc[0]
    text = (
        f"One token, {shape}, {100 * middle['sparsity'].mean():.0f} % of the inputs dropped: so many times "
        "as fast as the best dense float32 product, by stored type (median and quartiles): "
        f"{', '.join(parts)}."
    )
    names = [f"speedup_{row.stored}_{100 * level:g}" for row in middle.itertuples()]
    found.append(Statement(text, "speedups", tuple(names)))
    several = rows(result, "several")
    if several is not None:
        wins = several[
            (several["speedup_q1"] > 1) & (several["stored"] == "float32") & (several["rule"] == "own")
        ]
        by_level = wins.groupby("target")["tokens"].max()
        known = ", ".join(f"{100 * target:g} %: {count}" for target, count in by_level.items())
        said = f"up to so many tokens: {known}" if known else "for no number of tokens that was tried"
        found.append(
            Statement(
                "Tokens that are read together and keep their own inputs are faster than the best dense "
                f"float32 product at sparsities of {said}.",
                "several_tokens",
            )
        )
    return found
