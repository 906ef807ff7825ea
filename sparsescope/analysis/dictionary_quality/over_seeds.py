"""What several trainings that differ by their seed alone say together: how far a rule's numbers spread, and
whether one rule beats another in every seed.

A family is what shares a name up to its ``-s<seed>`` at the end, which is how recipes name dictionaries.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.dictionary_quality.entries import close
from sparsescope.metrics.reconstruction import MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sparsescope.analysis.dictionary_quality.entries import Entry
    from sparsescope.analysis.dictionary_quality.measure import Place
    from sparsescope.analysis.dictionary_quality.report import Reporter

_SEED = re.compile(r"^(?P<family>.+)-s(?P<seed>\d+)$")
_FVU = MEASURES.index("fvu")


def family_of(label: str) -> tuple[str, int | None]:
    """The name without its seed, and the seed; None where the name has none.

    Example:
        >>> family_of("topk-4608-k32-s1")
        ('topk-4608-k32', 1)
        >>> family_of("mine")
        ('mine', None)
    """
    found = _SEED.match(label)
    return (found["family"], int(found["seed"])) if found else (label, None)


def families(entries: Sequence[Entry]) -> dict[str, dict[int, Entry]]:
    """Entries that have a seed in their name, by family and seed."""
    found: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        family, seed = family_of(entry.label)
        if seed is not None:
            found.setdefault(family, {})[seed] = entry
    return found


def family_rows(report: Reporter) -> list[dict[str, Any]]:
    """Rows of the table ``families``: those with two seeds or more."""
    rows = []
    for number, place in enumerate(report.places):
        for family, held in families(report.dictionaries(number)).items():
            if len(held) < 2:
                continue
            fvu, l0 = (
                np.array([report.estimates[entry.label][name][0] for entry in held.values()])
                for name in ("fvu", "l0")
            )
            counted, dead = _dead(list(held.values()), place)
            first = next(iter(held.values()))
            rows.append(
                {
                    "family": family,
                    "site": first.writes.name,
                    "seeds": len(held),
                    "l0": float(l0.mean()),
                    "fvu": float(fvu.mean()),
                    "fvu_least": float(fvu.min()),
                    "fvu_most": float(fvu.max()),
                    "dead_counted": counted,
                    "dead_share": float(dead.mean()),
                    "dead_least": float(dead.min()),
                    "dead_most": float(dead.max()),
                }
            )
    return rows


def rule_rows(report: Reporter) -> list[dict[str, Any]]:
    """Rows of the table ``rules``: pairs of families with two common seeds or more and equal L0."""
    rows = []
    for number, place in enumerate(report.places):
        held = families(report.dictionaries(number))
        for one, two in combinations(held, 2):
            common = sorted(held[one].keys() & held[two].keys())
            if len(common) < 2:
                continue
            pairs = [
                [place.sums.names.index(held[family][seed].label) for family in (one, two)] for seed in common
            ]
            first, second = np.array(pairs).T
            l0 = [
                float(np.mean([report.estimates[held[f][seed].label]["l0"][0] for seed in common]))
                for f in (one, two)
            ]
            if not close(*l0):
                continue
            fvu = [
                np.array([report.estimates[held[f][seed].label]["fvu"][0] for seed in common])
                for f in (one, two)
            ]
            difference = fvu[0] - fvu[1]
            replicates = report.replicates(number)[:, :, _FVU]
            drawn = (replicates[:, first] - replicates[:, second]).mean(1)
            low, high = (float(end) for end in report.draws[number].ends(drawn, report.documents(number)))
            rows.append(
                {
                    "first": one,
                    "second": two,
                    "site": held[one][common[0]].writes.name,
                    "seeds": len(common),
                    "first_l0": l0[0],
                    "second_l0": l0[1],
                    "difference": float(difference.mean()),
                    "low": low,
                    "high": high,
                    "least": float(difference.min()),
                    "most": float(difference.max()),
                    "verdict": _verdict(low, high, difference),
                    "documents": report.documents(number),
                }
            )
    return rows


def _dead(entries: Sequence[Entry], place: Place) -> tuple[int, Any]:
    """Tokens counted, and the share of the features that none of these made active: of the tokens that
    every training counted, or of those scored here where one did not.
    """
    found = [entry.training.get("census") for entry in entries]
    censuses = [census for census in found if isinstance(census, dict) and "first_row" in census]
    if len(censuses) == len(entries):
        counted = min(int(census["rows"]) for census in censuses)
        return counted, np.array([(np.asarray(census["first_row"]) >= counted).mean() for census in censuses])
    return place.tokens, np.array([(place.active[entry.label] == 0).mean() for entry in entries])


def _verdict(low: float, high: float, difference: Any) -> str:
    """One rule is better where documents and every seed say so."""
    if high < 0 and (difference < 0).all():
        return "first is better"
    if low > 0 and (difference > 0).all():
        return "second is better"
    if np.isfinite(low) and (low > 0 or high < 0):
        return "seeds disagree"
    return "not distinguishable"
