"""Factors of another implementation: ``snmf_factors.pt`` of shirashko/snmf-mlp-decomposition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsescope.core.files import given_path, storage_errors
from sparsescope.dictionaries.snmf.estimator import SNMF
from sparsescope.dictionaries.snmf.file import wrong

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ImportedFactors:
    """Factors of another implementation.

    Attributes:
        components: H = F^T, [k, d].
        codes: G, [n, k].
        about: What else the file says: token_ids, sample_ids, labels, layer, mode, config, as far as there.
    """

    components: NDArray[np.float32]
    codes: NDArray[np.float32]
    about: dict[str, Any] = field(default_factory=dict)

    def snmf(self, X: np.ndarray, **params: Any) -> SNMF:
        """Return an SNMF with these components, measured on activations [n, d]."""
        sparsity = float(np.count_nonzero(self.components, axis=1).max(initial=1)) / self.components.shape[1]
        model = SNMF(len(self.components), **{"sparsity": max(sparsity, 1e-9), **params})
        return model.adopt(self.components, X)


def import_factors(path: str | Path) -> ImportedFactors:
    """Read ``snmf_factors.pt`` of shirashko/snmf-mlp-decomposition: F [d, k], G [n, k]; no code runs.

    Raises:
        ArtifactError: The file cannot be read, or has no such factors.
    """
    import torch
    from transformers.modeling_utils import load_state_dict  # with weights_only

    file = given_path(path, "file of factors")
    with storage_errors("read factors", file):
        file.open("rb").close()
    try:
        state = load_state_dict(file, map_location="cpu")
    except Exception as error:  # what torch raises on a damaged file has no common class
        raise wrong(file, "the factors cannot be read", "a file of torch.save, weights only", error) from None
    if not isinstance(state, Mapping):
        raise wrong(file, "there are no factors in this file", "a dict with F and G", type(state).__name__)
    factors: list[torch.Tensor] = [state.get(name) for name in ("F", "G")]  # type: ignore[misc]
    if not all(isinstance(one, torch.Tensor) and one.dim() == 2 for one in factors):
        raise wrong(
            file, "there are no factors in this file", "F [d, k] and G [n, k]", sorted(map(str, state))
        )
    f, g = (one.detach().float().numpy() for one in factors)
    if f.shape[1] != g.shape[1] or not f.size or not (np.isfinite(f).all() and np.isfinite(g).all()):
        raise wrong(file, "F and G do not fit", "F [d, k], G [n, k], finite", f"{f.shape}, {g.shape}")
    if (g < 0).any():
        raise wrong(file, "codes are negative", "G of 0 or more", f"{int((g < 0).sum())} entries")
    return ImportedFactors(
        np.ascontiguousarray(f.T), g, {k: v for k, v in state.items() if k not in ("F", "G")}
    )
