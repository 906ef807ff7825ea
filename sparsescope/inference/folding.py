"""Column norms folded into the weights: a plain magnitude threshold then makes the masks of a norm-aware
score.

With x' = c x and W' = W diag(1 / c) the product is the same and |x'_i| = |x_i| c_i, so that any kernel for
TEAL runs WINA (with one norm for matrices that share an input) at no cost. The factor goes into the gain of
the norm before attention or MLP, and for the last matrix of a gated MLP into the rows of its second branch;
where nothing before can take it (o, whose input channels are shared by grouped heads; an MLP without a gate)
the vector stays.

All norms are taken before anything is folded. Shapes: c [K].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.errors import SubjectError
from sparsescope.inference.groups import InputGroup, input_groups
from sparsescope.models.structure.parameters import read
from sparsescope.models.structure.sites import argument, module_at

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

#: Relative difference of the outputs beyond which a fold did not do what is meant.
_ROUNDING = 2.0**10


def joint_norms(subject: Subject) -> dict[str, torch.Tensor]:
    """c_i = sqrt(sum_j ||W_j[:, i]||^2) over the matrices that read an input, [K], by name of the group;
    experts are left out.
    """
    found = {}
    for group in input_groups(subject):
        if group.experts:
            continue
        squares = [_exact(subject.parameter(site)).square().sum(0) for site in group.matrices]
        found[group.name] = torch.stack(squares).sum(0).sqrt()
    return found


def fold(subject: Subject, scales: Mapping[str, torch.Tensor]) -> tuple[Subject, dict[str, torch.Tensor]]:
    """Return a copy of a model with factors folded in, and the factors that had to stay.

    Args:
        subject: The model; it stays as it is.
        scales: c by name of the group; zeros count as ones.

    Raises:
        SubjectError: The outputs changed: a norm of this architecture does more than multiply by its gain.
    """
    made = subject.copy()
    ids = subject.sample_ids(2)
    before = subject.forward(ids)
    feeding = _norms_before(made, ids)
    left: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for group in input_groups(made):
            scale = scales.get(group.name)
            if scale is None:
                continue
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            if not _take(made, group, feeding, scale):
                left[group.name] = scale
                continue
            for site in group.matrices:
                weight = read(made.model, site)
                weight.div_(scale.to(weight.dtype))
    after = made.forward(ids)
    bound = _ROUNDING * torch.finfo(after.dtype).eps * float(before.abs().max())
    if not bool((after - before).abs().max() <= bound):
        raise SubjectError(
            "norms cannot be folded into this model: its outputs would change",
            where=f"{subject.id} ({type(subject.model).__name__})",
            allowed="norms that multiply by their gain",
            got=f"outputs that differ by {float((after - before).abs().max()):.3g}",
            next_step="keep the norms as vectors: sparsify(subject, 'wina', ...)",
        )
    return made, left


def _exact(weight: torch.Tensor) -> torch.Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _take(subject: Subject, group: InputGroup, feeding: Mapping[str, Any], scale: torch.Tensor) -> bool:
    """Multiply what makes the input of a group; False where nothing can take it."""
    if group.name in feeding:
        norm = feeding[group.name]
        for tensor in (norm.weight, getattr(norm, "bias", None)):
            if tensor is not None:
                tensor.mul_(scale.to(tensor.dtype))
        return True
    home = group.role.removesuffix(".out")
    sites = {
        site.role: site
        for site in subject.parameter_sites("weight:blocks.*.*")
        if site.layer == group.layer and site.expert is None
    }
    if not group.role.endswith(".out") or f"{home}.gate.weight" not in sites:
        return False
    branch = sites[f"{home}.in.weight"]
    weight = read(subject.model, branch)
    weight.mul_(scale.to(weight.dtype)[:, None])
    bias = getattr(module_at(subject.model, branch.module_path), "bias", None)
    if bias is not None:
        own = bias if branch.rows is None else bias[slice(*branch.rows)]
        own.mul_(scale.to(bias.dtype))
    return True


def _norms_before(subject: Subject, ids: torch.Tensor) -> dict[str, Any]:
    """The norm whose output is the input of a group and of no other one, by name of the group."""
    made: dict[int, Any] = {}
    alive: list[Any] = []
    reads: dict[str, Any] = {}

    def gives(module: Any, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            made[id(output)] = module
            alive.append(output)

    handles = []
    for module in subject.model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim == 1:
            handles.append(module.register_forward_hook(gives))
    for group in input_groups(subject):
        if group.experts:
            continue

        def sees(module: Any, args: Any, kwargs: Any, name: str = group.name) -> None:
            reads[name] = made.get(id(argument(args, kwargs, 0)))

        module = module_at(subject.model, group.matrices[0].module_path)
        handles.append(module.register_forward_pre_hook(sees, with_kwargs=True))
    try:
        subject.forward(ids)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: norm for name, norm in reads.items() if norm is not None}
    shared = [norm for norm in found.values() if sum(norm is other for other in found.values()) > 1]
    return {name: norm for name, norm in found.items() if not any(norm is other for other in shared)}
