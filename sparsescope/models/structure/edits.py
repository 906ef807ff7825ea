"""Forward passes with changed activations: what if only these units had fired?

``edit`` lets a function replace what sites see while the ``with`` block runs: inputs and outputs of modules,
parts of them, the routing of a mixture, and the hidden layers of its experts. Weights are not touched, and
the hooks are gone when the block ends in any way.

A replacement that changes nothing changes no bit, except at expert sites: there the whole mixture is computed
once more from the hidden layers (``experts.expert_output``), which moves its output by rounding. A reference
that edited passes are compared with therefore takes the same recomputation: give it the same sites and a
function that returns what it gets.

Shapes: the function gets and returns [batch, pos, width], at expert sites [routed, width].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sparsescope.errors import SubjectError
from sparsescope.models.structure.experts import expert_output, takes_routing
from sparsescope.models.structure.sites import (
    Site,
    argument,
    hooked,
    with_argument,
)
from sparsescope.models.structure.visits import Visits

#: Called as ``replace(site, tensor)``, and at expert sites as ``replace(site, tensor, rows)``.
Replace = Callable[..., torch.Tensor]


@contextmanager
def edit(model: Any, sites: Sequence[Site], replace: Replace) -> Iterator[None]:
    """Replace activations while the ``with`` block runs forward passes of ``model``.

    Args:
        model: The HF model that the module paths of the sites start from.
        sites: Where. Where sites see the same tensor, they act in the order given.
        replace: Gets the site and its tensor and returns a tensor of the same shape and dtype. It must not
            write to the tensor that it gets: the model may use that elsewhere. At expert sites it gets a
            third argument, the rows int64 [routed], ascending indices into batch * pos (padding included) of
            the tokens routed to that expert; an expert without tokens is not called.

    Raises:
        SubjectError: If nothing computes with a site, the replacement has another shape or dtype, or a
            site was not seen exactly once in a forward pass.
    """
    visits = Visits(model, sites)

    def register(site: Site, module: Any) -> Any:
        if site.role == "mlp.router.hook_out":
            raise SubjectError(
                "activations cannot be replaced here: the mixture takes the experts that the "
                "router chose, not its scores",
                where=site.name,
                allowed="sites that the model goes on with",
                got=site.role,
                next_step="replace mlp.hook_expert_indices or mlp.hook_expert_weights",
            )
        if site.kind == "input":
            return module.register_forward_pre_hook(_input_hook(site, replace, visits), with_kwargs=True)
        return module.register_forward_hook(_output_hook(site, replace, visits))

    def register_experts(group: list[Site], module: Any) -> Any:
        return module.register_forward_hook(_experts_hook(group, replace, visits), with_kwargs=True)

    with hooked(visits, register, register_experts):
        yield


def _input_hook(
    site: Site, replace: Replace, visits: Visits
) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        visits.see(site)
        after = _replaced(site, argument(args, kwargs, site.argument), replace, visits)
        return with_argument(args, kwargs, site.argument, after)

    return hook


def _output_hook(
    site: Site, replace: Replace, visits: Visits
) -> Callable[..., torch.Tensor | tuple[Any, ...] | list[Any]]:
    def hook(module: Any, args: tuple[Any, ...], output: Any) -> torch.Tensor | tuple[Any, ...] | list[Any]:
        visits.see(site)
        if not isinstance(output, tuple | list):
            return _replaced(site, output, replace, visits)
        after = list(output)
        after[site.argument] = _replaced(site, output[site.argument], replace, visits)
        return after if isinstance(output, list) else tuple(after)

    return hook


def _experts_hook(group: list[Site], replace: Replace, visits: Visits) -> Callable[..., torch.Tensor]:
    by_expert = {site.expert: site for site in group}

    def change(expert: int, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        site = by_expert.get(expert)
        return hidden if site is None else _alike(site, hidden, replace(site, hidden, rows))

    def hook(
        module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor:
        if not takes_routing(module):
            visits.see_experts(group, None)
            return expert_output(module, argument(args, kwargs, 0), None, None, change)
        states, index, weights = (argument(args, kwargs, number) for number in range(3))
        visits.see_experts(group, index)
        return expert_output(module, states, index, weights, change)

    return hook


def _replaced(site: Site, given: torch.Tensor, replace: Replace, visits: Visits) -> torch.Tensor:
    """The tensor that takes the place of ``given``, of which the site may be a part."""
    before = visits.shaped(site, given)
    after = _alike(site, before, replace(site, before))
    if site.part is None:
        return after.reshape(given.shape)
    begin, end = site.part
    return torch.cat(
        [given[..., :begin], after.reshape(*given.shape[:-1], site.width), given[..., end:]], dim=-1
    )


def _alike(site: Site, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the replacement, or refuse it."""
    if after.shape != before.shape or after.dtype != before.dtype:
        raise SubjectError(
            "a replacement has another shape or dtype than the activation",
            where=site.name,
            allowed=f"{tuple(before.shape)} {before.dtype}",
            got=f"{tuple(after.shape)} {after.dtype}",
            next_step="return a tensor like the one that was given",
        )
    return after
