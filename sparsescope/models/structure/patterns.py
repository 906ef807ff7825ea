"""Site patterns such as ``blocks.*.mlp.hook_post`` and the errors for those that match nothing.

``blocks.LAYER.ROLE``: LAYER is ``*``, a number, or an inclusive range ``2-5``; ROLE is a role
(``mlp.hook_post``) in which ``*`` stands for any characters. A pattern that matches no site is
an error, never an empty result. Parameters take the same patterns after ``weight:``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from sparsescope.errors import SpecError, SubjectError, near_matches

WEIGHT_PREFIX = "weight:"
_PATTERN = re.compile(r"blocks\.(?P<layers>[^.]+)\.(?P<role>.+)")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
#: The roles that a sparse layer lacks, because TransformerLens gives their names to the block there.
DENSE_ONLY = ("mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear", "mlp.act.hook_out")
#: Second names of TransformerLens: a wildcard does not match them, or a site would be taken twice.
ALIASES = {"hook_resid_pre": "hook_in", "hook_resid_post": "hook_out"}


class Named(Protocol):
    """What a pattern selects: a site or a parameter."""

    @property
    def name(self) -> str:
        """Full name, with block and expert number."""
        ...

    @property
    def layer(self) -> int:
        """Block number, from 0."""
        ...

    @property
    def role(self) -> str:
        """Name without block and expert number."""
        ...

    @property
    def expert(self) -> int | None:
        """Expert number, or None."""
        ...


Item = TypeVar("Item", bound=Named)


def select(
    items: Sequence[Item], patterns: str | Sequence[str], n_layers: int, sparse_layers: Sequence[int] = ()
) -> tuple[Item, ...]:
    """Return the items that the patterns name, each once, by layer, then role, then expert.

    Args:
        items: All items of the subject.
        patterns: One pattern or several.
        n_layers: Number of blocks.
        sparse_layers: The layers whose MLP is a mixture of experts.

    Raises:
        SpecError: No pattern, or one that is not text.
        SubjectError: A pattern matches nothing, or asks a sparse layer for a dense role.
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    listed = list(patterns) if isinstance(patterns, Sequence) else []
    if not listed or not all(isinstance(pattern, str) for pattern in listed):
        raise SpecError(
            "sites are given as one pattern or a list of patterns",
            where="sites",
            allowed="for example blocks.*.mlp.hook_post",
            got=repr(patterns),
            next_step="`subject.site_names()` lists every site",
        )
    chosen: dict[str, Item] = {}
    for pattern in listed:
        for item in _matches(items, pattern, n_layers, tuple(sparse_layers)):
            chosen[item.name] = item

    def order(item: Item) -> tuple[int, str, int]:
        return item.layer, item.role, -1 if item.expert is None else item.expert

    return tuple(sorted(chosen.values(), key=order))


def _matches(items: Sequence[Item], pattern: str, n_layers: int, sparse: tuple[int, ...]) -> list[Item]:
    """Return the items of one pattern, at least one."""
    prefix = WEIGHT_PREFIX if items and items[0].name.startswith(WEIGHT_PREFIX) else ""
    if pattern.startswith(WEIGHT_PREFIX) and not prefix:
        raise SubjectError(
            "this names parameters, not activations",
            where="sites",
            got=repr(pattern),
            next_step="use subject.parameter_sites(...) or subject.parameter(...)",
        )
    match = _PATTERN.fullmatch(pattern.removeprefix(prefix))
    if match is None or (prefix and not pattern.startswith(prefix)):
        raise _no_match(items, pattern, n_layers, prefix)
    layers = _layers(match["layers"], pattern, n_layers)
    role = match["role"]
    if role in DENSE_ONLY and not prefix:
        sparse_here = [layer for layer in layers if layer in sparse]
        if sparse_here:
            raise _dense_role_on_sparse_layer(items, pattern, role, sparse_here, n_layers)
    found = [item for item in items if item.layer in layers and _role_matches(item, role, prefix)]
    if not found:
        raise _no_match(items, pattern, n_layers, prefix)
    return found


def _role_matches(item: Named, role: str, prefix: str) -> bool:
    """Tell whether the role part of a pattern names an item, with or without its expert number."""
    if item.role in ALIASES:
        return item.role == role
    own = item.name.removeprefix(f"{prefix}blocks.{item.layer}.")
    return fnmatchcase(item.role, role) or fnmatchcase(own, role)


def _layers(text: str, pattern: str, n_layers: int) -> range:
    """Read the layer part of a pattern.

    Raises:
        SubjectError: It is not a layer of this model.
    """
    if text == "*":
        return range(n_layers)
    match = _RANGE.fullmatch(text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < n_layers:
            return range(first, last + 1)
    raise SubjectError(
        "the pattern names layers that the model does not have",
        where=repr(pattern),
        allowed=f"* or a layer 0..{n_layers - 1} or a range such as 0-{n_layers - 1}",
        got=repr(text),
        next_step="count layers from 0",
    )


def _dense_role_on_sparse_layer(
    items: Sequence[Named], pattern: str, role: str, sparse: list[int], n_layers: int
) -> SubjectError:
    """Build the error for ``mlp.hook_post`` and its kin on mixture-of-experts layers."""
    dense = sorted({item.layer for item in items if item.role == role})
    roles = {item.role for item in items}
    offers = []
    if "mlp.experts.hook_post" in roles:
        offers.append("blocks.*.mlp.experts.hook_post (hidden layer of each expert, on its tokens)")
    if "mlp.shared_expert.hook_post" in roles:
        offers.append("blocks.*.mlp.shared_expert.hook_post")
    offers.append("blocks.*.mlp.hook_out (output of the whole block)")
    if dense:
        offers.append(f"on the dense layers: {', '.join(f'blocks.{layer}.{role}' for layer in dense)}")
    which = "all layers are" if len(sparse) == n_layers else f"layers {', '.join(map(str, sparse))} are"
    return SubjectError(
        f"{role} does not exist on mixture-of-experts layers (TransformerLens gives that name to the block)",
        where=repr(pattern),
        allowed="; ".join(offers),
        got=f"{which} mixtures of experts",
        next_step="choose one of the sites above, or give several as a list",
    )


def _no_match(items: Sequence[Named], pattern: str, n_layers: int, prefix: str) -> SubjectError:
    """Build the error for a pattern that matches nothing."""
    roles = sorted({item.role for item in items})
    candidates = [f"{prefix}blocks.*.{role}" for role in roles]
    near = near_matches(re.sub(r"blocks\.[^.]+\.", "blocks.*.", pattern, count=1), candidates)
    hint = f"did you mean {' or '.join(near)}?" if near else "`subject.site_names()` lists every site"
    listing = "subject.parameter_sites" if prefix else "subject.sites"
    return SubjectError(
        f"no {'parameter' if prefix else 'site'} matches the pattern",
        where=f"{listing}({pattern!r})",
        allowed=candidates,
        got=f"{pattern!r} on a model of {n_layers} layers",
        next_step=hint,
    )
