"""How much memory a forward pass takes, from sizes alone; and copies of a model that take none."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsescope.models.identity import named_tensors
from sparsescope.models.structure.roles import experts_per_token, text_config

if TYPE_CHECKING:
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject


def memory_estimate(subject: Subject, sites: Sequence[Site], batch_tokens: int) -> dict[str, int]:
    """Estimate the memory of one forward pass, in bytes; see ``Subject.memory_estimate``.

    Args:
        subject: The model.
        sites: All of its sites.
        batch_tokens: Tokens in a batch.
    """
    config = text_config(subject.model)
    size = subject.torch_dtype.itemsize
    weights = sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(subject.model))
    dense_roles = ("mlp.hook_post", "mlp.shared_expert.hook_post")
    hidden = [site for site in sites if site.role in dense_roles]
    routed = [site for site in sites if site.role == "mlp.experts.hook_post" and not site.expert]
    mixtures = [block.experts for block in subject.blocks if block.experts is not None]
    top_k = max((experts_per_token(subject.model, experts) for experts in mixtures), default=1) or 1
    width = sum(site.width for site in hidden) + sum(site.width * top_k for site in routed)
    widest = max((site.width for site in hidden + routed), default=subject.d_model)
    estimate = {
        "weights": weights,
        "activations": batch_tokens * (6 * subject.d_model + 3 * widest * (top_k if routed else 1)) * size,
        "captured": batch_tokens * width * size,
        "logits": batch_tokens * int(config.vocab_size) * size,
    }
    return {**estimate, "total": sum(estimate.values())}


def copied(model: Any, share_weights: bool = False) -> Any:
    """Return a deep copy of a model.

    Args:
        model: The HF model.
        share_weights: Keep its parameters and buffers themselves, and copy the modules around them.
    """
    tensors = (*model.parameters(), *model.buffers()) if share_weights else ()
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
