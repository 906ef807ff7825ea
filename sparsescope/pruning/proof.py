"""Proof that a folder, or a model, has the zeros that its masks say: count, pattern, weights, files.

Each proof says what was looked at and what was seen; one that does not hold names the first matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_path, sha256_file
from sparsescope.core.proofs import Proof
from sparsescope.core.sealed import FILE
from sparsescope.errors import SparsescopeError, SpecError
from sparsescope.pruning.masks import FACTS, MaskSet
from sparsescope.pruning.patterns import read_pattern
from sparsescope.pruning.zeros import ZeroChange, breaks, by_role, compare, slack

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

_SHOWN = 4


def has_masks(folder: Path) -> bool:
    """Whether a folder says that it has masks beside its model."""
    return (folder / FACTS).is_file()


def prove(masks: MaskSet, changes: Sequence[ZeroChange]) -> tuple[Proof, ...]:
    """Prove count, pattern and zeros of a model.

    Args:
        masks: The masks.
        changes: What ``compare`` says of the model and them.
    """
    return _count(masks), _pattern(masks), _zeros(changes)


def prove_folder(folder: str | Path) -> tuple[Proof, ...]:
    """Prove everything of a folder that ``save_pruned`` wrote: files, masks, count, pattern, zeros.

    Args:
        folder: The folder.

    Raises:
        ArtifactError: It has no masks.
    """
    home = given_path(folder, "folder of a pruned model")
    if not has_masks(home):
        MaskSet.load(home)  # says that there are none
    try:
        masks = MaskSet.load(home)
    except SparsescopeError as error:
        return (Proof("masks", False, error.message()),)
    found = [
        Proof("masks", True, f"{len(masks)} matrices, {masks.weights:,} weights, {masks.bytes:,} bytes"),
        _files(home, masks),
    ]
    try:
        changes = compare(_loaded(home), masks)
    except SparsescopeError as error:
        return (*found, Proof("model", False, error.message()))
    return (*found, *prove(masks, changes))


def facts_of(masks: MaskSet, key: str) -> Mapping[str, Any]:
    """A group of what made the masks, empty where a file says something else."""
    group = masks.facts.get(key) if isinstance(masks.facts, Mapping) else None
    return group if isinstance(group, Mapping) else {}


def lost_by_role(changes: Sequence[ZeroChange]) -> str:
    """Say by role in how many matrices zeros were lost: ``attn.q 30 of 30, attn.v 30 of 30``."""
    lost = {change.name for change in changes if change.lost}
    parts = [
        (role, sum(name in lost for name in names), len(names))
        for role, names in by_role([change.name for change in changes]).items()
    ]
    return ", ".join(f"{role} {count} of {total}" for role, count, total in parts if count)


def _loaded(home: Path) -> Subject:
    """The model of a folder in the precision in which it is stored, so that no number changes."""
    from sparsescope.models.catalog import DTYPES
    from sparsescope.models.formats.folder import check_layout
    from sparsescope.models.sources import load

    check_layout(home)
    stored = str(facts_of(MaskSet.load(home), "saved").get("dtype"))
    return load(home, dtype=stored if stored in DTYPES else "float32")


def _count(masks: MaskSet) -> Proof:
    """Whether as many weights go as was asked for."""
    pruned = masks.weights - masks.kept
    seen = (
        f"{pruned:,} of {masks.weights:,} weights in scope are removed: sparsity "
        f"{100 * masks.sparsity:.2f} %, density {100 * (1 - masks.sparsity):.2f} %"
    )
    facts = masks.facts if isinstance(masks.facts, Mapping) else {}
    recorded = facts_of(masks, "saved").get("pruned", pruned)
    if recorded != pruned:
        return Proof("count", False, f"{seen}, but {recorded:,} when it was saved")
    asked = facts.get("sparsity")
    if isinstance(asked, bool) or not isinstance(asked, int | float):
        return Proof("count", True, seen)
    try:
        room = slack(masks, read_pattern(facts.get("pattern")))
    except SpecError as error:
        return Proof("count", False, error.message())
    ok = abs(pruned - asked * masks.weights) <= room
    return Proof("count", ok, f"{seen}, {'as asked' if ok else 'not as asked'} ({100 * asked:g} %)")


def _pattern(masks: MaskSet) -> Proof:
    """Whether the masks keep to their pattern."""
    facts = masks.facts if isinstance(masks.facts, Mapping) else {}
    try:
        pattern = read_pattern(facts.get("pattern"))
    except SpecError as error:
        return Proof("pattern", False, error.message())
    if pattern is None:
        return Proof("pattern", True, "none: single weights were removed")
    broken = {name: count for name, mask in masks.masks.items() if (count := breaks(mask, pattern))}
    if broken:
        first = ", ".join(f"{name} ({count:,})" for name, count in list(broken.items())[:_SHOWN])
        return Proof(
            "pattern",
            False,
            f"{pattern.text} does not hold in {len(broken)} of {len(masks)} matrices: {first}",
        )
    return Proof("pattern", True, f"{pattern.text} holds in every matrix")


def _zeros(changes: Sequence[ZeroChange]) -> Proof:
    """Whether every removed weight is zero."""
    lost = [change for change in changes if change.lost]
    pruned = sum(change.pruned for change in changes)
    extra = sum(change.kept_zeros for change in changes)
    if not lost:
        more = f"; {extra:,} weights that the masks keep are zero too" if extra else ""
        return Proof("zeros", True, f"all {pruned:,} removed weights are zero{more}")
    return Proof(
        "zeros",
        False,
        f"{sum(change.lost for change in lost):,} of {pruned:,} removed weights are not zero, in {len(lost)} "
        f"of {len(changes)} matrices; zeros in scope {total_text(changes)}",
    )


def total_text(changes: Sequence[ZeroChange]) -> str:
    """The share of zeros over all matrices, then and now: ``40.0 % -> 32.7 %``."""
    weights = sum(change.weights for change in changes)
    whole = ZeroChange(
        "",
        weights,
        sum(change.pruned for change in changes),
        sum(change.lost for change in changes),
        sum(change.kept_zeros for change in changes),
    )
    return whole.text


def _files(home: Path, masks: MaskSet) -> Proof:
    """Whether every file is as it was saved."""
    files = facts_of(masks, "saved").get("files")
    if not isinstance(files, Mapping) or not files:
        return Proof("files", True, f"{FACTS} has no checksums, so that only the masks tell")
    faults = [fault for name, entry in files.items() if (fault := _fault(home, str(name), entry))]
    if faults:
        shown = "; ".join(faults[:_SHOWN]) + (" ..." if len(faults) > _SHOWN else "")
        return Proof(
            "files", False, f"{len(faults)} of {len(files)} files are not as they were saved: {shown}"
        )
    return Proof("files", True, f"{len(files)} files with the sizes and checksums of {FACTS}")


def _fault(home: Path, name: str, entry: Any) -> str:
    """What is wrong with a file; empty where nothing is."""
    path = home / name
    if not FILE.fullmatch(name) or not isinstance(entry, Mapping):
        return f"{name[:60]!r} is no file of this folder"
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != entry.get("bytes"):
        return f"{name} has {path.stat().st_size:,} bytes, not {entry.get('bytes')}"
    return "" if sha256_file(path) == entry.get("sha256") else f"{name} has another checksum"
