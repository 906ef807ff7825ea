"""The weights of a Llama-like model as the decoding step reads them, with the masks of a calibration.

Shapes: L layers; matrices [N, K]; limits [L, matrices of a group, K].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.errors import SubjectError
from sparsescope.inference.masks import Mask
from sparsescope.kernels.decode_step import GROUPS, StackedRows
from sparsescope.kernels.weight_rows import Stored, WeightRows, rows_by_channel
from sparsescope.models.structure.parameters import ParameterSite, read

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

MODELS = ("llama", "mistral", "qwen2")
ROLES = {
    "attn.in": ("attn.q.weight", "attn.k.weight", "attn.v.weight"),
    "attn.out": ("attn.o.weight",),
    "mlp.in": ("mlp.gate.weight", "mlp.in.weight"),
    "mlp.out": ("mlp.out.weight",),
}
_ROTARY = ("default", "linear", "llama3", "yarn")


def check_model(subject: Subject) -> None:
    """Check that the decoding step computes what a model computes.

    Raises:
        SubjectError: It is sparse already, or of an architecture with other parts.
    """
    if any(hasattr(module, "masks_inputs") for module in subject.model.modules()):
        raise SubjectError(
            "this subject is sparse already",
            where=subject.id,
            next_step="give the dense model and a calibration: Decoder(dense, calibration)",
        )
    config = subject.model.config
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    window = getattr(config, "sliding_window", None)
    windowed = window is not None and getattr(config, "use_sliding_window", True)
    other = {
        "model": config.model_type not in MODELS and config.model_type,
        "activation": getattr(config, "hidden_act", "silu") != "silu" and config.hidden_act,
        "rotary positions": rotary not in _ROTARY and rotary,
        "sliding window": windowed and window,
        "device": subject.device != "cpu" and subject.device,
    }
    found = [f"{name} {value}" for name, value in other.items() if value]
    if found:
        raise SubjectError(
            "the decoding loop does not know this architecture",
            where=subject.id,
            allowed=f"{', '.join(MODELS)} with SiLU, full attention and fixed rotary positions, on the CPU",
            got="; ".join(found),
            next_step="transformers' generate runs it, dense, and sparse with the subject of sparsify",
        )


def stacked_groups(subject: Subject, masks: Sequence[Mask], stored: Stored) -> list[StackedRows]:
    """Store the matrices of all blocks, with their masks.

    Args:
        subject: A model that ``check_model`` took.
        masks: Of a calibration; none for a dense model.
        stored: The type of the weights.

    Raises:
        SubjectError: A mask is of a kind that kernels do not compute.
    """
    sites: dict[tuple[int, str], ParameterSite] = {
        (site.layer, site.role): site for site in subject.parameter_sites("weight:blocks.*.*")
    }
    by_matrix: dict[tuple[int, str], Mask] = {}
    for mask in masks:
        _check_mask(mask)
        by_matrix |= {(mask.layer, role): mask for role in mask.roles}
    return [_group(subject, sites, by_matrix, ROLES[name], stored) for name in GROUPS]


def _group(
    subject: Subject,
    sites: Mapping[tuple[int, str], ParameterSite],
    masks: Mapping[tuple[int, str], Mask],
    roles: Sequence[str],
    stored: Stored,
) -> StackedRows:
    made: list[WeightRows] = []
    biases: list[torch.Tensor] = []
    limits: list[torch.Tensor] = []
    centres: list[torch.Tensor] = []
    for layer in range(subject.n_layers):
        found = [sites[layer, role] for role in roles]
        matrices = [read(subject.model, site).float() for site in found]
        made.append(rows_by_channel(matrices, stored))
        dense, sparse = [], []
        for site, matrix, role in zip(found, matrices, roles, strict=True):
            mask = masks.get((layer, role))
            bias = _bias(subject, site, len(matrix))
            edge, centre, shift = _parts(mask, role, matrix)
            dense.append(bias)
            sparse.append(bias + shift)
            limits.append(edge)
            centres.append(centre)
        biases.append(torch.stack([torch.cat(dense), torch.cat(sparse)]))
    parts, width = len(roles), len(made[0].data)
    edges = torch.stack(limits).reshape(-1, parts, width)
    middles = torch.stack(centres).reshape(-1, parts, width)
    bias = torch.stack(biases, 1)  # [2, L, N]
    joint = bool((edges == edges[:, :1]).all() and (middles == middles[:, :1]).all())
    data = torch.stack([one.data for one in made])
    scales = [one.scale for one in made if one.scale is not None]
    layers = tuple(
        WeightRows(rows, one.stored, one.width, "channel", one.outputs, one.scale)
        for rows, one in zip(data, made, strict=True)
    )
    return StackedRows(
        layers=layers,
        data=data,
        scale=torch.stack(scales) if scales else torch.empty(len(made), 0),
        bias=bias if bool(bias.any()) else bias[..., :0].contiguous(),
        limits=edges.contiguous(),
        centres=middles.contiguous(),
        joint=joint,
    )


def _parts(
    mask: Mask | None, role: str, matrix: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Limits [K], centre [K], and what is added to the outputs of sparse positions, [N]."""
    from sparsescope.inference.modules import rounded_down

    outputs, inputs = matrix.shape
    if mask is None:
        return torch.full((inputs,), -1.0), torch.zeros(inputs), torch.zeros(outputs)
    limits = torch.as_tensor(mask.limits, dtype=torch.float64).expand(inputs)
    shift = mask.bias[role].float() if role in mask.bias else torch.zeros(outputs)
    centre = torch.zeros(inputs)
    if mask.centre is not None:
        centre = mask.centre.float()
        shift = shift + matrix @ centre
    return rounded_down(limits, torch.float32), centre, shift


def _check_mask(mask: Mask) -> None:
    unknown = {
        f"masks of kind {mask.kind}": mask.kind != "score",
        "products of low rank": bool(mask.low_rank),
        "a rotation": mask.rotation is not None,
        "dense sinks": mask.sink_norm is not None,
    }
    found = [name for name, there in unknown.items() if there]
    if found:
        raise SubjectError(
            "kernels do not compute this kind of mask",
            where=mask.name,
            allowed="teal, wina, wina_released, was and auto, with sinks sparse",
            got=", ".join(found),
            next_step="calibrate one of those, or run the subject of sparsify: the reference computes all of "
            "them",
        )


def _bias(subject: Subject, site: ParameterSite, outputs: int) -> torch.Tensor:
    bias: Any = getattr(subject.model.get_submodule(site.module_path), "bias", None)
    if bias is None:
        return torch.zeros(outputs)
    found = bias.detach().float()
    return found if site.rows is None else found[slice(*site.rows)]
