"""What only a dictionary of few neurons has: neurons that features share, and features of features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sparsescope.dictionaries.snmf import SNMFDictionary
from sparsescope.dictionaries.snmf.hierarchy import hierarchy_above
from sparsescope.dictionaries.snmf.sharing import neuron_sharing
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.analysis.features import FeaturesParams
    from sparsescope.analysis.features.postings import Entry
    from sparsescope.analysis.features.report import Found
    from sparsescope.dictionaries.site_rows import FitRows

PAIRS = 40
CHILDREN = 5
_FEW = 0.5  # share of the neurons up to which features have few


def factor_rows(
    params: FeaturesParams,
    entries: Sequence[Entry],
    found: Sequence[Found],
    read: FitRows,
    context: Context,
) -> dict[str, list[dict[str, Any]]]:
    """Rows of ``sharing``, ``shared_pairs``, ``levels`` and ``tree``; empty without an SNMF."""
    rows: dict[str, list[dict[str, Any]]] = {"sharing": [], "shared_pairs": [], "levels": [], "tree": []}
    for entry, one in zip(entries, found, strict=True):
        if not isinstance(entry.dictionary, SNMFDictionary):
            continue
        components = entry.dictionary.snmf.components_
        if (components != 0).mean() <= _FEW and len(components) > 1:
            _shared(rows, entry, components)
        if params.levels:
            _levels(rows, params, entry, one, read, context)
    return rows


def check_levels(params: FeaturesParams, entries: Sequence[Entry]) -> None:
    """Refuse levels that are not above every SNMF, before anything is computed.

    Raises:
        SpecError: One has too few components for them.
    """
    for entry in entries:
        if isinstance(entry.dictionary, SNMFDictionary) and params.levels:
            most = entry.dictionary.width
            if params.levels[0] >= most:
                raise SpecError(
                    "each level has fewer components than the level below",
                    where=f"levels, dictionary {entry.label}",
                    allowed=f"descending numbers below {most}",
                    got=", ".join(map(str, params.levels)),
                )


def _shared(rows: dict[str, list[dict[str, Any]]], entry: Entry, components: np.ndarray) -> None:
    made = neuron_sharing(components)
    last = int(
        max(np.flatnonzero(made.degrees).max(), np.flatnonzero(made.expected_degrees >= 0.5).max(initial=0))
    )
    rows["sharing"] += [
        {
            "dictionary": entry.label,
            "used_by": degree,
            "neurons": int(made.degrees[degree]),
            "expected": float(made.expected_degrees[degree]),
        }
        for degree in range(last + 1)
    ]
    for first, second in made.pairs()[:PAIRS]:
        rows["shared_pairs"].append(
            {
                "first": f"{entry.label}/{first}",
                "second": f"{entry.label}/{second}",
                "shared": int(made.overlap[first, second]),
                "jaccard": float(made.jaccard[first, second]),
                "fdr": float(made.adjusted[first, second]),
            }
        )


def _levels(
    rows: dict[str, list[dict[str, Any]]],
    params: FeaturesParams,
    entry: Entry,
    one: Found,
    read: FitRows,
    context: Context,
) -> None:
    assert isinstance(entry.dictionary, SNMFDictionary)
    snmf = entry.dictionary.snmf
    ranks = params.levels
    context.progress("levels", 0, len(ranks), "levels")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # of a level, as of the SNMF: a coarse description
        made = hierarchy_above(snmf, read.rows[entry.reads.name].numpy(), ranks)
    context.progress("levels", len(ranks), len(ranks), "levels")
    for number, level in enumerate(made.levels):
        rows["levels"].append(
            {
                "dictionary": entry.label,
                "level": number,
                "components": int(level.snmf.n_components_),
                "explained": float(level.explained_exact),
            }
        )
    for number in range(1, len(made.levels)):
        for parent in range(made.levels[number].snmf.n_components_):
            for child in made.tree(number, parent, most=CHILDREN)["children"]:
                leaf = number == 1
                rows["tree"].append(
                    {
                        "dictionary": entry.label,
                        "level": number,
                        "parent": f"{entry.label} level {number}/{parent}",
                        "child": f"{entry.label}/{child['component']}"
                        if leaf
                        else f"{entry.label} level {number - 1}/{child['component']}",
                        "weight": child["weight"],
                        "label": one.features[child["component"]].label if leaf else "",
                    }
                )
