"""What a decoded token reads under masks: from dropped shares of inputs to bytes and operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sparsescope.inference.accounting import Inventory, account
from sparsescope.metrics.matrix_costs import Adapter, TokenAccount

if TYPE_CHECKING:
    from sparsescope.inference.calibrator import Calibrator
    from sparsescope.inference.masks import Mask

_PARTS: tuple[Literal["mlp", "attention"], ...] = ("mlp", "attention")


def mask_facts(bench: Calibrator, mask: Mask) -> dict[str, Any]:
    """What of a mask counts, as JSON values: its matrices, the weights that it can skip for one token, and
    the entries of thresholds, centres and biases that every token reads.
    """
    vectors = sum(
        tensor.numel()
        for name, tensor in mask.tensors().items()
        if name in ("scale", "centre") or name.startswith("bias.")
    )
    group = bench.by_name[mask.group]
    if mask.centre is not None:  # what stands in for it is added to every output
        vectors += group.outputs(mask.roles)
    if group.experts:  # a token reads those of its experts
        vectors = vectors * bench.routed(group) // group.experts
    return {
        "name": mask.name,
        "group": mask.group,
        "roles": list(mask.roles),
        "saves": list(mask.saves),
        "weights": bench.weights(mask),
        "vectors": vectors,
    }


def account_masks(
    inventory: Inventory, masks: Sequence[Mapping[str, Any]], dropped: Sequence[float], adapters: int
) -> TokenAccount:
    """Count what a token reads and computes.

    Args:
        inventory: The matrices of the model.
        masks: What ``mask_facts`` gave.
        dropped: Share of the inputs that each mask drops.
        adapters: Weights of products of low rank and rotations that every token reads.
    """
    by_layer: dict[int, list[Any]] = {}
    for matrix in inventory.matrices:
        by_layer.setdefault(matrix.layer, []).append(matrix)
    density: dict[str, float] = {}
    rows: dict[str, float] = {}
    vectors = dict.fromkeys(_PARTS, 0)
    for share, mask in zip(dropped, masks, strict=True):
        for matrix in by_layer[int(mask["group"].split(".")[1])]:
            if matrix.role in mask["roles"]:
                density[matrix.name] = 1 - float(share)
            elif matrix.role in mask["saves"]:
                rows[matrix.name] = 1 - float(share)
        vectors["mlp" if ".mlp." in mask["group"] else "attention"] += mask["vectors"]
    size = inventory.dimensions.bytes_per_weight
    found = [
        Adapter(f"{part} vectors", part, vectors=(vectors[part],), bytes_per_weight=size)
        for part in _PARTS
        if vectors[part]
    ]
    if adapters:
        found.append(Adapter("factors and rotations", "residual", ((adapters, 1),), bytes_per_weight=size))
    return account(inventory, density, row_density=rows, adapters=found)
