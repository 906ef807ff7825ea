"""Forward passes with changed activations: what if only these units had fired?

``edit`` lets a function replace the input of the second MLP matrix (or of any module that a site names) while the
``with`` block runs. Weights are not touched, and the hooks are gone when the block ends in any way.

Shapes: the function gets and returns [batch, pos, width].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SubjectError
from sparsescope.models.roles import submodule
from sparsescope.models.sites import Site, shape_hook, shaped

if TYPE_CHECKING:
    import torch

    #: Called as ``replace(site, tensor)``; what it returns goes on in the forward pass.
    Replace = Callable[[Site, torch.Tensor], torch.Tensor]


@contextmanager
def edit(model: Any, sites: Sequence[Site], replace: Replace) -> Iterator[None]:
    """Replace activations while the ``with`` block runs forward passes of ``model``.

    Args:
        model: The HF model that the module paths of the sites start from.
        sites: Sites that are the input of a module, such as ``blocks.*.mlp.hook_post``.
        replace: Gets the site and its tensor and returns a tensor of the same shape and dtype. It must not write to the
            tensor that it gets: the model may use that elsewhere.

    Raises:
        SubjectError: If a site is not the input of a module, or the replacement has another shape or dtype.
    """
    handles: list[Any] = []
    shapes: dict[str, tuple[int, int]] = {}  # block path -> (batch, pos): some MLPs see their tokens flattened
    try:
        for path in sorted({site.block_path for site in sites}):
            block = submodule(model, path)
            if block is not None:
                handles.append(block.register_forward_pre_hook(shape_hook(path, shapes), with_kwargs=True))
        for site in sites:
            module = submodule(model, site.module_path)
            if site.kind != "input" or site.argument != 0 or site.part is not None or module is None:
                raise SubjectError(
                    "activations cannot be replaced here",
                    where=site.name,
                    allowed="sites that are the whole input of a module, such as blocks.*.mlp.hook_post",
                    got=f"the {site.kind} of {site.module_path}",
                    next_step="choose mlp.hook_post, mlp.hook_in or attn.hook_z",
                )
            handles.append(module.register_forward_pre_hook(_hook(site, replace, shapes), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    site: Site, replace: Replace, shapes: dict[str, tuple[int, int]]
) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        name = "" if args else next(iter(kwargs))
        given = args[0] if args else kwargs[name]
        before = shaped(site, given, shapes)
        after = replace(site, before)
        if after.shape != before.shape or after.dtype != before.dtype:
            raise SubjectError(
                "a replacement has another shape or dtype than the activation",
                where=site.name,
                allowed=f"{tuple(before.shape)} {before.dtype}",
                got=f"{tuple(after.shape)} {after.dtype}",
                next_step="return a tensor like the one that was given",
            )
        after = after.reshape(given.shape)
        return ((after, *args[1:]), kwargs) if args else (args, {**kwargs, name: after})

    return hook
