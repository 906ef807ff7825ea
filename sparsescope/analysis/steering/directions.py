"""One direction for every concept and method, chosen on the training documents.

Shapes: D documents; means [D, d] of the activations of each document; codes [D, F].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import capture
from sparsescope.dictionaries.site_rows import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.context import Context
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.dictionaries.places import Placed
    from sparsescope.dictionaries.rows import RowFacts
    from sparsescope.models.structure.sites import Site

    Array = NDArray[np.float64]

MEANS, RANDOM = "difference in means", "random"


@dataclass(frozen=True, slots=True)
class DocumentMeans:
    """What documents are like at a site.

    Attributes:
        means: float64 [D, d], mean activation of the tokens of a document.
        codes: By dictionary, float64 [D, F], mean activation of each feature.
    """

    means: Array
    codes: dict[str, Array]


@dataclass(frozen=True, slots=True)
class Direction:
    """What is added.

    Attributes:
        method: Where it comes from.
        name: The feature, where it is one.
        vector: float64 [d], of norm 1.
        auroc: On the test documents.
        train_auroc: On those that it was chosen on.
    """

    method: str
    name: str
    vector: Array
    auroc: float
    train_auroc: float


@torch.no_grad()
def document_means(
    context: Context, corpus: TokenizedCorpus, site: Site, facts: dict[str, RowFacts], given: Sequence[Placed]
) -> DocumentMeans:
    """Read the documents once; position 0 of a window and tokens beyond ten median norms do not count."""
    place = {document.index: number for number, document in enumerate(corpus.documents)}
    means = np.zeros((len(place), site.width))
    counts = np.zeros(len(place))
    codes = {one.label: np.zeros((len(place), one.dictionary.width)) for one in given}
    done = 0
    with capture(context.subject, corpus, [site.name]) as source:
        for batch in source:
            kept = counted(batch, (site.name, site.name), facts)
            rows = batch.values[site.name][kept].float().cpu()
            number = place[batch.document]
            means[number] += rows.sum(0, dtype=torch.float64).numpy()
            counts[number] += len(rows)
            for one in given:
                if len(rows):
                    found = one.dictionary.encode(rows)
                    values = found.values.detach().double().numpy()
                    np.add.at(codes[one.label][number], found.indices.numpy(), np.maximum(values, 0))
            done += len(batch.positions)
            context.progress("read", done, source.n_tokens, "tokens")
    scale = np.maximum(counts, 1)[:, None]
    return DocumentMeans(means / scale, {label: values / scale for label, values in codes.items()})


def directions_of(
    concept: NDArray[np.bool_],
    train: NDArray[np.bool_],
    read: DocumentMeans,
    given: Sequence[Placed],
    random: np.random.Generator,
) -> list[Direction]:
    """The direction of each method for a concept.

    Args:
        concept: bool [D], documents of the concept.
        train: bool [D], documents that directions are chosen on.
        read: What the documents are like.
        given: Dictionaries; of each the feature that tells the concept best on the training documents.
        random: For the random direction.
    """
    own, rest = concept & train, ~concept & train
    gap = read.means[own].mean(0) - read.means[rest].mean(0)
    out = [_direction(MEANS, "", gap, read.means @ gap, concept, train)]
    for one in given:
        codes = read.codes[one.label]
        spread = codes[train].std(0)
        score = (codes[own].mean(0) - codes[rest].mean(0)) / np.where(spread > 0, spread, np.inf)
        feature = int(np.argmax(score))
        vector = np.asarray(one.dictionary.directions[feature].detach().double().cpu().numpy())
        out.append(_direction(one.label, f"{one.label}/{feature}", vector, codes[:, feature], concept, train))
    drawn = random.standard_normal((read.means.shape[1],))
    out.append(_direction(RANDOM, "", drawn, read.means @ drawn, concept, train))
    return out


def _direction(
    method: str,
    name: str,
    vector: Array,
    says: Array,
    concept: NDArray[np.bool_],
    train: NDArray[np.bool_],
) -> Direction:
    norm = float(np.linalg.norm(vector))
    unit = vector / norm if norm > 0 else vector
    return Direction(method, name, unit, _auroc(says, concept, ~train), _auroc(says, concept, train))


def _auroc(says: Array, concept: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    labels = concept[among]
    if labels.all() or not labels.any():
        return float("nan")
    return float(roc_auc_score(labels, says[among]))
