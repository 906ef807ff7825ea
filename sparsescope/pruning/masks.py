"""Which weights of a model stay: packed masks with what made them.

One bit for each weight, in the order of the matrix (out, in), most significant first. In a folder they are
``sparsity.masks`` (safetensors, uint8, one tensor for each matrix) beside ``sparsity.json``; the name does
not end as files of weights do, which some loaders read all of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.core.files import given_path
from sparsescope.core.shown import Shown
from sparsescope.core.strict_json import parse
from sparsescope.errors import ArtifactError, SpecError, unknown_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

MASKS = "sparsity.masks"
FACTS = "sparsity.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class PackedMask:
    """The mask of one matrix.

    Attributes:
        shape: (out, in).
        bits: uint8, ``numpy.packbits`` of the mask, True where a weight stays.
    """

    shape: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, keep: Any) -> PackedMask:
        """Pack a mask, bool [out, in], of torch or numpy."""
        array = np.asarray(keep.cpu().numpy() if hasattr(keep, "cpu") else keep, bool)
        return cls((int(array.shape[0]), int(array.shape[1])), np.packbits(array.reshape(-1)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedMask):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.bits, other.bits))

    def __hash__(self) -> int:
        return hash((self.shape, self.bits.tobytes()))

    @property
    def weights(self) -> int:
        """Weights of the matrix."""
        return self.shape[0] * self.shape[1]

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return int(np.bitwise_count(self.bits).sum())  # the bits after the last are zero

    @property
    def sparsity(self) -> float:
        """Share of weights that go."""
        return 1 - self.kept / self.weights if self.weights else 0.0

    def array(self) -> NDArray[np.bool_]:
        """The mask, bool [out, in]."""
        return np.unpackbits(self.bits, count=self.weights).astype(bool).reshape(self.shape)

    def tensor(self) -> torch.Tensor:
        """The mask as a tensor, bool [out, in]."""
        import torch

        return torch.from_numpy(self.array())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskSet(Shown):
    """The masks of a model, and what made them.

    Attributes:
        masks: By name of the matrix, ``weight:blocks.0.mlp.out.weight``.
        facts: Criterion, sparsity, pattern, allocation, scope, calibration, parent; JSON values.
        notes: What a reader has to know, in sentences.
    """

    masks: Mapping[str, PackedMask]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[str]:
        return iter(self.masks)

    def __getitem__(self, name: str) -> PackedMask:
        if name not in self.masks:
            raise unknown_name(
                "matrix of this mask set", name, self.masks, next_step="list(masks) has them", error=SpecError
            )
        return self.masks[name]

    def _shown(self) -> dict[str, object]:
        return {"matrices": len(self), "weights": self.weights, "sparsity": self.sparsity}

    @property
    def weights(self) -> int:
        """Weights in scope."""
        return sum(mask.weights for mask in self.masks.values())

    @property
    def kept(self) -> int:
        """Weights that stay."""
        return sum(mask.kept for mask in self.masks.values())

    @property
    def sparsity(self) -> float:
        """Share of the weights in scope that go."""
        return 1 - self.kept / self.weights if self.weights else 0.0

    @property
    def bytes(self) -> int:
        """Size of the packed masks."""
        return sum(mask.bits.nbytes for mask in self.masks.values())

    def apply(self, subject: Subject) -> None:
        """Set the weights that go to zero, in the model of this very subject.

        Raises:
            SpecError: The matrices have other shapes.
            SubjectError: A matrix is missing, or its module applies another one.
        """
        import torch

        views = []
        for name, mask in self.masks.items():
            found = [site for site in subject.parameter_sites(name) if site.name == name]
            if not found:  # a pattern
                raise SpecError("a mask has the name of no matrix", where="MaskSet.apply", got=name[:120])
            site = found[0]
            if tuple(site.shape) != mask.shape:
                raise SpecError(
                    "a mask has another shape than its matrix",
                    where=name,
                    allowed=f"{site.shape[0]} x {site.shape[1]}",
                    got=f"{mask.shape[0]} x {mask.shape[1]}",
                )
            views.append((writable(subject, site), mask))
        with torch.no_grad():
            for view, mask in views:
                view.masked_fill_(~mask.tensor().to(view.device), 0)

    def save(self, folder: Path) -> None:
        """Write the two files into an existing folder."""
        import json

        from safetensors.numpy import save_file

        save_file({name: mask.bits for name, mask in self.masks.items()}, folder / MASKS)
        content = {
            "schema_version": SCHEMA,
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "matrices": {
                name: {"shape": list(mask.shape), "kept": mask.kept} for name, mask in self.masks.items()
            },
        }
        (folder / FACTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> MaskSet:
        """Read the masks of a folder.

        Raises:
            ArtifactError: There are none, or they are damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        home = given_path(folder, "folder of masks")
        if not (home / FACTS).is_file() or not (home / MASKS).is_file():
            raise ArtifactError(
                "the folder has no masks",
                where=str(home),
                allowed=f"{FACTS} and {MASKS}, as `sparsescope prune` writes them",
                next_step="sparsescope doctor --subject FOLDER describes zeros without masks",
            )
        try:
            content = parse((home / FACTS).read_bytes())
            if content["schema_version"] > SCHEMA:
                raise ArtifactError(
                    "the masks were written by a newer version",
                    where=str(home / FACTS),
                    allowed=f"schema up to {SCHEMA}",
                    got=content["schema_version"],
                    next_step="upgrade sparsescope",
                )
            facts, notes = content["facts"], content["notes"]
            if not isinstance(facts, dict) or not isinstance(notes, list) or not content["matrices"]:
                raise ValueError(f"{FACTS} has another form")
            bits = load_file(home / MASKS)
            masks = {}
            for name, entry in content["matrices"].items():
                out, into = entry["shape"]
                if not all(type(size) is int and size > 0 for size in (out, into)):
                    raise ValueError(f"{name}: no shape of a matrix")
                masks[name] = PackedMask((out, into), bits[name])
            for name, mask in masks.items():
                if mask.bits.dtype != np.uint8 or mask.bits.shape != (-(-mask.weights // 8),):
                    raise ValueError(f"{name}: another size than its matrix")
                if int(mask.bits[-1]) & ((1 << -mask.weights % 8) - 1):
                    raise ValueError(f"{name}: bits after its last weight")
                if mask.kept != content["matrices"][name]["kept"]:
                    raise ValueError(f"{name}: another count than {FACTS} says")
            return cls(masks, facts, tuple(map(str, notes)))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
            raise ArtifactError(
                "the masks cannot be read",
                where=str(home),
                got=f"{type(error).__name__}: {error}"[:300],
                next_step="prune the model again, or copy the folder again",
            ) from error


def writable(subject: Subject, site: ParameterSite) -> torch.Tensor:
    """Return a matrix to be written to. All experts of a mixture are checked together, once.

    Raises:
        SubjectError: Its module applies another one.
    """
    from sparsescope.models.structure.applied import check_view

    view = subject.parameter(site)
    return check_view(subject.model, site) if view.is_inference() else view


@dataclass(frozen=True, slots=True)
class Overlap:
    """How alike two masks are.

    Attributes:
        agreement: Share of weights on which they agree.
        kappa: Cohen's kappa: agreement above chance over what is left above chance; 0 for independent masks
            of these sparsities, 1 for equal ones. NaN where both keep all, or both nothing.
        pruned_jaccard: Weights that both remove / weights that one of them removes.
        jaccard_by_chance: The same of independent masks of these sparsities.
    """

    agreement: float
    kappa: float
    pruned_jaccard: float
    jaccard_by_chance: float


def overlap(first: MaskSet, second: MaskSet, names: Sequence[str] | None = None) -> Overlap:
    """Compare two mask sets; chance is taken matrix by matrix, since how much each loses is another question.

    Args:
        first: Masks.
        second: Masks of the same matrices.
        names: Matrices to compare; all when None.

    Raises:
        SpecError: They cover different matrices, matrices of different shapes, or none.
    """
    wanted = list(first if names is None else names)
    if not wanted:
        raise SpecError("there are no masks to compare", where="overlap", allowed="at least one matrix")
    if names is None and set(first) != set(second):
        raise SpecError(
            "the two mask sets cover different matrices",
            where="overlap",
            got=f"{len(set(first) ^ set(second))} matrices in one of them only",
            next_step="prune both with the same scope",
        )
    total = agree = chance = both = either = expected_both = 0.0
    for name in wanted:
        a, b = first[name], second[name]
        if a.shape != b.shape:
            raise SpecError(
                "the two masks of a matrix have different shapes",
                where=f"overlap, {name}",
                got=f"{a.shape[0]} x {a.shape[1]} and {b.shape[0]} x {b.shape[1]}",
                next_step="compare masks of one architecture",
            )
        n = a.weights
        kept_both = int(np.bitwise_count(a.bits & b.bits).sum())
        gone_a, gone_b = n - a.kept, n - b.kept
        gone_both = n - a.kept - b.kept + kept_both
        total += n
        agree += kept_both + gone_both
        chance += (a.kept * b.kept + gone_a * gone_b) / n
        both += gone_both
        either += gone_a + gone_b - gone_both
        expected_both += gone_a * gone_b / n
    gone = both + either
    return Overlap(
        agreement=agree / total,
        kappa=(agree - chance) / (total - chance) if total > chance else float("nan"),
        pruned_jaccard=both / either if either else float("nan"),
        jaccard_by_chance=expected_both / (gone - expected_both) if gone > expected_both else float("nan"),
    )
