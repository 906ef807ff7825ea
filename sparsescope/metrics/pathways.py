"""Pathway of a sample: the experts that it uses, layer after layer, and how smoothly it moves through them.

A profile is the mean over the tokens of a sample of the router's weights, P[l, e]. The pathway keeps in each
layer the experts that pass a rule, in order of weight: the shortest prefix that holds a share (top-p), k of
them, or all above a level. Consecutive cosines c_l compare the mixed router rows r_l = sum_e P[l, e] v[l, e]
of a layer and the next. Source: Li, Fan & Zhou 2025 (arXiv 2506.21551). Profiles of long samples are near
uniform, so only samples of equal length compare. Entropy and effective experts of profiles:
``information.entropy``, ``effective_number``.

Shapes: S samples, L layers with routers (dense layers are none), E experts; profiles [S, L, E]; sets int
[S, L, most], ids in order, -1 where a set has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.rank import centered_spectrum, effective_ranks
from sparsescope.metrics.sparsity import top_p_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Sets = NDArray[np.int64]

LEAST_LAYERS = 4
RIDGES = (1e-3, 1e-2, 1e-1)
_EPSILON = 1e-8  # of the paper's formula
_SUM_TOLERANCE = 1e-3


def top_p_sets(profiles: Array, share: float = 0.7) -> Sets:
    """Shortest prefix of the experts, by weight, that holds a share of the weight.

    Args:
        profiles: [..., E], adding up to 1: softmax over all experts, or weights renormalized over the chosen
            ones.
        share: tau, between 0 and 1.

    Returns:
        int [..., most]; of equal weights the lower id comes first.

    Raises:
        SpecError: If the share is not between 0 and 1, or profiles do not add up to 1: weights of the top k
            that are not renormalized may never reach the share.

    Example:
        >>> top_p_sets(np.array([[0.1, 0.6, 0.3], [0.8, 0.1, 0.1]])).tolist()
        [[1, 2], [0, -1]]
    """
    sums = np.asarray(profiles).sum(-1)
    if not (np.abs(sums - 1) <= _SUM_TOLERANCE).all():
        raise SpecError(
            "profiles do not add up to 1",
            where="top_p_sets",
            allowed=f"a sum within {_SUM_TOLERANCE} of 1 in each layer",
            got=f"{sums.min():.4g} to {sums.max():.4g}",
            next_step="take the softmax over all experts, or renormalize the weights of the chosen ones",
        )
    return _ranked(profiles, top_p_count(profiles, share))


def top_k_sets(profiles: Array, k: int) -> Sets:
    """The k experts of most weight, in order: int [..., k]; with k = 1 the argmax path.

    Raises:
        SpecError: If k is not from 1 to E.

    Example:
        >>> top_k_sets(np.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]]), k=2).tolist()
        [[1, 2], [0, 2]]
    """
    if not 1 <= k <= profiles.shape[-1]:
        raise SpecError("sets have no such size", where="k", allowed=f"1 to {profiles.shape[-1]}", got=k)
    return _ranked(profiles, np.full(profiles.shape[:-1], k))


def threshold_sets(profiles: Array, level: float) -> Sets:
    """Experts above a level, in order of weight: int [..., most]; sets may be empty.

    Args:
        profiles: [..., E]: mean weights, with a level of c / E; or shares of the tokens that choose an
            expert.
        level: What a weight must exceed.

    Example:
        >>> threshold_sets(np.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]]), level=0.35).tolist()
        [[1, -1], [0, 2]]
    """
    return _ranked(profiles, (np.asarray(profiles) > level).sum(-1))


def _ranked(profiles: Array, sizes: NDArray[np.integer]) -> Sets:
    order = np.argsort(-np.asarray(profiles, np.float64), axis=-1, kind="stable")
    kept = np.where(np.arange(order.shape[-1]) < sizes[..., None], order, -1)
    return kept[..., : int(sizes.max(initial=0))]


def consecutive_cosines(
    profiles: Array, routers: Array, gauge: Literal["raw", "centered"] = "centered"
) -> Array:
    """Cosines c_l of the routing of each layer with that of the next.

    A row added to all of a router changes no softmax, but it changes raw cosines: centered ones, without the
    mean row of each layer, see what the routing sees.

    Args:
        profiles: [S, L, E].
        routers: v, [L, E, d], router rows as the model has them, or with the gain of the norm before folded
            in.
        gauge: ``"raw"`` (as the paper) or ``"centered"``.

    Returns:
        [S, L - 1]; NaN where a mixed row is zero.

    Raises:
        SpecError: If the gauge is unknown or shapes do not fit.

    Example:
        >>> routers = np.array([[[1.0, 0.0], [-1.0, 0.0]], [[2.0, 0.0], [-2.0, 0.0]]])
        >>> profiles = np.array([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> consecutive_cosines(profiles, routers).tolist()
        [[1.0], [-1.0]]
    """
    fine = profiles.ndim == 3 and routers.ndim == 3 and profiles.shape[1:] == routers.shape[:2]
    if gauge not in ("raw", "centered") or not fine:
        raise SpecError(
            "the routing of layers cannot be compared",
            where="consecutive_cosines",
            allowed="profiles [S, L, E], routers [L, E, d], gauge 'raw' or 'centered'",
            got=f"{list(profiles.shape)}, {list(routers.shape)}, {gauge!r}",
        )
    rows = np.asarray(routers, np.float64)
    rows = rows - rows.mean(1, keepdims=True) if gauge == "centered" else rows
    mixed = np.einsum("sle,led->sld", np.asarray(profiles, np.float64), rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        mixed = mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)
    return np.clip((mixed[:, :-1] * mixed[:, 1:]).sum(-1), -1, 1)


@dataclass(frozen=True, slots=True)
class Smoothness:
    """Consecutive cosines of each sample, each [S]: larger is smoother, unlike ``roughness``.

    Attributes:
        mean: Mean over layers.
        least: The smallest.
        sd: Standard deviation over layers.
    """

    mean: Array
    least: Array
    sd: Array


def smoothness(cosines: Array) -> Smoothness:
    """Mean, minimum and standard deviation of cosines [S, L - 1].

    Example:
        >>> found = smoothness(np.array([[1.0, 0.5, 0.0]]))
        >>> found.mean.tolist(), found.least.tolist(), found.sd.round(3).tolist()
        ([0.5], [0.0], [0.408])
    """
    return Smoothness(cosines.mean(-1), cosines.min(-1), cosines.std(-1))


def roughness(cosines: Array) -> Array:
    """C = 1 - mean_l c_l / (max_l c_l + 1e-8): larger is rougher (arXiv 2506.21551: consistency).

    Args:
        cosines: [S, L - 1], of raw router rows for the paper's measure.

    Returns:
        [S]; NaN with fewer than four layers, where it is 0 or a ratio of two cosines whatever the routing,
        and where no cosine is above zero, where its sign would turn.

    Example:
        >>> roughness(np.array([[0.8, 0.8, 0.8], [0.8, 0.4, 0.0], [-0.1, -0.2, 0.0]])).round(6).tolist()
        [0.0, 0.5, nan]
    """
    if cosines.shape[-1] < LEAST_LAYERS - 1:
        return np.full(cosines.shape[:-1], np.nan)
    largest = cosines.max(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(largest > 0, 1 - cosines.mean(-1) / (largest + _EPSILON), np.nan)


@dataclass(frozen=True, slots=True)
class EffectiveDimension:
    """Effective dimension of a kernel over n samples.

    Attributes:
        dimensions: d(lambda) = tr H (H + lambda I)^-1 for each ridge; at most n.
        participation: (tr H)^2 / tr H^2.
        stable_rank: tr H / largest eigenvalue.
        n: Samples.
    """

    dimensions: Array
    participation: float
    stable_rank: float
    n: int


def routing_kernel(profiles: Array, kernel: Array | None = None) -> Array:
    """H_ij = sum_e P_i[e] P_j[e] K(i, j): samples are alike if they use the same experts (arXiv 2506.21551).

    Args:
        profiles: [n, E], of one layer.
        kernel: K, [n, n], of the inputs of the layer; 1 (routing alone) when None.

    Returns:
        [n, n].

    Example:
        >>> routing_kernel(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).tolist()
        [[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 0.5]]
    """
    alike = profiles @ profiles.T
    return alike if kernel is None else alike * kernel


def effective_dimension(
    kernel: Array, ridges: tuple[float, ...] = RIDGES, *, center: bool = False, samples: int | None = None
) -> EffectiveDimension:
    """Effective dimension, participation ratio and stable rank of a kernel.

    Args:
        kernel: H, [n, n], symmetric and positive semidefinite; or, where ``samples`` is given, a smaller
            matrix with the same eigenvalues but zeros: P^T P, [E, E], for H = P P^T.
        ridges: c of lambda = c tr H / n, each above 0.
        center: Take the mean over samples off first; of H alone.
        samples: n, where it is not the size of ``kernel``.

    Returns:
        All NaN for a kernel of zeros.

    Raises:
        SpecError: If a ridge is not above 0.

    Example:
        >>> found = effective_dimension(np.eye(10), ridges=(0.25,))
        >>> found.dimensions.tolist(), found.participation, found.stable_rank  # 10 / (1 + 0.25)
        ([8.0], 10.0, 10.0)
        >>> profiles = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
        >>> whole = effective_dimension(routing_kernel(profiles))
        >>> small = effective_dimension(profiles.T @ profiles, samples=20)
        >>> bool(np.allclose(whole.dimensions, small.dimensions))
        True
    """
    if min(ridges, default=1.0) <= 0:
        raise SpecError("a ridge must be positive", where="ridges", allowed="numbers above 0", got=ridges)
    energies = centered_spectrum(kernel) if center else np.maximum(np.linalg.eigvalsh(kernel), 0.0)
    _, stable, participation = effective_ranks(energies)
    n = len(kernel) if samples is None else samples
    with np.errstate(invalid="ignore"):
        held = energies / (energies + np.asarray(ridges)[:, None] * energies.sum() / n)
    return EffectiveDimension(held.sum(-1), float(participation), float(stable), n)
