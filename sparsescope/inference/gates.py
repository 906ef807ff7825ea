"""The gate of a layer: the matrix whose activated output says which hidden units matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsescope.errors import SubjectError
from sparsescope.models.structure.roles import submodule, text_config

if TYPE_CHECKING:
    import torch

    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")


def gate_of(
    subject: Subject, layer: int, role: str = "mlp"
) -> tuple[ParameterSite, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the gate matrix of a layer, and the activation that its output goes through.

    Args:
        subject: The model.
        layer: Block number.
        role: ``mlp``, ``mlp.shared_expert``, ``mlp.experts`` (of expert 0).

    Raises:
        SubjectError: The layer has no gate, or its activation is not known.
    """
    block = subject.blocks[layer]
    site = next(
        (
            site
            for site in subject.parameter_sites("weight:blocks.*.*")
            if site.layer == layer and site.role == f"{role}.gate.weight" and not site.expert
        ),
        None,
    )
    if site is None:
        raise SubjectError(
            "this layer has no gate, and the method goes by the output of the gate",
            where=f"{subject.id}, blocks.{layer}",
            allowed="gated MLPs (SwiGLU, GeGLU, ReGLU)",
            next_step="use teal or wina, which go by the inputs of matrices",
        )
    if block.experts is not None and role == "mlp.experts":
        return site, submodule(subject.model, block.experts.path).act_fn
    mlp = block.mlp if block.experts is None else block.experts.shared
    if mlp is not None and mlp.activation_path is not None:
        return site, submodule(subject.model, mlp.activation_path)
    container = submodule(subject.model, (mlp.container if mlp is not None else "") or block.path)
    for name in _ACTIVATIONS:
        function = getattr(container, name, None)
        if callable(function):
            return site, function
    from transformers.activations import ACT2FN

    config = text_config(subject.model)
    for name in ("hidden_activation", "hidden_act", "activation_function"):
        value = getattr(config, name, None)
        if isinstance(value, str) and value in ACT2FN:
            return site, ACT2FN[value]
    raise SubjectError("the activation of the gate is not known", where=f"{subject.id}, blocks.{layer}")
