"""What is evaluated: dictionaries that are given, each with its place in the model, and those that nobody
trained.

Shapes: rows [row, d].
"""

from __future__ import annotations

from collections.abc import Sequence
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
from sparsescope.dictionaries.places import place_given, unique
from sparsescope.dictionaries.thresholds import set_thresholds
from sparsescope.errors import SpecError

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
    return [
        Entry(
            one.label,
            one.dictionary,
            one.reads,
            one.writes,
            DICTIONARY,
            one.training,
            "as in its file" if _has_thresholds(one.dictionary) else "none",
        )
        for one in place_given(given, subject, site)
    ]


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
