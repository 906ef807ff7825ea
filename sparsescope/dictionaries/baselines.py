"""Dictionaries that nobody trained, as measures for those that were: principal components, single neurons and
random directions.

Each takes the mean of the rows that it is made of as its bias and has as many active features as it is told
to:

- principal components, either the ones of largest variance, which are active on every row, or of all
  components those ``k`` whose coefficients on a row are largest, with their signs. No other choice of k
  components has a smaller error on that row, and the sign comes for free: a hard measure.
- neurons: the ``k`` neurons of a row that are farthest from their means; the others are at their means. No
other
  k neurons have a smaller error on that row.
- random directions of unit norm: the ``k`` largest positive projections of a row, as in a TopK autoencoder
that
  was never trained, times one factor for all, the one of least squares.

Shapes: rows [row, d]; basis [feature, d], rows of unit norm.
"""

from __future__ import annotations

import torch

from sparsescope.dictionaries.autoencoder import check_whole
from sparsescope.dictionaries.base import Dictionary, as_rows
from sparsescope.dictionaries.codes import SparseCodes, offsets_of
from sparsescope.errors import SpecError
from sparsescope.kernels import sparse_codes as kernels

EXACT_WIDTH = 4096
"""Width up to which all principal components are computed."""
MOST_COMPONENTS = 1024
"""Principal components of wider rows."""
_POWER_STEPS = 4


class Baseline(Dictionary):
    """Features that are directions in the space of the site, around a mean.

    Args:
        architecture: Name of the rule.
        mean: What is taken out of a row before and added again, [d].
        basis: Directions of unit norm, [feature, d]; None for the neurons themselves.
        k: Active features of a row; None where all are.
        signed: Whether the features of largest magnitude are chosen, or the largest positive ones.
        scale: What codes are multiplied with.
        site: Name of the site that it reads.
    """

    def __init__(
        self,
        architecture: str,
        mean: torch.Tensor,
        basis: torch.Tensor | None,
        *,
        k: int | None,
        signed: bool = True,
        scale: float = 1.0,
        site: str = "",
    ) -> None:
        self.architecture, self.site = architecture, site
        self.mean, self.basis, self.signed, self.scale = mean.float(), basis, signed, scale
        self.d_in = self.d_out = len(mean)
        self.width = len(mean) if basis is None else len(basis)
        if k is not None:
            check_whole(self, "k", k, 1, self.width)
        self.k = k

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> SparseCodes:
        """See ``Dictionary.encode``."""
        rows = as_rows(x, self.d_in, self.site or "activations").float() - self.mean
        scores = rows if self.basis is None else rows @ self.basis.T
        if self.k is None:
            return SparseCodes.of_dense(scores)
        chosen = scores.abs() if self.signed else scores
        indices, _, counts = kernels.top_entries(chosen.contiguous(), self.k)
        offsets = offsets_of(counts)
        number = torch.repeat_interleave(torch.arange(len(scores), device=scores.device), counts)
        return SparseCodes(indices, self.scale * scores[number, indices.long()], offsets, self.width)

    @torch.no_grad()
    def decode(self, codes: SparseCodes) -> torch.Tensor:
        """See ``Dictionary.decode``."""
        if self.basis is None:
            return codes.dense() + self.mean
        return kernels.decode(codes.indices, codes.values.float(), codes.offsets, self.basis) + self.mean

    @property
    def directions(self) -> torch.Tensor:
        """See ``Dictionary.directions``."""
        return torch.eye(self.width) if self.basis is None else self.basis


def principal_components(
    rows: torch.Tensor, components: int | None = None, *, k: int | None = None, site: str = "", seed: int = 0
) -> Baseline:
    """Principal components of rows.

    Args:
        rows: [row, d], more than one.
        components: How many, those of largest variance; None for all there are (``MOST_COMPONENTS`` of rows
            wider than ``EXACT_WIDTH``).
        k: How many are active on a row: those of largest magnitude. None for all of them.
        site: Name of the site.
        seed: Of the search of wide rows.

    Raises:
        SpecError: There is one row, rows are not finite, or a number is out of range.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> found = principal_components(x, 1)
        >>> found.reconstruct(x).abs().tolist()
        [[3.0, 0.0], [3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    rows, mean = _centred(rows, "principal_components(rows)")
    most = min(len(rows) - 1, rows.shape[1])
    if rows.shape[1] > EXACT_WIDTH:
        most = min(most, MOST_COMPONENTS)
    wanted = most if components is None else components
    if not 1 <= wanted <= most:
        raise SpecError(
            "there are not as many principal components",
            where="principal_components(components)",
            allowed=f"1 to {most}",
            got=wanted,
            next_step="give more rows, or ask for fewer components",
        )
    if rows.shape[1] <= EXACT_WIDTH:
        covariance = rows.T @ rows
        basis = torch.linalg.eigh(covariance.double()).eigenvectors.flip(1)[:, :wanted].T.float()
    else:
        basis = _largest(rows, wanted, seed)
    # The sign of a component means nothing; the largest entry is positive, so that it is always the same
    place = basis.abs().argmax(1, keepdim=True)
    basis = basis * torch.where(basis.gather(1, place) < 0, -1.0, 1.0)
    name = "pca" if k is None else "pca_topk"
    return Baseline(name, mean, basis.contiguous(), k=None if k is None else min(k, wanted), site=site)


def neuron_basis(rows: torch.Tensor, k: int, *, site: str = "") -> Baseline:
    """Single neurons.

    Args:
        rows: [row, d], of which the mean is taken.
        k: Neurons that are active on a row.
        site: Name of the site.

    Raises:
        SpecError: There is one row, rows are not finite, or k is out of range.

    Example:
        >>> x = torch.tensor([[2.0, 0.0, -5.0], [-2.0, 0.0, 5.0]])
        >>> neuron_basis(x, 1).reconstruct(x).tolist()
        [[0.0, 0.0, -5.0], [0.0, 0.0, 5.0]]
    """
    _, mean = _centred(rows, "neuron_basis(rows)")
    return Baseline("neurons", mean, None, k=k, site=site)


def random_directions(rows: torch.Tensor, width: int, k: int, *, seed: int = 0, site: str = "") -> Baseline:
    """Random directions, uniform on the sphere.

    Args:
        rows: [row, d], of which mean and factor are taken.
        width: Directions.
        k: Active ones of a row.
        seed: Of an own generator.
        site: Name of the site.

    Raises:
        SpecError: There is one row, rows are not finite, or a number is out of range.
    """
    centred, mean = _centred(rows, "random_directions(rows)")
    generator = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.randn(width, rows.shape[1], generator=generator), dim=1)
    found = Baseline("random", mean, basis, k=k, signed=False, site=site)
    product = energy = 0.0
    for part in centred.split(2048):
        made = found.reconstruct(part + mean) - mean
        product += float((made * part).sum(dtype=torch.float64))
        energy += float(made.square().sum(dtype=torch.float64))
    found.scale = product / energy if energy > 0 else 1.0
    return found


def _centred(rows: torch.Tensor, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around their mean, float32, and the mean."""
    rows = as_rows(rows, rows.shape[-1], where).float()
    if len(rows) < 2:
        raise SpecError("a mean and a spread need rows", where=where, allowed="2 rows or more", got=len(rows))
    mean = rows.mean(0, dtype=torch.float64).float()
    return rows - mean, mean


def _largest(rows: torch.Tensor, wanted: int, seed: int) -> torch.Tensor:
    """The components of largest variance, [wanted, d], by subspace iteration (Halko et al. 2011)."""
    generator = torch.Generator().manual_seed(seed)
    more = min(wanted + 32, rows.shape[1], len(rows))
    basis = torch.linalg.qr(torch.randn(rows.shape[1], more, generator=generator)).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    _, _, right = torch.linalg.svd(rows @ basis, full_matrices=False)
    return (right @ basis.T)[:wanted]
