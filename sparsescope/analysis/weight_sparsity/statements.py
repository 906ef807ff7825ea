"""What weight sparsity found, in sentences, and the titles of its numbers."""

from __future__ import annotations

import math
from typing import Any

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, rows, said

TITLES = {
    "dense_perplexity": "Perplexity, dense model",
    "unigram_perplexity": "Perplexity, token frequencies alone",
    "scope_share": "Parameters in scope",
}
_MIDDLE = 0.05


def statements(result: Result) -> list[Statement]:
    """Where quality breaks, which criterion goes furthest, and what a pattern costs."""
    return [*_drop(result), *_best(result), *_patterns(result)]


def _tolerance(result: Result) -> float | None:
    table = result.tables.get("drop_points")
    if table is None or not len(table):
        return None
    return float(min(table["tolerance"].unique(), key=lambda value: abs(value - _MIDDLE)))


def _drops(result: Result, tolerance: float) -> list[Any]:
    """Zero-shot rows at a tolerance that have a value, the furthest first; the null is not a way to prune."""
    table = rows(result, "drop_points", tolerance=tolerance, kind="zero-shot")
    if table is None:
        return []
    found = [row for row in table.itertuples() if math.isfinite(row.sparsity) and row.curve != "Random"]
    return sorted(found, key=lambda row: -row.sparsity)


def _scalar(result: Result, curve: str, tolerance: float) -> str:
    """Name of the scalar of a curve, which its definition names."""
    for name, scalar in result.scalars.items():
        if name.endswith(f"_at_{tolerance:g}") and f"to zero by {curve} with" in scalar.definition:
            return name
    return ""


def _drop(result: Result) -> list[Statement]:
    tolerance = _tolerance(result)
    if tolerance is None:
        return []
    found = _drops(result, tolerance)
    if not found:
        text = (
            "No drop point: the dense model is not better on this text than the frequencies of its tokens, "
            "so pruning has nothing to break."
        )
        return [Statement(text, "drop_points", ("dense_perplexity", "unigram_perplexity"))]
    best = found[0]
    name = _scalar(result, best.curve, tolerance)
    scalar = result.scalars.get(name)
    number = said(scalar) if scalar is not None else f"{100 * best.sparsity:.3g} %"
    at_least = "at least " if str(best.censored).startswith("at least") else ""
    text = (
        f"{best.curve} can set {at_least}{number} of the block weights to zero before the loss rises by "
        f"{tolerance:g} nats (perplexity +{100 * math.expm1(tolerance):.3g} %"
        f"{'' if scalar is None else f', {basis(scalar)}'})"
    )
    plain = next((row for row in found if row.curve == "Magnitude"), None)
    names = [name]
    if plain is not None and plain is not best:
        other = result.scalars.get(_scalar(result, "Magnitude", tolerance))
        if other is not None:
            text += f"; magnitude alone {said(other)}"
            names.append(other.name)
    return [Statement(text + ".", "drop_points", (*filter(None, names), "dense_perplexity"))]


def _best(result: Result) -> list[Statement]:
    table = result.tables.get("comparisons")
    if table is None or not len(table):
        return []
    chosen = table[table["question"].astype(str).str.endswith("against magnitude")]
    chosen = chosen[~chosen["question"].astype(str).str.startswith("random")]
    if not len(chosen):
        return []
    parts = []
    for row in chosen.itertuples():
        if row.verdict == "not resolved":
            parts.append(f"{row.first} cannot be told from magnitude")
        else:
            parts.append(
                f"{row.first} {'loses' if row.difference < 0 else 'costs'} {abs(row.difference):.3g} nats "
                f"[{min(abs(row.low), abs(row.high)):.3g}, {max(abs(row.low), abs(row.high)):.3g}] "
                f"{'less' if row.difference < 0 else 'more'} than magnitude"
            )
    asked = 100 * float(chosen["asked"].iloc[0])
    n = int(chosen["documents"].iloc[0])
    text = f"At {asked:g} % zeros {'; '.join(parts)} (paired, n = {n} documents)."
    end = f"_minus_magnitude_at_{asked / 100:g}"  # of random masks it is the null
    named = [name for name in result.scalars if name.endswith(end) and not name.startswith("random")]
    return [Statement(text, "comparisons", (*named[:2], "scope_share"))]


def _patterns(result: Result) -> list[Statement]:
    table = result.tables.get("comparisons")
    if table is None:
        return []
    chosen = table[table["question"].astype(str).str.contains("against single weights")]
    chosen = chosen[~chosen["question"].astype(str).str.endswith("random")]  # the null chooses nothing
    if not len(chosen):
        return []
    worse = int((chosen["verdict"] == "second is better").sum())
    low, high = float(chosen["difference"].min()), float(chosen["difference"].max())
    pattern = str(chosen["question"].iloc[0]).split()[0]
    text = (
        f"The pattern {pattern} costs {low:.3g} to {high:.3g} nats more than single weights at the same "
        f"sparsity; for {worse} of {len(chosen)} criteria the interval is above zero."
    )
    return [Statement(text, "curves")]
