"""Activity of every feature, counted with frozen weights and the exported rule.

A feature is dead if it is active on none of the rows that are counted, which are at least the dead window.
The first row on which each was active gives the dead share for any smaller number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.rows import RowFacts, RowSource, kept_rows


@dataclass(frozen=True, slots=True)
class Census:
    """What was counted.

    Attributes:
        rows: Rows.
        rows_per_feature: int64 [feature], rows on which each is active.
        first_row: int64 [feature], the first of them; ``rows`` for one that never is.
        fvu: Fraction of variance unexplained on these rows.
        l0: Mean number of active features.
    """

    rows: int
    rows_per_feature: NDArray[np.int64]
    first_row: NDArray[np.int64]
    fvu: float
    l0: float

    @property
    def dead_share(self) -> float:
        """Share of the features that are never active."""
        return float((self.rows_per_feature == 0).mean())

    @property
    def densities(self) -> NDArray[np.float64]:
        """Share of the rows on which each feature is active, [feature]."""
        return self.rows_per_feature / max(1, self.rows)


@torch.no_grad()
def census(
    dictionaries: Mapping[str, SparseAutoencoder],
    source: RowSource,
    facts: Mapping[str, RowFacts],
    site: str,
    site_out: str,
    window: int,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> dict[str, Census]:
    """Count over the first rows of a source, as many as the window has, one pass at most.

    Args:
        dictionaries: By name.
        source: The rows.
        facts: Of its sites, for the rows that are left out.
        site: What the dictionaries read.
        site_out: What they write.
        window: Rows to count.
        progress: Told what is done.
    """
    wanted = min(window, source.n_rows)
    counts = {key: np.zeros(found.width, np.int64) for key, found in dictionaries.items()}
    first = {key: np.full(found.width, np.iinfo(np.int64).max) for key, found in dictionaries.items()}
    errors = dict.fromkeys(dictionaries, 0.0)
    active = dict.fromkeys(dictionaries, 0)
    seen, squares, total = 0, 0.0, torch.zeros(())
    stream = source.batches()
    for batch in stream:
        if batch.epoch:
            break  # rows that were left out are no reason to count others twice
        values, _ = kept_rows(batch, dict(facts))
        rows, target = values[site], values[site_out]
        for key, found in dictionaries.items():
            codes, made = found.reconstruct_rows(rows)
            features = codes.indices.long().numpy()
            counts[key] += np.bincount(features, minlength=found.width)
            np.minimum.at(first[key], features, seen + codes.row_ids.numpy())
            errors[key] += float((made - target).square().sum(dtype=torch.float64))
            active[key] += len(features)
        squares += float(target.square().sum(dtype=torch.float64))
        total = total + target.sum(0, dtype=torch.float64)
        seen += len(rows)
        if progress is not None:
            progress("count", min(seen, wanted), wanted, "rows")
        if seen >= wanted - len(batch.token_ids) * 0.01:
            break
    whole = squares - float(total.square().sum()) / max(1, seen)
    return {
        key: Census(
            seen, counts[key], np.minimum(first[key], seen), errors[key] / whole, active[key] / max(1, seen)
        )
        for key in dictionaries
    }
