"""R-Sparse (arXiv:2504.19449): y = W (m * x) + U_r S_r V_r^T ((1 - m) * x).

The inputs that are dropped go through a product of rank r. With a share alpha of the budget 1 - s for the
kept inputs, K (1 - s) alpha channels are kept and r = K N (1 - s) (1 - alpha) / (K + N), for the shape of
every matrix itself (the released code takes k and v for square ones). alpha comes from a small grid, for
each matrix the one with the least output error on the calibration text. The score is |x_i| ||W[:, i]||, as
in the released code where alpha < 1; at alpha = 1 that code drops the norm, and this does not, so that rank
0 is WINA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from sparsescope.inference.masks import LowRank, Mask
from sparsescope.kernels.score_histograms import quantile

if TYPE_CHECKING:
    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.statistics import Inputs
    from sparsescope.models.structure.parameters import ParameterSite

GRID = (1.0, 0.95, 0.9, 0.8)
_TOKENS = 192


def rank_at(target: float, alpha: float, shape: tuple[int, int]) -> int:
    """The rank r = K N (1 - s) (1 - alpha) / (K + N), rounded down.

    Example:
        >>> rank_at(0.5, 0.9, (4096, 4096))  # a tenth of the half
        102
    """
    rows, columns = shape
    return int(rows * columns * (1 - target) * (1 - alpha) / (rows + columns) + 1e-9)


def factors(weight: torch.Tensor, rank: int) -> LowRank:
    """The best product of a rank in the Frobenius norm (Eckart-Young), from the smaller Gram matrix.

    Args:
        weight: [N, K], at least float32.
        rank: r; all of it gives the matrix.
    """
    exact = weight.double()
    rows, columns = exact.shape
    if rows <= columns:
        _, vectors = torch.linalg.eigh(exact @ exact.T)
        left = vectors.flip(-1)[:, :rank]
        return LowRank(left, left.T @ exact)
    _, vectors = torch.linalg.eigh(exact.T @ exact)
    right = vectors.flip(-1)[:, :rank].T
    return LowRank(exact @ right.T, right)


@dataclass(slots=True)
class RSparse:
    """Thresholds and factors for every matrix."""

    bench: Calibrator
    templates: tuple[Mask, ...]
    alphas: dict[tuple[float, str], float] = field(default_factory=dict)
    _factors: dict[str, LowRank] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """Everything."""
        return 1.0

    def masks(self) -> Sequence[Mask]:
        """One for each matrix."""
        return self.templates

    def place(self, found: Inputs, target: float) -> list[Mask]:
        """Choose alpha for each matrix, once for a target; thresholds are quantiles."""
        placed = []
        for number, mask in enumerate(self.templates):
            if (target, mask.name) not in self.alphas:
                self.bench.progress("low rank", number, len(self.templates))
                with self.bench.timed("shares of R-Sparse"):
                    self.alphas[target, mask.name] = self._choose(mask, target)
            alpha = self.alphas[target, mask.name]
            share = 1 - (1 - target) * alpha
            limit = quantile(found.counts[mask.name], min(share, 0.999))
            site = self._site(mask)
            rank = rank_at(target, alpha, site.shape)
            pair = self._factors[mask.name] if rank else None
            low = {} if pair is None else {mask.roles[0]: LowRank(pair.left[:, :rank], pair.right[:rank])}
            placed.append(replace(mask, threshold=limit, low_rank=low))
        return placed

    def _site(self, mask: Mask) -> ParameterSite:
        return self.bench.sites(self.bench.by_name[mask.group], mask.roles[0])[0]

    def _choose(self, mask: Mask, target: float) -> float:
        """The share with the least output error on sampled inputs."""
        group = self.bench.by_name[mask.group]
        x = self.bench.inputs.sample(mask.group)
        if group.experts or x is None or target == 0:  # a product for every expert would be read by few
            return 1.0
        x = x[:: max(1, len(x) // _TOKENS)][:_TOKENS]
        site = self._site(mask)
        weight = self.bench.matrix(site).float()
        most = rank_at(0.0, min(GRID), site.shape)
        if mask.name not in self._factors:
            pair = factors(weight, most)
            self._factors[mask.name] = LowRank(pair.left.float(), pair.right.float())
        pair = self._factors[mask.name]
        assert mask.scale is not None
        scores = x.abs() * mask.scale.float()
        ordered = scores.flatten().sort().values
        errors = {}
        for alpha in GRID:
            rank = rank_at(target, alpha, site.shape)
            share = 1 - (1 - target) * alpha
            limit = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
            dropped = x * (scores <= limit)
            rest = dropped @ weight.T - (dropped @ pair.right[:rank].T) @ pair.left[:, :rank].T
            errors[alpha] = float(rest.square().sum())
        return min(errors, key=lambda alpha: (errors[alpha], -alpha))


def rsparse(bench: Calibrator, allocation: str) -> RSparse:
    """Make it for a subject."""
    masks = tuple(
        Mask(group.name, (role,), 0.0, scale=bench.norms(group, role))
        for group in bench.groups
        for role in group.parts
    )
    return RSparse(bench, masks)
