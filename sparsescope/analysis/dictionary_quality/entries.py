"""What is evaluated: dictionaries that are given, each with its place in the model, and those that nobody
trained.

Shapes: rows [row, d].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsescope.dictionaries.autoencoder import SparseAutoencoder
from sparsescope.dictionaries.baselines import (
    Baseline,
    neuron_basis,
    principal_components,
    random_directions,
)
from sparsescope.dictionaries.choice import BatchTopKSAE
from sparsescope.dictionaries.jumprelu import JumpReLUSAE
from sparsescope.dictionaries.thresholds import set_thresholds
from sparsescope.errors import SparsescopeError, SpecError, SubjectError

if TYPE_CHECKING:
    import torch

    from sparsescope.dictionaries.base import Dictionary
    from sparsescope.dictionaries.given import GivenDictionary
    from sparsescope.models.structure.sites import Site
    from sparsescope.models.subject import Subject

CLOSE = 0.1
"""Numbers of active features that differ by less than this share count as equal."""
MOST_LEVELS = 4
DICTIONARY, BASELINE = "dictionary", "baseline"
HIDDEN = "blocks.*.mlp.hook_post"
#: Older names of TransformerLens, which files of other tools have.
_OLDER = {"hook_mlp_out": "mlp.hook_out", "hook_attn_out": "attn.hook_out"}


@dataclass(slots=True)
class Entry:
    """One dictionary in its place.

    Attributes:
        label: Its name in the tables, unique.
        dictionary: It.
        reads: The site that it reads.
        writes: The site that it reconstructs; another one of a transcoder.
        kind: ``DICTIONARY`` or ``BASELINE``.
        training: What its training said; empty where nothing is known.
        thresholds: Where its thresholds come from.
        level: Of a baseline, the number of active features that it was made for.
    """

    label: str
    dictionary: Dictionary
    reads: Site
    writes: Site
    kind: str = DICTIONARY
    training: dict[str, Any] = field(default_factory=dict)
    thresholds: str = "none"
    level: int = 0

    @property
    def place(self) -> tuple[str, str]:
        """What it reads and what it writes: entries of one place see the same rows."""
        return self.reads.name, self.writes.name

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers that its training said."""
        found = self.training.get("facts")
        return found if isinstance(found, dict) else {}

    @property
    def rule(self) -> str:
        """The architecture that it was trained as; several are exported as JumpReLU."""
        return str(self.facts.get("architecture") or self.dictionary.architecture)

    @property
    def sparse_autoencoder(self) -> bool:
        """Whether it has a decoder whose features can absorb each other."""
        return isinstance(self.dictionary, SparseAutoencoder) and self.reads.name == self.writes.name


def close(first: float, second: float) -> bool:
    """Whether two numbers of active features count as equal."""
    return abs(first - second) <= CLOSE * max(abs(first), abs(second))


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


def read_given(given: Sequence[GivenDictionary], subject: Subject, site: str) -> list[Entry]:
    """Read dictionaries and find their places.

    Args:
        given: The inputs.
        subject: The model.
        site: Where one is that does not say it; empty where each does.

    Raises:
        SubjectError: A site does not exist in the model or has another width.
        ArtifactError: Files are damaged.
    """
    found: list[Entry] = []
    for one in given:
        dictionary = one.load().to_inference()
        label = unique(one.label, (entry.label for entry in found), one.artifact.id)
        reads = _placed(dictionary.site or site, dictionary.d_in, label, "reads", subject)
        target = getattr(dictionary, "site_out", "") or ""
        writes = _placed(target, dictionary.d_out, label, "writes", subject) if target else reads
        if not target and dictionary.d_out != dictionary.d_in:
            raise _misplaced(label, "writes", "", dictionary.d_out, subject)
        thresholds = "as in its file" if _has_thresholds(dictionary) else "none"
        found.append(Entry(label, dictionary, reads, writes, DICTIONARY, one.training, thresholds))
    return found


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


def _has_thresholds(dictionary: Dictionary) -> bool:
    return isinstance(dictionary, BatchTopKSAE | JumpReLUSAE)


def match_l0(entries: Sequence[Entry], l0: float, rows: dict[str, torch.Tensor]) -> list[str]:
    """Set the thresholds of all that have some so that ``l0`` features are active on these rows.

    Args:
        entries: Dictionaries; those without thresholds stay.
        l0: Mean number of active features.
        rows: By site, [row, d].

    Returns:
        Labels of those whose L0 cannot be set and is another one.

    Raises:
        SpecError: The thresholds of one cannot reach it.
    """
    others = []
    for entry in entries:
        if not _has_thresholds(entry.dictionary):
            if not close(float(getattr(entry.dictionary, "k", -1)), l0):
                others.append(entry.label)
            continue
        assert isinstance(entry.dictionary, SparseAutoencoder)
        try:
            set_thresholds(entry.dictionary, rows[entry.reads.name].split(4096), l0)
        except SpecError as error:
            raise SpecError(
                error.what,
                where=f"match_l0, dictionary {entry.label}",
                allowed=error.allowed,
                got=error.got,
                next_step="choose another match_l0, or leave it out",
            ) from None
        entry.thresholds = f"set for L0 {l0:g} on other documents"
    return others


def active_features(entry: Entry, rows: torch.Tensor) -> float:
    """Mean number of active features on some rows [row, d]."""
    parts = [entry.dictionary.encode(part).active_per_row for part in rows[:4096].split(1024)]
    return float(sum(int(part.sum()) for part in parts) / max(1, sum(map(len, parts))))


def make_baselines(
    entries: Sequence[Entry], rows: dict[str, torch.Tensor], wanted: Sequence[str], seed: int
) -> list[Entry]:
    """What nobody trained, with as many active features as the dictionaries of its site have.

    Args:
        entries: The dictionaries.
        rows: By site, [row, d], of documents that nothing is evaluated on.
        wanted: ``pca``, ``pca_topk``, ``neurons``, ``random``.
        seed: Of random directions.
    """
    out: list[Entry] = []
    for place in dict.fromkeys(entry.place for entry in entries):
        here = [entry for entry in entries if entry.place == place]
        if place[0] != place[1]:
            continue  # nothing of this kind maps one site to another
        fit, site = rows[place[0]], here[0].reads
        levels: list[tuple[int, int]] = []
        for entry in here:
            level = max(1, round(active_features(entry, fit)))
            if not any(close(level, known) for known, _ in levels) and len(levels) < MOST_LEVELS:
                levels.append((level, entry.dictionary.width))
        components = principal_components(fit, site=site.name, seed=seed) if _pca(wanted, fit) else None
        for level, width in levels:
            for name in wanted:
                made = _baseline(name, fit, level, width, seed, site.name, components)
                if made is None:
                    continue
                label = unique(made[0], (e.label for e in (*entries, *out)), f"layer {site.layer}", site.name)
                out.append(Entry(label, made[1], site, site, BASELINE, {}, "none", level))
    return out


def _pca(wanted: Sequence[str], rows: torch.Tensor) -> bool:
    return len(rows) > 1 and bool({"pca", "pca_topk"} & {*wanted})


def _baseline(
    name: str, rows: torch.Tensor, level: int, width: int, seed: int, site: str, components: Baseline | None
) -> tuple[str, Dictionary] | None:
    """One of them with its label; None where rows are too few or too narrow for it."""
    if level > rows.shape[1] or len(rows) < 2:
        return None
    if name == "neurons":
        return f"Neurons, largest {level}", neuron_basis(rows, level, site=site)
    if name == "random":
        width = max(width, 4 * level)  # about half of the projections are positive
        return f"Random, largest {level}", random_directions(rows, width, level, seed=seed, site=site)
    if components is None or components.basis is None or level > components.width:
        return None
    if name == "pca":  # the first ones, on every row
        first = Baseline("pca", components.mean, components.basis[:level], k=None, site=site)
        return f"PCA, first {level}", first
    largest = Baseline("pca_topk", components.mean, components.basis, k=level, site=site)
    return f"PCA, largest {level}", largest
