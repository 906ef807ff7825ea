"""What activation reuse found, in sentences, and the titles of its numbers.

The rule 'nonzero' speaks only where there are exact zeros; of SwiGLU and GELU the rule 'in use' does.
"""

from __future__ import annotations

from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, basis, defined, said, said_value

_RULES = {"nonzero": "nonzero", "in_use": "energy", "routed": "routing"}
TITLES = {
    f"{stem}_{suffix}": f"{title.replace('Units', 'Experts') if suffix == 'routed' else title} ({rule})"
    for suffix, rule in _RULES.items()
    for stem, title in {
        "token_sparsity": "Units idle on a token",
        "chunk_sparsity": "Units idle over 8 tokens",
        "union_ratio_8": "Reuse ratio, 8 tokens",
        "neighbor_overlap": "Overlap of neighbors",
        "neighbor_overlap_within": "Overlap in a document",
        "neighbor_overlap_across": "Overlap across documents",
        "hot_share": "Units with 80 % of the firings",
        "gini_of_use": "Gini of use",
    }.items()
} | {"tokens": "Tokens", "documents": "Documents"}
_FEW_ZEROS = 0.02


def statements(result: Result) -> list[Statement]:
    """What a chunk of tokens needs, how far neighbors share units, and how unevenly units are used."""
    zeros, routed = defined(result, "token_sparsity_nonzero"), defined(result, "token_sparsity_routed")
    # Of a mixture, units of experts that a token was not sent to are zero anyway.
    idle_anyway = routed[0].value if routed is not None else 0.0
    telling = zeros is not None and 1 - zeros[0].value < (1 - _FEW_ZEROS) * (1 - idle_anyway)
    suffix = "nonzero" if telling else "in_use"
    share = (result.provenance.get("params") or {}).get("use_share", 0.9)
    idle = "exactly zero" if suffix == "nonzero" else f"not needed for {100 * share:g} % of the energy"
    if routed is not None:
        idle += ", or of experts that the token was not sent to"
        return [*_chunk(result, suffix, idle), *_neighbors(result, suffix), *_experts(result)]
    return [*_chunk(result, suffix, idle), *_neighbors(result, suffix), *_hot(result, suffix)]


def _chunk(result: Result, suffix: str, idle: str) -> list[Statement]:
    names = (f"token_sparsity_{suffix}", f"chunk_sparsity_{suffix}", f"union_ratio_8_{suffix}")
    found = defined(result, *names)
    if found is None:
        return []
    token, chunk, ratio = found
    text = (
        f"Eight tokens in a row need {said(ratio)} times as many units as independent tokens would "
        f"({basis(ratio)}): {_reading(ratio)}. {said_value(token)} of the units are idle on one token, "
        f"{said_value(chunk)} on all eight ({idle})."
    )
    return [Statement(text, "union_density", (names[2], names[0], names[1]))]


def _reading(ratio: Scalar, units: str = "units") -> str:
    """What a union relative to its null says, as far as the interval allows."""
    ends = ratio.interval
    if ends is not None and ends.low <= 1 <= ends.high:
        return "reuse beyond chance is not shown"
    if ratio.value >= 1:
        return f"neighbors share no more {units} than chance"
    return f"neighbors reuse {units}" + ("" if ends is not None else ", if the one number holds")


def _neighbors(result: Result, suffix: str) -> list[Statement]:
    names = (
        f"neighbor_overlap_{suffix}",
        f"neighbor_overlap_within_{suffix}",
        f"neighbor_overlap_across_{suffix}",
    )
    found = defined(result, *names)
    if found is None:
        return []
    own, within, across = found
    text = (
        f"Two neighboring tokens share {said(own)} of their units (Jaccard index); tokens of the same "
        f"document in random order {said_value(within)}, of different documents {said_value(across)}."
    )
    if own.interval is not None:
        above = own.interval.low > within.value
        text += (
            " The order of the words matters."
            if above
            else " That the order of the words matters is not shown."
        )
    return [Statement(text, "neighbors", names[:1])]


def _hot(result: Result, suffix: str) -> list[Statement]:
    hot = defined(result, f"hot_share_{suffix}")
    if hot is None:
        return []
    text = (
        f"The most used {said(hot[0])} of the units do 80 % of all firings; 80 % of them would if "
        "all fired equally often."
    )
    return [Statement(text, "lorenz", (hot[0].name, f"gini_of_use_{suffix}"))]


def _experts(result: Result) -> list[Statement]:
    """How far neighbors are sent to the same experts."""
    names = ("union_ratio_8_routed", "neighbor_overlap_routed", "neighbor_overlap_within_routed")
    found = defined(result, *names)
    if found is None:
        return []
    ratio, own, within = found
    text = (
        f"Eight tokens in a row reach {said(ratio)} times as many experts as independent tokens would "
        f"({basis(ratio)}): {_reading(ratio, 'experts')}. Two neighbors share {said_value(own)} of their "
        f"experts (Jaccard index), tokens of the same document in random order {said_value(within)}."
    )
    return [Statement(text, "union_density", names)]
