"""Two small dictionaries of one site, made on a share of the text, where none is given: a TopK autoencoder,
whose codes are sparse, and an SNMF, whose features have few neurons. Both are kept, for other runs and for
SAELens.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from sparsescope.analysis.dictionary_quality.entries import DICTIONARY, Entry
from sparsescope.dictionaries.artifact import keep_dictionary
from sparsescope.dictionaries.documents import document_digest
from sparsescope.dictionaries.rows import TensorRows
from sparsescope.dictionaries.snmf import SNMF, SNMFDictionary
from sparsescope.dictionaries.snmf.file import DESCRIPTION, TENSORS
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.dictionaries.train import Settings, Trained, train

if TYPE_CHECKING:
    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.analysis.dictionary_quality import DictionaryQualityParams
    from sparsescope.analysis.dictionary_quality.read import FitRows
    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.models.structure.sites import Site

    Arrays = dict[str, np.ndarray]

BATCH_ROWS = 256
LABELS = ("TopK", "SNMF")
_PARAMETERS = ("encoder", "encoder_bias", "decoder", "decoder_bias")
_FILES = (TENSORS, DESCRIPTION)
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
    # At most half of the rows, of which each feature is a mean, and half of the neurons
    components = max(1, min(params.components, len(rows) // 2, site.width // 2))
    factors = context.step("train-snmf", lambda: _factorization(params, context, rows, components, site))
    made: tuple[tuple[str, Arrays, Dictionary], ...] = (
        (LABELS[0], autoencoder, _topk(params, site, width, autoencoder)),
        (LABELS[1], factors, SNMFDictionary(_snmf(factors), site.name)),
    )
    documents = {"train": [document_digest(document.ids) for document in corpus.documents], "thresholds": []}
    for label, arrays, dictionary in made:
        training = json.loads(arrays["said"].tobytes()) | {
            "site": site.name,
            "corpus": {"name": corpus.name, "digest": corpus.digest, "tokens": corpus.n_tokens},
            "context": corpus.context,
            "documents": documents,
        }
        seconds[label] = float(arrays["seconds"][0])
        _keep(context, dictionary, label, training, params.seed)
        entries.append(Entry(label, dictionary, site, site, DICTIONARY, training))
    return Made(entries, seconds, bool(factors["converged"][0]))


def _keep(context: Context, dictionary: Dictionary, label: str, training: dict[str, Any], seed: int) -> None:
    def keep(kind: str, **facts: Any) -> Any:
        return context.keep(kind, label.lower(), **facts)

    meta = {"name": label, "subject": context.subject.id, "seed": seed}
    if isinstance(dictionary, TopKSAE):
        dictionary.metadata = {
            "model_name": context.subject.id,
            "hook_name": dictionary.site,
            "context_size": context.corpus.context,
            "prepend_bos": bool(context.corpus.prefix),
            "dataset_path": context.corpus.name,
        }
    keep_dictionary(dictionary, keep, training=training, meta=meta)


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
    return out | _said(_training(trained), begun)


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


def _factorization(
    params: DictionaryQualityParams, context: Context, rows: torch.Tensor, components: int, site: Site
) -> Arrays:
    begun = time.perf_counter()
    context.progress("factorize", 0, 1, "factorizations")
    found = SNMF(
        components, sparsity=params.neuron_share, max_iter=params.iterations, random_state=params.seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a note says it
        found.fit(rows.numpy())
    context.progress("factorize", 1, 1, "factorizations")
    facts = {
        "architecture": "snmf",
        "rows_read": len(rows),
        "train_fvu": 1 - float(found.total_explained_variance_ratio_),
        "dead_share": float((found.component_usage_ <= 0).mean()),
        "dead_counted_rows": len(rows),
        "iterations": int(found.n_iter_),
    }
    with tempfile.TemporaryDirectory() as folder:
        found.save(folder, {"site": site.name})
        files = {name: np.frombuffer((Path(folder) / name).read_bytes(), np.uint8).copy() for name in _FILES}
    return files | {"converged": np.array([found.converged_])} | _said({"facts": facts}, begun)


def _snmf(arrays: Arrays) -> SNMF:
    """The factorization from its files."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _FILES:
            (Path(folder) / name).write_bytes(arrays[name].tobytes())
        return SNMF.load(folder)


def _said(training: dict[str, Any], begun: float) -> Arrays:
    text = json.dumps(training, allow_nan=False, sort_keys=True)
    return {
        "said": np.frombuffer(text.encode(), np.uint8).copy(),
        "seconds": np.array([time.perf_counter() - begun]),
    }
