"""Which features fire in one kind of text only, against domains that are dealt to whole documents.

Shapes: D documents; F features; B permutations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.metrics.document_nulls import domain_tables
from sparsescope.metrics.information import mutual_information

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FOUND = 0.05
"""False discovery rate at which a link with domains counts as found."""
_CELLS = 2**23


@dataclass(frozen=True, slots=True)
class DomainLinks:
    """Links of features with domains.

    Attributes:
        domain: int64 [F], where each fires most often; -1 where it fires nowhere.
        ratio: float64 [F], rate there / rate in the whole text.
        fdr: float64 [F], smallest false discovery rate at which the link is found; NaN if it never fires.
        null_fdr: float64 [F], the same with domains dealt at random.
        null_domain: int64 [F].
    """

    domain: NDArray[np.int64]
    ratio: Array
    fdr: Array
    null_fdr: Array
    null_domain: NDArray[np.int64]


def domain_links(
    firings: NDArray[np.integer],
    tokens: NDArray[np.integer],
    labels: NDArray[np.integer],
    permutations: int,
    seed: int,
) -> DomainLinks | None:
    """Compare the mutual information of firing and domain with permuted domains.

    Args:
        firings: [D, F], firings in each document.
        tokens: [D], tokens of each document.
        labels: int [D], its domain.
        permutations: B.
        seed: Of the permutations.

    Returns:
        The links; None where there are fewer than two domains with two documents each.
    """
    sizes = np.bincount(labels)
    if (sizes >= 2).sum() < 2:
        return None
    random = np.random.default_rng([seed, 23])
    dealt = np.stack([random.permutation(labels) for _ in range(permutations + 1)])
    features = firings.shape[1]
    observed, null = np.zeros(features), np.zeros(features)
    above, null_above = np.ones(features), np.ones(features)
    step = max(1, _CELLS // ((permutations + 1) * len(sizes) * 2))
    for begin in range(0, features, step):
        part = slice(begin, begin + step)
        counts = np.stack([firings[:, part], tokens[:, None] - firings[:, part]], axis=-1).astype(np.float64)
        real = mutual_information(domain_tables(counts, labels))
        drawn = mutual_information(domain_tables(counts, dealt))  # [B + 1, feature]
        one, rest = drawn[0], drawn[1:]
        slack = 1e-9 * np.maximum(rest.max(0), real)
        observed[part], null[part] = real, one
        above[part] = (1 + (rest >= real - slack).sum(0)) / (1 + permutations)
        null_above[part] = (1 + (rest >= one - slack).sum(0)) / (1 + permutations)
    fires = firings.sum(0) > 0
    domain, ratio = _most(firings, tokens, labels, len(sizes))
    null_domain, _ = _most(firings, tokens, dealt[0], len(sizes))
    return DomainLinks(
        np.where(fires, domain, -1),
        ratio,
        _adjusted(above, fires),
        _adjusted(null_above, fires),
        np.where(fires, null_domain, -1),
    )


def _adjusted(p: Array, fires: NDArray[np.bool_]) -> Array:
    from scipy.stats import false_discovery_control

    out = np.full(len(p), np.nan)
    if fires.any():
        out[fires] = false_discovery_control(np.clip(p[fires], 0, 1), method="bh")
    return out


def _most(
    firings: NDArray[np.integer], tokens: NDArray[np.integer], labels: NDArray[np.integer], domains: int
) -> tuple[NDArray[np.int64], Array]:
    """The domain of the highest rate, and that rate / the rate in the whole text."""
    members = np.zeros((domains, len(labels)))
    members[labels, np.arange(len(labels))] = 1
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = (members @ firings) / (members @ tokens)[:, None]
        whole = firings.sum(0) / tokens.sum()
        rates = np.where(np.isfinite(rates), rates, -1.0)
        best = rates.argmax(0)
        return best.astype(np.int64), rates.max(0) / whole
