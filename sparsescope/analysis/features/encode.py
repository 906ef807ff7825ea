"""Features of a text that is not in the store: the model reads it, and the dictionary encodes it.

Shapes: F features.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.activations.capture import capture
from sparsescope.activations.corpus import corpus
from sparsescope.dictionaries.artifact import KIND
from sparsescope.dictionaries.given import GivenDictionary
from sparsescope.dictionaries.places import place_given
from sparsescope.errors import ArtifactError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.core.result import Result
    from sparsescope.models.subject import Subject

MOST_TOKENS = 4096


def dictionary_of(result: Result, label: str) -> GivenDictionary:
    """The dictionary of this label that a run of ``features`` read or made.

    Raises:
        SpecError: The label is that of a baseline, which is not kept.
        ArtifactError: The dictionary is not there any more.
    """
    kept = [GivenDictionary(artifact) for artifact in result.artifacts.values() if artifact.kind == KIND]
    for one in kept:
        if not one.artifact.present:
            raise ArtifactError(
                "the dictionary is not here", where=one.artifact.id, next_step="copy its folder here again"
            )
        if label in (one.label, f"{one.label} ({one.artifact.id})"):
            return one
    raise SpecError(
        "nothing was trained for these features, so no text can be encoded",
        where=label,
        allowed=", ".join(one.label for one in kept) or "a dictionary",
        next_step="search with a dictionary: --dictionary NAME",
    )


@torch.no_grad()
def text_activations(
    subject: Subject, given: GivenDictionary, text: str, site: str = "", norm_limit: float = math.inf
) -> NDArray[np.float64]:
    """The largest activation of each feature on the tokens of a text, float64 [F].

    As in the store, the first token of a window, where attention sinks sit, and tokens of larger norms do not
    count.

    Args:
        subject: The model.
        given: The dictionary.
        text: The text, of which the first ``MOST_TOKENS`` tokens are read.
        site: Where the dictionary is, where it does not say it.
        norm_limit: Norm beyond which tokens do not count.

    Raises:
        SpecError: The text has fewer than two tokens.
        SubjectError: The dictionary has no place in the model.
    """
    (placed,) = place_given([given], subject, site)
    tokens = corpus([text], tokens=MOST_TOKENS, context=min(256, subject.max_positions or 256)).tokenize(
        subject.tokenizer, subject.max_positions
    )
    out = np.zeros(placed.dictionary.width)
    read = 0
    with capture(subject, tokens, [placed.reads.name]) as source:
        for batch in source:
            rows = batch.values[placed.reads.name][torch.from_numpy(batch.positions > 0)].float().cpu()
            rows = rows[rows.norm(dim=1) <= norm_limit]
            read += len(rows)
            if len(rows):
                codes = placed.dictionary.encode(rows)
                np.maximum.at(out, codes.indices.numpy(), np.maximum(codes.values.numpy(), 0))
    if not read:
        raise SpecError(
            "this text is too short: its first token does not count",
            where="text",
            allowed="two tokens or more",
            got=repr(text)[:80],
        )
    return out
