"""What the benchmark of decoding found, in sentences, and the titles of its numbers."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows, said

TITLES = {
    "best_over_generate": "Speed over transformers' generate at 1.05 times the perplexity or less",
    "best_rate": "Tokens a second at 1.05 times the perplexity or less",
    "over_dense_{}_{}": "Speed over the best dense loop, {} weights, target {} %",
}


def statements(result: Result) -> list[Statement]:
    """The fastest good variant, what sparsity alone gives, and what it could give at most."""
    table = rows(result, "variants")
    if table is None or "best_over_generate" not in result.scalars:
        return []
    prompt = table["prompt"].iloc[0]
    first = table[table["prompt"] == prompt]
    best = first[first["ratio"] <= 1.05].sort_values("rate").iloc[-1]
    unread = f", {100 * best['sparsity']:.0f} % of the block weights unread" if best["sparsity"] > 0 else ""
    found = [
        Statement(
            f"Fastest at no more than 1.05 times the perplexity: {best['variant']}{unread}: "
            f"{best['rate']:.1f} tokens a second, {said(result.scalars['best_over_generate'])} times "
            f"transformers' generate in float32, perplexity times {best['ratio']:.3f} "
            f"[{best['ratio_low']:.3f}, {best['ratio_high']:.3f}].",
            "speed_and_quality",
            ("best_over_generate", "best_rate"),
        )
    ]
    sparse = first[first["target"].notna()]
    if len(sparse):
        parts = [
            f"{row.stored} at {100 * row.sparsity:.0f} % {row.over_dense:.2f} [{row.over_dense_q1:.2f}, "
            f"{row.over_dense_q3:.2f}] (perplexity times {row.ratio:.3f})"
            for row in sparse.itertuples()
        ]
        found.append(
            Statement(
                "Sparsity alone, over the best dense loop with the same stored weights (median and "
                f"quartiles): {'; '.join(parts)}.",
                "speed_and_quality",
            )
        )
    shares = rows(result, "parts")
    if shares is not None:
        known = shares[shares["stored"] == shares["stored"].iloc[0]].set_index("part")["share"]
        found.append(
            Statement(
                f"The output head takes {100 * known['output head']:.0f} % of a dense "
                f"{shares['stored'].iloc[0]} step, attention {100 * known['attention']:.0f} %: no mask "
                "of the blocks saves those.",
                "parts",
            )
        )
    return found
