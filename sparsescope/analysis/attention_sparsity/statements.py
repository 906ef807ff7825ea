"""What attention sparsity found, in sentences, and the titles of its numbers."""

from __future__ import annotations

import math

from sparsescope.core.numbers import format_number
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, nearest, rows, said, said_value

TITLES = {
    "mean_entropy_normalized": "Normalized entropy of a row",
    "mean_gini": "Gini index of a row",
    "mean_density_support": "Effective share of the keys (entropy)",
    "mean_sparsity_support": "Keys beyond that effective share",
    "mean_density_top_{}": "Keys that hold {} % of a row",
    "mean_sparsity_top_{}": "Keys beyond {} % of a row",
    "mean_share_first": "Weight on the first key",
    "mean_share_first_4": "Weight on the first four keys",
    "mean_share_previous": "Weight on the previous key",
    "mean_share_local_{}": "Weight less than {} keys away",
    "mean_error_top_{}": "Output error, {} % of a row kept",
    "mean_density_output": "Keys that the output needs",
    "mean_sparsity_output": "Keys that the output does without",
    "mean_density_output_{}": "Keys that the output needs, error {} %",
    "mean_sparsity_output_{}": "Keys that the output does without, error {} %",
    "mean_share_columns": "Weight on the heaviest 1 % of keys",
    "mean_share_diagonals": "Weight on the heaviest 1 % of distances",
    "mean_gini_received": "Gini index of attention received",
    "mean_density_blocks_{}": "Blocks of {} that hold 95 % of the weight",
    "mean_sparsity_blocks_{}": "Blocks of {} beyond 95 % of the weight",
    "mean_share_sink_window": "Sink rate, whole window",
    "mean_share_sink_{}": "Sink rate, first {} rows",
    "share_sink_heads": "Heads that are attention sinks",
    "uniform_share_sink_{}": "Sink rate of uniform rows, first {} rows",
    "windows": "Windows",
    "documents": "Documents",
    "loss": "Loss of the untouched model",
    "critical_sparsity_top_p": "Critical sparsity (top-p)",
    "critical_sparsity_local": "Critical sparsity (local)",
    "critical_sparsity_random": "Critical sparsity (random)",
}
_RULES = {"top-p": "lightest first", "local": "most distant first", "random": "at random"}


def statements(result: Result) -> list[Statement]:
    """How few keys a query uses, what dropping the others costs, and where the weight is."""
    return [*_keys(result), *_dropping(result), *_places(result)]


def _keys(result: Result) -> list[Statement]:
    name = nearest(result, "mean_density_top_", 90)
    if name is None:
        return []
    density, percent = result.scalars[name], name.rpartition("_")[2]
    text = (
        f"A query puts {percent} % of its attention on {said(density)} of the keys that it may "
        f"see ({basis(density)})"
    )
    table = rows(result, "per_layer", metric=name.removeprefix("mean_"))
    null = float(table["null"].mean()) if table is not None and "null" in table else math.nan
    if math.isfinite(null):
        text += f"; scores of the same spread without structure need {format_number(null, 'fraction')}"
    return [Statement(f"{text}.", "coverage", (name, "mean_entropy_normalized"))]


def _dropping(result: Result) -> list[Statement]:
    """What each rule reaches at the tolerated rise of the perplexity."""
    tolerance = (result.provenance.get("params") or {}).get("tolerance", 0.01)
    parts, names = [], []
    for rule, how in _RULES.items():
        scalar = result.scalars.get(f"critical_sparsity_{rule.replace('-', '_')}")
        if scalar is None:
            continue
        if defined(result, scalar.name):
            parts.append(f"{said(scalar)} {how}")
            names.append(scalar.name)
        elif reached := _censored(result, rule):
            parts.append(f"{reached} {how}")
    if not parts:
        return []
    text = (
        f"Share of all pairs of query and key that can be dropped at {100 * tolerance:g} % more "
        f"perplexity: {'; '.join(parts)}."
    )
    return [Statement(text, "dose_response", tuple(names))]


def _censored(result: Result, rule: str) -> str:
    """Of a rule whose critical sparsity lies outside of what was measured, on which side."""
    table = rows(result, "critical", rule=rule)
    if table is None or not {"left_censored", "right_censored", "smallest", "largest"} <= set(table.columns):
        return ""
    row = table.iloc[0]
    if row["right_censored"] == "yes":
        return f"more than {format_number(float(row['largest']), 'fraction')} (the most tried)"
    if row["left_censored"] == "yes":
        return f"less than {format_number(float(row['smallest']), 'fraction')} (the least tried)"
    return ""


def _places(result: Result) -> list[Statement]:
    parts, names = [], []
    sinks = defined(result, "share_sink_heads")
    if sinks is not None:
        uniform = nearest(result, "uniform_share_sink_", 64)
        null = f" (uniform rows give {said_value(result.scalars[uniform])})" if uniform else ""
        parts.append(
            f"{said(sinks[0])} of the heads put more than 30 % of their weight on the first key{null}"
        )
        names.append("share_sink_heads")
    near = nearest(result, "mean_share_local_", 16)
    if near is not None:
        parts.append(
            f"{said(result.scalars[near])} of all weight lies less than {near.rpartition('_')[2]} keys away"
        )
        names.append(near)
    if not parts:
        return []
    text = "; ".join(parts)
    last = result.scalars[names[-1]]
    return [
        Statement(
            f"{text[:1].upper()}{text[1:]} ({basis(last)}).",
            "sink_grid" if sinks else "mass_profile",
            tuple(names),
        )
    ]
