"""Which way the loss pushes hidden units: its gradient with respect to their activations, in bounded memory.

For a unit that is on, gradient descent on the loss changes |a| by -sign(a) dL/da. Where the mean of
sign(a) dL/da over the nonzero units of a layer is positive, the step makes active units smaller; Li et
al. 2023 (arXiv:2210.06313, section 4) show this for a ReLU network at initialization and take it for a
cause of sparsity.

L is the sum of the losses of all next tokens of a window, so a value says by how many nats the window's loss
rises for one more unit of |a|. The first position of a window is left out, as in all statistics, and so is
the last one, which predicts nothing.
Shapes: D documents, L sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from sparsescope.activations.capture import padding_for
from sparsescope.activations.losses import check_causal
from sparsescope.models.structure.token_ids import within_table
from sparsescope.models.subject import evaluating

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.activations.text.tokenized import TokenBatch, TokenizedCorpus
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

BATCH_TOKENS = 2048
# Most logits in one pass: their gradient needs several arrays of this size at once.
MOST_LOGITS = 2**25


@dataclass(frozen=True, slots=True)
class ShrinkSums:
    """Sums over tokens and nonzero units, by document.

    Attributes:
        documents: int32 [D], numbers of the documents.
        push: float64 [D, L], sum of sign(a) dL/da, nats for one unit of activation.
        square: float64 [D, L], sum of (dL/da)^2.
        count: int64 [D, L], nonzero activations.
    """

    documents: NDArray[np.int32]
    push: NDArray[np.float64]
    square: NDArray[np.float64]
    count: NDArray[np.int64]


def shrink_sums(subject: Subject, corpus: TokenizedCorpus, sites: Sequence[Site]) -> ShrinkSums:
    """Sum sign(a) dL/da over the nonzero activations of each site.

    Weights need no gradient and get none; the model is left as it was.

    Args:
        subject: A causal model with its output head.
        corpus: The text.
        sites: Sites that are the whole input of a module (``blocks.*.mlp.hook_post``).

    Raises:
        SubjectError: The subject has no loss of the next token, or a site cannot be replaced (experts).
    """
    check_causal(subject)
    place = {document.index: row for row, document in enumerate(corpus.documents)}
    shape = (len(place), len(sites))
    push, square, count = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    vocabulary = int(subject.model.get_output_embeddings().weight.shape[0])
    batch_tokens = max(1, min(BATCH_TOKENS, MOST_LOGITS // vocabulary))
    for batch in corpus.batches(batch_tokens, padding_for(subject, corpus, batch_tokens)):
        if not batch.text_mask[:, 1:].any():
            continue
        values, gradients = _pass(subject, sites, batch)
        kept = torch.from_numpy(_positions(batch)).to(subject.device)
        row = place[int(batch.document[0])]
        for column, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            signs = value[kept].sign().float()
            slope = signs * gradient[kept].float()  # zero where a unit is off
            push[row, column] += float(slope.sum(dtype=torch.float64))
            square[row, column] += float(slope.square().sum(dtype=torch.float64))
            count[row, column] += int(torch.count_nonzero(signs))
    return ShrinkSums(np.array(list(place), np.int32), push, square, count)


def _positions(batch: TokenBatch) -> NDArray[np.bool_]:
    """Positions that count, bool [batch, pos]: of the text, not the first of the window, and
    with a next token.
    """
    kept = batch.text_mask & (batch.position > 0)
    kept[:, :-1] &= batch.text_mask[:, 1:]
    kept[:, -1] = False
    return kept


def _pass(
    subject: Subject, sites: Sequence[Site], batch: TokenBatch
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Activations of each site, and the gradient of the summed loss with respect to them,
    [batch, pos, width].
    """
    ids = torch.from_numpy(batch.input_ids).to(subject.device)
    mask = None if batch.attention_mask.all() else torch.from_numpy(batch.attention_mask).to(subject.device)
    ids = within_table(subject, ids, mask)
    wanted = torch.from_numpy(batch.text_mask[:, 1:]).to(subject.device)
    values: dict[str, torch.Tensor] = {}
    levers: dict[str, torch.Tensor] = {}

    def add_lever(site: Site, tensor: torch.Tensor) -> torch.Tensor:
        # A zero that is added here has the gradient of the activation, in every layer at once.
        values[site.name] = tensor.detach()
        levers[site.name] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + levers[site.name]

    with torch.enable_grad(), evaluating(subject.model), subject.edit(sites, add_lever):
        logits = subject.model(input_ids=ids, **subject.mask_arguments(subject.model, ids, mask)).logits
        loss = functional.cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted], reduction="sum")
        gradients = torch.autograd.grad(loss, [levers[site.name] for site in sites])
    return [values[site.name] for site in sites], list(gradients)
