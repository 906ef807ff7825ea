"""What experts are chosen for: domains and token ids.

Domain specialization N_{e,D} / N_D, the share of a domain's tokens that choose an expert, and vocabulary
specialization N_{x,e} / N_x, the same of a token id: Muennighoff et al. 2024 (arXiv 2409.02060, sections 5.3
and 5.4); chance is k / E for equal loads. Shares say what a layer does, mutual information says how much it
tells: I(E; D) over slots, over H(D) (the share of the domain that a slot gives away) or over H(E) (Theil's
U). All of them are above zero by chance, see ``metrics.document_nulls``; domains differ in their tokens, so
I(E; D | token id) belongs beside each.

Shapes: tables [..., D, E] of choices N_{e,D} (``document_nulls.domain_tables``), tokens [..., D].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.information import jensen_shannon, shares, uncertainty_coefficient
from sparsescope.metrics.statistics import mean_over_present

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

LEAST_OCCURRENCES = 10
"""An id that was seen once goes to its expert every time."""


def domain_specialization(table: ArrayLike, tokens: ArrayLike) -> Array:
    """Share N_{e,D} / N_D of the tokens of a domain that choose an expert.

    Args:
        table: [..., D, E].
        tokens: [..., D].

    Returns:
        [..., D, E]; rows add up to k. NaN for a domain without tokens.

    Example:
        >>> domain_specialization([[10, 5, 5], [0, 10, 10]], [10, 10]).tolist()
        [[1.0, 0.5, 0.5], [0.0, 1.0, 1.0]]
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(table, np.float64) / np.asarray(tokens, np.float64)[..., None]


def domain_information_share(table: ArrayLike) -> Array:
    """I(E; D) / H(D): the share of the domain that one slot gives away, [...].

    Args:
        table: [..., D, E].

    Returns:
        [...], in [0, 1]; NaN for one domain.

    Example:
        >>> domain_information_share([[[5, 0], [0, 5]], [[5, 5], [5, 5]]]).round(6).tolist()
        [1.0, 0.0]
    """
    return uncertainty_coefficient(table)


def theils_u(table: ArrayLike) -> Array:
    """I(E; D) / H(E): the share of the choice of experts that the domain explains (Theil 1970), [...].

    Args:
        table: [..., D, E].

    Returns:
        [...], in [0, 1]; NaN where one expert has everything.

    Example:
        >>> theils_u([[5, 5, 0, 0], [0, 0, 5, 5]]).round(6).tolist()  # the domain halves the choice
        0.5
    """
    return uncertainty_coefficient(np.swapaxes(np.asarray(table), -1, -2))


def specialization_index(table: ArrayLike) -> Array:
    """sum_D |p(e|D) - p(e)| / 2 of each expert, from shares of slots.

    Added up over experts it is the sum over domains of the total variation distance from the whole text.

    Args:
        table: [..., D, E]; p(e) is that of all choices, whichever domain they are of.

    Returns:
        [..., E].

    Example:
        >>> specialization_index([[5, 5, 0, 0], [0, 0, 5, 5]]).tolist()  # 0.5 and 0, not 0.25
        [0.25, 0.25, 0.25, 0.25]
    """
    n = np.asarray(table, np.float64)
    return np.abs(shares(n) - shares(n.sum(-2))[..., None, :]).sum(-2) / 2


def domain_divergences(table: ArrayLike) -> Array:
    """Jensen-Shannon divergence between the routing of every two domains, in bits.

    Args:
        table: [..., D, E].

    Returns:
        [..., D, D], in [0, 1].

    Example:
        >>> domain_divergences([[5, 5, 0, 0], [0, 0, 5, 5]]).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    n = np.asarray(table, np.float64)
    return jensen_shannon(n[..., :, None, :], n[..., None, :, :])


@dataclass(frozen=True, slots=True)
class VocabularySpecialization:
    """How far token ids keep to experts.

    Attributes:
        shares: [X, E], N_{x,e} / N_x; NaN for ids seen too rarely.
        favourite: int [X], the most frequent expert of each id, the first of equal ones; -1 for rare ids.
        by_expert: [E], mean of N_{x,e} / N_x over the ids whose favourite is e; NaN where there is none.
        mean: Mean over ids of the share of their favourite; NaN without ids.
        ids: Ids that were seen often enough.
    """

    shares: Array
    favourite: NDArray[np.int64]
    by_expert: Array
    mean: float
    ids: int


def vocabulary_specialization(
    counts: ArrayLike, occurrences: ArrayLike, *, least: int = LEAST_OCCURRENCES
) -> VocabularySpecialization:
    """Describe the choices at each token id (of the input, of the next token, or of the predicted one).

    The share of a favourite is the largest of E, so it is above chance for few tokens; ``least`` bounds that.

    Args:
        counts: [X, E], choices of each expert at each id, see ``routing.expert_counts``.
        occurrences: [X], tokens of each id.
        least: Occurrences from which an id counts, at least 1.

    Raises:
        SpecError: If ``least`` is below 1.

    Example:
        >>> found = vocabulary_specialization([[20, 0], [5, 15], [1, 0]], [20, 20, 1])
        >>> found.by_expert.tolist(), found.mean, found.ids  # the third id was seen once
        ([1.0, 0.75], 0.875, 2)
    """
    if least < 1:
        raise SpecError("an id without tokens has no share", where="least", allowed="1 or more", got=least)
    n, seen = np.asarray(counts, np.float64), np.asarray(occurrences, np.float64)
    often = seen >= least
    found = np.full(n.shape, np.nan)
    found[often] = n[often] / seen[often, None]
    favourite = np.where(often, n.argmax(-1), -1)
    largest = found[often].max(-1, initial=-np.inf)
    members = np.where(favourite[often, None] == np.arange(n.shape[-1]), largest[:, None], np.nan)
    return VocabularySpecialization(
        found,
        favourite.astype(np.int64),
        mean_over_present(members, 0),
        float(largest.mean()) if often.any() else float("nan"),
        int(often.sum()),
    )
