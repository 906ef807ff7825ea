"""Whether components come back with other seeds, next to how well random ones would match.

Two dictionaries are matched one to one so that the sum of cosines is largest (Hungarian method). No absolute
values: codes are not negative, which fixes the sign of a component. Semi-nonnegative factorizations are not
unique in general, so this is part of every result. Chance: dictionaries whose rows have the same values at
random neurons; drawn with equal chance, or as often as the neurons are used, which is the stricter one
where a few neurons are in many components.
Shapes: components [k, d].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from sparsescope.errors import SpecError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeedStability:
    """How well the components of a reference come back.

    Attributes:
        cosines: [other, k], cosine of each reference component with its match; 0 where there is none.
        matches: int64 [other, k], the number of the match; -1 where there is none.
        stability: [k], mean over the others.
        chance_mean: Mean matched cosine with random dictionaries.
        chance_95: 95 % quantile of the matched cosine of a component with random dictionaries.
    """

    cosines: Array
    matches: NDArray[np.int64]
    stability: Array
    chance_mean: float
    chance_95: float

    @property
    def mean(self) -> float:
        """Mean matched cosine."""
        return float(self.stability.mean())

    def share(self, least: float = 0.7) -> float:
        """Share of the components whose stability is at least this."""
        return float((self.stability >= least).mean())


def seed_stability(
    dictionaries: Sequence[np.ndarray],
    *,
    draws: int = 20,
    null: Literal["uniform", "usage"] = "uniform",
    seed: int = 0,
) -> SeedStability:
    """Match a reference with other dictionaries of the same site.

    Args:
        dictionaries: Two or more, [k, d] each; the first is the reference, k may differ.
        draws: Random dictionaries for each other one.
        null: How random supports are drawn.
        seed: Of the draws.

    Raises:
        SpecError: Fewer than two, widths that differ, or an unknown null.
    """
    widths = {np.shape(one)[1:] for one in dictionaries}
    if len(dictionaries) < 2 or len(widths) > 1 or len(next(iter(widths))) != 1 or draws < 1:
        raise SpecError(
            "these dictionaries cannot be matched",
            where="seed_stability",
            allowed="two or more of shape [k, d] with one d, and one draw or more",
            got=f"{[list(np.shape(one)) for one in dictionaries]}, {draws} draws",
        )
    if null not in ("uniform", "usage"):
        raise SpecError("this null is not known", where="null", allowed="uniform, usage", got=repr(null))
    random = np.random.default_rng(seed)
    reference, *others = (_unit(one) for one in dictionaries)
    found = [match(reference, other) for other in others]
    chance = np.concatenate(
        [match(reference, _random(other, null, random))[0] for other in others for _ in range(draws)]
    )
    cosines = np.stack([cosine for cosine, _ in found])
    matches = np.stack([places for _, places in found])
    return SeedStability(
        cosines, matches, cosines.mean(0), float(chance.mean()), float(np.quantile(chance, 0.95))
    )


def match(reference: np.ndarray, other: np.ndarray) -> tuple[Array, NDArray[np.int64]]:
    """Return cosine and number of the match of each row of the reference, [k]; 0 and -1 without one."""
    cosine = _unit(reference) @ _unit(other).T
    rows, columns = linear_sum_assignment(-cosine)
    values, places = np.zeros(len(cosine)), np.full(len(cosine), -1, np.int64)
    values[rows], places[rows] = cosine[rows, columns], columns
    return values, places


def _unit(components: np.ndarray) -> Array:
    components = np.asarray(components, np.float64)
    norms = np.linalg.norm(components, axis=1, keepdims=True)
    return np.divide(components, norms, where=norms > 0, out=np.zeros_like(components))


def _random(components: Array, null: str, random: np.random.Generator) -> Array:
    """The values of each row at random neurons."""
    used = components != 0
    degree = used.sum(0)
    chance = degree / degree.sum() if null == "usage" and degree.sum() else None
    out = np.zeros_like(components)
    for row, (values, inside) in enumerate(zip(components, used, strict=True)):
        size = int(inside.sum())
        places = random.choice(components.shape[1], size, replace=False, p=chance)
        out[row, places] = random.permutation(values[inside])
    return out
