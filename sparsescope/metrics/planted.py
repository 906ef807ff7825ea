"""Activations with known features, and how well a dictionary recovers them.

A row is x = sum_f z_f u_f + noise with unit directions u_f and codes z_f >= 0, of which few are not zero.
Firing probabilities follow a Zipf law, features may fire together (a Gaussian copula of low rank, which
keeps every probability), and a child fires only where its parent does. What a dictionary learns from such
rows can be held against what is there, which no real activations allow.
Shapes: F features planted, L learned; directions [F, d]; codes CSR [row, F].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.matching import best_matches, match

if TYPE_CHECKING:
    import scipy.sparse
    from numpy.typing import NDArray

NO_PARENT = -1
_BLOCK = 2**22  # entries [row, feature] that are drawn at a time
_FRAME_STEPS = 60


@dataclass(frozen=True, slots=True)
class PlantedFeatures:
    """Features that rows are made of.

    Attributes:
        directions: float32 [F, d], of unit norm.
        probabilities: float64 [F], how often each feature fires, not rising.
        magnitudes: float64 [F], the location of a feature's code where it fires.
        spread: Relative spread of codes: z = |magnitude (1 + spread n)| with n normal.
        parents: int64 [F], the feature without which one does not fire; ``NO_PARENT`` for most. Parents come
            before their children.
        loadings: float64 [F, rank], of the common factors that make features fire together; the sum of
            squares of each row is below 1. Children have none.
        noise: Standard deviation of what is added to every entry of x.
    """

    directions: NDArray[np.float32]
    probabilities: NDArray[np.float64]
    magnitudes: NDArray[np.float64]
    spread: float
    parents: NDArray[np.int64]
    loadings: NDArray[np.float64]
    noise: float

    def sample(self, rows: int, seed: int) -> tuple[NDArray[np.float32], scipy.sparse.csr_array]:
        """Draw rows.

        Args:
            rows: How many.
            seed: Seed of an own generator.

        Returns:
            x, float32 [row, d], and the codes, float32 CSR [row, F].
        """
        from scipy.sparse import csr_array

        generator = np.random.default_rng(seed)
        parts = list(self._fired(rows, generator))
        row, feature = (np.concatenate([part[axis] for part in parts]) for axis in (0, 1))
        normal = generator.standard_normal(len(row))
        values = np.abs(self.magnitudes[feature] * (1 + self.spread * normal)).astype(np.float32)
        codes = csr_array((values, (row, feature)), shape=(rows, len(self.directions)))
        codes.sort_indices()
        x = (codes @ self.directions).astype(np.float32)
        if self.noise:
            x += self.noise * generator.standard_normal(x.shape, np.float32)
        return x, codes

    def _fired(
        self, rows: int, generator: np.random.Generator
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Rows and features that fire, some rows at a time."""
        from scipy.special import ndtri

        child = self.parents != NO_PARENT
        # A child fires with what is left of its probability once the parent has fired.
        conditional = self.probabilities.copy()
        conditional[child] /= self.probabilities[self.parents[child]]
        own = np.sqrt(1 - (self.loadings**2).sum(1))
        threshold = ndtri(1 - conditional)
        plain = not self.loadings.any()
        levels = [np.flatnonzero(self._depths() == depth) for depth in range(1, self._depths().max() + 1)]
        step = max(1, _BLOCK // len(self.directions))
        for begin in range(0, rows, step):
            size = min(step, rows - begin), len(self.directions)
            if plain:
                fires = generator.random(size) < conditional
            else:
                common = generator.standard_normal((size[0], self.loadings.shape[1])) @ self.loadings.T
                fires = common + own * generator.standard_normal(size) > threshold
            for level in levels:
                fires[:, level] &= fires[:, self.parents[level]]
            row, feature = np.nonzero(fires)
            yield row + begin, feature

    def _depths(self) -> NDArray[np.int64]:
        """Ancestors of every feature, int64 [F]."""
        depths = np.zeros(len(self.parents), np.int64)
        for feature in np.flatnonzero(self.parents != NO_PARENT):
            depths[feature] = depths[self.parents[feature]] + 1
        return depths


@dataclass(frozen=True, slots=True)
class Recovery:
    """How well a dictionary recovers planted features. The planted dictionary with its own codes has 1
    everywhere, and a dead share of 0.

    Attributes:
        mcc: Mean absolute cosine of the one-to-one matching of directions.
        uniqueness: Different planted features among the best matches of the learned ones, divided by the
            number of learned ones: below 1 where several learned the same.
        first: int64 [pair], planted features that have a partner.
        second: int64 [pair], the learned ones.
        cosines: float64 [pair], absolute.
        precision: float64 [pair], share of the rows on which the learned feature is active that the planted
            one fires on; 0 where it is never active.
        recall: float64 [pair], share of the rows on which the planted feature fires that the learned one is
            active on; NaN where it never fires.
        f1: float64 [pair], their harmonic mean.
        magnitude_ratio: float64 [pair], over rows on which both are active, sum of the learned contribution
            along the planted direction by the sum of the planted code: below 1 it shrinks. NaN without such
            rows.
        mean_precision: Mean over pairs that have one.
        mean_recall: Mean over pairs that have one.
        mean_f1: Mean over pairs that have one.
        shrinkage: Median of ``magnitude_ratio``; 1 is none.
        dead: Share of learned features that are active on none of the rows.
        mean_active: Mean active learned features of a row (L0).
        mean_fired: Mean planted features of a row.
        exact: Whether all pairs were candidates of the matching.
    """

    mcc: float
    uniqueness: float
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    magnitude_ratio: NDArray[np.float64]
    mean_precision: float
    mean_recall: float
    mean_f1: float
    shrinkage: float
    dead: float
    mean_active: float
    mean_fired: float
    exact: bool


def zipf_probabilities(
    features: int, low: float = 0.01, high: float = 0.3, exponent: float = 1.0
) -> NDArray[np.float64]:
    """Firing probabilities rank^-exponent, stretched so that the first is ``high`` and the last ``low``.

    Args:
        features: F.
        low: The smallest.
        high: The largest, below 1.
        exponent: 0 < exponent; 1 is the law of Zipf before it is stretched.

    Raises:
        SpecError: If the ends are no probabilities.

    Example:
        >>> zipf_probabilities(3, low=0.1, high=0.3).round(3).tolist()
        [0.3, 0.15, 0.1]
    """
    if not 0 < low <= high < 1 or features < 1 or exponent <= 0:
        raise SpecError(
            "firing probabilities are not defined",
            where="zipf_probabilities",
            allowed="1 feature or more, 0 < low <= high < 1, exponent above 0",
            got=f"{features}, {low}, {high}, {exponent}",
        )
    law = np.arange(1, features + 1) ** -float(exponent)
    if features == 1:
        return np.array([high])
    return low + (high - low) * (law - law[-1]) / (law[0] - law[-1])


def random_directions(
    features: int, width: int, seed: int, *, orthogonal: bool = False
) -> NDArray[np.float32]:
    """Random unit directions, float32 [F, d].

    Args:
        features: F.
        width: d.
        seed: Seed of an own generator.
        orthogonal: With F <= d exactly orthogonal. With F > d that cannot be; the directions are then brought
            to a tight frame, which has the least sum of squared cosines that is possible.

    Example:
        >>> directions = random_directions(3, 8, seed=0, orthogonal=True)
        >>> (directions @ directions.T).round(5).tolist() == np.eye(3).tolist()
        True
    """
    generator = np.random.default_rng(seed)
    directions = _unit(generator.standard_normal((features, width)))
    if orthogonal and features <= width:
        directions = np.linalg.qr(directions.T)[0].T
    elif orthogonal:
        for _ in range(_FRAME_STEPS):
            # The nearest tight frame is the polar factor; unit norm is then put back.
            values, vectors = np.linalg.eigh(directions.T @ directions)
            directions = _unit(directions @ (vectors / np.sqrt(values)) @ vectors.T)
    return directions.astype(np.float32)


def plant(
    features: int,
    width: int,
    seed: int,
    *,
    orthogonal: bool = False,
    low: float = 0.01,
    high: float = 0.3,
    exponent: float = 1.0,
    spread: float = 0.2,
    rank: int = 0,
    correlation: float = 0.5,
    children: float = 0.0,
    noise: float = 0.0,
) -> PlantedFeatures:
    """Make planted features.

    Args:
        features: F.
        width: d.
        seed: Seed of directions, factors and parents.
        orthogonal: As of ``random_directions``.
        low: The smallest firing probability.
        high: The largest.
        exponent: Of the law that they follow by rank.
        spread: Relative spread of codes.
        rank: Common factors that make features fire together; 0 for none.
        correlation: Share of the variance of a feature's copula that the factors make, 0 to below 1.
        children: Share of the features that fire only where another, more frequent one does.
        noise: Standard deviation of the noise in every entry of x.

    Raises:
        SpecError: If a number is out of range.

    Example:
        >>> planted = plant(16, 8, seed=0, children=0.25)
        >>> x, codes = planted.sample(100, seed=1)
        >>> x.shape, codes.shape, int((planted.parents >= 0).sum())
        ((100, 8), (100, 16), 4)
    """
    if not (0 <= correlation < 1 and 0 <= children < 1 and rank >= 0 and spread >= 0 and noise >= 0):
        raise SpecError(
            "planted features are not defined",
            where="plant",
            allowed="0 <= correlation < 1, 0 <= children < 1, rank, spread and noise not negative",
            got=f"{correlation}, {children}, {rank}, {spread}, {noise}",
        )
    generator = np.random.default_rng([seed, 1])
    probabilities = zipf_probabilities(features, low, high, exponent)
    parents = np.full(features, NO_PARENT, np.int64)
    later = generator.permutation(np.arange(1, features))[: round(children * features)]
    for child in np.sort(later):
        parents[child] = generator.integers(child)
    loadings = np.zeros((features, rank))
    if rank:
        loadings = _unit(generator.standard_normal((features, rank))) * math.sqrt(correlation)
        loadings[parents != NO_PARENT] = 0  # else a child would not fire as often as its probability says
    return PlantedFeatures(
        directions=random_directions(features, width, seed, orthogonal=orthogonal),
        probabilities=probabilities,
        magnitudes=np.ones(features),
        spread=spread,
        parents=parents,
        loadings=loadings,
        noise=noise,
    )


def recovery(
    directions: NDArray[np.floating],
    codes: scipy.sparse.csr_array,
    learned: NDArray[np.floating],
    learned_codes: scipy.sparse.csr_array,
    *,
    exact: bool | None = None,
) -> Recovery:
    """Hold a dictionary against planted features.

    Args:
        directions: [F, d], planted.
        codes: [row, F], planted.
        learned: [L, d], the decoder; its rows need no unit norm.
        learned_codes: [row, L], what it says of the same rows; stored zeros are not active.
        exact: As of ``matching.match``.

    Raises:
        SpecError: If codes and directions do not belong together.

    Example:
        >>> planted = plant(8, 8, seed=0, orthogonal=True)
        >>> x, codes = planted.sample(500, seed=1)
        >>> found = recovery(planted.directions, codes, 2 * planted.directions, 0.25 * codes)
        >>> round(found.mcc, 6), found.mean_f1, round(found.shrinkage, 6), found.dead
        (1.0, 1.0, 0.5, 0.0)
    """
    shapes = (codes.shape, learned_codes.shape)
    if shapes != ((codes.shape[0], len(directions)), (codes.shape[0], len(learned))):
        raise SpecError(
            "codes and directions do not belong together",
            where="planted.recovery",
            allowed=f"[{codes.shape[0]}, {len(directions)}] and [{codes.shape[0]}, {len(learned)}]",
            got=shapes,
        )
    rows = codes.shape[0]
    found = match(directions, learned, signed=False, exact=exact)
    nearest = best_matches(learned, directions, signed=False).first_nearest
    truth, says = codes.tocsc()[:, found.first].copy(), learned_codes.tocsc()[:, found.second].copy()
    for array in (truth, says):
        array.eliminate_zeros()
    alive = np.bincount(learned_codes.indices[learned_codes.data != 0], minlength=len(learned))
    fired = np.diff(truth.indptr).astype(np.float64)
    active = np.diff(says.indptr).astype(np.float64)
    was, is_active = (truth != 0).astype(np.float64), (says != 0).astype(np.float64)
    both = np.asarray(was.multiply(is_active).sum(0), np.float64).reshape(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(active > 0, both / active, 0.0)
        recall = both / fired
        f1 = 2 * both / np.where(fired > 0, fired + active, np.nan)
        # Along the planted direction a code z of a decoder row w says z <w, u>.
        along = np.einsum(
            "pd,pd->p", _unit(directions)[found.first], learned[found.second].astype(np.float64)
        )
        planted_sum = np.asarray(is_active.multiply(truth).sum(0), np.float64).reshape(-1)
        learned_sum = along * np.asarray(was.multiply(says).sum(0), np.float64).reshape(-1)
        scale = np.linalg.norm(directions.astype(np.float64), axis=1)[found.first]
        ratio = np.where(both > 0, learned_sum / (scale * planted_sum), np.nan)
    return Recovery(
        mcc=found.mcc,
        uniqueness=len(np.unique(nearest)) / len(learned),
        first=found.first,
        second=found.second,
        cosines=found.cosines,
        precision=precision,
        recall=recall,
        f1=f1,
        magnitude_ratio=ratio,
        mean_precision=_mean(precision),
        mean_recall=_mean(recall),
        mean_f1=_mean(f1),
        shrinkage=float(np.median(ratio[np.isfinite(ratio)])) if np.isfinite(ratio).any() else math.nan,
        dead=float((alive == 0).mean()),
        mean_active=float(alive.sum() / rows),
        mean_fired=float(np.count_nonzero(codes.data) / rows),
        exact=found.exact,
    )


def _unit(directions: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of unit norm, float64; rows of zeros stay."""
    norms = np.linalg.norm(directions.astype(np.float64), axis=1, keepdims=True)
    return np.divide(directions, norms, out=np.zeros(directions.shape), where=norms > 0)


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over what is defined; NaN where nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
