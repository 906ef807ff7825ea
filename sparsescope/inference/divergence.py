"""Greedy divergence: for how many tokens a sparse model writes what its dense model writes.

Both continue the same prompts with the most probable token, through a cache, and token ids are compared. A
text that is the same to its end has not diverged within what was written: its length is a lower bound
(censored). Loss and KL divergence score every token after the true text; here an early difference changes all
that follows, as it does for a user.

The sparse model's own prefix policy says what of the prompt is sparse. Under ``decode_only`` the prompt is
dense in both, so that the first new token is always the same.
Shapes: P prompts of T tokens, N new tokens after each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import tokenized
from sparsescope.activations.continuations import continuations, takes_cache
from sparsescope.errors import SpecError, SubjectError
from sparsescope.inference.install import reading_of
from sparsescope.models.structure.token_ids import table_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sparsescope.activations.corpus import Corpus
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject

PROMPTS, PROMPT, NEW = 16, 32, 64
NOTHING = -1


@dataclass(frozen=True, slots=True, eq=False)
class DenseTexts:
    """Prompts and what the dense model writes after them; made once, compared with many sparse models.

    Attributes:
        subject: Id of the dense model.
        vocabulary: Rows of its embedding table; None where it does not say.
        prefix: Special tokens before every prompt.
        prompts: int32 [P, T].
        document: int32 [P], number of the document that each prompt is of.
        written: int32 [P, N], ``NOTHING`` after the end of a text.
    """

    subject: str
    vocabulary: int | None
    prefix: tuple[int, ...]
    prompts: NDArray[np.int32]
    document: NDArray[np.int32]
    written: NDArray[np.int32]

    @property
    def new(self) -> int:
        """Most tokens that are written after a prompt."""
        return int(self.written.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """How a sparse model's texts differ from those of its dense model.

    Attributes:
        length: int64 [P], tokens of the common beginning, 0 to N.
        never: bool [P], whether both texts are the same to their end: ``length`` is censored.
        agree: int64 [P], positions at which both have the same token.
        positions: int64 [P], tokens of the longer text; where only one has a token they do not agree.
        document: int32 [P], number of the document of each prompt, for a bootstrap over documents.
        dense: int32 [P, N], ids that the dense model wrote, ``NOTHING`` after the end of a text.
        sparse: int32 [P, N], of the sparse model.
    """

    length: NDArray[np.int64]
    never: NDArray[np.bool_]
    agree: NDArray[np.int64]
    positions: NDArray[np.int64]
    document: NDArray[np.int32]
    dense: NDArray[np.int32]
    sparse: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.length)

    @property
    def new(self) -> int:
        """Most tokens that were written after a prompt."""
        return int(self.dense.shape[1])

    @property
    def mean_length(self) -> float:
        """Mean of the common beginnings, in tokens; a lower bound where some never diverge."""
        return float(self.length.mean())

    @property
    def share(self) -> float:
        """Share of all positions at which both have the same token."""
        return float(self.agree.sum() / self.positions.sum())

    @property
    def censored(self) -> int:
        """Prompts after which both write the same to the end."""
        return int(self.never.sum())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As a step of a run keeps it."""
        names = ("length", "never", "agree", "positions", "document", "dense", "sparse")
        return {name: getattr(self, name) for name in names}


def dense_texts(
    subject: Subject,
    corpus: Corpus | TokenizedCorpus,
    *,
    prompts: int = PROMPTS,
    prompt: int = PROMPT,
    new: int = NEW,
) -> DenseTexts:
    """Let the dense model write on after beginnings of documents.

    Args:
        subject: The dense model.
        corpus: Text that prompts are taken from: the beginning of every document, then what comes after it.
        prompts: Most prompts; fewer where the text does not have so many.
        prompt: Tokens of a prompt, special ones not counted.
        new: Most tokens that are written after each.

    Raises:
        SpecError: A number is less than 1.
        SubjectError: The model writes no text, prompt and new tokens are more than it was made for, or no
            document is as long as a prompt.
    """
    for name, value in (("prompts", prompts), ("prompt", prompt), ("new", new)):
        if value < 1:
            raise SpecError(
                f"{name} must be at least 1", where=f"dense_texts({name})", allowed="1 or more", got=value
            )
    text = tokenized(corpus, subject)
    limit, special = subject.max_positions, len(text.prefix)
    if limit is not None and special + prompt + new > limit:
        raise SubjectError(
            "prompt and new tokens are more than the model was made for",
            where=f"{text.name}, read by {subject.id}",
            allowed=f"prompt + new of at most {limit - special}",
            got=f"{prompt} + {new}",
            next_step="ask for fewer: dense_texts(subject, corpus, prompt=32, new=32)",
        )
    document, ids = _prompts(text, prompts, prompt)
    written = continuations(subject, list(ids), text.prefix, new)
    return DenseTexts(
        subject.id, table_rows(subject.model), tuple(text.prefix), ids, document, _padded(written, new)
    )


def greedy_divergence(dense: DenseTexts, sparse: Subject) -> Divergence:
    """Compare what a sparse model writes with what its dense model wrote.

    Args:
        dense: The prompts and the texts of the dense model.
        sparse: Made of the dense model; its prefix policy says what is sparse.

    Raises:
        SpecError: The prefix policy leaves every position dense.
        SubjectError: The sparse model has another vocabulary, writes no text, or its logits are not finite.
    """
    if table_rows(sparse.model) != dense.vocabulary:
        raise SubjectError(
            "the two models do not have the same token ids",
            where=f"greedy_divergence({sparse.id})",
            allowed=f"{dense.vocabulary} rows in the embedding table, as {dense.subject} has",
            got=table_rows(sparse.model),
            next_step="compare a sparse model with the dense one that it was made of",
        )
    tokens = len(dense.prefix) + dense.prompts.shape[1]
    reading = reading_of(sparse)
    if reading is not None:
        reading.policy.check(tokens + dense.new, f"greedy_divergence({sparse.id})")
    with decoding_after(sparse, tokens):
        written = continuations(sparse, list(dense.prompts), dense.prefix, dense.new)
    return compare(dense, _padded(written, dense.new))


def compare(dense: DenseTexts, sparse: NDArray[np.int32]) -> Divergence:
    """Compare texts that were written after the same prompts.

    Args:
        dense: The texts of the dense model.
        sparse: int32 [P, N], ``NOTHING`` after the end of a text.
    """
    theirs = dense.written
    same = (theirs == sparse) & (theirs != NOTHING)
    positions = ((theirs != NOTHING) | (sparse != NOTHING)).sum(1)
    length = np.cumprod(same, axis=1).sum(1)
    return Divergence(
        length.astype(np.int64),
        length == positions,
        same.sum(1).astype(np.int64),
        positions.astype(np.int64),
        dense.document,
        theirs,
        sparse,
    )


@contextmanager
def decoding_after(subject: Subject, tokens: int) -> Iterator[None]:
    """Have a sparse model without a cache keep to its policy while it writes after prompts of some tokens.

    Such a model reads the whole text again for every token. A policy that goes by the prompt would take the
    text so far for a window that is scored. With a cache the passes themselves say what is prompt.

    Args:
        subject: The model; one with a cache is left alone.
        tokens: Tokens of each prompt, special ones included.
    """
    with prompted_by(subject, None if takes_cache(subject.model) else [tokens]):
        yield


@contextmanager
def prompted_by(subject: Subject, tokens: Sequence[int] | None) -> Iterator[None]:
    """Have a policy that goes by the prompt take sequences to begin with prompts of some tokens.

    Args:
        subject: The model; a dense one is left alone, and so is one whose policy does not go by the prompt.
        tokens: Tokens of each prompt of a batch, or one number for all; None leaves it as it is.
    """
    reading = reading_of(subject)
    if reading is None or tokens is None or reading.policy.kind in ("all_sparse", "dense_first_n"):
        yield
        return
    lengths = torch.tensor(tokens)
    reading.starts = lengths if reading.policy.kind == "decode_only" else reading.policy.first_sparse(lengths)
    try:
        yield
    finally:
        reading.starts = None


def _prompts(text: TokenizedCorpus, most: int, size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Numbers of documents, int32 [P], and prompts of them, int32 [P, size]: beginnings first, so that as
    many documents as there are have one.
    """
    # A document that is read after another one is no beginning.
    fit = [one for one in text.documents if len(one) >= size and not len(one.before)]
    rounds = max((len(one) // size for one in fit), default=0)
    taken = [
        (one.index, one.ids[part * size : (part + 1) * size])
        for part in range(rounds)
        for one in fit
        if len(one) >= (part + 1) * size
    ][:most]
    if not taken:
        raise SubjectError(
            "no document is as long as a prompt",
            where=text.name,
            allowed=f"documents of at least {size} tokens",
            got=f"the longest has {max((len(one) for one in text.documents), default=0)}",
            next_step="ask for shorter prompts: dense_texts(subject, corpus, prompt=8), or give longer texts",
        )
    return np.array([index for index, _ in taken], np.int32), np.stack([ids for _, ids in taken])


def _padded(written: Sequence[NDArray[np.int32]], new: int) -> NDArray[np.int32]:
    found = np.full((len(written), new), NOTHING, np.int32)
    for row, ids in zip(found, written, strict=True):
        row[: len(ids)] = ids
    return found
