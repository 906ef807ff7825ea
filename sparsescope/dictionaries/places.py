"""Where in a model a dictionary belongs: the site that it reads, and the one that it writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SparsescopeError, SpecError, SubjectError

if TYPE_CHECKING:
    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.dictionaries.given import GivenDictionary
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

HIDDEN = "blocks.*.mlp.hook_post"
#: Older names of TransformerLens, which files of other tools have.
_OLDER = {"hook_mlp_out": "mlp.hook_out", "hook_attn_out": "attn.hook_out"}


@dataclass(frozen=True, slots=True)
class Placed:
    """A dictionary in its place.

    Attributes:
        label: A name for tables, unique among those that were given together.
        dictionary: It, with the rule that is exported.
        reads: The site that it reads.
        writes: The site that it reconstructs; another one of a transcoder.
        training: What its training said; empty where nothing is known.
    """

    label: str
    dictionary: Dictionary
    reads: Site
    writes: Site
    training: dict[str, Any]


def place_given(given: Sequence[GivenDictionary], subject: Subject, site: str) -> list[Placed]:
    """Read dictionaries and find their places.

    Args:
        given: The inputs.
        subject: The model.
        site: Where one is that does not say it; empty where each does.

    Raises:
        SubjectError: A site does not exist in the model or has another width.
        ArtifactError: Files are damaged.
    """
    found: list[Placed] = []
    for one in given:
        dictionary = one.load().to_inference()
        label = unique(one.label, (entry.label for entry in found), one.artifact.id)
        reads = _placed(dictionary.site or site, dictionary.d_in, label, "reads", subject)
        target = getattr(dictionary, "site_out", "") or ""
        writes = _placed(target, dictionary.d_out, label, "writes", subject) if target else reads
        if not target and dictionary.d_out != dictionary.d_in:
            raise _misplaced(label, "writes", "", dictionary.d_out, subject)
        found.append(Placed(label, dictionary, reads, writes, one.training))
    return found


def unique(label: str, taken: Iterable[str], *more: str) -> str:
    """A label that is not taken: with what else tells it apart in brackets, or a number."""
    taken = set(taken)
    for extra in ("", *(f" ({part})" for part in more if part)):
        if label + extra not in taken:
            return label + extra
    number = 2
    while f"{label} ({number})" in taken:
        number += 1
    return f"{label} ({number})"


def default_site(subject: Subject) -> Site:
    """The hidden layer of an MLP in the middle of the model; where no layer has a dense one, the output of
    the middle block.
    """
    try:
        hidden = subject.sites(HIDDEN)
    except SubjectError:  # mixtures of experts in some layers
        numbers = range(subject.n_layers)
        hidden = tuple(site for n in numbers for site in _hidden_of(subject, n))
    if hidden:
        return hidden[len(hidden) // 2]
    return subject.sites(f"blocks.{subject.n_layers // 2}.hook_out")[0]


def _hidden_of(subject: Subject, layer: int) -> tuple[Site, ...]:
    try:
        return subject.sites(HIDDEN.replace("*", str(layer)))
    except SubjectError:
        return ()


def site_named(subject: Subject, name: str) -> Site:
    """The site of this name, or the default one where the name is empty; raises as ``one_site``."""
    return one_site(subject, name) if name else default_site(subject)


def one_site(subject: Subject, name: str) -> Site:
    """The site of this name.

    Raises:
        SpecError: The name matches several sites, or is that of an expert.
        SubjectError: It matches none.
    """
    found = subject.sites(name)
    if len(found) != 1 or found[0].kind == "experts":
        raise SpecError(
            "dictionaries are of one site that every token has",
            where="site",
            allowed="a name such as blocks.3.mlp.hook_post, without *",
            got=f"{name}: {len(found)} sites" if len(found) != 1 else f"{name}, a site of an expert",
            next_step=f"see the sites: sparsescope doctor {subject.id}",
        )
    return found[0]


def _placed(name: str, width: int, label: str, verb: str, subject: Subject) -> Site:
    """The site of this name, of this width."""
    block, _, role = name.rpartition(".")
    try:
        sites = subject.sites(f"{block}.{_OLDER[role]}" if role in _OLDER else name) if name else ()
    except SparsescopeError:
        sites = ()
    if len(sites) != 1 or sites[0].width != width or sites[0].kind == "experts":
        raise _misplaced(label, verb, name, width, subject, sites)
    return sites[0]


def _misplaced(
    label: str, verb: str, name: str, width: int, subject: Subject, sites: Sequence[Site] = ()
) -> SubjectError:
    """The error for a dictionary that has no place in the model."""
    fitting = dict.fromkeys(
        site.name.replace(f"blocks.{site.layer}.", "blocks.*.")
        for site in subject.sites("blocks.*.*")
        if site.width == width and site.kind != "experts"
    )
    if not name:
        what = f"it is not known which site this dictionary {verb}"
    elif len(sites) == 1:
        what = f"the site that this dictionary {verb} has another width in this model"
    else:
        what = f"this model has no such site as this dictionary {verb}"
    got = f"{name or 'no site'}, dictionary of width {width}"
    return SubjectError(
        what,
        where=f"dictionary {label}, {subject.id}",
        allowed=f"sites of width {width}: {', '.join(fitting)}" if fitting else f"no site has width {width}",
        got=got + (f", site of width {sites[0].width}" if len(sites) == 1 else ""),
        next_step="name it (--set site=...)"
        if not name and fitting
        else "give the model that it was trained on",
    )
