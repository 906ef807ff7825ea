"""The shapes of a subject that costs are counted from: ``read_dimensions(subject) -> ModelDimensions``.

With ``metrics.bounds.upper_bounds(read_dimensions(subject), {layer: density}, Assumptions(...))`` any
analysis that has a density per layer gets an upper bound on the FLOPs and weight bytes saved. Shapes come
from the modules themselves, never from the names of configurations; weights that are shared by two modules
are counted once in ``parameters``. Entries of a matrix are counted as the model multiplies with them, so a
quantized file counts its entries, not its bytes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sparsescope.metrics.bounds import LayerDimensions, ModelDimensions
from sparsescope.models.structure.coverage import uncovered
from sparsescope.models.structure.parameters import ParameterSite
from sparsescope.models.structure.roles import Block, experts_per_token, features, submodule

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

__all__ = ["LayerDimensions", "ModelDimensions", "read_dimensions"]


def read_dimensions(subject: Subject) -> ModelDimensions:
    """Read the shapes of a subject.

    Args:
        subject: The model; nothing is run and nothing is copied.

    Returns:
        The dimensions of its blocks and of its output head.
    """
    by_layer: dict[int, list[ParameterSite]] = defaultdict(list)
    for site in subject.parameter_sites("weight:blocks.*.*"):
        by_layer[site.layer].append(site)
    model = subject.model
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    inside = {id(p) for block in subject.blocks for p in submodule(model, block.path).parameters()}
    outside = [p for p in model.parameters() if id(p) not in inside and p.ndim == 1]
    return ModelDimensions(
        layers=tuple(_layer(subject, block, by_layer[block.layer]) for block in subject.blocks),
        d_model=subject.d_model,
        vocabulary=0 if head is None else features(head)[0],
        tied=head is not None and embedding is not None and head.weight is embedding.weight,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes_per_weight=float(subject.torch_dtype.itemsize),
        final_norm_weights=sum(p.numel() for p in outside if p.shape[0] == subject.d_model),
        causal="causal" in subject.capabilities,
    )


def _layer(subject: Subject, block: Block, sites: list[ParameterSite]) -> LayerDimensions:
    """Read one block."""
    shapes = {site.role: site.shape for site in sites}
    out = shapes.get("mlp.out.weight") or shapes.get("mlp.experts.out.weight") or (0, 0)
    shared = shapes.get("mlp.shared_expert.out.weight", (0, 0))
    experts = len({site.expert for site in sites if site.expert is not None})
    gated = any(f"{home}.gate.weight" in shapes for home in ("mlp", "mlp.experts", "mlp.shared_expert"))
    routed = 0 if block.experts is None else experts_per_token(subject.model, block.experts)
    router = shapes.get("mlp.router.weight", (0, 0))
    home = submodule(subject.model, block.path)
    norms, others = _vectors(home)
    attention, d_attention, d_kv = _attention(subject, block, shapes)
    matrices = dict(home.named_parameters())
    inside = f"{block.attention.container}." if block.attention is not None else None
    roleless = [
        path for path in uncovered(subject.model, (block,)) if not inside or not path.startswith(inside)
    ]
    return LayerDimensions(
        layer=block.layer,
        d_model=subject.d_model,
        d_mlp=out[1],
        gated=gated,
        attention_weights=attention,
        d_attention=d_attention,
        d_kv=d_kv,
        experts=experts,
        routed=min(routed, experts),
        d_shared=shared[1],
        router_weights=router[0] * router[1],
        norm_weights=norms,
        bias_weights=others,
        other_weights=sum(matrices[path.removeprefix(f"{block.path}.")].numel() for path in roleless),
    )


def _attention(subject: Subject, block: Block, shapes: dict[str, tuple[int, int]]) -> tuple[int, int, int]:
    """Entries of the attention matrices, width of the queries, width of the keys."""
    if block.attention is None:
        return 0, 0, 0
    module = submodule(subject.model, block.attention.container)
    entries = sum(parameter.numel() for parameter in module.parameters() if parameter.ndim >= 2)
    width = shapes.get("attn.o.weight", (0, 0))[1]
    if "attn.k.weight" in shapes:
        keys = shapes["attn.k.weight"][0]
    elif "attn.qkv.weight" in shapes:
        keys = max(shapes["attn.qkv.weight"][0] - width, 0) // 2
    else:  # keys are made in another way: as wide as the queries at most
        keys = width
    return entries, width, keys


def _vectors(block: Any) -> tuple[int, int]:
    """Entries of the norms of a block, and of its other vectors (biases)."""
    norms = others = 0
    for module in block.modules():
        size = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim == 1)
        if "norm" in type(module).__name__.lower():
            norms += size
        else:
            others += size
    return norms, others
