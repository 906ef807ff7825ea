"""Two small dictionaries of one site, made on a share of the text, where none is given: a TopK autoencoder,
whose codes are sparse, and an SNMF, whose features have few neurons. Both are kept, for other runs and for
SAELens.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.analysis.dictionary_quality.entries import DICTIONARY, Entry
from sparsescope.dictionaries.rows import TensorRows
from sparsescope.dictionaries.small import keep_here, said, small_snmf, snmf_of, training_said
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.dictionaries.train import Settings, Trained, train

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.dictionary_quality import DictionaryQualityParams
    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.dictionaries.site_rows import FitRows
    from sparsescope.models.structure.sites import Site

    Arrays = dict[str, np.ndarray]

BATCH_ROWS = 256
LABELS = ("TopK", "SNMF")
_PARAMETERS = ("encoder", "encoder_bias", "decoder", "decoder_bias")
_TIMES = ("cpu_seconds",)  # another number each time, so it is no part of what is kept


@dataclass(frozen=True, slots=True)
class Made:
    """What was trained.

    Attributes:
        entries: The dictionaries.
        seconds: By label, how long it took.
        converged: Whether the factorization did.
    """

    entries: list[Entry]
    seconds: dict[str, float]
    converged: bool


def train_here(
    params: DictionaryQualityParams, context: Context, corpus: TokenizedCorpus, read: FitRows, site: Site
) -> Made:
    """Train both and keep them.

    Args:
        params: Parameters of the analysis.
        context: Of the run; what was trained before an interruption is read back.
        corpus: The documents that the rows are of.
        read: The rows.
        site: Where they are.
    """
    rows = read.rows[site.name]
    width = max(1, min(params.width, len(rows)))
    entries, seconds = [], {}
    autoencoder = context.step("train-topk", lambda: _autoencoder(params, context, rows, width, site))
    factors = context.step(
        "train-snmf",
        lambda: small_snmf(
            context, rows, site, params.components, params.neuron_share, params.iterations, params.seed
        ),
    )
    made: tuple[tuple[str, Arrays, Dictionary], ...] = (
        (LABELS[0], autoencoder, _topk(params, site, width, autoencoder)),
        (LABELS[1], factors, snmf_of(factors, site)),
    )
    for label, arrays, dictionary in made:
        training = training_said(arrays, corpus, site)
        seconds[label] = float(arrays["seconds"][0])
        keep_here(context, dictionary, label, training, params.seed)
        entries.append(Entry(label, dictionary, site, site, DICTIONARY, training))
    return Made(entries, seconds, bool(factors["converged"][0]))


def _autoencoder(
    params: DictionaryQualityParams, context: Context, rows: torch.Tensor, width: int, site: Site
) -> Arrays:
    begun = time.perf_counter()
    untrained = _untrained(params, site, width)
    source = TensorRows(
        rows,
        batch_rows=min(BATCH_ROWS, max(8, len(rows) // 4)),
        epochs=params.epochs,
        seed=params.seed,
        site=site.name,
    )
    trained = train(
        {LABELS[0]: untrained},
        source,
        settings=Settings(params.learning_rate),
        name=f"{context.subject.id} {site.name}",
        progress=lambda phase, done, total, unit: context.progress(f"{phase} TopK", done, total, unit),
        quiet=True,
    )
    found = trained.dictionaries[LABELS[0]]
    out = {name: getattr(found, name).detach().numpy() for name in _PARAMETERS}
    return out | said(_training(trained), begun)


def _untrained(params: DictionaryQualityParams, site: Site, width: int) -> TopKSAE:
    return TopKSAE(site.width, width, k=min(params.k, width), site=site.name, seed=params.seed)


def _topk(params: DictionaryQualityParams, site: Site, width: int, arrays: Arrays) -> TopKSAE:
    """The autoencoder from its parameters."""
    found = _untrained(params, site, width)
    with torch.no_grad():
        for name in _PARAMETERS:
            getattr(found, name).copy_(torch.from_numpy(arrays[name]))
    return found


def _training(trained: Trained) -> dict[str, Any]:
    counted = trained.census[LABELS[0]]
    facts = {name: value for name, value in trained.facts[LABELS[0]].items() if name not in _TIMES}
    return {
        "facts": facts,
        "census": {
            "rows": counted.rows,
            "rows_per_feature": counted.rows_per_feature.tolist(),
            "first_row": counted.first_row.tolist(),
        },
    }
