"""Sparse codes: which features are active on each token, and how strongly.

A code is stored by rows (compressed sparse rows), never as a dense [row, feature] array: with 16,384 features
of which 32 are active, that is 500 times less.

Shapes: indices int32 [entry], ascending in each row; values [entry]; offsets int64 [row + 1], so that row r
holds the entries ``offsets[r]`` to ``offsets[r + 1]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import scipy.sparse


@dataclass(frozen=True, slots=True)
class SparseCodes:
    """Active features of rows.

    Attributes:
        indices: int32 [entry], the feature of each entry, ascending in a row.
        values: [entry], its activation; never zero in what ``encode`` returns.
        offsets: int64 [row + 1].
        width: Number of features of the dictionary.
    """

    indices: torch.Tensor
    values: torch.Tensor
    offsets: torch.Tensor
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def row_ids(self) -> torch.Tensor:
        """int64 [entry], the row of each entry."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(self), device=counts.device), counts)

    @property
    def active_per_row(self) -> torch.Tensor:
        """int64 [row], L0 of each row."""
        return self.offsets.diff()

    @property
    def rows_per_feature(self) -> torch.Tensor:
        """int64 [feature], the rows on which each feature is active."""
        return torch.bincount(self.indices.long(), minlength=self.width)

    def dense(self) -> torch.Tensor:
        """[row, feature]; for tests and small dictionaries."""
        out = torch.zeros(len(self), self.width, dtype=self.values.dtype, device=self.values.device)
        out[self.row_ids, self.indices.long()] = self.values
        return out

    def csr(self) -> scipy.sparse.csr_array:
        """The codes as a SciPy array [row, feature], which shares the memory where types allow."""
        from scipy.sparse import csr_array

        values = self.values.detach().cpu()
        values = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
        parts = (values.numpy(), self.indices.cpu().numpy(), self.offsets.cpu().numpy())
        return csr_array(parts, shape=(len(self), self.width))

    def part(self, begin: int, end: int) -> SparseCodes:
        """Rows ``begin`` to ``end``, without a copy of the entries."""
        low, high = int(self.offsets[begin]), int(self.offsets[end])
        offsets = self.offsets[begin : end + 1] - low
        return SparseCodes(self.indices[low:high], self.values[low:high], offsets, self.width)

    @classmethod
    def of_dense(cls, dense: torch.Tensor) -> SparseCodes:
        """The non-zero entries of [row, feature]."""
        rows, features = dense.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(dense))
        values = dense[rows, features]
        return cls(features.int(), values, offsets_of(counts), dense.shape[1])

    @classmethod
    def of_csr(cls, array: scipy.sparse.csr_array) -> SparseCodes:
        """A SciPy array [row, feature]; stored zeros are left out."""
        array = array.copy()
        array.eliminate_zeros()
        array.sort_indices()
        return cls(
            torch.from_numpy(array.indices.astype(np.int32)),
            torch.from_numpy(array.data),
            torch.from_numpy(array.indptr.astype(np.int64)),
            array.shape[1],
        )

    @classmethod
    def joined(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """Rows of several codes, one after the other."""
        if len(parts) == 1:
            return parts[0]
        counts = torch.cat([part.active_per_row for part in parts])
        return cls(
            torch.cat([part.indices for part in parts]),
            torch.cat([part.values for part in parts]),
            offsets_of(counts),
            parts[0].width,
        )


def offsets_of(counts: torch.Tensor) -> torch.Tensor:
    """int64 [row + 1] of the entries in each row."""
    out = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=out[1:])
    return out
