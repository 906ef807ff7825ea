"""Train a pruned model on with its mask fixed: zeros stay exactly zero.

AdamW without weight decay, in float32, without dropout; after every update the weights that went are set to
zero again. Batches are windows of the text in an order drawn from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from sparsescope.activations.capture import padding_for
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.structure.passes import evaluating
from sparsescope.models.structure.visits import alone

if TYPE_CHECKING:
    from sparsescope.activations.text.tokenized import TokenizedCorpus
    from sparsescope.models.subject import Subject
    from sparsescope.pruning.masks import MaskSet

BATCH_TOKENS = 1024


def finetune(
    subject: Subject,
    masks: MaskSet | None,
    text: TokenizedCorpus,
    *,
    steps: int,
    rate: float = 3e-4,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Make updates of the model of a subject, which is changed: give a copy.

    Args:
        subject: A causal language model in float32.
        masks: The weights that stay zero; None for a dense model.
        text: What it is trained on.
        steps: Number of updates, one batch each.
        rate: Learning rate, constant after a tenth of the steps of warm-up.
        seed: Draws the order of the batches.
        batch_tokens: Most positions in a batch.
        progress: Told ``(done, steps)``.

    Returns:
        Mean loss of the last tenth of the batches, nats a token.

    Raises:
        SpecError: The weights are not float32: AdamW would lose its small updates.
        SubjectError: The loss is not finite.
    """
    if subject.torch_dtype is not torch.float32:
        raise SpecError(
            "fine-tuning needs weights in float32",
            where=subject.id,
            got=subject.dtype,
            next_step="load it with dtype='float32' (--dtype float32)",
        )
    model = subject.model
    fixed = [] if masks is None else _fixed(subject, masks)
    side = padding_for(subject, text, batch_tokens)
    batches = [batch for batch in text.batches(batch_tokens, side) if batch.text_mask[:, 1:].any()]
    generator = np.random.default_rng(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    order: list[int] = []
    losses: list[float] = []
    try:
        with alone(model), evaluating(model):
            for step in range(steps):
                if progress is not None:
                    progress(step, steps)
                if not order:
                    order = generator.permutation(len(batches)).tolist()
                batch = batches[order.pop()]
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (step + 1) / max(1, steps // 10))
                ids = torch.from_numpy(batch.input_ids).to(subject.device)
                mask = None if batch.attention_mask.all() else batch.attention_mask
                logits = model(input_ids=ids, **subject.mask_arguments(model, ids, mask)).logits
                wanted = torch.from_numpy(batch.text_mask[:, 1:]).to(subject.device)
                loss = cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted])
                losses.append(float(loss.detach()))
                if not np.isfinite(losses[-1]):
                    raise SubjectError(
                        "the loss is not finite: fine-tuning has diverged",
                        where=f"{subject.id}, step {step}",
                        next_step="lower the learning rate",
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for view, gone in fixed:
                        view.masked_fill_(gone, 0)
    finally:
        optimizer.zero_grad()
        for parameter in frozen:
            parameter.requires_grad_(False)
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _fixed(subject: Subject, masks: MaskSet) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The view of each matrix, and where it stays zero."""
    from sparsescope.models.structure.applied import check_view

    found = []
    for name, mask in masks.masks.items():
        (site,) = subject.parameter_sites(name)
        view = check_view(subject.model, site)
        found.append((view, ~mask.tensor().to(view.device)))
    return found
