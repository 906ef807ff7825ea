"""A sparse model from masks: a copy of the modules that shares the weights, with the masks installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.errors import SubjectError
from sparsescope.inference.gates import gate_of
from sparsescope.inference.masks import Mask
from sparsescope.inference.modules import Installer
from sparsescope.inference.prefix import PrefixPolicy, Reading

if TYPE_CHECKING:
    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject


def install(subject: Subject, masks: Sequence[Mask], policy: PrefixPolicy) -> Subject:
    """Return a copy of a subject that masks what its matrices read; the weights are shared, and stay.

    Args:
        subject: The dense model.
        masks: At most one for each matrix.
        policy: Which positions are sparse.

    Returns:
        A subject without a record of what it is; ``sparsify`` gives it one.

    Raises:
        SubjectError: The subject is sparse already, or a mask names a matrix that it does not have.
    """
    if any(hasattr(module, "masks_inputs") for module in subject.model.modules()):
        raise SubjectError(
            "this subject is sparse already",
            where=subject.id,
            next_step="make another sparse model of the dense one",
        )
    made = subject.copy(share_weights=True)
    reading = Reading(policy)
    installer = Installer(made.model, reading)
    sites = _by_role(subject)
    masked: set[str] = set()
    for mask in masks:
        for role in mask.roles:
            found = sites.get((mask.layer, role))
            if not found or found[0].name in masked:
                raise SubjectError(
                    "a mask is for a matrix that has one already" if found else "no such matrix",
                    where=f"blocks.{mask.layer}.{role}",
                    got=mask.name,
                )
            for site in found:
                masked.add(site.name)
                installer.add(site, mask)
        if mask.kind == "gate":
            home = mask.group.split(".", 2)[2].removesuffix(".out")
            installer.gates(mask.layer, *gate_of(made, mask.layer, home))
    with torch.no_grad():
        installer.install()
    home = home_of_blocks(made)
    home.register_forward_pre_hook(reading.begin, with_kwargs=True)
    home.register_forward_hook(reading.end, with_kwargs=True, always_call=True)
    return made


def home_of_blocks(subject: Subject) -> Any:
    """The module that runs the blocks one after the other: every pass goes through it."""
    return subject.model.get_submodule(subject.blocks[0].path.rpartition(".")[0].rpartition(".")[0])


def reading_of(subject: Subject) -> Reading | None:
    """Where the passes of a sparse model stand; None of a dense one."""
    for hook in home_of_blocks(subject)._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Reading):
            return owner
    return None


def _by_role(subject: Subject) -> dict[tuple[int, str], list[ParameterSite]]:
    """The matrices of each layer by role; of a mixture one for each expert."""
    found: dict[tuple[int, str], list[ParameterSite]] = {}
    for site in subject.parameter_sites("weight:blocks.*.*"):
        found.setdefault((site.layer, site.role), []).append(site)
    return found
