"""The tokens that dictionaries see: position 0 of a window, where attention sinks have norms a hundred times
as large, and tokens beyond ten median norms are left out and counted, as in training.

Shapes: rows [row, d].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import capture
from sparsescope.dictionaries.rows import NORM_LIMIT, RowFacts, facts_of

if TYPE_CHECKING:
    from sparsescope.activations.capture import ActivationBatch
    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.structure.sites import Site

MOST_BYTES = 2**29
"""Of the rows that are held to fit on, all sites together."""


@dataclass(frozen=True, slots=True)
class FitRows:
    """Rows of the documents that things are fitted on.

    Attributes:
        rows: By site, float32 [row, d], outliers left out.
        facts: By site, mean, variance and median norm.
        seen: Tokens read.
        left_out: Of those that were held, how many were left out, at the first site.
        held: Share of the tokens that was held.
    """

    rows: dict[str, torch.Tensor]
    facts: dict[str, RowFacts]
    seen: int
    left_out: int
    held: float


def sites_of(places: Sequence[tuple[Site, Site]]) -> list[Site]:
    """Every site once, in the order of the model."""
    found = {site.name: site for place in places for site in place}
    return sorted(found.values(), key=lambda site: site.layer)


def fit_rows(context: Context, corpus: TokenizedCorpus, sites: Sequence[Site], seed: int) -> FitRows:
    """Read the rows that dictionaries and baselines are fitted on; more than fit in ``MOST_BYTES`` are
    thinned out.

    Raises:
        SubjectError: An activation is NaN or infinite.
        SpecError: All rows are equal.
    """
    names = [site.name for site in sites]
    most = MOST_BYTES // (4 * sum(site.width for site in sites))
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    seen = taken = 0
    with capture(context.subject, corpus, names) as source:
        share = min(1.0, most / max(1, source.n_tokens))
        for batch in source:
            kept = batch.positions > 0
            if share < 1:
                kept &= np.random.default_rng([seed, batch.index]).random(len(kept)) < share
            seen += len(batch.positions)
            taken += int(kept.sum())
            for name in names:
                parts[name].append(batch.values[name][torch.from_numpy(kept)].float().cpu())
            context.progress("read", seen, source.n_tokens, "tokens")
    rows, facts, left = {}, {}, []
    for name in names:
        values = torch.cat(parts.pop(name))
        facts[name] = facts_of(values, np.ones(len(values), np.int32))
        inside = values.norm(dim=1) <= NORM_LIMIT * facts[name].median_norm
        left.append(int((~inside).sum()))
        rows[name] = values[inside] if left[-1] else values
    return FitRows(rows, facts, seen, seen - taken + left[0], share)


def counted(batch: ActivationBatch, place: tuple[str, str], facts: dict[str, RowFacts]) -> torch.Tensor:
    """Which tokens of a batch count at a place, bool [token]."""
    kept = torch.from_numpy(batch.positions > 0)
    for name in dict.fromkeys(place):
        norms = batch.values[name].float().norm(dim=1).cpu()
        kept &= norms <= NORM_LIMIT * facts[name].median_norm
    return kept
