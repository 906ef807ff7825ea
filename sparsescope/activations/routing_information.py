"""What the choice of experts tells about the domain of a text, with and without what the token tells.

I(E; D): mutual information of the expert of a slot and the domain, in nats. I(E; D | x): the same where the
token id is known, so that a router that sends every token id to its own expert, in every domain, has none.
Both are above zero by chance: a null deals the labels of domains to documents anew
(``metrics.document_nulls``). Intervals leave out folds of documents, the same ones of every model that reads
the text, so that differences are paired.

Shapes: D documents, L layers, M = 2 measures, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.metrics.document_nulls import (
    conditional_counts,
    conditional_document_null,
    conditional_information,
    document_null,
    domain_tables,
)
from sparsescope.metrics.information import mutual_information
from sparsescope.metrics.jackknife import FOLDS, jackknife_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.routing import RoutingTrace

PLAIN, GIVEN_TOKEN = "I(E; D)", "I(E; D | token)"
MEASURES = (PLAIN, GIVEN_TOKEN)


def folds_by_domain(domain: NDArray[np.integer]) -> NDArray[np.int64]:
    """Fold of each document, int64 [D]: dealt in turn within each domain, so that no fold empties one.

    Example:
        >>> folds_by_domain(np.array([0, 1, 0, 1, 0])).tolist()
        [0, 0, 1, 1, 2]
    """
    found = np.empty(len(domain), np.int64)
    for value in np.unique(domain):
        members = np.flatnonzero(domain == value)
        found[members] = np.arange(len(members)) % FOLDS
    return found


@dataclass(frozen=True, slots=True)
class DomainInformation:
    """Both measures in every layer.

    Attributes:
        value: [L, M], nats, plug-in.
        folds: [F, L, M], without each fold of documents; NaN for a fold that has none.
        null_mean: [L, M], mean over permuted labels.
        null_sd: [L, M].
        z: [L, M], (value - null_mean) / null_sd.
        p: [L, M], permutation p, one-sided.
    """

    value: NDArray[np.float64]
    folds: NDArray[np.float64]
    null_mean: NDArray[np.float64]
    null_sd: NDArray[np.float64]
    z: NDArray[np.float64]
    p: NDArray[np.float64]

    @property
    def excess(self) -> NDArray[np.float64]:
        """Value without what chance gives, [L, M]."""
        return self.value - self.null_mean

    def ends(self, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Jackknife interval of ``excess``, [L, M] each; the null counts as known."""
        return jackknife_interval(self.excess, self.folds - self.null_mean, level)

    def against(
        self, other: DomainInformation, level: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Difference of the excess from that of another model on the same documents, with its paired
        jackknife
        interval: [L, M] each.
        """
        difference = self.excess - other.excess
        folds = (self.folds - self.null_mean) - (other.folds - other.null_mean)
        return (difference, *jackknife_interval(difference, folds, level))

    @classmethod
    def mean(cls, several: Sequence[DomainInformation]) -> DomainInformation:
        """Of several draws of a control: the mean of each, with ``null_sd`` their spread (NaN for one draw)
        and without z and p.
        """
        excess = np.stack([found.excess for found in several])
        spread = excess.std(0, ddof=1) if len(several) > 1 else np.full(excess.shape[1:], np.nan)
        value, folds, null = (
            np.mean([getattr(found, name) for found in several], axis=0)
            for name in ("value", "folds", "null_mean")
        )
        nothing = np.full_like(value, np.nan)
        return cls(value, folds, null, spread, nothing, nothing)

    def arrays(self, prefix: str = "") -> dict[str, NDArray[Any]]:
        """All of it, for a step of a run."""
        return {f"{prefix}{name}": getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, arrays: dict[str, NDArray[Any]], prefix: str = "") -> DomainInformation:
        """From its ``arrays``."""
        return cls(**{name: arrays[f"{prefix}{name}"] for name in cls.__slots__})


def domain_information(trace: RoutingTrace, permutations: int, seed: int) -> DomainInformation:
    """Measure a trace.

    Args:
        trace: Of a text with at least two domains.
        permutations: Of the labels, for the null.
        seed: Of the permutations: traces of the same text get the same ones.
    """
    chosen, experts = trace.chosen().astype(np.float64), trace.experts
    labels = np.unique(trace.domain, return_inverse=True)[1]
    tokens = np.unique(trace.token_ids, return_inverse=True)[1]
    out = folds_by_domain(trace.domain) == np.arange(FOLDS)[:, None]  # [F, D]
    without = (~out).astype(np.float64)
    shape = (chosen.shape[1], len(MEASURES))
    value, nulls = np.empty(shape), np.empty((4, *shape))
    folds = np.empty((FOLDS, *shape))
    for layer in range(shape[0]):
        given = conditional_counts(trace.index[:, layer], trace.document, tokens, experts)
        value[layer] = (
            mutual_information(domain_tables(chosen[:, layer], labels)),
            conditional_information(given, labels, experts),
        )
        folds[:, layer, 0] = mutual_information(domain_tables(chosen[:, layer], labels, without))
        folds[:, layer, 1] = conditional_information(given, labels, experts, weights=without)
        comparisons = (
            document_null(chosen[:, layer], labels, mutual_information, permutations, seed),
            conditional_document_null(given, labels, experts, permutations, seed),
        )
        nulls[:, layer] = np.transpose(
            [(found.mean, found.sd, found.z, found.p_above) for found in comparisons]
        )
    folds[~out.any(1)] = np.nan  # a fold without documents leaves nothing out
    return DomainInformation(value, folds, *nulls)
