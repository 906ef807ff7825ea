"""Zeros of a model, matrix by matrix: how many, whether an N:M pattern holds, and which of a mask were lost.

``describe`` needs no masks. ``compare`` says of every matrix what a mask removed and what is zero now:
training without the mask, or an adapter that is merged (W + B A), fills zeros, as in a public report where
40 % became 32.7 %. Negative zero counts as zero. Shapes: matrices [out, in].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SpecError, SubjectError, near_matches
from sparsescope.pruning.masks import MaskSet, PackedMask
from sparsescope.pruning.patterns import NM, Blocks, Pattern, Rows

if TYPE_CHECKING:
    import torch

    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

#: Patterns that are looked for. Each implies those after it, so that the first that holds says all.
PATTERNS = (NM(keep=1, group=4), NM(keep=2, group=4), NM(keep=4, group=8), NM(keep=8, group=16))
#: Share of zeros from which a matrix is worth a word: rounding alone gives fewer.
NOTABLE = 0.01
_EVERY = "weight:blocks.*.*"


@dataclass(frozen=True, slots=True)
class MatrixZeros:
    """The zeros of one matrix.

    Attributes:
        name: ``weight:blocks.0.mlp.out.weight``.
        weights: Weights of the matrix.
        zeros: Those that are zero.
        compliance: Share of the groups of each N:M pattern with at most N weights that are not zero; patterns
            whose group does not divide the inputs are left out.
    """

    name: str
    weights: int
    zeros: int
    compliance: Mapping[str, float] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """Its role, ``mlp.out``."""
        return role_of(self.name)

    @property
    def share(self) -> float:
        """Share of zeros."""
        return self.zeros / self.weights


@dataclass(frozen=True, slots=True)
class Zeros:
    """The zeros of the matrices of a model, or of a mask set.

    Attributes:
        name: What they are of.
        matrices: Each matrix.
    """

    name: str
    matrices: tuple[MatrixZeros, ...]

    @property
    def weights(self) -> int:
        """Weights of all matrices."""
        return sum(row.weights for row in self.matrices)

    @property
    def zeros(self) -> int:
        """Zeros of all matrices."""
        return sum(row.zeros for row in self.matrices)

    @property
    def share(self) -> float:
        """Share of zeros."""
        return self.zeros / self.weights if self.weights else 0.0

    @property
    def notable(self) -> tuple[MatrixZeros, ...]:
        """Matrices with more than 1 % of zeros."""
        return tuple(row for row in self.matrices if row.share > NOTABLE)

    @property
    def pattern(self) -> str:
        """The strictest N:M pattern that holds in every matrix with zeros; empty where none does."""
        rows = [row for row in self.matrices if row.zeros]
        held = (p.text for p in PATTERNS if rows and all(row.compliance.get(p.text) == 1 for row in rows))
        return next(held, "")

    def compliance(self, pattern: NM) -> tuple[float, float] | None:
        """Share of all groups in which a pattern holds, and the share where zeros stand independently.

        Args:
            pattern: One of ``PATTERNS``.

        Returns:
            Both, or None where its groups divide no matrix.
        """
        rows = [row for row in self.matrices if pattern.text in row.compliance]
        total = sum(row.weights for row in rows)
        if not total:
            return None
        found = sum(row.weights * row.compliance[pattern.text] for row in rows) / total
        return found, sum(row.weights * by_chance(pattern, row.share) for row in rows) / total

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = {pattern.text: self.compliance(pattern) for pattern in PATTERNS}
        return {
            "name": self.name,
            "weights": self.weights,
            "zeros": self.zeros,
            "share": self.share,
            "pattern": self.pattern,
            "compliance": {
                name: {"share": pair[0], "by_chance": pair[1]} for name, pair in found.items() if pair
            },
            "matrices": [
                {
                    "name": row.name,
                    "weights": row.weights,
                    "zeros": row.zeros,
                    "share": row.share,
                    "compliance": dict(row.compliance),
                }
                for row in self.matrices
            ],
        }


@dataclass(frozen=True, slots=True)
class ZeroChange:
    """What became of the zeros of one matrix.

    Attributes:
        name: The matrix.
        weights: Its weights.
        pruned: Those that the mask removed.
        lost: Removed weights that are not zero now.
        kept_zeros: Kept weights that are zero now.
    """

    name: str
    weights: int
    pruned: int
    lost: int
    kept_zeros: int

    @property
    def then(self) -> float:
        """Share of zeros that the mask says."""
        return self.pruned / self.weights

    @property
    def now(self) -> float:
        """Share of zeros."""
        return (self.pruned - self.lost + self.kept_zeros) / self.weights

    @property
    def text(self) -> str:
        """Both: ``40.0 % -> 32.7 %``."""
        return f"{100 * self.then:.1f} % -> {100 * self.now:.1f} %"


def describe(source: Subject | MaskSet) -> Zeros:
    """Count the zeros of every matrix of attention and MLP, experts included; of a mask set, what goes.

    Args:
        source: A model, or masks.

    Raises:
        SubjectError: The model has no such matrix.
    """
    if isinstance(source, MaskSet):
        masks = ((name, mask.tensor()) for name, mask in source.masks.items())
        return Zeros("masks", tuple(_zeros_of(name, matrix) for name, matrix in masks))
    from sparsescope.pruning.scope import choose

    sites = choose(source, "blocks").matrices
    return Zeros(source.id, tuple(_zeros_of(site.name, source.parameter(site)) for site in sites))


def compare(source: Subject | str | Path, masks: MaskSet) -> tuple[ZeroChange, ...]:
    """Say of every matrix of a mask set what was removed and what is zero now.

    Args:
        source: The model as it is now, or its folder.
        masks: What was removed.

    Returns:
        One row for each matrix, in the order of the masks.

    Raises:
        SpecError: The masks are not those of a model of this shape.
        SubjectError: The folder cannot be loaded.
    """
    if isinstance(source, str | Path):
        from sparsescope.models.sources import load

        source = load(source)
    return tuple(change_of(mask, source.parameter(site), site.name) for site, mask in matched(source, masks))


def change_of(mask: PackedMask, matrix: torch.Tensor, name: str) -> ZeroChange:
    """Compare one matrix [out, in] with its mask."""
    zero, gone = (matrix == 0).cpu(), ~mask.tensor()
    lost = int((gone & ~zero).sum())
    return ZeroChange(name, mask.weights, mask.weights - mask.kept, lost, int((zero & ~gone).sum()))


def matched(subject: Subject, masks: MaskSet) -> Iterator[tuple[ParameterSite, PackedMask]]:
    """Yield each mask with its matrix in a model.

    Raises:
        SpecError: A mask has no matrix of its name and shape.
    """
    sites = {site.name: site for site in subject.parameter_sites(_EVERY)}
    for name, mask in masks.masks.items():
        site = sites.get(name)
        if site is None:
            near = near_matches(name, sites, limit=1)
            raise SpecError(
                "the masks are of another model: it has no matrix of this name",
                where=subject.id,
                allowed=f"for example {near[0] if near else next(iter(sites), 'no matrix')}",
                got=name,
                next_step="give the masks of this model, or another model",
            )
        if tuple(site.shape) != mask.shape:
            raise SpecError(
                "a mask has another shape than its matrix",
                where=f"{subject.id}, {name}",
                allowed=f"{site.shape[0]} x {site.shape[1]}",
                got=f"{mask.shape[0]} x {mask.shape[1]}",
                next_step="give the masks of this model, or another model",
            )
        yield site, mask


def breaks(mask: PackedMask, pattern: Pattern) -> int:
    """Count the groups, rows or tiles of a mask that do not keep to a pattern.

    Args:
        mask: The mask.
        pattern: N:M: at most N of a group stay; rows and blocks stay or go as a whole.
    """
    keep = mask.array()
    out, into = mask.shape
    if isinstance(pattern, NM):
        if into % pattern.group:
            return out
        return int((keep.reshape(out, -1, pattern.group).sum(-1) > pattern.keep).sum())
    tile = (1, into) if isinstance(pattern, Rows) else (pattern.out, pattern.into)
    if out % tile[0] or into % tile[1]:
        return out
    tiles = keep.reshape(out // tile[0], tile[0], into // tile[1], tile[1])
    stay = tiles.sum((1, 3))
    return int(((stay > 0) & (stay < math.prod(tile))).sum())


def slack(masks: MaskSet, pattern: Pattern | None) -> int:
    """How many weights the count of a mask set may be off what was asked for: rounding, or a part of a row or
    tile, in every matrix.
    """
    if isinstance(pattern, Rows):
        return sum(mask.shape[1] for mask in masks.masks.values())
    return len(masks) * (pattern.out * pattern.into if isinstance(pattern, Blocks) else 1)


def by_chance(pattern: NM, share: float) -> float:
    """Share of groups in which a pattern holds where each weight is zero with this probability by itself.

    Example:
        >>> by_chance(NM(keep=2, group=4), 0.5)
        0.6875
    """
    size = pattern.group
    return sum(
        math.comb(size, kept) * (1 - share) ** kept * share ** (size - kept)
        for kept in range(pattern.keep + 1)
    )


def role_of(name: str) -> str:
    """Return the role in the name of a matrix, ``mlp.experts.out`` of
    ``weight:blocks.0.mlp.experts.3.out.weight``.
    """
    parts = name.removeprefix("weight:").removesuffix(".weight").split(".")
    if parts[0] == "blocks" and len(parts) > 2:
        parts = parts[2:]
    return ".".join(part for part in parts if not part.isdigit())


def by_role(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of matrices by role, in their order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(role_of(name), []).append(name)
    return found


def _zeros_of(name: str, matrix: torch.Tensor) -> MatrixZeros:
    from sparsescope.pruning.selection import compliance

    held = {
        pattern.text: compliance(matrix, pattern)
        for pattern in PATTERNS
        if matrix.shape[-1] % pattern.group == 0
    }
    return MatrixZeros(name, matrix.numel(), int((matrix == 0).sum()), held)


def no_zeros(name: str) -> SubjectError:
    """The error of a model without zeros where zeros are read as a mask."""
    return SubjectError(
        "no weight of this model is zero, so that there is no mask to read",
        where=name,
        next_step="give a pruned model, or the file that holds its masks",
    )
