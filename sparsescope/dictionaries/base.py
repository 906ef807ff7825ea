"""What every dictionary is: features of a site, found in activations (``encode``) and added up again
(``decode``).

Sparse autoencoders, SNMF and the baselines (principal components, neurons, random directions) share this, so
that one evaluation, one splice and one page serve all.

Shapes: x [row, d_in]; codes ``SparseCodes`` of [row, width]; directions [width, d_out].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

from sparsescope.core.shown import Shown
from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.dictionaries.codes import SparseCodes


class Dictionary(Shown, ABC):
    """Features of a site.

    Attributes:
        architecture: Name of the rule that encodes, for example ``"topk"``.
        site: Name of the site that it reads, empty where it is not known.
        d_in: Width of that site.
        d_out: Width of what it writes: ``d_in`` unless it is a transcoder.
        width: Number of features.
    """

    architecture: str = ""
    site: str
    d_in: int
    d_out: int
    width: int

    def _shown(self) -> dict[str, object]:
        return {
            "architecture": self.architecture,
            "site": self.site or "not known",
            "width": self.width,
            "d_in": self.d_in,
        } | ({} if self.d_out == self.d_in else {"d_out": self.d_out})

    @abstractmethod
    def encode(self, x: torch.Tensor) -> SparseCodes:
        """Return the active features of rows.

        Args:
            x: [row, d_in], or any shape whose last dimensions have d_in entries in all ([batch, position,
                d_in], [batch, position, head, d_head]).

        Returns:
            One row of codes for each row of x; what a row gets does not depend on other rows.

        Raises:
            SpecError: Another width, or NaN or infinite entries.
        """

    @abstractmethod
    def decode(self, codes: SparseCodes) -> torch.Tensor:
        """Return what the codes say of the site, [row, d_out]."""

    @property
    @abstractmethod
    def directions(self) -> torch.Tensor:
        """What each feature adds to the site when it has the value 1, [width, d_out]."""

    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Encode and decode; the result has the shape of x (of a transcoder [..., d_out])."""
        found = self.decode(self.encode(x))
        return (
            found.reshape(x.shape)
            if self.d_out == self.d_in
            else found.reshape(*leading_shape(x, self.d_in), self.d_out)
        )

    def reconstruct_rows(self, rows: torch.Tensor) -> tuple[SparseCodes, torch.Tensor]:
        """Codes and reconstruction of rows [row, d_in], encoded once."""
        codes = self.encode(rows)
        return codes, self.decode(codes)

    def to_inference(self) -> Dictionary:
        """The dictionary with the rule that is exported, which decides for each row alone."""
        return self


@torch.no_grad()
def fvu_and_l0(
    dictionary: Dictionary, rows: torch.Tensor, target: torch.Tensor | None = None
) -> tuple[float, float, SparseCodes]:
    """Fraction of variance unexplained and mean number of active features (``metrics/reconstruction.py``).

    Args:
        dictionary: Whose exported rule counts.
        rows: [row, d_in].
        target: [row, d_out] of a transcoder; None for the rows.

    Returns:
        FVU, L0, and the codes.
    """
    from sparsescope.metrics.reconstruction import reconstruction_measures

    codes, made = dictionary.reconstruct_rows(rows)
    aim = rows if target is None else target
    active = codes.active_per_row.cpu().numpy()
    found = reconstruction_measures(aim.float().cpu().numpy(), made.float().cpu().numpy(), active)
    return found["fvu"], found["l0"], codes


def as_rows(x: torch.Tensor, d_in: int, what: str = "activations") -> torch.Tensor:
    """Return [row, d_in] of activations in any arrangement whose last dimensions hold d_in entries.

    Raises:
        SpecError: The width is another, or an entry is NaN or infinite.
    """
    size = 1
    for n in range(x.dim() - 1, -1, -1):
        size *= x.shape[n]
        if size == d_in:
            rows = x.reshape(-1, d_in) if x.numel() else x.new_zeros(0, d_in)
            break
    else:
        raise SpecError(
            "the activations have another width than the dictionary",
            where=what,
            allowed=f"[row, {d_in}], or any shape whose last dimensions hold {d_in} entries",
            got=str(list(x.shape)),
            next_step="read the site that the dictionary was trained on",
        )
    check_finite(rows, what)
    return rows


def leading_shape(x: torch.Tensor, d_in: int) -> tuple[int, ...]:
    """The dimensions of x before those that hold d_in entries."""
    n, size = x.dim(), 1
    while size != d_in or n == x.dim():
        n -= 1
        size *= x.shape[n]
    return tuple(x.shape[:n])


def check_finite(rows: torch.Tensor, what: str) -> None:
    """Refuse NaN and infinity, naming the first row that has one.

    Raises:
        SpecError: There is one.
    """
    # The sum of a row is finite only if each entry is; one pass, and no [row, d] mask
    sums = rows.sum(dim=1, dtype=torch.float32) if rows.numel() else rows.new_zeros(0)
    if bool(sums.isfinite().all()):
        return
    bad = (~rows.isfinite()).any(1).nonzero().flatten()
    if len(bad):
        raise SpecError(
            "activations are NaN or infinite",
            where=f"{what}, row {int(bad[0])}",
            allowed="finite numbers",
            got=f"{len(bad)} of {len(rows)} rows",
            next_step="leave these rows out, or look for overflow where the activations come from",
        )
