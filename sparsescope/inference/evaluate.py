"""A sparse model beside its dense one on held-out text: loss, KL divergence, agreement, and what was skipped.

Every pass scores the same targets under every prefix policy: those that the second half of a window
predicts. Under ``decode_only`` the first half is a dense, unscored prompt, under ``all_sparse`` it is sparse
as well, so that the two differ in the prompt alone. Bytes are counted at the sparse positions of the
held-out text after the first of a window, mask by mask.

A dense prompt is the same for all sparse models; its keys and values are computed once where the model has a
cache.
Shapes: D documents with targets, M masks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.losses import OutputHead, Reference, TokenLosses, token_losses
from sparsescope.inference.install import reading_of
from sparsescope.inference.masks import Mask
from sparsescope.inference.prefix import PrefixPolicy
from sparsescope.models.structure.passes import evaluating
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.subject import Subject

    Floats = NDArray[np.float64]

HALF = PrefixPolicy("decode_only")


@dataclass(frozen=True, slots=True)
class Scores:
    """What one pass found, summed by document.

    Attributes:
        nll: float64 [D], nats.
        kl: float64 [D], KL(dense || sparse), nats; zeros of the dense model itself.
        agree: float64 [D], targets for which both name the same token.
        correct: float64 [D], targets that are the most probable token.
        kept: int64 [D, M], inputs that each mask kept.
        there: int64 [D, M], inputs there.
    """

    nll: Floats
    kl: Floats
    agree: Floats
    correct: Floats
    kept: NDArray[np.int64]
    there: NDArray[np.int64]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As a step of a run keeps it."""
        return {name: getattr(self, name) for name in ("nll", "kl", "agree", "correct", "kept", "there")}


@dataclass(slots=True)
class HeldOut:
    """Held-out text and what the dense model says about it.

    Args:
        dense: The dense model.
        text: The held-out documents.

    Attributes:
        documents: int32 [D], numbers of the documents with targets.
        domains: int16 [D].
        targets: int64 [D].
        loss: float64 [D], of the dense model, summed.
    """

    dense: Subject
    text: TokenizedCorpus
    reference: Reference = field(default_factory=Reference)
    documents: NDArray[np.int32] = field(init=False)
    domains: NDArray[np.int16] = field(init=False)
    targets: NDArray[np.int64] = field(init=False)
    scores: Scores = field(init=False)
    _caches: dict[int, Any] = field(default_factory=dict)
    _cached: bool | None = None

    def __post_init__(self) -> None:
        losses = token_losses(self.dense, self.text, scored=second_half, record=self.reference)
        self.documents, first = np.unique(losses.document, return_index=True)
        self.domains = losses.domain[first]
        where = np.searchsorted(self.documents, losses.document)
        self.targets = np.bincount(where, minlength=len(self.documents))
        self.scores = self._sums(losses, {}, ())

    def score(self, sparse: Subject, masks: Sequence[Mask]) -> Scores:
        """Measure a sparse model.

        Args:
            sparse: Made of the dense one; its policy says what is sparse.
            masks: Its masks; they give the order of the counts.
        """
        reading = reading_of(sparse)
        assert reading is not None
        counts: dict[str, tuple[Floats, Floats]] = {}

        def forward(head: OutputHead, batch: TokenBatch, ids: Any, mask: Any) -> torch.Tensor:
            reading.counts = {}
            reading.counted = torch.from_numpy(batch.text_mask & (batch.position > 0))
            if reading.policy.kind == "decode_only" and mask is None and self._has_cache(batch.index, ids):
                states = self._decoded(sparse, head, batch, ids)
            else:
                states = head.states(ids, mask)
            rows = np.searchsorted(self.documents, batch.document)
            for name, sums in (reading.counts or {}).items():
                kept, there = counts.setdefault(
                    name, (np.zeros(len(self.documents)), np.zeros(len(self.documents)))
                )
                known = (rows < len(self.documents)) & (
                    self.documents[np.minimum(rows, len(self.documents) - 1)] == batch.document
                )
                np.add.at(kept, rows[known], sums[0].cpu().numpy()[known])
                np.add.at(there, rows[known], sums[1].cpu().numpy()[known])
            return states

        try:
            losses = token_losses(
                sparse, self.text, scored=second_half, reference=self.reference, forward=forward
            )
        finally:
            reading.counts = reading.counted = reading.starts = None
        return self._sums(losses, counts, masks)

    def dense_scores(self, other: Subject) -> Scores:
        """Measure another dense model, for example a pruned one, beside the dense one."""
        losses = token_losses(other, self.text, scored=second_half, reference=self.reference)
        return self._sums(losses, {}, ())

    def _sums(
        self, losses: TokenLosses, counts: dict[str, tuple[Floats, Floats]], masks: Sequence[Mask]
    ) -> Scores:
        size = len(self.documents)
        where = np.searchsorted(self.documents, losses.document)
        kl = np.zeros(len(losses)) if losses.kl is None else losses.kl
        agrees = np.ones(len(losses)) if losses.agrees is None else losses.agrees.astype(np.float64)
        none = (np.zeros(size), np.zeros(size))
        kept = [counts.get(mask.name, none) for mask in masks]
        columns = (losses.nll, kl, agrees, losses.correct)
        nll, gap, agree, correct = (
            np.bincount(where, values.astype(np.float64), size).astype(np.float64) for values in columns
        )
        return Scores(
            nll,
            gap,
            agree,
            correct,
            np.array([each[0] for each in kept], np.int64).reshape(-1, size).T,
            np.array([each[1] for each in kept], np.int64).reshape(-1, size).T,
        )

    def _has_cache(self, index: int, ids: NDArray[np.int64]) -> bool:
        """Run the dense prompt of a batch once; False where the model has no cache that can be gone on
        with.
        """
        if self._cached is False:
            return False
        if index not in self._caches:
            half = _half(ids.shape[1])
            cache = _prompt(self.dense, ids[:, :half])
            self._cached = cache is not None and int(cache.get_seq_length()) == half
            if not self._cached:
                return False
            self._caches[index] = cache
        return True

    def _decoded(
        self, sparse: Subject, head: OutputHead, batch: TokenBatch, ids: NDArray[np.int64]
    ) -> torch.Tensor:
        """States of the second half after the dense prompt, [batch, pos, d]; zeros in the first."""
        half = _half(ids.shape[1])
        reading = reading_of(sparse)
        assert reading is not None
        reading.starts = torch.full((len(ids),), half)
        counted = reading.counted
        reading.counted = None if counted is None else counted[:, half:]
        later = torch.from_numpy(ids[:, half:]).to(sparse.device)
        cache = copy.deepcopy(self._caches[batch.index])
        module = sparse.model if not head.plain else sparse.backbone
        with alone(sparse.model), torch.inference_mode(), evaluating(sparse.model):
            output = module(input_ids=later, past_key_values=cache, use_cache=True)
        reading.starts = None
        states = output.last_hidden_state if head.plain else output.logits
        whole = states.new_zeros(len(ids), ids.shape[1], states.shape[-1])
        whole[:, half:] = states
        return whole


def second_half(batch: TokenBatch) -> NDArray[np.bool_]:
    """The targets: tokens that a position of the second half of their window predicts, bool [batch, pos]."""
    lengths = torch.from_numpy(batch.attention_mask.sum(-1).astype(np.int64))
    first = HALF.first_sparse(lengths).numpy()
    place = batch.attention_mask.cumsum(-1) - 1
    return batch.attention_mask.astype(bool) & (place > first[:, None])


def _half(length: int) -> int:
    return int(HALF.first_sparse(torch.tensor([length]))[0])


def _prompt(subject: Subject, ids: NDArray[np.int64]) -> Any:
    """Keys and values of a dense prompt; None where the model gives none."""
    given = torch.from_numpy(ids).to(subject.device)
    with alone(subject.model), torch.inference_mode(), evaluating(subject.model):
        try:
            output = subject.backbone(input_ids=given, use_cache=True)
        except TypeError:
            return None
    return getattr(output, "past_key_values", None)
