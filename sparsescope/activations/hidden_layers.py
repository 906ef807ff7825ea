"""The hidden layers that a measure of hidden units reads: of dense MLPs, or of experts on routed tokens.

A mixture has no ``blocks.*.mlp.hook_post``: its hidden units are those of experts, of a shared expert and of
the layers that are dense. A measure whose sites are ``HIDDEN`` by default takes them in the form that each
layer has, so that its parameters, which name stored runs, are the same for all models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

#: The hidden layer of every MLP.
HIDDEN = "blocks.*.mlp.hook_post"


def hidden_or_named(subject: Subject, patterns: str | Sequence[str]) -> tuple[Site, ...]:
    """Return the sites that patterns name; for ``HIDDEN``, of a mixture, its hidden layers as they are.

    Raises:
        SubjectError: A pattern matches nothing.
    """
    if patterns == HIDDEN and "mlp_hidden" not in subject.capabilities:
        return subject.hidden_sites()
    return subject.sites(patterns)


def experts_by_layer(sites: Iterable[Site]) -> dict[int, tuple[Site, ...]]:
    """Return the sites of experts of each layer that has any, by number of the expert."""
    found: dict[int, list[Site]] = {}
    for site in sites:
        if site.kind == "experts":
            found.setdefault(site.layer, []).append(site)
    return {layer: tuple(sorted(group, key=lambda s: s.expert or 0)) for layer, group in found.items()}
