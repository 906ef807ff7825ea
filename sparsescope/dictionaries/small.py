"""Small dictionaries that an analysis makes itself, on a share of its text, where none is given.

What was made is plain arrays, so that it can be a step of a run, and is kept for other runs.
Shapes: rows [row, d].
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sparsescope.dictionaries.artifact import keep_dictionary
from sparsescope.dictionaries.documents import document_digest
from sparsescope.dictionaries.snmf import SNMF, SNMFDictionary
from sparsescope.dictionaries.snmf.file import DESCRIPTION, TENSORS
from sparsescope.dictionaries.topk import TopKSAE

if TYPE_CHECKING:
    import torch

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.models.structure.sites import Site

    Arrays = dict[str, np.ndarray]

_FILES = (TENSORS, DESCRIPTION)


def small_snmf(
    context: Context,
    rows: torch.Tensor,
    site: Site,
    components: int,
    neuron_share: float,
    iterations: int,
    seed: int,
) -> Arrays:
    """Factorize rows; ``snmf_of`` makes a dictionary of what comes back.

    Args:
        context: Told what is done.
        rows: float32 [row, d].
        site: Where they are.
        components: Features; at most half of the rows, of which each is a mean, and half of the neurons.
        neuron_share: Share of the neurons that each keeps.
        iterations: Most iterations.
        seed: Of the start.
    """
    begun = time.perf_counter()
    components = max(1, min(components, len(rows) // 2, site.width // 2))
    context.progress("factorize", 0, 1, "factorizations")
    found = SNMF(components, sparsity=neuron_share, max_iter=iterations, random_state=seed)
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
    return files | {"converged": np.array([found.converged_])} | said({"facts": facts}, begun)


def snmf_of(arrays: Arrays, site: Site) -> SNMFDictionary:
    """The dictionary from what ``small_snmf`` gave."""
    with tempfile.TemporaryDirectory() as folder:
        for name in _FILES:
            (Path(folder) / name).write_bytes(arrays[name].tobytes())
        return SNMFDictionary(SNMF.load(folder), site.name)


def said(training: dict[str, Any], begun: float) -> Arrays:
    """What a training says of itself, and its seconds, as arrays."""
    text = json.dumps(training, allow_nan=False, sort_keys=True)
    return {
        "said": np.frombuffer(text.encode(), np.uint8).copy(),
        "seconds": np.array([time.perf_counter() - begun]),
    }


def training_said(arrays: Arrays, corpus: TokenizedCorpus, site: Site) -> dict[str, Any]:
    """What it said, with the text that it read."""
    found: dict[str, Any] = json.loads(arrays["said"].tobytes())
    return found | {
        "site": site.name,
        "corpus": {"name": corpus.name, "digest": corpus.digest, "tokens": corpus.n_tokens},
        "context": corpus.context,
        "documents": {
            "train": [document_digest(document.ids) for document in corpus.documents],
            "thresholds": [],
        },
    }


def keep_here(
    context: Context, dictionary: Dictionary, label: str, training: dict[str, Any], seed: int
) -> None:
    """Keep a dictionary that the run made, for other runs and for SAELens."""

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
