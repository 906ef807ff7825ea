"""How well a causal model predicts a text, token by token, in bounded memory.

Every token of the text after the first of its window is a target; its context is what stands before it
in its window. Logits are made in chunks of positions, never for a whole batch: [chunk, vocabulary] is
the largest array.

Shapes: all arrays of ``TokenLosses`` are [target], in the order of the stream. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sparsescope.activations.capture import padding_for
from sparsescope.errors import SubjectError
from sparsescope.models.wrapping import check_step, float32_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

    #: Called as ``replace(site, tensor, rows, batch)``.
    Replace = Callable[[Site, torch.Tensor, torch.Tensor | None, TokenBatch], torch.Tensor]

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
    """

    document: NDArray[np.int32]
    domain: NDArray[np.int16]
    nll: NDArray[np.float64]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def mean(self) -> float:
        """Mean loss in nats; exp of it is the perplexity."""
        return float(self.nll.mean())


def token_losses(
    subject: Subject,
    corpus: TokenizedCorpus,
    *,
    batch_tokens: int = BATCH_TOKENS,
    sites: Sequence[Site] = (),
    replace: Replace | None = None,
    replace_ids: Callable[[TokenBatch], NDArray[np.int64]] | None = None,
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

    Raises:
        SubjectError: If the subject is not a causal language model, no token has a context, or a
            loss is not finite.
    """
    check_causal(subject)
    head: OutputHead | None = None
    parts: list[tuple[NDArray[Any], ...]] = []
    for batch in corpus.batches(batch_tokens, padding_for(subject, corpus, batch_tokens)):
        wanted = batch.text_mask[:, 1:]
        if not wanted.any():
            continue
        ids = batch.input_ids if replace_ids is None else replace_ids(batch)
        mask = None if batch.attention_mask.all() else batch.attention_mask
        if head is None:
            head = OutputHead(subject, ids, mask)
        with _edited(subject, sites, replace, batch):
            states = head.states(ids, mask)[:, :-1]
        chosen = torch.from_numpy(wanted).to(states.device)
        targets = torch.from_numpy(batch.input_ids[:, 1:][wanted]).to(states.device)
        rows = np.nonzero(wanted)[0]
        parts.append((batch.document[rows], batch.domain[rows], *head.score(states[chosen], targets)))
    if not parts:
        raise SubjectError(
            "no token of the text has a context to be predicted from",
            where=f"corpus {corpus.name}",
            got=f"{corpus.n_tokens} tokens in {len(corpus.documents)} documents",
            next_step="read more text: a larger token budget, or longer documents",
        )
    document, domain, nll, confidence, correct = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    if not np.isfinite(nll).all():
        raise SubjectError(
            "a loss is not finite",
            where=f"{subject.id}, document {int(document[~np.isfinite(nll)][0])}",
            got=f"{int((~np.isfinite(nll)).sum())} of {len(nll)} targets",
            next_step=f"{float32_step(subject)}; check the weights with: {check_step(subject)}",
        )
    return TokenLosses(document, domain, nll, confidence, correct)


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

    def score(self, states: torch.Tensor, targets: torch.Tensor) -> tuple[NDArray[Any], ...]:
        """Loss, confidence and correctness of each target; ``states`` [target, d], ``targets`` [target]."""
        nll, confidence, correct = [], [], []
        with torch.inference_mode():
            for start in range(0, len(targets), CHUNK):
                rows, wanted = states[start : start + CHUNK], targets[start : start + CHUNK]
                logits = self.logits(rows)
                total = logits.logsumexp(-1)
                top, place = logits.max(-1)
                nll.append((total - logits.gather(-1, wanted[:, None])[:, 0]).double().cpu())
                confidence.append((top - total).exp().cpu())
                correct.append((place == wanted).cpu())
        return torch.cat(nll).numpy(), torch.cat(confidence).numpy(), torch.cat(correct).numpy()
