"""Weight matrices by role, always (out, in), whatever the module that holds them.

``weight:blocks.3.mlp.out.weight`` is the second MLP matrix of layer 3, [d_model, d_mlp]; ``in``,
``gate``, ``attn.q/k/v/o`` likewise. Every tensor is a view: writing to it writes to the model. Whether the
module applies it is another question (adapters): ``applied`` answers it, and ``Subject.parameter`` asks it.
``Conv1D`` of GPT-2 is transposed, fused qkv and gate-up are cut by rows, and the 3-D tensors of
experts give one matrix per expert (``mlp.experts.5.out.weight``) or, without a number, the batch
[experts, out, in]. Where the rows of q, k and v alternate in one matrix (GPT-NeoX, Bloom) no view
can separate them, so ``attn.qkv.weight`` is offered there instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError
from sparsescope.models.structure.experts import is_fused, is_gated, is_transposed, sizes
from sparsescope.models.structure.patterns import WEIGHT_PREFIX
from sparsescope.models.structure.roles import Block, Matrix, Mlp, features, submodule

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class ParameterSite:
    """One weight matrix by role.

    Attributes:
        name: ``weight:blocks.3.mlp.out.weight``.
        layer: Block number, from 0.
        role: ``mlp.out.weight``, without block and expert number.
        module_path: HF path of the module.
        parameter: Name of the parameter in the module.
        shape: (out, in).
        rows: Range of output rows (start, stop, step) inside the parameter, None for all.
        transposed: Whether the parameter is stored as (in, out).
        expert: Expert number, None for other matrices.
    """

    name: str
    layer: int
    role: str
    module_path: str
    parameter: str
    shape: tuple[int, int]
    rows: tuple[int, int, int] | None = None
    transposed: bool = False
    expert: int | None = None


def parameters_of(model: Any, blocks: Sequence[Block]) -> tuple[ParameterSite, ...]:
    """Return every weight matrix of the blocks of a model, layer by layer."""
    found: list[ParameterSite] = []
    for block in blocks:
        if block.attention is not None:
            attention = block.attention
            named = {
                "q": attention.q,
                "k": attention.k,
                "v": attention.v,
                "qkv": attention.qkv,
                "o": attention.out,
            }
            found += [
                _matrix(model, block.layer, f"attn.{key}", m) for key, m in named.items() if m is not None
            ]
        if block.mlp is not None:
            found += _mlp(model, block.layer, "mlp", block.mlp)
        if block.experts is not None:
            found += _experts(model, block)
            if block.experts.shared is not None:
                found += _mlp(model, block.layer, "mlp.shared_expert", block.experts.shared)
    return tuple(found)


def read(model: Any, site: ParameterSite) -> torch.Tensor:
    """Return a weight matrix as a view of the parameter.

    Args:
        model: The HF model.
        site: The matrix.

    Returns:
        Tensor (out, in) without gradient history; [experts, out, in] when an expert role is read
        without an expert number.

    Raises:
        SubjectError: The weights are packed by a quantization library and cannot be viewed.
    """
    tensor = getattr(submodule(model, site.module_path), site.parameter).detach()
    if not tensor.is_floating_point():
        raise SubjectError(
            "the weights are packed by a quantization library and cannot be read as numbers",
            where=f"{site.name} ({site.module_path}, {tensor.dtype})",
            allowed="float32, bfloat16, float16",
            next_step="load the model without quantization",
        )
    if site.expert is not None:
        tensor = tensor[site.expert]
    if site.transposed:
        tensor = tensor.transpose(-1, -2)
    if site.rows is not None:
        start, stop, step = site.rows
        tensor = tensor[..., start:stop:step, :]
    return tensor


def batched(sites: Sequence[ParameterSite], name: str) -> ParameterSite | None:
    """Return the site of all experts at once for ``weight:blocks.N.mlp.experts.out.weight``, or None."""
    for site in sites:
        if site.expert is not None and name == f"{WEIGHT_PREFIX}blocks.{site.layer}.{site.role}":
            return replace(site, name=name, expert=None)
    return None


def _matrix(model: Any, layer: int, key: str, matrix: Matrix) -> ParameterSite:
    """Describe the matrix of one linear module, or a row range of it."""
    module = submodule(model, matrix.path)
    n_out, n_in = features(module)
    rows = None if matrix.part is None else (*matrix.part, 1)
    if matrix.part is not None:
        n_out = matrix.part[1] - matrix.part[0]
    transposed = type(module).__name__ == "Conv1D"
    return _site(layer, f"{key}.weight", matrix.path, "weight", (n_out, n_in), rows, transposed)


def _site(layer: int, role: str, *facts: Any) -> ParameterSite:
    return ParameterSite(f"{WEIGHT_PREFIX}blocks.{layer}.{role}", layer, role, *facts)


def _mlp(model: Any, layer: int, prefix: str, mlp: Mlp) -> list[ParameterSite]:
    """Describe the matrices of one dense MLP."""
    named = {"gate": mlp.gate, "in": mlp.into, "out": mlp.out}
    if mlp.router is not None:
        named["router"] = Matrix(mlp.router.scores)
    return [_matrix(model, layer, f"{prefix}.{key}", m) for key, m in named.items() if m is not None]


def _experts(model: Any, block: Block) -> list[ParameterSite]:
    """Describe router and expert matrices of a mixture of experts."""
    found: list[ParameterSite] = []
    if block.experts is None:
        return found
    router = submodule(model, block.experts.router) if block.experts.router else None
    weight = getattr(router, "weight", None)
    if weight is not None and weight.ndim == 2:
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        found.append(_site(block.layer, "mlp.router.weight", block.experts.router, "weight", shape))
    module = submodule(model, block.experts.path)
    if not is_fused(module):
        return found
    n_experts, width = sizes(module)
    d_model = int(module.down_proj.shape[2 if is_transposed(module) else 1])
    matrices: list[tuple[str, str, tuple[int, int, int] | None]] = [("out", "down_proj", None)]
    if not is_gated(module):
        matrices.append(("in", "up_proj", None))
    elif getattr(module, "is_concatenated", True):
        matrices += [("gate", "gate_up_proj", (0, width, 1)), ("in", "gate_up_proj", (width, 2 * width, 1))]
    else:  # rows gate0, up0, gate1, up1, ...
        matrices += [("gate", "gate_up_proj", (0, 2 * width, 2)), ("in", "gate_up_proj", (1, 2 * width, 2))]
    for key, parameter, rows in matrices:
        shape = (d_model, width) if key == "out" else (width, d_model)
        role = f"mlp.experts.{key}.weight"
        every = _site(block.layer, role, block.experts.path, parameter, shape, rows, is_transposed(module))
        head = every.name.removesuffix(f"{key}.weight")
        found += [replace(every, name=f"{head}{e}.{key}.weight", expert=e) for e in range(n_experts)]
    return found
