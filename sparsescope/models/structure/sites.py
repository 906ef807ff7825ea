"""The places where activations can be read: their names, and the hooks that read them.

Names are those of TransformerLens 4.3. ``ROLES`` lists every role with its meaning; six of
them are ours alone (marked *). Hooks only look: they return nothing, so the forward pass stays
bit-identical, and they are removed when the ``with`` block ends in any way.

Shapes: attention sites are flat, [batch, pos, heads * head size], where TransformerLens splits heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sparsescope.errors import SubjectError
from sparsescope.models.structure.experts import expert_hidden, is_fused, is_gated, sizes, takes_routing
from sparsescope.models.structure.patterns import ALIASES
from sparsescope.models.structure.roles import (
    Block,
    Experts,
    Matrix,
    Mlp,
    experts_per_token,
    features,
    submodule,
)
from sparsescope.models.structure.visits import Visits, alone

if TYPE_CHECKING:
    import torch

    #: Called as ``callback(site, tensor, rows)`` during the forward pass.
    Callback = Callable[["Site", torch.Tensor, torch.Tensor | None], None]

ROLES = {
    "hook_in": "input of the block: the residual stream (alias hook_resid_pre)",
    "hook_out": "output of the block: the residual stream (alias hook_resid_post)",
    "attn.hook_in": "input of attention, after the norm where the block norms first",
    "attn.hook_z": "input of the output projection of attention, heads side by side",
    "attn.hook_out": "output of attention (in BERT after its residual and norm, as in TransformerLens)",
    "mlp.hook_in": "input of the MLP",
    "mlp.hook_pre": "before the activation: output of the gate matrix, or of the first matrix without a gate",
    "mlp.hook_pre_linear": "output of the other first matrix (up) of a gated MLP",
    "mlp.act.hook_out": "* output of the activation in a gated MLP, before the product",
    "mlp.hook_post": "input of the second MLP matrix: the hidden layer",
    "mlp.hook_out": "output of the MLP, also of a whole mixture of experts (without the shared expert where "
    "the block adds that, as in GraniteMoeShared)",
    "mlp.experts.hook_post": "* hidden layer of each expert, on the tokens routed to it",
    "mlp.shared_expert.hook_pre": "before the activation of the shared expert",
    "mlp.shared_expert.hook_pre_linear": "output of the up matrix of the shared expert",
    "mlp.shared_expert.act.hook_out": "* output of the activation in the shared expert",
    "mlp.shared_expert.hook_post": "hidden layer of the shared expert",
    "mlp.router.hook_out": "* scores of the router before normalization, one per expert",
    "mlp.router.hook_scores": "* scores of the router of an MLP of small experts (BlockFFN), one per expert; "
    "those above zero are used",
    "mlp.router.hook_weights": "* weights of these experts: zero where one is not used",
    "mlp.hook_expert_indices": "experts of each token, int64 [batch, pos, experts per token]; not of Llama "
    "4, whose experts get every token, times its score",
    "mlp.hook_expert_weights": "their weights, [batch, pos, experts per token]",
}

_EXACT_ZERO_ACTIVATIONS = frozenset({"relu", "relu2", "relu6"})


@dataclass(frozen=True, slots=True)
class Site:
    """One place in one layer.

    Attributes:
        name: ``blocks.3.mlp.hook_post``; experts carry their number: ``blocks.3.mlp.experts.5.hook_post``.
        layer: Block number, from 0.
        role: The name without block and expert number, a key of ``ROLES`` or an alias.
        kind: Read from the input or the output of the module, or recomputed (``experts``).
        module_path: HF path of the module that is hooked, from the model.
        width: Size of the last dimension.
        activation: Activation of the MLP (``relu``, ``gelu``, ``silu``, ...), None where it has no meaning.
        gated: Whether the MLP multiplies the activation with a second branch.
        expert: Expert number of an expert site.
        block_path: HF path of the block.
        part: Range of the last dimension that belongs to the site, None for all of it.
        argument: Which positional input of the module is read, or which of its outputs where it has several.
    """

    name: str
    layer: int
    role: str
    kind: Literal["input", "output", "experts"]
    module_path: str
    width: int
    activation: str | None = None
    gated: bool = False
    expert: int | None = None
    block_path: str = ""
    part: tuple[int, int] | None = None
    argument: int = 0


def sites_of(model: Any, blocks: Sequence[Block], d_model: int) -> tuple[Site, ...]:
    """Return every site of a model, layer by layer.

    Args:
        model: The HF model.
        blocks: Its blocks.
        d_model: Width of the residual stream.
    """
    found: list[Site] = []
    for block in blocks:
        found += _block_sites(model, block, d_model)
    return tuple(found)


def have_exact_zeros(sites: Sequence[Site]) -> bool:
    """Whether hidden units are exactly zero where they are not used, in all layers: the activation makes them
    so, or a router of small experts (BlockFFN).
    """
    routed = {site.layer for site in sites if site.role == "mlp.router.hook_weights"}
    hidden = [site for site in sites if site.role.endswith("hook_post")]
    return bool(hidden) and all(
        site.activation in _EXACT_ZERO_ACTIVATIONS or site.layer in routed for site in hidden
    )


def _block_sites(model: Any, block: Block, d_model: int) -> list[Site]:
    """Return the sites of one block."""

    def site(role: str, kind: Any, path: str, width: int, **more: Any) -> Site:
        name = f"blocks.{block.layer}.{role}"
        return Site(name, block.layer, role, kind, path, width, block_path=block.path, **more)

    kinds = {"hook_in": "input", "hook_out": "output"}
    found = [site(role, kind, block.path, d_model) for role, kind in kinds.items()]
    found += [site(alias, kinds[role], block.path, d_model) for alias, role in ALIASES.items()]
    if block.attention is not None:
        home, out = block.attention.container, block.attention.out
        found.append(site("attn.hook_in", "input", home, d_model))
        found.append(site("attn.hook_out", "output", home, d_model))
        if out is not None:
            found.append(site("attn.hook_z", "input", out.path, features(submodule(model, out.path))[1]))
    if block.mlp is not None:
        mlp = block.mlp
        found.append(site("mlp.hook_in", "input", mlp.container or mlp.into.path, d_model))
        found.append(site("mlp.hook_out", "output", mlp.container or mlp.out.path, d_model))
        found += _mlp_sites(model, mlp, "mlp.", site)
    if block.experts is not None:
        found += _expert_sites(model, block.experts, d_model, site)
    return found


def _mlp_sites(model: Any, mlp: Mlp, prefix: str, site: Callable[..., Site]) -> list[Site]:
    """Return the sites inside one dense MLP."""
    width = features(submodule(model, mlp.out.path))[1]
    facts = {"activation": mlp.activation, "gated": mlp.gate is not None}

    def output(role: str, matrix: Matrix) -> Site:
        return site(prefix + role, "output", matrix.path, width, part=matrix.part, **facts)

    found = [output("hook_pre", mlp.gate or mlp.into)]
    if mlp.gate is not None:
        found.append(output("hook_pre_linear", mlp.into))
        if mlp.activation_path is not None:
            found.append(site(f"{prefix}act.hook_out", "output", mlp.activation_path, width, **facts))
    found.append(site(f"{prefix}hook_post", "input", mlp.out.path, width, **facts))
    if mlp.router is not None:
        experts = features(submodule(model, mlp.router.scores))[0]
        found.append(site(f"{prefix}router.hook_scores", "output", mlp.router.scores, experts))
        found.append(site(f"{prefix}router.hook_weights", "output", mlp.router.weights, experts))
    return found


def _expert_sites(model: Any, experts: Experts, d_model: int, site: Callable[..., Site]) -> list[Site]:
    """Return the sites of a mixture of experts."""
    found = [
        site("mlp.hook_in", "input", experts.container, d_model),
        site("mlp.hook_out", "output", experts.container, d_model),
    ]
    if experts.shared is not None:
        found += _mlp_sites(model, experts.shared, "mlp.shared_expert.", site)
    module = submodule(model, experts.path)
    if not is_fused(module):
        return found
    n_experts, width = sizes(module)
    top_k, routing = experts_per_token(model, experts), takes_routing(module)
    if experts.router is not None:
        # The router of Llama 4 gives its scores second, after what it makes of them
        found.append(
            site("mlp.router.hook_out", "output", experts.router, n_experts, argument=0 if routing else 1)
        )
    if top_k and routing:
        found.append(site("mlp.hook_expert_indices", "input", experts.path, top_k, argument=1))
        found.append(site("mlp.hook_expert_weights", "input", experts.path, top_k, argument=2))
    facts = {"activation": experts.activation, "gated": is_gated(module)}
    every = site("mlp.experts.hook_post", "experts", experts.path, width, **facts)
    head = every.name.removesuffix("hook_post")
    found += [replace(every, name=f"{head}{expert}.hook_post", expert=expert) for expert in range(n_experts)]
    return found


@contextmanager
def attach(model: Any, sites: Sequence[Site], callback: Callback) -> Iterator[None]:
    """Read activations while the ``with`` block runs forward passes of ``model``.

    Dense sites: ``callback(site, tensor, None)`` gets the very tensor of the forward pass as
    [batch, pos, width]; it must not write to it, and must copy what it keeps. Expert sites:
    ``callback(site, tensor, rows)`` gets the hidden layer [n_routed, width] of one expert and the
    rows int64 [n_routed], ascending indices into batch * pos (padding included); an expert
    without tokens in a batch is not called.

    Other threads that use the model wait until the block ends.

    Args:
        model: The HF model that the module paths of the sites start from.
        sites: Sites to read, from ``Subject.sites``.
        callback: What to do with each tensor. Exceptions end the forward pass and reach the caller.

    Raises:
        SubjectError: A module is missing, gives a tensor of another shape than [batch, pos, width], or a
            site is not seen exactly once in a pass.
    """
    visits = Visits(model, sites)

    def register(site: Site, module: Any) -> Any:
        if site.kind == "input":
            return module.register_forward_pre_hook(_input_hook(site, visits, callback), with_kwargs=True)
        return module.register_forward_hook(_output_hook(site, visits, callback))

    def register_experts(group: list[Site], module: Any) -> Any:
        return module.register_forward_pre_hook(_experts_hook(group, visits, callback), with_kwargs=True)

    with hooked(visits, register, register_experts):
        yield


@contextmanager
def hooked(
    visits: Visits,
    register: Callable[[Site, Any], Any],
    register_experts: Callable[[list[Site], Any], Any],
) -> Iterator[None]:
    """Have hooks on the modules of sites, in one thread, and count what they see.

    Args:
        visits: The sites, and what counts them.
        register: Puts a hook for one dense site on its module and returns the handle.
        register_experts: The same for all sites of one module of experts.
    """
    dense, routed = by_module(list(visits.sites.values()))
    with alone(visits.model), ExitStack() as handles:
        for handle in visits.hooks():
            handles.callback(handle.remove)
        for site in dense:
            handles.callback(register(site, module_at(visits.model, site.module_path)).remove)
        for path, group in routed.items():
            handles.callback(register_experts(group, module_at(visits.model, path)).remove)
        yield
        visits.check()


def by_module(sites: Sequence[Site]) -> tuple[list[Site], dict[str, list[Site]]]:
    """Return the dense sites, and the expert sites of each expert module by its path."""
    dense: list[Site] = []
    routed: dict[str, list[Site]] = {}
    for site in sites:
        if site.kind == "experts":
            routed.setdefault(site.module_path, []).append(site)
        else:
            dense.append(site)
    return dense, routed


def module_at(model: Any, path: str) -> Any:
    """Return the module at ``path``, or raise when the sites belong to another model."""
    module = submodule(model, path)
    if module is None:
        raise SubjectError(
            "the model has no such module; the sites come from another model",
            where=path,
            got=type(model).__name__,
            next_step="take the sites from subject.sites(...) of this very model",
        )
    return module


def _input_hook(site: Site, visits: Visits, callback: Callback) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        visits.see(site)
        callback(site, visits.shaped(site, argument(args, kwargs, site.argument)), None)

    return hook


def _output_hook(site: Site, visits: Visits, callback: Callback) -> Callable[..., None]:
    def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
        visits.see(site)
        tensor = output[site.argument] if isinstance(output, tuple | list) else output
        callback(site, visits.shaped(site, tensor), None)

    return hook


def _experts_hook(group: list[Site], visits: Visits, callback: Callback) -> Callable[..., None]:
    by_expert = {site.expert: site for site in group if site.expert is not None}

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = argument(args, kwargs, 0)
        index = argument(args, kwargs, 1) if takes_routing(module) else None
        visits.see_experts(group, index)
        for expert, hidden, rows in expert_hidden(module, states, index, tuple(by_expert)):
            callback(by_expert[expert], hidden, rows)

    return hook


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> Any:
    """Return the input number ``index`` of a call; HF passes hidden states by position or by name first."""
    place = _place(args, kwargs, index)
    return args[place] if isinstance(place, int) else kwargs[place]


def with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: int, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the inputs of a call with another value in place of ``argument(args, kwargs, index)``."""
    place = _place(args, kwargs, index)
    if isinstance(place, int):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, {**kwargs, place: value}


def _place(args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> int | str:
    """Where the input number ``index`` stands: its position, or its name."""
    if index < len(args):
        return index
    if index == 0 and "hidden_states" in kwargs:
        return "hidden_states"
    return list(kwargs)[index - len(args)]
