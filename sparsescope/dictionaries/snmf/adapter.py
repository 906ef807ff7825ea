"""A fitted SNMF where other dictionaries are used: torch in, sparse codes out.

Shapes: x [row, d]; directions [k, d].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from sparsescope.dictionaries.base import Dictionary, as_rows
from sparsescope.dictionaries.codes import SparseCodes

if TYPE_CHECKING:
    from sparsescope.dictionaries.snmf.estimator import SNMF


class SNMFDictionary(Dictionary):
    """Features of a site, from a fitted factorization.

    The codes are exact and computed on the host, whatever the device of x; they come back to that device.

    Args:
        snmf: Fitted.
        site: Name of the site that it reads.

    Attributes:
        snmf: The factorization.
    """

    architecture = "snmf"

    def __init__(self, snmf: SNMF, site: str = "") -> None:
        check_is_fitted(snmf)
        self.snmf, self.site = snmf, site
        self.width, self.d_in = snmf.components_.shape
        self.d_out = self.d_in
        scaled = snmf.components_ if snmf.scale_ is None else snmf.components_ * snmf.scale_
        self._directions = torch.from_numpy(np.array(scaled, snmf.components_.dtype))

    def encode(self, x: torch.Tensor) -> SparseCodes:
        """Return the exact non-negative codes of rows, see ``Dictionary.encode``."""
        rows = as_rows(x, self.d_in)
        kind = torch.float64 if rows.dtype == torch.float64 else torch.float32
        if not len(rows):
            return SparseCodes.of_dense(torch.zeros(0, self.width, dtype=kind, device=x.device))
        host = rows.detach().to("cpu", kind).numpy()
        names = getattr(self.snmf, "feature_names_in_", None)
        if names is not None:  # scikit-learn asks for the names that it was fitted with
            import pandas

            host = pandas.DataFrame(host, columns=names)
        codes = np.asarray(self.snmf.transform(host))
        return SparseCodes.of_dense(torch.from_numpy(codes).to(x.device))

    def decode(self, codes: SparseCodes) -> torch.Tensor:
        """Return G H plus the mean, [row, d], on the device of the codes."""
        out = codes.csr() @ self._directions.numpy()
        if self.snmf.mean_ is not None:
            out = out + self.snmf.mean_
        return torch.from_numpy(out.astype(self._directions.numpy().dtype, copy=False)).to(
            codes.values.device
        )

    @property
    def directions(self) -> torch.Tensor:
        """What each feature adds to the site when its code is 1, [k, d]."""
        return self._directions
