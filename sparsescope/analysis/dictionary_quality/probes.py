"""What the features of a dictionary say about tokens: sparse probes, and the absorption of first letters.

Shapes: rows of the sample of one place; T tasks; codes CSR [row, feature].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.analysis.dictionary_quality.entries import BASELINE, DICTIONARY
from sparsescope.errors import SpecError
from sparsescope.metrics.absorption import CODE, PAPER, Absorption, absorption
from sparsescope.metrics.probing import (
    MEASURES,
    SparseProbes,
    linear_probes,
    sparse_probes,
    split_by_document,
)
from sparsescope.metrics.token_labels import LETTERS, binary_tasks, first_letters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.analysis.dictionary_quality import DictionaryQualityParams
    from sparsescope.analysis.dictionary_quality.measure import Place, Sample
    from sparsescope.models.subject import Subject

NEURONS = "Neurons"
LEAST_LETTERS = 200  # tokens


def token_texts(subject: Subject, ids: NDArray[np.int64]) -> list[str]:
    """Each token as the tokenizer decodes it alone."""
    assert subject.tokenizer is not None
    known = {int(number): str(subject.tokenizer.decode([int(number)])) for number in np.unique(ids)}
    return [known[int(number)] for number in ids]


def title(task: str) -> str:
    """A task in words."""
    return f"first letter {task[-1]}" if task.startswith("letter_") else task.replace("_", " ")


def probe_rows(place: Place, subject: Subject, params: DictionaryQualityParams) -> Iterator[dict[str, Any]]:
    """Rows of the table ``probing``: every dictionary of a place, and single neurons."""
    sample = place.sample
    if len(np.unique(sample.documents)) < 2:
        return
    names, labels = binary_tasks(token_texts(subject, sample.ids))
    halves = split_by_document(sample.documents, params.seed)
    told: list[tuple[str, str, Any]] = [
        (entry.label, DICTIONARY, sample.codes[entry.label])
        for entry in place.entries
        if entry.kind == DICTIONARY
    ]
    for label, kind, codes in (*told, (NEURONS, BASELINE, sample.values)):
        found = sparse_probes(
            codes,
            labels,
            sizes=params.probe_sizes,
            permutations=params.permutations,
            seed=params.seed,
            split=halves,
        )
        yield from _of_probes(label, kind, names, found)


def _of_probes(
    label: str, kind: str, names: tuple[str, ...], found: SparseProbes
) -> Iterator[dict[str, Any]]:
    for task, name in enumerate(names):
        for place, size in enumerate(found.sizes):
            scores = dict(zip(MEASURES, found.scores[task, place].tolist(), strict=True))
            if not np.isfinite(scores["auroc"]):
                continue  # too few tokens of one class
            null = float(found.null[task, place, MEASURES.index("balanced_accuracy")])
            yield {
                "dictionary": label,
                "kind": kind,
                "task": title(name),
                "features": size,
                **scores,
                "null": null,
                "majority": float(found.majority[task]),
                "positives": int(found.positives[task, 1]),
                "tokens": int(found.rows[1]),
            }


def absorption_rows(
    place: Place, subject: Subject, params: DictionaryQualityParams
) -> Iterator[dict[str, Any]]:
    """Rows of the table ``absorption``: every sparse autoencoder of a place."""
    entries = [entry for entry in place.entries if entry.kind == DICTIONARY and entry.sparse_autoencoder]
    if not entries:
        return
    sample: Sample = place.sample
    letters = first_letters(token_texts(subject, sample.ids)) if len(sample.ids) else np.zeros(0, np.int64)
    inside = np.flatnonzero(letters >= 0)
    if len(inside) < LEAST_LETTERS:
        return
    labels = letters[inside, None] == np.arange(len(LETTERS))
    values = sample.values[inside]
    # One token must not be in both halves, or the probe only has to remember it
    try:
        probes = linear_probes(values, labels, sample.ids[inside], seed=params.seed)
    except SpecError:  # all are one token
        return
    for entry in entries:
        codes, decoder = sample.codes[entry.label][inside], entry.dictionary.directions.float().numpy()
        bias = getattr(entry.dictionary, "decoder_bias", None)
        for parameters in (PAPER, CODE):
            found = absorption(
                values,
                codes,
                decoder,
                labels,
                probes,
                parameters=parameters,
                bias=None if bias is None else bias.detach().float().numpy(),
            )
            yield from _of_absorption(entry.label, found)


def _of_absorption(label: str, found: Absorption) -> Iterator[dict[str, Any]]:
    evaluated = np.flatnonzero(found.evaluated)
    common = {"dictionary": label, "parameters": found.parameters.name, "letters": len(evaluated)}
    for task in evaluated:
        yield {
            **common,
            "letter": LETTERS[task],
            "probe_f1": found.probe_f1[task],
            "main_features": len(found.main[task]),
            "main_f1": found.main_f1[task],
            "fired": int(found.fired[task]),
            "full": found.full[task],
            "fraction": found.fraction[task],
        }
    if len(evaluated):
        yield {
            **common,
            "letter": "mean",
            "probe_f1": float(found.probe_f1[evaluated].mean()),
            "main_features": round(float(np.mean([len(found.main[task]) for task in evaluated]))),
            "main_f1": float(found.main_f1[evaluated].mean()),
            "fired": int(found.fired[evaluated].sum()),
            "full": found.mean_full,
            "fraction": found.mean_fraction,
        }
