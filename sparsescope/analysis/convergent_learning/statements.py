"""What ``convergent_learning`` found, in sentences."""

from __future__ import annotations

from sparsescope.core.result import Result
from sparsescope.core.statements import Statement, rows, said

TITLES = {
    "one_to_one_{}": "Units found one-to-one, {}",
    "one_to_one_{}_null": "Units found one-to-one, {}, rows shifted",
    "unique_{}": "Unique units, {}",
    "unique_{}_null": "Unique units, {}, rows shifted",
    "cka_{}": "Alignment of layers (CKA), {}",
}
_WORDS = {"seeds": "Between two seeds", "checkpoints": "Between the last checkpoint and an earlier one"}


def statements(result: Result) -> list[Statement]:
    """How many units are found one-to-one and how many nowhere, beside chance; what blocks are."""
    return [*(found for kind in _WORDS for found in _kind(result, kind)), *_truth(result)]


def _kind(result: Result, kind: str) -> list[Statement]:
    one, unique = (result.scalars.get(f"{name}_{kind}") for name in ("one_to_one", "unique"))
    nulls = [result.scalars.get(f"{name}_{kind}_null") for name in ("one_to_one", "unique")]
    if one is None or unique is None or nulls[0] is None or nulls[1] is None:
        return []
    table = rows(result, "pairs", kind=kind)
    pairs = 0 if table is None else len(table)
    text = (
        f"{_WORDS[kind]}, {said(one)} of the units have a partner one-to-one (rows shifted: "
        f"{said(nulls[0])}), and {said(unique)} are unlike all units of the other (rows shifted: "
        f"{said(nulls[1])}); means over {pairs} pairs and layers."
    )
    return [Statement(text, "classes", (one.name, unique.name))]


def _truth(result: Result) -> list[Statement]:
    table = rows(result, "blocks", kind="seeds")
    if table is None or table["truth_second"].isna().all():
        return []
    known = table.dropna(subset=["truth_second"])
    text = (
        "Blocks of units of two seeds agree with the Fourier frequencies of the units by an adjusted mutual "
        f"information of {known['truth_second'].mean():.2f} (0 is chance); one-to-one partners have the same "
        f"frequency in {100 * known['same_frequency'].mean():.3g} % of the cases (dealt at random: "
        f"{100 * known['same_frequency_null'].mean():.3g} %)."
    )
    return [Statement(text, "blocks", ())]
