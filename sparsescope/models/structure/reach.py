"""Does an edit reach what the model goes on with?

A module may be called and its output thrown away: a hook there sees everything and changes nothing, so every
intervention finds that nothing matters. One pass over two equal sequences tells: the second is disturbed at
the sites, and the states after each block are compared and made equal again, so that one pass judges every
layer by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import torch

from sparsescope.errors import SubjectError
from sparsescope.models.structure.edits import edit
from sparsescope.models.structure.roles import Block, submodule
from sparsescope.models.structure.sites import Site, argument, with_argument
from sparsescope.models.structure.visits import passing, structure_mark

LENGTH = 8
# Rounding of equal rows of one batch, in units of the last place of each value.
_ROUNDING = 4.0


class Reached:
    """Remembers which sites of a model as it stands were tried."""

    def __init__(self) -> None:
        self._mark = 0
        self._names: set[str] = set()

    def check(
        self,
        model: Any,
        blocks: Sequence[Block],
        sites: Sequence[Site],
        ids: torch.Tensor,
        run: Callable[[torch.Tensor], object],
    ) -> None:
        """Try whether edits at these sites change the states after their blocks, where that was not tried.

        Not tried, since nothing can be learned there: sites of whole numbers (the choice of experts), the
        output of the last block, and experts without a token.

        Args:
            model: The HF model.
            blocks: Its blocks.
            sites: The sites; each role is tried in a pass of its own.
            ids: Two equal sequences, int64 [2, pos].
            run: Runs one pass over them.

        Raises:
            SubjectError: An edit does not reach the states after its block.
        """
        mark = structure_mark(model)
        if self._mark != mark:
            self._mark, self._names = mark, set()
        new = [site for site in sites if site.name not in self._names]
        if not new or passing(model):  # within another edit a pass would call that one
            return
        by_role: dict[str, list[Site]] = {}
        for site in new:
            last = site.role in ("hook_out", "hook_resid_post") and site.layer == blocks[-1].layer
            if site.role != "mlp.hook_expert_indices" and not last:
                by_role.setdefault(site.role, []).append(site)
        for group in by_role.values():
            disturbed, moved = _try(model, blocks, group, ids, run)
            idle = [site for site in group if site.layer in disturbed - moved and not _is_zero(model, site)]
            if idle:
                raise SubjectError(
                    "an edit does not reach what the model goes on with: its effect would be read as 0",
                    where=f"{idle[0].name} ({idle[0].module_path})",
                    allowed="other states after the block",
                    got=f"the same states, {len(idle)} of {len(group)} sites",
                    next_step="the forward of this block was replaced, or throws the value away: use the "
                    "model as its class computes it",
                )
        self._names.update(site.name for site in new)


def _try(
    model: Any,
    blocks: Sequence[Block],
    group: Sequence[Site],
    ids: torch.Tensor,
    run: Callable[[torch.Tensor], object],
) -> tuple[set[int], set[int]]:
    """Layers that were disturbed, and those after which the two sequences differed."""
    disturbed: set[int] = set()
    moved: set[int] = set()
    generator = torch.Generator().manual_seed(0)

    def disturb(site: Site, tensor: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, torch.float32)
        size = tensor.float().square().mean().sqrt() + 1e-3
        after = (tensor.float() + size * noise).to(tensor.dtype)
        if rows is None:
            disturbed.add(site.layer)
            return torch.cat([tensor[:1], after[1:]])
        second = (rows >= ids.shape[1])[:, None]
        if bool(second.any()):
            disturbed.add(site.layer)
        return torch.where(second, after, tensor)

    def level(layer: int, states: torch.Tensor) -> torch.Tensor:
        """Compare the two sequences, and return states in which they are equal again."""
        # Several residual streams stand before batch x pos (Gemma 3n) or behind (DeepSeek-V4)
        shape = tuple(states.shape)
        batch = next((dim for dim in range(len(shape)) if shape[dim : dim + 2] == ids.shape), None)
        if batch is None:
            moved.add(layer)  # nothing can be learned
            return states
        first, second = states.narrow(batch, 0, 1), states.narrow(batch, 1, 1)
        if bool(((first - second).abs() > _ROUNDING * torch.finfo(states.dtype).eps * first.abs()).any()):
            moved.add(layer)
        return torch.cat([first, first], batch)

    def entering(layer: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def hook(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return with_argument(args, kwargs, 0, level(layer, argument(args, kwargs, 0)))

        return hook

    def leaving(module: Any, args: tuple[Any, ...], output: Any) -> None:
        level(blocks[-1].layer, output[0] if isinstance(output, tuple | list) else output)

    with ExitStack() as stack:
        # Before the edits, so that a disturbed input of a block is not made equal again
        for before, block in pairwise(blocks):
            module = submodule(model, block.path)
            handle = module.register_forward_pre_hook(entering(before.layer), with_kwargs=True)
            stack.callback(handle.remove)
        handle = submodule(model, blocks[-1].path).register_forward_hook(leaving)
        stack.callback(handle.remove)
        with edit(model, group, disturb):
            run(ids)
    return disturbed, moved


def _is_zero(model: Any, site: Site) -> bool:
    """Whether the matrix that reads the site is all zero: then no edit there changes anything."""
    weight = getattr(submodule(model, site.module_path), "weight", None)
    return site.kind == "input" and isinstance(weight, torch.Tensor) and not bool(weight.any())
