"""The matrices of the blocks that no role names, so that they are told of and not passed over.

A matrix is a parameter of two or more dimensions: weights of linear modules, kernels of convolutions, tables
of relative positions. Norms and biases have one dimension; ``dimensions`` counts them by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sparsescope.models.structure.parameters import parameters_of
from sparsescope.models.structure.roles import Block, is_linear, submodule


def uncovered(model: Any, blocks: Sequence[Block]) -> list[str]:
    """Return the HF paths of the matrices of the blocks that have no role.

    Args:
        model: The HF model.
        blocks: Its blocks.

    Returns:
        Paths of parameters, in the order of the model; empty where every matrix has a role.
    """
    sites = parameters_of(model, blocks)
    covered = {f"{site.module_path}.{site.parameter}" for site in sites}
    # What lies in a module that is one matrix, such as an adapter, is part of the matrix that is read there
    wholes = {f"{site.module_path}." for site in sites if is_linear(submodule(model, site.module_path))}
    found: list[str] = []
    for block in blocks:
        home = submodule(model, block.path)
        found += [
            path
            for name, parameter in home.named_parameters()
            if parameter.ndim >= 2
            and (path := f"{block.path}.{name}") not in covered
            and not any(path.startswith(whole) for whole in wholes)
        ]
    return found


def uncovered_sentence(model: Any, blocks: Sequence[Block]) -> str | None:
    """Say in one sentence which matrices of the blocks have no role; None where all have one.

    Each is named once for all layers, with ``*`` for the number of an expert or of a part.
    """
    home = {block.path: block.layer for block in blocks}
    layers: dict[str, set[int]] = {}
    for path in uncovered(model, blocks):
        block = next(block for block in home if path.startswith(f"{block}."))
        name = re.sub(r"\.\d+(?=\.|$)", ".*", path.removeprefix(f"{block}."))
        layers.setdefault(name, set()).add(home[block])
    if not layers:
        return None
    named = [
        name if len(found) == len(blocks) else f"{name} ({_in_layers(sorted(found))})"
        for name, found in layers.items()
    ]
    return (
        "Matrices of the blocks without a role: no site and no measure of weights includes them, and bounds "
        f"on savings count them as dense: {', '.join(named)}."
    )


def _in_layers(layers: Sequence[int]) -> str:
    """``layer 3``, ``layers 0-2, 5``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"layer{'s' if len(layers) > 1 else ''} {text}"
