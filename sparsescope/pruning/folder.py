"""A pruned model as a plain model folder, with packed masks and what made them beside it.

The folder is what ``save_pretrained`` of transformers writes, with zeros as numbers: everything that loads
such folders loads it, and it is as large as before. It is built under a hidden name, read back as a user
would load it, compared with the model in memory bit for bit and with the masks weight for weight, and only
then renamed.
Shapes: matrices [out, in].
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsescope.core.files import given_path, sha256_file, sync_path
from sparsescope.core.publish import remove_strays, temporary_path
from sparsescope.errors import ArtifactError, SpecError, SubjectError
from sparsescope.pruning.masks import FACTS, MASKS, MaskSet
from sparsescope.pruning.patterns import NM, read_pattern
from sparsescope.pruning.zeros import by_role, change_of, matched

if TYPE_CHECKING:
    import torch

    from sparsescope.models.entries import LoadedModel
    from sparsescope.models.subject import Subject

_PACKAGES = ("sparsescope", "torch", "transformers", "safetensors", "numpy")
_OPTION = "--output"


@dataclass(frozen=True, slots=True)
class RoleZeros:
    """The matrices of one role: how many, their weights, how many of these were removed, and the lowest and
    highest share of one matrix.
    """

    role: str
    matrices: int
    weights: int
    pruned: int
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class SavedFolder:
    """A pruned model on the disk, as it was read back.

    Attributes:
        folder: Where it is.
        dtype: Precision in which the weights are stored.
        scope_weights: Weights of the matrices that have a mask.
        pruned: Those that were removed; each is zero on the disk.
        kept_zeros: Weights that the masks keep and that are zero all the same, as quantization leaves them.
        parameters: Parameters of the model, tied ones once.
        zeros: Those that are zero.
        bytes_weights: Size of the files with the weights: that of the dense model.
        bytes_zeros: Bytes in them that hold a zero.
        bytes_masks: Size of the packed masks.
        bytes_packed: What the weights would take in the packed form, which is not written.
        packed_form: What the packed form is, in words.
        roles: The matrices by role.
    """

    folder: Path
    dtype: str
    scope_weights: int
    pruned: int
    kept_zeros: int
    parameters: int
    zeros: int
    bytes_weights: int
    bytes_zeros: int
    bytes_masks: int
    bytes_packed: int
    packed_form: str
    roles: tuple[RoleZeros, ...] = ()

    @property
    def scope_sparsity(self) -> float:
        """Share of the weights in scope that were removed."""
        return self.pruned / self.scope_weights

    @property
    def sparsity(self) -> float:
        """Share of all parameters that are zero."""
        return self.zeros / self.parameters

    @property
    def bytes_sparsity(self) -> float:
        """Share of the bytes of the weights that hold zeros."""
        return self.bytes_zeros / self.bytes_weights

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        shares = {
            "scope_sparsity": self.scope_sparsity,
            "sparsity": self.sparsity,
            "bytes_sparsity": self.bytes_sparsity,
        }
        return {**asdict(self), "folder": str(self.folder), **shares}


def save_pruned(subject: Subject, masks: MaskSet, folder: str | Path, command: str = "") -> SavedFolder:
    """Write a pruned model as a plain model folder, with its masks.

    Args:
        subject: The pruned model. It is as before afterwards.
        masks: Its masks; every weight that they remove must be zero.
        folder: Where to; it must not exist, or be empty.
        command: The command that made it, for the record.

    Returns:
        What was written, as it was read back.

    Raises:
        SpecError: The folder is not empty, a removed weight is not zero, or the masks are of another model.
        SubjectError: Plain transformers could not load what would be written.
        ArtifactError: The disk refuses, or what was read back is another model; nothing is left behind.

    Example:
        >>> from sparsescope.models.sources import load
        >>> from sparsescope.pruning import prune
        >>> saved = save_pruned(*prune(load("random-llama"), sparsity=0.5), "tiny-pruned")  # doctest: +SKIP
        >>> load("tiny-pruned")  # doctest: +SKIP
    """
    target = check_target(folder)
    check_savable(subject, target)
    if not len(masks):
        raise SpecError("there are no masks to save", where="save_pruned(masks)", allowed="one or more")
    kept_zeros = _check_zeros(subject, masks)
    counts = _counts(subject, masks)
    with _saving(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_strays(target.parent)
        temporary = temporary_path(target.parent, f"pruned-{target.name[:60]}")
    try:
        with _saving(target):
            temporary.mkdir()
            _write_model(subject, temporary)
        _read_back(subject, masks, temporary)
        with _saving(target):
            saved = _measure(subject, masks, temporary, target, kept_zeros, counts)
            masks.save(temporary)
            masks = MaskSet(masks.masks, _facts(subject, masks, temporary, saved, command), masks.notes)
            masks.save(temporary)  # now with the checksum of the first writing
            readable = (temporary / FACTS).stat().st_mode  # safetensors writes files for their owner alone
            for path in temporary.rglob("*"):
                if path.is_file():
                    path.chmod(readable)
                sync_path(path)
            sync_path(temporary)
            temporary.rename(target)
            sync_path(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return saved


def check_target(folder: str | Path) -> Path:
    """Return the folder that a pruned model may be written to.

    Raises:
        SpecError: It is there and not empty, or cannot be made.
    """
    if not str(folder).strip():
        raise SpecError("the folder of the pruned model has no name", where=_OPTION, allowed="a path")
    target = given_path(folder, _OPTION)
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir()):
        raise SpecError(
            "there is a file of this name, and a pruned model is a folder",
            where=str(target),
            allowed="a folder that is not there yet, or is empty",
            next_step="give another folder",
        )
    if held := _held(target):
        raise SpecError(
            "the folder is not empty, and nothing is written over",
            where=str(target),
            allowed="a folder that is not there yet, or is empty",
            got=f"{', '.join(held[:3])}{' ...' if len(held) > 3 else ''}",
            next_step="give another folder, or delete this one first",
        )
    above = _existing(target.absolute().parent)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise SpecError(
            "the folder cannot be made there",
            where=str(target),
            allowed="a path in a folder that you can write to",
            got=f"{above} is {'not writable' if above.is_dir() else 'no folder'}",
            next_step="give another folder",
        )
    return target


def check_savable(subject: Subject, target: Path) -> None:
    """Refuse a model that could not be loaded from a plain folder, and a disk that is too small for it.

    Raises:
        SubjectError: It has no tokenizer, or its class is not one of transformers.
        ArtifactError: There is no room.
    """
    import transformers

    kind = type(subject.model)
    if getattr(transformers, kind.__name__, None) is not kind and not subject.trust_remote_code:
        raise SubjectError(
            "plain transformers could not load this model from a folder",
            where=f"{subject.id} ({kind.__name__})",
            allowed="classes of transformers",
            got=f"{kind.__module__}.{kind.__name__}",
            next_step="use prune() of sparsescope.pruning, which keeps the pruned model in memory",
        )
    if subject.tokenizer is None:
        raise SubjectError(
            "a model without tokenizer cannot be saved as a folder that is a subject again",
            where=subject.id,
            allowed="a model with its tokenizer",
            next_step="give both: sparsescope.wrap(model, tokenizer)",
        )
    sizes = {id(p): p.numel() * p.element_size() for p in subject.model.parameters()}
    needed = sum(sizes.values()) * 17 // 16 + sum(p.numel() for p in subject.model.parameters()) // 8
    free = shutil.disk_usage(_existing(target.absolute().parent)).free
    if free < needed:
        raise ArtifactError(
            "there is not enough room for the pruned model",
            where=str(target),
            allowed=f"{needed / 1e6:,.0f} MB",
            got=f"{free / 1e6:,.0f} MB are free",
            next_step="free space, or give a folder on another disk",
        )


def weight_files(folder: Path) -> list[Path]:
    """Files of a folder that hold the weights."""
    return sorted(path for path in folder.glob("*.safetensors") if path.name != MASKS)


def read_back(folder: Path, dtype: str, trust_remote_code: bool = False) -> LoadedModel:
    """Load a folder as every verb does, on the CPU."""
    from sparsescope.models.entries import LoadRequest
    from sparsescope.models.formats.folder import load_folder

    return load_folder(LoadRequest(str(folder), dtype=dtype, trust_remote_code=trust_remote_code))


def _held(folder: Path) -> list[str]:
    """Names of what a folder holds; none where it is not there."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SpecError(
            "the folder cannot be looked into",
            where=str(folder),
            got=str(error),
            next_step="give another folder",
        ) from error


def _existing(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _check_zeros(subject: Subject, masks: MaskSet) -> int:
    """Refuse masks that remove weights which are not zero; count the kept ones that are."""
    kept_zeros, faults, lost = 0, [], 0
    for site, mask in matched(subject, masks):
        change = change_of(mask, subject.parameter(site), site.name)
        kept_zeros += change.kept_zeros
        if change.lost:
            faults.append(site.name)
            lost += change.lost
    if faults:
        raise SpecError(
            "weights that the masks remove are not zero in this model",
            where=f"{subject.id}, first: {faults[0]}",
            got=f"{lost:,} weights in {len(faults)} of {len(masks)} matrices",
            next_step="set them to zero first, on a copy of the model: masks.apply(subject.copy())",
        )
    return kept_zeros


def _counts(subject: Subject, masks: MaskSet) -> tuple[int, int]:
    """Parameters, tied ones once, and how many of them are zero."""
    total = zeros = 0
    for parameter in subject.model.parameters():
        total += parameter.numel()
        zeros += int((parameter == 0).sum())
    return total, zeros


@contextmanager
def _saving(target: Path) -> Iterator[None]:
    """Say what the disk refused."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            "the pruned model cannot be saved",
            where=str(target),
            got=f"{type(error).__name__}: {error}"[:300],
            next_step="free space, or give a folder that you can write to",
        ) from error


def _write_model(subject: Subject, folder: Path) -> None:
    """Write model and tokenizer as transformers does; it notes class and precision in the configuration of
    the model, which is put back.
    """
    from sparsescope.models.torch_environment import quiet_transformers

    config = vars(subject.model.config)
    before = dict(config)
    try:
        with quiet_transformers():
            subject.model.save_pretrained(folder)
            subject.tokenizer.save_pretrained(folder)
    finally:
        config.clear()
        config.update(before)


def _read_back(subject: Subject, masks: MaskSet, folder: Path) -> None:
    """Load what was written, and compare it with the model in memory and with the masks.

    Raises:
        ArtifactError: A bit differs.
        SubjectError: It cannot be loaded.
    """
    from sparsescope.models.identity import named_tensors, weight_hash
    from sparsescope.models.structure.parameters import read
    from sparsescope.models.torch_environment import dtype_name

    loaded = read_back(folder, subject.dtype, subject.trust_remote_code).model
    for site, mask in matched(subject, masks):
        change = change_of(mask, read(loaded, site), site.name)
        if change.lost:
            raise _differs(folder, site.name, f"{change.lost:,} removed weights are not zero")
    if weight_hash(loaded) == subject.identity.weight_hash:
        return
    found = {name: tensor.detach().cpu() for name, tensor in named_tensors(loaded)}
    for name, tensor in named_tensors(subject.model):
        other = found.get(name)
        if other is None:
            raise _differs(folder, name, "it is missing")
        if other.dtype != tensor.dtype:
            kinds = f"{dtype_name(tensor.dtype)} in memory, {dtype_name(other.dtype)} when it is loaded"
            raise _differs(folder, name, f"{kinds}: bring all weights to one precision first")
        if not _equal(tensor.detach().cpu(), other):
            raise _differs(folder, name, "other numbers")
    raise _differs(folder, next(iter(found.keys()), ""), "more weights than in memory")


def _equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and bool((first == second).all())


def _differs(folder: Path, name: str, got: str) -> ArtifactError:
    return ArtifactError(
        "what plain transformers reads back is not the pruned model, so that it was not kept",
        where=name,
        got=got,
        next_step="report this with the name of the model",
    )


def _measure(
    subject: Subject,
    masks: MaskSet,
    folder: Path,
    target: Path,
    kept_zeros: int,
    counts: tuple[int, int],
) -> SavedFolder:
    """Count what is on the disk, tensor by tensor, from the files themselves."""
    from safetensors import safe_open

    size = zero_bytes = 0
    for path in weight_files(folder):
        size += path.stat().st_size
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no dict and cannot be iterated)
                tensor = file.get_tensor(name)
                zero_bytes += int((tensor == 0).sum()) * tensor.element_size()
    packed, form = _packed(subject, masks, size)
    return SavedFolder(
        folder=target,
        dtype=subject.dtype,
        scope_weights=masks.weights,
        pruned=masks.weights - masks.kept,
        kept_zeros=kept_zeros,
        parameters=counts[0],
        zeros=counts[1],
        bytes_weights=size,
        bytes_zeros=zero_bytes,
        bytes_masks=masks.bytes,
        bytes_packed=packed,
        packed_form=form,
        roles=_roles(masks),
    )


def _packed(subject: Subject, masks: MaskSet, size: int) -> tuple[int, str]:
    """What the weights would take where only kept ones are stored, and how their places are told."""
    pattern = read_pattern(masks.facts.get("pattern"))
    inner = math.ceil(math.log2(pattern.group)) if isinstance(pattern, NM) else 0
    for site, mask in matched(subject, masks):
        width = subject.parameter(site).element_size()
        size -= mask.weights * width
        if isinstance(pattern, NM):
            slots = mask.weights // pattern.group * pattern.keep
            size += slots * width + math.ceil(slots * inner / 8)
        else:
            size += mask.kept * width + mask.bits.nbytes
    if isinstance(pattern, NM):
        return size, f"{pattern.keep} of {pattern.group} weights and {inner} bits for the place of each"
    return size, "the weights that stay, and one bit for every weight that says which these are"


def _roles(masks: MaskSet) -> tuple[RoleZeros, ...]:
    found = []
    for role, names in by_role(list(masks)).items():
        group = [masks[name] for name in names]
        weights, shares = sum(mask.weights for mask in group), [mask.sparsity for mask in group]
        pruned = weights - sum(mask.kept for mask in group)
        found.append(RoleZeros(role, len(group), weights, pruned, min(shares), max(shares)))
    return tuple(found)


def _facts(
    subject: Subject, masks: MaskSet, folder: Path, saved: SavedFolder, command: str
) -> dict[str, Any]:
    """What made the folder, and what is in it, for ``sparsity.json``."""
    from sparsescope.core.environment import environment

    installed = environment()
    parent = masks.facts.get("parent")
    if parent is None and subject.variant is not None:
        parent = {
            **subject.variant.parent.model_dump(mode="json"),
            "origin_precision": subject.origin_precision,
        }
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != FACTS
    )
    numbers = {key: value for key, value in saved.as_dict().items() if key not in ("folder", "roles")}
    return {
        **masks.facts,
        "parent": parent or {"origin_precision": subject.origin_precision},
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": installed["python"],
            **{name: installed["packages"][name] for name in _PACKAGES if name in installed["packages"]},
        },
        "saved": {
            **numbers,
            "weight_hash": subject.identity.weight_hash,
            "config_hash": subject.identity.config_hash,
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
                for name in names
            },
        },
    }
