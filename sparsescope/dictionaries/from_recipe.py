"""Training of what a recipe names: activations are stored once, dictionaries trained on one stream of them.

The store lies in ``<folder of runs>/activations/`` under the digest of model, text and site, so that
another recipe reads it again; it may be deleted at any time. Documents are split once, by the seed: those
that are trained on, those that thresholds are set on, and those that errors are computed on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import capture, tokenized
from sparsescope.activations.corpus import corpus
from sparsescope.activations.shuffled import ShuffledRows
from sparsescope.activations.store import ActivationStore, write_store
from sparsescope.core.spec import canonical_json
from sparsescope.dictionaries.architectures import make
from sparsescope.dictionaries.artifact import keep_dictionary
from sparsescope.dictionaries.base import fvu_and_l0
from sparsescope.dictionaries.documents import document_digest
from sparsescope.dictionaries.recipe import SNMF, DictionariesParams, DictionaryRecipe
from sparsescope.dictionaries.rows import LEAST_DOCUMENTS, facts_of, kept_rows, sample_of
from sparsescope.dictionaries.train import THRESHOLD_ROWS, Settings, Trained
from sparsescope.dictionaries.train import train as train_autoencoders
from sparsescope.errors import SpecError
from sparsescope.models.sources import load

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.core.artifacts import Artifact
    from sparsescope.dictionaries.autoencoder import SparseAutoencoder
    from sparsescope.models.subject import Subject

Tell = Callable[[str, int, int, str], None]
HELD_OUT_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Split:
    """Numbers of documents."""

    train: list[int]
    thresholds: list[int]
    held_out: list[int]


def train(params: DictionariesParams, keep: Any, progress: Tell, work: Path) -> list[Artifact]:
    """Train the dictionaries of a recipe.

    Args:
        params: The recipe.
        keep: ``ArtifactStore.keep``.
        progress: Told what is done.
        work: Folder for what is not finished; the folder of runs is two above it.

    Returns:
        One artifact for each dictionary, in the order of the recipe.

    Raises:
        SubjectError: The site does not exist.
        SpecError: A setting is not possible, or there are too few documents.
    """
    subject = load(params.subject, dtype=params.dtype)
    sites = subject.sites([params.site, *([params.site_out] if params.site_out else [])])
    if len(sites) != 1 + bool(params.site_out):
        raise SpecError(
            "a recipe of dictionaries is of one site",
            where="site",
            allowed="a name that matches one site",
            got=f"{params.site}: {len(sites)} sites",
            next_step="one recipe for each site",
        )
    width = {site.name: site.width for site in sites}
    named = [site.name for site in sites]
    # Everything that could be refused is refused before the model reads a token
    untrained = {
        entry.label: _made(entry, params, width)
        for entry in params.dictionaries
        if entry.architecture != SNMF
    }
    sinks = _sinks(params.log)
    text = corpus(params.corpus, tokens=params.tokens, seed=params.seed, context=params.context)
    tokens = tokenized(text, subject)
    split = split_documents(tokens, params.held_out, params.seed)
    store = stored(subject, tokens, named, params.stored, work.parent.parent / "activations", progress)

    def stream(documents: list[int], buffer_rows: int, epochs: int = 1) -> ShuffledRows:
        return ShuffledRows(
            store, named, batch_rows=params.batch_rows, buffer_rows=buffer_rows, epochs=epochs,
            seed=params.seed, shuffle="batches", documents=documents,
        )  # fmt: skip

    trained_on = mixed(
        lambda rows: stream(split.train, rows, params.epochs), params.buffer_rows, len(split.train)
    )
    rows = {
        "thresholds": _rows(stream(split.thresholds, THRESHOLD_ROWS), THRESHOLD_ROWS),
        "held out": _rows(stream(split.held_out, HELD_OUT_ROWS), HELD_OUT_ROWS),
    }
    outcome = Trained({})
    if untrained:
        held = rows["held out"]
        outcome = train_autoencoders(
            untrained,
            trained_on,
            settings=Settings(
                params.learning_rate,
                params.warmup,
                params.decay,
                params.dead_window,
                params.centred,
                params.scores,
            ),
            threshold_rows=rows["thresholds"][params.site],
            held_out=(held[params.site], held[params.site_out]) if params.site_out else held[params.site],
            folder=work / "training",
            name=f"{params.subject} {params.site}",
            sinks=sinks,
            progress=lambda phase, done, total, unit: (
                progress(phase, done, total, unit) if phase != "train" else None
            ),
        )
    documents = {
        name: [document_digest(tokens.documents[number].ids) for number in chosen]
        for name, chosen in (
            ("train", split.train),
            ("thresholds", split.thresholds),
            ("held_out", split.held_out),
        )
    }
    provenance = {
        "subject": subject.identity.as_dict(),
        "site": params.site,
        "corpus": {"name": tokens.name, "digest": tokens.digest, "tokens": tokens.n_tokens},
        "context": tokens.context,
        "documents": documents,
    }
    kept = []
    for number, entry in enumerate(params.dictionaries):
        if entry.architecture == SNMF:
            dictionary, training = _factorized(
                entry, params, trained_on, rows["held out"][params.site], progress
            )
        else:
            dictionary, training = outcome.dictionaries[entry.label], _training_of(outcome, entry.label)
            dictionary.metadata = _metadata(dictionary, subject, tokens, params)
        kept.append(
            keep_dictionary(
                dictionary,
                keep,
                training={**provenance, **training},
                meta={
                    "name": entry.label,
                    "subject": params.subject,
                    "seed": entry.seed,
                    "part": [number, len(params.dictionaries)],
                },
            )
        )
    return kept


def mixed(make_stream: Callable[[int], ShuffledRows], buffer_rows: int, documents: int) -> ShuffledRows:
    """A stream whose first batch mixes rows of 64 documents, or of all there are.

    Args:
        make_stream: Makes it with a buffer of so many rows.
        buffer_rows: Rows of the buffer to begin with; doubled until it is enough.
        documents: How many documents there are.
    """
    stream = make_stream(buffer_rows)
    while buffer_rows < stream.n_rows:
        first = next(stream.batches())
        if len(np.unique(first.documents)) >= min(LEAST_DOCUMENTS, documents, len(first.documents)):
            break
        buffer_rows *= 2
        stream = make_stream(buffer_rows)
    return stream


def split_documents(tokens: TokenizedCorpus, share: float, seed: int) -> Split:
    """Draw the documents that are held out, until they have their share of the tokens.

    Raises:
        SpecError: There are fewer than eight documents.
    """
    numbers = [document.index for document in tokens.documents]
    if len(numbers) < 8:
        raise SpecError(
            "there are too few documents to hold some out",
            where="corpus, tokens",
            allowed="8 documents or more",
            got=f"{len(numbers)}",
            next_step="take more tokens, or a text of more documents",
        )
    order = np.random.default_rng([seed, 7]).permutation(len(numbers))
    lengths = np.array([len(document) for document in tokens.documents])[order]
    out = int(np.searchsorted(np.cumsum(lengths), share * lengths.sum())) + 1
    out = min(max(out, 4), len(numbers) - 4)
    chosen = [numbers[place] for place in order]
    return Split(sorted(chosen[out:]), sorted(chosen[: out // 2]), sorted(chosen[out // 2 : out]))


def stored(
    subject: Subject, tokens: TokenizedCorpus, sites: list[str], dtype: str, folder: Path, progress: Tell
) -> ActivationStore:
    """Return the store of these activations: the one that is there, or a new one."""
    named = [subject.identity.as_dict(), tokens.digest, sites, dtype]
    digest = hashlib.sha256(canonical_json(named).encode()).hexdigest()[:12]
    with capture(subject, tokens, sites, dtype=dtype) as source:
        total = source.n_tokens
        return write_store(
            source, folder / digest, progress=lambda done: progress("store", done, total, "tokens")
        )


def _made(entry: DictionaryRecipe, params: DictionariesParams, width: dict[str, int]) -> SparseAutoencoder:
    settings = dict(entry.settings)
    if params.site_out:
        settings |= {"site_out": params.site_out, "d_out": width[params.site_out]}
    return make(
        entry.architecture, width[params.site], entry.width, site=params.site, seed=entry.seed, **settings
    )


def _rows(stream: ShuffledRows, count: int) -> dict[str, torch.Tensor]:
    """Rows of a stream without outliers, by site."""
    sample = sample_of(stream, count)
    facts = {name: facts_of(values, sample.positions) for name, values in sample.values.items()}
    return kept_rows(sample, facts)[0]


def _factorized(
    entry: DictionaryRecipe,
    params: DictionariesParams,
    stream: ShuffledRows,
    held_out: torch.Tensor,
    progress: Tell,
) -> tuple[Any, dict[str, Any]]:
    """An SNMF, fitted to the first rows of the stream."""
    from sparsescope.dictionaries.snmf import SNMF as Estimator
    from sparsescope.dictionaries.snmf import SNMFDictionary

    begun = time.process_time()
    progress("factorize", 0, 1, "factorizations")
    sample = sample_of(stream, params.snmf_rows)
    facts = {params.site: facts_of(sample.values[params.site], sample.positions)}
    rows = kept_rows(sample, facts)[0][params.site][: params.snmf_rows]
    try:
        estimator = Estimator(entry.width, random_state=entry.seed, **entry.settings)
    except TypeError as error:
        raise SpecError(
            "a setting of the factorization is unknown", where=f"dictionary {entry.label}", got=str(error)
        ) from None
    estimator.fit(rows.numpy())
    dictionary = SNMFDictionary(estimator, params.site)
    found: dict[str, float] = {}
    found["train_fvu"], found["train_l0"], codes = fvu_and_l0(dictionary, rows)
    found["held_out_fvu"], found["held_out_l0"], _ = fvu_and_l0(dictionary, held_out)
    active = codes.rows_per_feature.numpy()
    progress("factorize", 1, 1, "factorizations")
    facts_ = {
        "architecture": SNMF, "rows_read": len(rows), "gamma": facts[params.site].gamma,
        "variance": facts[params.site].variance, "dead_share": float((active == 0).mean()),
        "dead_counted_rows": len(rows), "cpu_seconds": round(time.process_time() - begun, 1), **found,
    }  # fmt: skip
    return dictionary, {"facts": facts_, "census": {"rows": len(rows), "rows_per_feature": active.tolist()}}


def _training_of(outcome: Trained, label: str) -> dict[str, Any]:
    counted = outcome.census[label]
    curves = outcome.curves[outcome.curves["dictionary"] == label].drop(columns="dictionary")
    return {
        "facts": outcome.facts[label],
        "census": {
            "rows": counted.rows,
            "rows_per_feature": counted.rows_per_feature.tolist(),
            "first_row": counted.first_row.tolist(),
        },
        "curves": curves.to_dict("list"),
    }


def _metadata(
    dictionary: SparseAutoencoder, subject: Subject, tokens: TokenizedCorpus, params: DictionariesParams
) -> dict[str, Any]:
    """What SAELens keeps beside the weights."""
    found = {
        **dictionary.metadata,
        "model_name": subject.identity.id,
        "hook_name": params.site,
        "context_size": tokens.context,
        "prepend_bos": bool(tokens.prefix),
        "dataset_path": tokens.name,
    }
    return found | ({"hook_name_out": params.site_out} if params.site_out else {})


def _sinks(log: Collection[str]) -> list[Any]:
    from sparsescope.training.sinks import open_sink

    return [open_sink(entry) for entry in log]
