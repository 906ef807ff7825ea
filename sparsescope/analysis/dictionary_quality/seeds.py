"""Whether dictionaries that differ by their seed alone hold the same directions, beside what chance gives."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.dictionary_quality.over_seeds import family_of
from sparsescope.metrics.matching import chance, match

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from sparsescope.analysis.dictionary_quality.entries import Entry
    from sparsescope.analysis.dictionary_quality.measure import Place

MOST_PAIRS = 12
DATA_WIDTH = 2048
"""Width of a site up to which directions with the covariance of its activations are drawn."""
_DRAWS = 2
_MANY = 2**24  # pairs of directions; more are drawn once


def alike(place: Place) -> list[tuple[Entry, Entry]]:
    """Pairs of dictionaries of a place that differ by their seed, as far as their names and shapes tell."""
    entries = [entry for entry in place.entries if entry.kind == "dictionary"]
    found = [
        (one, two)
        for one, two in combinations(entries, 2)
        if (one.rule, one.dictionary.width) == (two.rule, two.dictionary.width)
        and _one_family(one.label, two.label)
    ]
    return found[:MOST_PAIRS]


def _one_family(one: str, two: str) -> bool:
    """Whether names differ by their seed alone; names without a seed tell nothing."""
    (first, a), (second, b) = family_of(one), family_of(two)
    return first == second or (a is None and b is None)


def seed_rows(place: Place, rows: torch.Tensor, seed: int) -> list[dict[str, Any]]:
    """Rows of the table ``seeds``.

    Args:
        place: Where the dictionaries are.
        rows: Activations of the site that they write, [row, d].
        seed: Of the random directions.
    """
    known: dict[tuple[int, int], tuple[float, float]] = {}
    out = []
    for one, two in alike(place):
        width, d = one.dictionary.width, one.dictionary.d_out
        if (width, d) not in known:
            known[width, d] = _by_chance(width, d, rows, seed)
        first, second = (entry.dictionary.directions.float().numpy() for entry in (one, two))
        found = match(first, second, usage=place.active[one.label])
        out.append(
            {
                "first": one.label,
                "second": two.label,
                "architecture": one.rule,
                "width": width,
                "mcc": found.mcc,
                "chance": known[width, d][0],
                "chance_data": known[width, d][1],
                "forward": found.mmcs_forward,
                "backward": found.mmcs_backward,
                "stable_70": found.stable_70,
                "stable_90": found.stable_90,
                "used_70": found.weighted_70,
                "exact": "yes" if found.exact else "no: MCC is a lower bound",
            }
        )
    return out


def _by_chance(width: int, d: int, rows: torch.Tensor, seed: int) -> tuple[float, float]:
    """MCC of random directions, uniform, and with the covariance of the data (NaN where that is too wide)."""
    draws = 1 if width * width > _MANY else _DRAWS
    uniform = chance(width, width, d, draws=draws, seed=seed).mcc
    if d > DATA_WIDTH or len(rows) < 2:
        return uniform, float("nan")
    covariance: NDArray[np.float64] = np.cov(rows.double().numpy(), rowvar=False).reshape(d, d)
    return uniform, chance(width, width, d, draws=draws, seed=seed, covariance=covariance).mcc
