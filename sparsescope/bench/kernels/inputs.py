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
ROUTERS = "blocks.*.mlp.router.hook_weights"


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
    starts = consecutive(position)
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
    layers = values.shape[1]
    needed = -(-width // values.shape[2])
    order = np.linspace(0, layers - 1, needed).astype(int)
    columns = np.concatenate([np.arange(values.shape[2]) + layer * values.shape[2] for layer in order])
    return torch.stack([flat[at : at + TOGETHER][:, columns[:width]] for at in chosen]).contiguous()


def recorded_experts(name: str, experts: int) -> torch.Tensor:
    """Router weights of consecutive tokens of a model with a ReLU router, its layers in turn.

    Args:
        name: A subject, such as ``blockffn``.
        experts: E.

    Returns:
        float32 [groups, 8, E], zero where an expert is not used.

    Raises:
        SpecError: It has another number of experts.
        SubjectError: It has no such router.
    """
    from sparsescope.activations.capture import capture
    from sparsescope.activations.corpus import corpus
    from sparsescope.models.sources import load

    subject = load(name)
    groups: list[torch.Tensor] = []
    with capture(subject, corpus("python-docs", tokens=4096, seed=1), ROUTERS, dtype="float32") as source:
        for batch in source:
            starts = consecutive(batch.positions)
            for values in batch.values.values():
                groups += [values[at : at + TOGETHER].cpu().clone() for at in starts]
    if not groups or groups[0].shape[1] != experts:
        raise SpecError(
            "the recorded patterns are of another number of experts",
            where="bench kernels: block_ffn",
            allowed=f"WIDTHx{groups[0].shape[1] if groups else 'EXPERTS'}xUNITS",
            got=experts,
            next_step="give the layer as many experts as the model of the patterns has",
        )
    chosen = np.linspace(0, len(groups) - 1, GROUPS).astype(int)
    return torch.stack([groups[at] for at in chosen]).contiguous()


def consecutive(position: np.ndarray) -> list[int]:
    """Rows at which eight tokens on end of one document begin, none of them its first, none in two groups.

    Args:
        position: int [rows], positions in the documents, one document after the other.
    """
    run = np.convolve(np.diff(position) == 1, np.ones(TOGETHER - 1), "valid") == TOGETHER - 1
    found: list[int] = []
    for at in np.flatnonzero(run):
        if position[at] > 0 and (not found or at >= found[-1] + TOGETHER):
            found.append(int(at))
    return found
