"""Features of features: SNMF of the components of the level below, again and again.

A ~ G_0 H_0, H_0 ~ W_1 H_1, H_1 ~ W_2 H_2, ... with W >= 0 and row-sparse H at each level, so A is about
G_0 W_1 ... W_l H_l with codes that are not negative. Rows of H_(l-1) weigh as much as they are used, |g_c|^2
with the codes of the level below. Levels are fitted one after the other. The published joint fine-tuning
gives up both constraints (arXiv:2506.10920, authors' code); it is left out. What a level explains is said of
A itself: once with codes that are multiplied through, once with exact codes for the level's own components.
Shapes: A [n, d]; level l has k_l components; G_l = G_0 W_1 ... W_l, [n, k_l].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import clone

from sparsescope.dictionaries.snmf.estimator import SNMF, explained_share
from sparsescope.dictionaries.snmf.rows import threads
from sparsescope.errors import SpecError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Level:
    """One level.

    Attributes:
        snmf: Fitted to A (level 0), or to the components of the level below.
        codes: G_l, float64 [n, k_l], not negative.
        weights: W_l, [k_(l-1), k_l], not negative; None at level 0.
        explained: Explained share of the variance of A with G_l and H_l.
        explained_exact: The same with exact codes for H_l.
    """

    snmf: SNMF
    codes: Array
    weights: Array | None
    explained: float
    explained_exact: float


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """All levels, finest first."""

    levels: tuple[Level, ...]

    def edges_csr(self, level: int) -> scipy.sparse.csr_array:
        """Weights of a level's components (rows) on those of the level below (columns), [k_l, k_(l-1)].

        Raises:
            SpecError: There is no such level, or it is the lowest.
        """
        if not 1 <= level < len(self.levels):
            raise SpecError(
                "this level has no level below",
                where="level",
                allowed=f"1 to {len(self.levels) - 1}",
                got=level,
            )
        return scipy.sparse.csr_array(self.levels[level].weights.T)  # type: ignore[union-attr]

    def edges(self) -> pd.DataFrame:
        """Weights above zero: ``level`` of the parent, ``parent``, ``child`` (a level below), ``weight``."""
        parts = []
        for level in range(1, len(self.levels)):
            found = self.edges_csr(level).tocoo()
            parts.append(
                pd.DataFrame({"level": level, "parent": found.row, "child": found.col, "weight": found.data})
            )
        columns = ["level", "parent", "child", "weight"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def tree(
        self, level: int, component: int, *, least: float = 0.15, most: int = 5, mass: float | None = None
    ) -> dict[str, Any]:
        """Return a component with its children, theirs, and so on.

        A child is one whose weight is at least ``least`` of the largest, the ``most`` heaviest of them (the
        authors' rule); or with ``mass`` the smallest set that holds this share of the weight. A component
        with a single child is taken as a leaf: it is that child.

        Args:
            level: Of the component.
            component: Its number.
            least: Share of the largest weight.
            most: Most children.
            mass: Share of the weight in (0, 1], in place of both.

        Returns:
            ``level``, ``component``, ``weight`` (on its parent; 1 at the root), ``children``.

        Raises:
            SpecError: The component is not there, or a share is out of range.
        """
        if not 0 <= level < len(self.levels) or not 0 <= component < self.levels[level].snmf.n_components_:
            raise SpecError("this component is not there", where="tree", got=f"level {level}, {component}")
        if not (0 <= least <= 1 and most >= 1 and (mass is None or 0 < mass <= 1)):
            raise SpecError(
                "a share is out of range",
                where="tree",
                allowed="least in [0, 1], most of 1 or more, mass in (0, 1]",
                got=f"{least}, {most}, {mass}",
            )
        return self._node(level, component, 1.0, (least, most, mass))

    def _node(
        self, level: int, component: int, weight: float, rule: tuple[float, int, float | None]
    ) -> dict[str, Any]:
        children = self._children(level, component, *rule) if level else []
        if len(children) <= 1:
            children = []
        below = [self._node(level - 1, child, share, rule) for child, share in children]
        return {"level": level, "component": component, "weight": weight, "children": below}

    def _children(
        self, level: int, component: int, least: float, most: int, mass: float | None
    ) -> list[tuple[int, float]]:
        weights = self.levels[level].weights[:, component]  # type: ignore[index]
        order = np.argsort(-weights, kind="stable")
        order = order[weights[order] > 0]
        if mass is None:
            order = order[weights[order] >= least * weights.max()][:most]
        else:
            held = np.cumsum(weights[order])
            order = (
                order[: int(np.searchsorted(held, mass * held[-1] * (1 - 1e-12))) + 1]
                if len(order)
                else order
            )
        return [(int(child), float(weights[child])) for child in order]


def fit_hierarchy(
    X: np.ndarray, ranks: Sequence[int], snmf: SNMF | None = None, sample_weight: Any = None
) -> Hierarchy:
    """Fit one level after the other.

    Args:
        X: A, [n, d].
        ranks: Components of each level, finest first, descending.
        snmf: Parameters of each level but ``n_components``; centring and scaling are for level 0 only.
        sample_weight: [n], or None for 1.

    Raises:
        SpecError: Ranks do not descend.
    """
    ranks = [int(rank) for rank in ranks]
    _check_ranks(ranks)
    model = clone(SNMF() if snmf is None else snmf)
    base = clone(model).set_params(n_components=ranks[0])
    codes = np.asarray(base.fit_transform(X, sample_weight=sample_weight), np.float64)
    explained = base.total_explained_variance_ratio_
    return _above(model, base, codes, explained, X, ranks[1:], sample_weight)


def hierarchy_above(base: SNMF, X: np.ndarray, ranks: Sequence[int], sample_weight: Any = None) -> Hierarchy:
    """Fit levels above a factorization that is there.

    Args:
        base: Fitted; level 0, with whose parameters the others are fitted.
        X: Rows that say how much its components are used, [n, d].
        ranks: Components of the further levels, descending, fewer than ``base`` has.
        sample_weight: [n], or None for 1.

    Raises:
        SpecError: Ranks do not descend.
    """
    _check_ranks([base.n_components_, *ranks])
    codes = np.asarray(base.transform(X), np.float64)
    explained = base.score(X, sample_weight=sample_weight)
    return _above(clone(base), base, codes, explained, X, [int(rank) for rank in ranks], sample_weight)


def _check_ranks(ranks: Sequence[int]) -> None:
    if not ranks or any(low >= high for high, low in pairwise(ranks)) or ranks[-1] < 1:
        raise SpecError(
            "each level has fewer components than the level below",
            where="ranks",
            allowed="descending numbers of 1 or more",
            got=str(ranks),
        )


def _above(
    model: SNMF,
    base: SNMF,
    codes: Array,
    explained: float,
    X: np.ndarray,
    ranks: Sequence[int],
    sample_weight: Any,
) -> Hierarchy:
    """The levels above a fitted one."""
    levels = [Level(base, codes, None, explained, explained)]
    rows = base.rows(X, sample_weight)
    _, variance = rows.energy()
    for rank in ranks:
        below = levels[-1]
        use = rows.row_weights @ below.codes**2
        upper = clone(model).set_params(n_components=rank, center=False, scale=False)
        weights = np.asarray(
            upper.fit_transform(below.snmf.components_, sample_weight=use if use.sum() > 0 else None),
            np.float64,
        )
        codes = below.codes @ weights
        components = upper.components_.astype(np.float64)
        with threads() as executor:
            _, exact = rows.exact(components, executor)
        shares = [
            explained_share(float(rows.row_weights @ errors), variance)
            for errors in (rows.errors(codes, components), exact)
        ]
        levels.append(Level(upper, codes, weights, *shares))
    return Hierarchy(tuple(levels))
