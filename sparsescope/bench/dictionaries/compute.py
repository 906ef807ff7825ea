"""The measurements of the benchmark ``dictionaries``; see its declaration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import capture
from sparsescope.activations.shuffled import RowBatch
from sparsescope.bench.dictionaries.factorizations import time_factorizations
from sparsescope.bench.dictionaries.steps import time_steps
from sparsescope.core.result import Result
from sparsescope.dictionaries.rows import facts_of, kept_rows

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.bench.dictionaries import DictionariesParams


def compute(params: DictionariesParams, context: Context) -> Result:
    """Run the benchmark."""
    out = Result("dictionaries")
    subject = context.subject
    middle = subject.n_layers // 2
    site = params.site or f"blocks.{middle}.hook_out"
    snmf_site = params.snmf_site or f"blocks.{middle}.mlp.hook_post"
    names = [site, *([snmf_site] if params.snmf_rows else [])]
    rows = _rows(context, names)
    time_steps(params, context, rows[site], site, out)
    if params.snmf_rows:
        time_factorizations(params, context, rows[snmf_site][: params.snmf_rows], snmf_site, out)
    return out


def _rows(context: Context, names: list[str]) -> dict[str, torch.Tensor]:
    """Rows of the sites over the text, position 0 and outliers left out."""
    held: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    positions = []
    with capture(context.subject, context.corpus, names, dtype="float32") as source:
        done = 0
        for batch in source:
            done += len(batch.token_ids)
            context.progress("activations", done, source.n_tokens, "tokens")
            positions.append(batch.positions)
            for name in names:
                held[name].append(batch.values[name].cpu())
    place = np.concatenate(positions)
    values = {name: torch.cat(found) for name, found in held.items()}
    numbers = np.zeros(len(place), np.int32)
    kept = {}
    for name, found in values.items():
        whole = RowBatch(0, 0, numbers, numbers.astype(np.int64), place.astype(np.int32), {name: found})
        kept[name] = kept_rows(whole, {name: facts_of(found, place)})[0][name]
    return kept
