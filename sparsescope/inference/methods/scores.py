"""TEAL, WINA and WAS: thresholds on |x_i| c_i^gamma for every matrix.

TEAL (arXiv:2408.14690): gamma = 0. WINA (arXiv:2505.19427): c the L2 norm of column i of the matrix itself;
    its
released code has them for k and gate alone (of fused modules the stacked norm). WAS (EMNLP 2025): the L1
norm.

``rotated`` is the transformation of WINA: inputs of attention and MLP are turned by the right singular
vectors of k and of gate, so that the columns of these two are orthogonal. Here the turn stands before the
matrices and not in the residual stream: the same function, the same masks, the same two dense d x d products
a layer, which the accounting charges; embeddings, norms and the output head are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from sparsescope.inference import allocation as _allocation
from sparsescope.inference.masks import Mask
from sparsescope.kernels.score_histograms import quantile

if TYPE_CHECKING:
    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.groups import InputGroup
    from sparsescope.inference.statistics import Inputs

#: p of the norm of a role's columns, None for ones.
Norm = Callable[[str], int | None]


@dataclass(slots=True)
class Thresholds:
    """A method of thresholds, one for each matrix."""

    bench: Calibrator
    templates: tuple[Mask, ...]
    allocation: str = "uniform"
    _shares: dict[float, dict[str, float]] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """Everything."""
        return 1.0

    def masks(self) -> Sequence[Mask]:
        """One for each matrix, or for matrices with one score."""
        return self.templates

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """Thresholds are quantiles of the score of the matrix."""
        if target not in self._shares:
            shares = _allocation.find(self.allocation)(self.bench, self.templates, target)
            self._shares[target] = shares
        shares = self._shares[target]
        return [
            replace(mask, threshold=quantile(found.counts[mask.name], min(shares[mask.name], 0.999)))
            for mask in self.templates
        ]


def teal(bench: Calibrator, allocation: str) -> Thresholds:
    """Magnitude alone: matrices that read one input have one threshold, unless an allocation parts them."""
    if allocation == "greedy":
        return _by_matrix(bench, lambda role: None, allocation)
    masks = tuple(Mask(group.name, group.parts, 0.0) for group in bench.groups)
    return Thresholds(bench, masks, allocation)


def wina(bench: Calibrator, allocation: str) -> Thresholds:
    """As stated: every matrix with its own column norms."""
    return _by_matrix(bench, lambda role: 2, allocation)


def wina_released(bench: Calibrator, allocation: str) -> Thresholds:
    """As released: column norms for k and gate alone."""

    def norm(role: str) -> int | None:
        return 2 if role.removesuffix(".weight").rpartition(".")[2] in ("k", "gate", "qkv") else None

    return _by_matrix(bench, norm, allocation)


def was(bench: Calibrator, allocation: str) -> Thresholds:
    """L1 norms."""
    return _by_matrix(bench, lambda role: 1, allocation)


def _by_matrix(bench: Calibrator, norm: Norm, allocation: str) -> Thresholds:
    masks = []
    for group in bench.groups:
        turn = rotation_of(bench, group) if allocation == "rotated" else None
        for role in group.parts:
            p = norm(role)
            if turn is None:
                scale = None if p is None else bench.norms(group, role, p)
            elif p is None:
                scale = None
            else:
                matrix = bench.matrix(bench.sites(group, role)[0])
                scale = torch.linalg.vector_norm(matrix @ turn.to(matrix.dtype), ord=p, dim=0)
            masks.append(Mask(group.name, (role,), 0.0, scale=scale, rotation=turn))
    shares = "uniform" if allocation == "rotated" else allocation
    return Thresholds(bench, tuple(masks), shares)


def rotation_of(bench: Calibrator, group: InputGroup) -> torch.Tensor | None:
    """Right singular vectors of k, or of gate, [K, K]; None for other groups and for experts."""
    wanted = next(
        (role for role in group.parts if role in ("attn.k.weight", "mlp.gate.weight")),
        None,
    )
    if wanted is None or group.experts:
        return None
    kept = bench.kept.rotations
    if group.name not in kept:
        matrix = bench.matrix(bench.sites(group, wanted)[0]).double()
        _, vectors = torch.linalg.eigh(matrix.T @ matrix)
        kept[group.name] = vectors.flip(-1).float()
    return kept[group.name]
