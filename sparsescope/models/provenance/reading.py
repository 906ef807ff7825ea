"""Subjects whose numbers earlier versions read otherwise: their identity says so, and theirs alone.

A stored run of such a subject holds the numbers of the old reading, and nothing else in the identity differs.
Subjects that both versions read alike have no key, so that their runs open as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError
from sparsescope.models.structure.dimensions import read_dimensions
from sparsescope.models.structure.experts import takes_routing
from sparsescope.models.structure.roles import Block, experts_per_token, submodule, text_config

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

_ROLES = 2  # version of the roles of blocks


def reading_of(subject: Subject) -> dict[str, Any]:
    """Return what is read otherwise; empty for most subjects.

    ``causal``: measured, where class and output head say the opposite. ``padding``: rows of one length run
    together, where they were padded. ``roles``: matrices have a role, or count in bounds, that had none.
    """
    found: dict[str, Any] = {}
    try:
        causal = "causal" in subject.capabilities
    except SubjectError:  # it does not run, so that it has no runs either
        return {}
    if causal != (subject.has_head and bool(subject.model.can_generate())):
        found["causal"] = causal
    if not subject.takes_padding("right"):
        found["padding"] = "none"
    others = any(layer.other_weights for layer in read_dimensions(subject).layers)
    if others or any(_has_new_roles(subject.model, block) for block in subject.blocks):
        found["roles"] = _ROLES
    return found


def _has_new_roles(model: Any, block: Block) -> bool:
    """Whether a block has matrices that were found nowhere before."""
    if block.mlp is not None and block.mlp.container == f"{block.path}.shared_mlp":
        return True
    experts = block.experts
    if experts is None:
        return False
    shared = None if experts.shared is None else experts.shared.container
    known = {f"{experts.container}.{name}" for name in ("shared_expert", "shared_experts")}
    usual = {None, f"{experts.container}.gate", f"{experts.container}.router"}
    named = int(getattr(text_config(model), "num_experts_per_tok", None) or 0)
    return (
        (shared is not None and shared not in known)
        or experts.router not in usual
        or not takes_routing(submodule(model, experts.path))
        or experts_per_token(model, experts) != named
    )
