"""Recorded inputs of the benchmark ``kernels``: what hidden activations of a real model look like.

Shapes: inputs float32 [groups, 8, K]: groups of eight consecutive tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsescope.errors import SpecError

if TYPE_CHECKING:
    from sparsescope.activations.context import Context

GROUPS, TOGETHER = 16, 8
SITES = "blocks.*.mlp.hook_post"


def recorded_inputs(context: Context, width: int) -> torch.Tensor:
    """Hidden activations of consecutive tokens, layers side by side until they are wide enough, each layer
    divided by its root mean square.

    Args:
        context: Subject and text.
        width: K.

    Returns:
        float32 [16, 8, K]; groups are spread over the text, no first token of a document among them.

    Raises:
        SpecError: The text is too short, or the model not wide enough.
    """
    from sparsescope.activations.capture import capture

    held: list[torch.Tensor] = []
    places: list[np.ndarray] = []
    with capture(context.subject, context.corpus, SITES, dtype="float32") as source:
        names = [site.name for site in source.sites]
        for batch in source:
            held.append(torch.stack([batch.values[name].cpu() for name in names], 1))  # [token, layer, unit]
            places.append(batch.positions)
    values, position = torch.cat(held), np.concatenate(places)
    # Eight tokens on end of one document, none of them its first
    steps = np.diff(position) == 1
    run = np.convolve(steps, np.ones(TOGETHER - 1), "valid") == TOGETHER - 1
    starts = [at for at in np.flatnonzero(run) if position[at] > 0][::TOGETHER]
    there = values.shape[1] * values.shape[2]
    if len(starts) < GROUPS or there < width:
        raise SpecError(
            "too few recorded inputs for these matrices",
            where="bench kernels",
            allowed=f"{GROUPS} groups of {TOGETHER} tokens on end, {width} hidden units in all layers",
            got=f"{len(starts)} groups, {there} units",
            next_step="give more tokens (--tokens 1024), another subject, or narrower shapes",
        )
    chosen = [starts[i] for i in np.linspace(0, len(starts) - 1, GROUPS).astype(int)]
    scale = values.double().square().mean((0, 2), keepdim=True).sqrt().float()
    flat = (values / scale).flatten(1)
    # From the middle layers outwards would be a choice too; layers are taken in order, evenly spread
    layers = values.shape[1]
    needed = -(-width // values.shape[2])
    order = np.linspace(0, layers - 1, needed).astype(int)
    columns = np.concatenate([np.arange(values.shape[2]) + layer * values.shape[2] for layer in order])
    return torch.stack([flat[at : at + TOGETHER][:, columns[:width]] for at in chosen]).contiguous()


def recorded_experts(name: str, experts: int) -> torch.Tensor:
    """Router weights of consecutive tokens of a model with a ReLU router, its layers mixed.

    Args:
        name: A subject, such as ``blockffn``.
        experts: E.

    Returns:
        float32 [groups, 8, E], zero where an expert is not used.

    Raises:
        SpecError: It has another number of experts, or no such router.
    """
    from sparsescope.activations.capture import tokenized
    from sparsescope.activations.corpus import corpus
    from sparsescope.models.sources import load

    subject = load(name)
    text = tokenized(corpus("python-docs+python-source", tokens=2048, seed=1), subject)
    found: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        found.append(output.detach().float())

    routers = [
        module
        for _, module in subject.model.named_modules()
        if getattr(module, "gives_expert_weights", False)
    ]
    if not routers:
        raise SpecError(
            "this model has no router whose weights are zero for most experts",
            where="bench kernels: patterns",
            allowed="a BlockFFN model",
            got=name,
            next_step="give patterns=blockffn, or block_ffn= to leave the layer out",
        )
    handles = [router.register_forward_hook(keep) for router in routers]
    try:
        for batch in text.batches(2048):
            ids = torch.from_numpy(batch.input_ids)
            mask = torch.from_numpy(batch.attention_mask)
            subject.forward(ids, None if bool(mask.all()) else mask, logits=False)
            lengths = batch.attention_mask.sum(1)
            break
    finally:
        for handle in handles:
            handle.remove()
    groups = []
    for output in found:  # [batch, pos, E]
        for row, length in zip(output.reshape(*batch.input_ids.shape, -1), lengths, strict=True):
            groups += [
                row[at : at + TOGETHER] for at in range(TOGETHER, int(length) - TOGETHER + 1, 4 * TOGETHER)
            ]
    if not groups or groups[0].shape[1] != experts:
        raise SpecError(
            "the recorded patterns are of another number of experts",
            where="bench kernels: block_ffn",
            allowed=f"WIDTHx{groups[0].shape[1] if groups else 'EXPERTS'}xUNITS",
            got=experts,
            next_step="give the layer as many experts as the model of the patterns has",
        )
    return torch.stack(groups[:: max(1, len(groups) // GROUPS)][:GROUPS]).contiguous()
