"""Read the masks of other tools: torch.nn.utils.prune, compressed-tensors, files of masks, plain zeros.

Formats. torch.nn.utils.prune: ``NAME_orig`` and ``NAME_mask`` in a module or a state dict. compressed-tensors
(``sparse-bitmask``, ``sparse-24-bitmask``): ``NAME.compressed``, ``NAME.bitmask`` (uint8, each row packed by
itself, least significant bit first) and ``NAME.shape`` in safetensors. ``.npz`` or ``.safetensors`` of masks
by name of module or parameter, true (or 1) where a weight stays. Names are those of HF modules and become
ours through ``Subject.parameter_sites``; nothing is left out unsaid. No pickled code runs.
Shapes: masks as stored, then [out, in] as in our names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsescope.core.files import given_path
from sparsescope.errors import SparsescopeError, SpecError
from sparsescope.pruning.masks import FACTS, MASKS, MaskSet, PackedMask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparsescope.models.structure.parameters import ParameterSite
    from sparsescope.models.subject import Subject

_ALLOWED = (
    "a module or state dict pruned with torch.nn.utils.prune, its .pt or .safetensors file, a folder of "
    "compressed-tensors, an .npz or .safetensors file of masks by module, a folder of `sparsescope prune`, "
    "or a pruned model"
)
# What wrappers put into names
_WRAPPERS = re.compile(r"(?:^module\.|_orig_mod\.|_fsdp_wrapped_module\.)")
# How single experts are named where a model keeps them in one tensor
_EXPERTS = {"gate": ("gate_proj", "w1"), "in": ("up_proj", "w3"), "out": ("down_proj", "w2")}
_SHOWN = 3


@dataclass(slots=True)
class _Found:
    """Masks by the name of their parameter, as they are stored: ``model.layers.0.mlp.down_proj.weight``."""

    format: str
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


def read_masks(source: Any, subject: Subject | None = None) -> MaskSet:
    """Read masks that others made.

    Args:
        source: A file, a folder, a state dict, a ``torch.nn.Module`` with the hooks of torch.nn.utils.prune,
            or a subject, whose zeros are taken as its mask.
        subject: The model that they are of; without it masks keep names and orientation of the source.

    Returns:
        The masks by our names, and notes on what was left out.

    Raises:
        SpecError: There are no masks in it, they are of another model, or are no masks.
        SubjectError: The model has no zeros.

    Example:
        >>> import torch
        >>> from torch.nn.utils import prune
        >>> layer = prune.l1_unstructured(torch.nn.Linear(4, 4), "weight", amount=0.5)
        >>> read_masks(layer)
        MaskSet(1 matrices, 16 weights, sparsity 0.5000)
    """
    from sparsescope.models.subject import Subject as Model

    if isinstance(source, Model):
        return _plain_zeros(source)
    if isinstance(source, str | Path):
        path = given_path(source, "masks")
        if (path / FACTS).is_file():
            return MaskSet.load(path)
        if path.name == MASKS and (path.parent / FACTS).is_file():
            return MaskSet.load(path.parent)
        found, name = _of_path(path), path.name
    elif hasattr(source, "state_dict") and hasattr(source, "named_modules"):
        found, name = _of_state(source.state_dict(), type(source).__name__), type(source).__name__
    elif isinstance(source, Mapping):
        found, name = _of_state(source, "the state dict"), "a state dict"
    else:
        raise _unknown(type(source).__name__, "it is neither a path nor a model nor a state dict")
    facts = {"format": found.format, "read_from": name}
    if subject is None:
        flat = {key: mask for key, mask in found.masks.items() if mask.ndim == 2}
        left = [key for key in found.masks if key not in flat]
        if not flat:
            raise _unknown(name, "no mask in it is that of a matrix")
        masks = {key: PackedMask.of(mask) for key, mask in flat.items()}
        return MaskSet(masks, facts, tuple(_left_out(left)))
    masks, left = _by_site(subject, found, name)
    return MaskSet(masks, facts, tuple(_left_out(left)))


def _plain_zeros(subject: Subject) -> MaskSet:
    """Take the zeros of a model as its mask."""
    from sparsescope.pruning.scope import choose
    from sparsescope.pruning.zeros import NOTABLE, no_zeros

    scope = choose(subject, "blocks")
    masks = {site.name: PackedMask.of(subject.parameter(site) != 0) for site in scope.matrices}
    found = MaskSet(masks, {"format": "plain zeros", "read_from": subject.id, "scope": scope.text})
    if found.kept == found.weights:
        raise no_zeros(subject.id)
    notes = []
    if found.sparsity < NOTABLE:
        notes.append(
            f"only {100 * found.sparsity:.3g} % of the weights are zero, which rounding alone can give: this "
            "model does not look pruned"
        )
    return MaskSet(masks, found.facts, tuple(notes))


def _of_path(path: Path) -> _Found:
    """Read a file or a folder."""
    if not path.exists():
        raise SpecError(
            "there is no such file or folder",
            where="masks",
            allowed=_ALLOWED,
            got=str(path),
            next_step="check the path",
        )
    if path.is_dir():
        state: dict[str, Any] = {}
        for file in sorted(path.glob("*.safetensors")):
            state |= _read(file, _marked)
        if not state:
            raise _unknown(
                str(path),
                "a folder whose safetensors files hold no masks",
                "load a pruned model and give it instead of its folder: read_masks(sparsescope.load(FOLDER))",
            )
        return _of_state(state, str(path))
    if path.suffix == ".npz":
        return _of_arrays(_read(path, _npz), str(path))
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin"):
        return _of_state(_read(path, _safetensors if path.suffix == ".safetensors" else _pickled), str(path))
    raise _unknown(str(path), f"a file that ends with {path.suffix or 'nothing'}")


def _read(path: Path, how: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Read a file, and say what is wrong with one that cannot be read."""
    try:
        return how(path)
    except SparsescopeError:
        raise
    except Exception as error:  # torch, zipfile, NumPy and safetensors have errors of their own
        raise SpecError(
            "the file of masks cannot be read",
            where=str(path),
            allowed="tensors; no pickled code runs",
            got=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300],
            next_step="copy the file again; of a pickled module save its state_dict() instead",
        ) from error


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _marked(path: Path) -> dict[str, Any]:
    """The masks of a safetensors file with what belongs to them; the weights beside them are not read."""
    from safetensors import safe_open

    from sparsescope.core.tensor_header import read_header

    names = list(read_header(path, SpecError))
    stems = [name.removesuffix("bitmask") for name in names if name.endswith("bitmask")]
    packed = [f"{stem}{part}" for stem in stems for part in ("bitmask", "shape", "compressed")]
    pruned = [name for name in names if name.endswith("_mask") and f"{name[:-5]}_orig" in names]
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in {*packed, *pruned} & set(names)}


def _safetensors(path: Path) -> dict[str, Any]:
    """The masks of a safetensors file; all its tensors where they are nothing else."""
    from safetensors.torch import load_file

    from sparsescope.core.tensor_header import read_header

    if found := _marked(path):
        return found
    for name, entry in read_header(path, SpecError).items():
        if entry.dtype not in ("BOOL", "U8", "I8"):
            raise _unknown(str(path), f"{name} is {entry.dtype} {list(entry.shape)}: weights, not masks")
    return load_file(path)


def _pickled(path: Path) -> dict[str, Any]:
    from transformers.modeling_utils import load_state_dict  # with weights_only

    state = load_state_dict(path, map_location="cpu")
    if not isinstance(state, Mapping):
        raise _unknown(str(path), f"a {type(state).__name__}")
    for key in ("state_dict", "model", "module"):
        if isinstance(state.get(key), Mapping):
            return dict(state[key])
    return dict(state)


def _of_state(state: Mapping[str, Any], name: str) -> _Found:
    """Find masks among tensors by name."""
    import torch

    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if any(key.endswith("bitmask") for key in tensors):
        return _Found("compressed-tensors", dict(_bitmasks(tensors)))
    pruned = [key for key in tensors if key.endswith("_mask") and f"{key[:-5]}_orig" in tensors]
    pruned = pruned or [key for key in tensors if key.endswith("_mask")]
    if pruned:
        masks = {key.removesuffix("_mask"): _as_mask(tensors[key].cpu().numpy(), key) for key in pruned}
        return _Found("torch.nn.utils.prune", masks)
    arrays = {}
    for key, value in tensors.items():
        if value.ndim < 2 or value.dtype not in (torch.bool, torch.uint8, torch.int8):
            raise _unknown(name, f"{key} is {value.dtype} {list(value.shape)}: weights, not masks")
        arrays[key] = value.cpu().numpy()
    return _of_arrays(arrays, name)


def _of_arrays(arrays: Mapping[str, Any], name: str) -> _Found:
    """Masks by name of a module or of its weight."""
    if not arrays:
        raise _unknown(name, "there is no tensor in it")
    masks = {}
    for key, array in arrays.items():
        plain = key.removesuffix(".mask")
        masks[plain if plain.endswith("weight") or array.ndim == 3 else f"{plain}.weight"] = _as_mask(
            array, key
        )
    return _Found("masks by module", masks)


def _as_mask(array: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Return a mask as bool.

    Raises:
        SpecError: It holds something else than 0 and 1.
    """
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "uif" or not bool(((array == 0) | (array == 1)).all()):
        raise SpecError(
            "a mask holds other values than 0 and 1",
            where=name,
            allowed="true or 1 where a weight stays, false or 0 where it goes",
            got=f"{array.dtype} {list(array.shape)}",
            next_step="give masks, not weights or scores",
        )
    return array != 0


def _bitmasks(tensors: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Unpack the bitmasks of compressed-tensors, which are ``NAME.weight.bitmask`` or ``NAME.bitmask``."""
    for key, packed in tensors.items():
        if not key.endswith("bitmask"):
            continue
        stem = key.removesuffix("bitmask")
        shape, values = tensors.get(f"{stem}shape"), tensors.get(f"{stem}compressed")
        rows, columns = (int(length) for length in shape) if shape is not None and len(shape) == 2 else (0, 0)
        bits = packed.cpu().numpy()
        if bits.dtype != np.uint8 or bits.shape != (rows, -(-columns // 8)) or not rows:
            raise SpecError(
                "a bitmask does not fit its shape",
                where=key,
                allowed=f"uint8 [{rows}, {-(-columns // 8)}], one row of bits for each row of {stem}shape",
                got=f"{bits.dtype} {list(bits.shape)}",
                next_step="copy the checkpoint again",
            )
        mask = np.unpackbits(bits, axis=1, count=columns, bitorder="little").astype(bool)
        if values is not None and values.numel() != int(mask.sum()):
            raise SpecError(
                "a bitmask keeps another number of weights than are stored",
                where=key,
                allowed=f"{values.numel():,} weights, as in {stem}compressed",
                got=f"{int(mask.sum()):,}",
                next_step="copy the checkpoint again",
            )
        plain = stem.rstrip(".")
        yield plain if plain.endswith("weight") else f"{plain}.weight", mask


def _by_site(subject: Subject, found: _Found, name: str) -> tuple[dict[str, PackedMask], list[str]]:
    """Give masks our names; also those that have no place in the blocks.

    Raises:
        SpecError: None fits, or one has another shape than its parameter.
    """
    prefix = f"{subject.model.base_model_prefix}."
    by_name = {_WRAPPERS.sub("", key): key for key in found.masks}
    masks: dict[str, PackedMask] = {}
    used: set[str] = set()
    for site in subject.parameter_sites("weight:blocks.*.*"):
        for candidate, whole in _candidates(site):
            forms = (candidate, prefix + candidate, candidate.removeprefix(prefix))
            key = next((by_name[form] for form in forms if form in by_name), None)
            if key is not None:
                masks[site.name] = PackedMask.of(_cut(found.masks[key], site, whole, key))
                used.add(key)
                break
    if not masks:
        site = subject.parameter_sites("weight:blocks.*.*")[0]
        raise SpecError(
            "the masks are of another model: none of their names is that of a matrix of this one",
            where=f"{name}, for {subject.id}",
            allowed=f"for example {site.module_path}.{site.parameter}",
            got=", ".join(list(found.masks)[:_SHOWN]),
            next_step="give the model that was pruned",
        )
    return masks, [key for key in found.masks if key not in used]


def _candidates(site: ParameterSite) -> Iterator[tuple[str, bool]]:
    """Names that the parameter of a matrix may have, and whether that is the whole parameter, of which the
    matrix is a part.
    """
    yield f"{site.module_path}.{site.parameter}", True
    if site.expert is not None:
        key = site.role.removesuffix(".weight").rpartition(".")[2]
        for part in _EXPERTS.get(key, ()):
            yield f"{site.module_path}.{site.expert}.{part}.weight", False


def _cut(mask: NDArray[np.bool_], site: ParameterSite, whole: bool, key: str) -> NDArray[np.bool_]:
    """The part of a mask that belongs to a matrix, [out, in]; as ``parameters.read`` cuts weights."""
    part = mask
    if whole:
        if site.expert is not None:
            part = part[site.expert] if part.ndim == 3 and len(part) > site.expert else part
        if site.transposed and part.ndim == 2:
            part = part.T
        if site.rows is not None:
            part = part[slice(*site.rows)]
    if part.shape != tuple(site.shape):
        raise SpecError(
            "a mask has another shape than its parameter",
            where=f"{key}, for {site.name}",
            allowed=f"{site.shape[0]} x {site.shape[1]}" + (", transposed" if site.transposed else ""),
            got=" x ".join(map(str, mask.shape)),
            next_step="give the masks of this model, or another model",
        )
    return part


def _left_out(names: list[str]) -> Iterator[str]:
    """Say which masks have no place among our matrices."""
    if names:
        yield (
            f"{len(names)} masks were left out, being no matrices of attention or MLP: "
            f"{', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
        )


def _unknown(where: str, got: str, next_step: str = "see: help(sparsescope.pruning.read_masks)") -> SpecError:
    return SpecError(
        "there are no masks that could be read", where=where, allowed=_ALLOWED, got=got, next_step=next_step
    )
