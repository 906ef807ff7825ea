"""How well a causal model predicts a text, token by token, in bounded memory.

Every token of the text after the first of its window is a target; its context is what stands before it
in its window. Logits are made in chunks of positions, never for a whole batch: [chunk, vocabulary] is
the largest array.

Shapes: all arrays of ``TokenLosses`` are [target], in the order of the stream. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import padding_for
from sparsescope.errors import SubjectError
from sparsescope.models.formats.wrapping import check_step, float32_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

    #: Called as ``replace(site, tensor, rows, batch)``.
    Replace = Callable[[Site, torch.Tensor, torch.Tensor | None, TokenBatch], torch.Tensor]
    #: Called as ``forward(head, batch, ids, mask)``.
    Forward = Callable[["OutputHead", TokenBatch, NDArray[np.int64], NDArray[np.bool_] | None], torch.Tensor]

BATCH_TOKENS = 2048
CHUNK = 128
_PROBE = 8


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """What a model said about each target token.

    Attributes:
        document: int32, number of the document in the whole corpus.
        domain: int16, index of its domain.
        nll: float64, -log p(target | context).
        confidence: float32, the largest probability.
        correct: bool, whether the most probable token is the target.
        kl: float64, KL(reference || this model) of the next token in nats; None without a reference.
        agrees: bool, whether the most probable token is that of the reference; None without one.
    """

    document: NDArray[np.int32]
    domain: NDArray[np.int16]
    nll: NDArray[np.float64]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    kl: NDArray[np.float64] | None = None
    agrees: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def mean(self) -> float:
        """Mean loss in nats; exp of it is the perplexity."""
        return float(self.nll.mean())


@dataclass(slots=True)
class Reference:
    """What a dense model says about the targets of a text, kept as its last hidden states: 19 MB for 16,384
    tokens of a small model, whose logits would take 1.6 GB. Logits are made from them again, chunk by chunk.

    Attributes:
        head: Output head of the dense model.
        states: Hidden states of the targets of each batch, [target, d_model].
    """

    head: OutputHead | None = None
    states: list[torch.Tensor] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Size of the states."""
        return sum(tensor.nbytes for tensor in self.states)

    def batch(self, number: int, targets: int) -> torch.Tensor:
        """The states of one batch, [target, d_model].

        Raises:
            SubjectError: It was recorded on another text.
        """
        found = self.states[number] if number < len(self.states) else None
        if found is None or len(found) != targets:
            raise SubjectError(
                "the reference was recorded on another text",
                where=f"token_losses(reference), batch {number}",
                allowed="the same corpus and the same scored tokens",
                got=f"{targets} targets",
                next_step="record it again: token_losses(dense, corpus, scored=..., record=Reference())",
            )
        return found


def token_losses(
    subject: Subject,
    corpus: TokenizedCorpus,
    *,
    batch_tokens: int = BATCH_TOKENS,
    sites: Sequence[Site] = (),
    replace: Replace | None = None,
    replace_ids: Callable[[TokenBatch], NDArray[np.int64]] | None = None,
    scored: Callable[[TokenBatch], NDArray[np.bool_]] | None = None,
    record: Reference | None = None,
    reference: Reference | None = None,
    forward: Forward | None = None,
) -> TokenLosses:
    """Measure the loss of every target token of a corpus.

    Args:
        subject: A causal model with its output head.
        corpus: The text; its windows are the contexts.
        batch_tokens: Most positions in one forward pass.
        sites: Where activations are replaced; see ``models.structure.edits``.
        replace: Gets the site, its tensor [batch, pos, width], None and the batch; at an expert site the
            tensor [routed, width] and the rows int64 [routed], indices into batch * pos, instead of None.
            What it returns goes on.
        replace_ids: Gives the ids [batch, pos] that the model reads instead of
            ``batch.input_ids``; targets stay.
        scored: Says which tokens of a batch are targets, bool [batch, pos]; all of the text when None.
        record: Gets the hidden states of the targets, for ``reference`` of later passes.
        reference: What this model is compared with, recorded on the same text with the same ``scored``.
        forward: Runs the model in place of ``OutputHead.states``: called with head, batch, ids and mask, it
            gives [batch, pos, d_model] (positions that are not scored may hold anything).

    Raises:
        SubjectError: If the subject is not a causal language model, no token has a context, or a
            loss is not finite.
    """
    check_causal(subject)
    head: OutputHead | None = None
    parts: list[tuple[NDArray[Any], ...]] = []
    for batch in corpus.batches(batch_tokens, padding_for(subject, corpus, batch_tokens)):
        wanted = batch.text_mask[:, 1:]
        if scored is not None:
            wanted = wanted & scored(batch)[:, 1:]
        if not wanted.any():
            continue
        ids = batch.input_ids if replace_ids is None else replace_ids(batch)
        mask = None if batch.attention_mask.all() else batch.attention_mask
        if head is None:
            head = OutputHead(subject, ids, mask)
        with _edited(subject, sites, replace, batch):
            states = (head.states(ids, mask) if forward is None else forward(head, batch, ids, mask))[:, :-1]
        chosen = torch.from_numpy(wanted).to(states.device)
        targets = torch.from_numpy(batch.input_ids[:, 1:][wanted]).to(states.device)
        rows = np.nonzero(wanted)[0]
        own = states[chosen]
        if record is not None:
            record.head = head
            record.states.append(own.clone())
        parts.append(
            (batch.document[rows], batch.domain[rows], *head.score(own, targets, reference, len(parts)))
        )
    if not parts:
        raise SubjectError(
            "no token of the text has a context to be predicted from",
            where=f"corpus {corpus.name}",
            got=f"{corpus.n_tokens} tokens in {len(corpus.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    document, domain, nll, confidence, correct, *more = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    kl, agrees = more or (None, None)
    if not np.isfinite(nll).all():
        raise SubjectError(
            "a loss is not finite",
            where=f"{subject.id}, document {int(document[~np.isfinite(nll)][0])}",
            got=f"{int((~np.isfinite(nll)).sum())} of {len(nll)} targets",
            next_step=f"{float32_step(subject)}; check the weights with: {check_step(subject)}",
        )
    return TokenLosses(document, domain, nll, confidence, correct, kl, agrees)


def check_causal(subject: Subject) -> None:
    """Refuse a model that does not predict the next token.

    Raises:
        SubjectError: It is no causal language model with its output head.
    """
    if not {"causal", "logits"} <= subject.capabilities:
        raise SubjectError(
            "only a causal language model has a loss of the next token",
            where=subject.id,
            allowed="subjects with causal, logits",
            got=", ".join(sorted(subject.capabilities)),
            next_step=f"see: {check_step(subject)}",
        )


def _edited(
    subject: Subject,
    sites: Sequence[Site],
    replace: Replace | None,
    batch: TokenBatch,
) -> AbstractContextManager[None]:
    """The edits of one batch."""
    if replace is None:
        return nullcontext()
    return subject.edit(sites, lambda site, tensor, rows=None: replace(site, tensor, rows, batch))


class OutputHead:
    """The output head, applied to chunks of hidden states.

    Some models change the logits after the head (soft-capping, scales). Whether head(states) is what the
    model returns is tried on a few tokens; where it is not, the model makes the logits itself, for a
    whole batch at a time.
    """

    def __init__(self, subject: Subject, ids: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> None:
        self.subject = subject
        self.head = subject.model.get_output_embeddings()
        few, few_mask = ids[:1, :_PROBE], None if mask is None else mask[:1, :_PROBE]
        with torch.inference_mode():
            ours = self.head(subject.forward(few, few_mask)).float()
            theirs = subject.forward(few, few_mask, logits=True).float()
        scale = float(theirs.abs().max().clamp(min=1e-6))
        self.plain = ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-3 * scale)

    def states(self, ids: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> torch.Tensor:
        """Hidden states [batch, pos, d_model], or logits where the head alone does not make them."""
        return self.subject.forward(ids, mask, logits=not self.plain)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of some states, float32 [target, vocabulary]."""
        return (self.head(states) if self.plain else states).float()

    def score(
        self,
        states: torch.Tensor,
        targets: torch.Tensor,
        reference: Reference | None = None,
        number: int = 0,
    ) -> tuple[NDArray[Any], ...]:
        """Loss, confidence and correctness of each target; with a reference also the KL divergence from it in
        nats, and whether both name the same token.

        Args:
            states: [target, d].
            targets: int64 [target].
            reference: What this model is compared with.
            number: Which batch of the reference.

        Raises:
            SubjectError: The reference was recorded on another text.
        """
        dense = None if reference is None else reference.batch(number, len(states))
        columns: list[list[torch.Tensor]] = [[] for _ in range(3 if dense is None else 5)]
        with torch.inference_mode():
            for start in range(0, len(targets), CHUNK):
                rows, wanted = states[start : start + CHUNK], targets[start : start + CHUNK]
                logits = self.logits(rows)
                total = logits.logsumexp(-1)
                top, place = logits.max(-1)
                found = [
                    (total - logits.gather(-1, wanted[:, None])[:, 0]).double(),
                    (top - total).exp(),
                    place == wanted,
                ]
                if dense is not None and reference is not None and reference.head is not None:
                    theirs = reference.head.logits(dense[start : start + CHUNK])
                    best, named = theirs.max(-1)
                    share = (theirs - best[:, None]).exp_()
                    norm = share.sum(-1)
                    gap = torch.linalg.vecdot(share, theirs.sub_(logits)) / norm
                    # Rounding of float32 logits can leave a difference of nothing a hair below 0
                    kl = gap.double() - best.double() - norm.double().log() + total.double()
                    found += [kl.clamp(min=0), place == named]
                for column, values in zip(columns, found, strict=True):
                    column.append(values.cpu())
        return tuple(torch.cat(column).numpy() for column in columns)
