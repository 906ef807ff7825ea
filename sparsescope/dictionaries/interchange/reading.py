"""What the readers share: files are opened with limits, and every fault names the file and the field or
tensor.

A tensor is taken by its name with the shape that the configuration asks for; it must be there, finite and of
that shape, and none may be left over. No pickled code runs. The file is not held: tensors are copies.

Shapes: encoder [width, d_in]; encoder_bias [width]; decoder [width, d_out]; decoder_bias [d_out];
skip_weight [d_out, d_in]; threshold, magnitude_log, magnitude_bias [width].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsescope.core.files import storage_errors
from sparsescope.core.strict_json import parse
from sparsescope.dictionaries.autoencoder import DTYPES, SparseAutoencoder
from sparsescope.errors import ArtifactError, SparsescopeError, SpecError

_AGAIN = "copy the file again, or take the one that was saved with these weights"
_LARGEST_CONFIG = 16 * 2**20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Config:
    """Fields of a configuration file.

    Attributes:
        path: The file.
        fields: What it says.
        prefix: Where in the file they are, for messages.
    """

    path: Path
    fields: Mapping[str, Any]
    prefix: str = ""

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read a JSON object.

        Raises:
            ArtifactError: It is not there, or no JSON object.
        """
        with storage_errors("read the configuration of a dictionary", path):
            size = path.stat().st_size
            data = path.read_bytes() if size <= _LARGEST_CONFIG else b""
        try:
            found = parse(data, constants=True) if data else None
        except ValueError as error:
            raise _no_object(path, str(error)) from None
        if not isinstance(found, dict):
            raise _no_object(path, f"{size} bytes" if found is None else type(found).__name__)
        return cls(path, found)

    def part(self, key: str) -> Config:
        """An object in it; an empty one where it has none of this name.

        Raises:
            ArtifactError: It is something else.
        """
        found = self.fields.get(key)
        if found is None:
            found = {}
        if not isinstance(found, dict):
            raise self.fault(key, "an object", found)
        return Config(self.path, found, f"{self.prefix}{key}.")

    def fault(
        self, key: str, allowed: str | Iterable[str], got: object, next_step: str = _AGAIN
    ) -> ArtifactError:
        """The error for a field whose value cannot be used."""
        return ArtifactError(
            f"{self.prefix}{key} of the dictionary cannot be used" if got is not None or key in self.fields
            else f"{self.prefix}{key} of the dictionary is missing",
            where=f"{self.path}, {self.prefix}{key}", allowed=allowed, got=repr(got)[:200],
            next_step=next_step,
        )  # fmt: skip

    def whole(self, key: str, least: int = 1, most: int | None = None, what: str = "") -> int:
        """A whole number in a range.

        Raises:
            ArtifactError: It is not.
        """
        value = self.fields.get(key)
        if type(value) is int and value >= least and (most is None or value <= most):
            return value
        limit = "" if most is None else f" to {most}{', ' + what if what else ''}"
        raise self.fault(key, f"a whole number from {least}{limit or ' on'}", value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            ArtifactError: It is neither.
        """
        value = self.fields.get(key)
        if value is None:
            return default
        if type(value) is bool:
            return value
        raise self.fault(key, "true or false", value)

    def choice(self, key: str, allowed: Iterable[str], default: str | None = None) -> str:
        """One of some names.

        Raises:
            ArtifactError: It is none of them.
        """
        value, allowed = self.fields.get(key), list(allowed)
        value = default if value is None else value
        if isinstance(value, str) and value in allowed:
            return value
        raise self.fault(key, allowed, value)

    def refuse_others(self, known: Iterable[str]) -> None:
        """Refuse fields that are not known: they might change what is computed. Null and false cannot.

        Raises:
            ArtifactError: There is one.
        """
        known = set(known)
        for key, value in self.fields.items():
            if key not in known and value is not None and value is not False:
                raise ArtifactError(
                    "a field of the dictionary is unknown, and it might change what is computed",
                    where=f"{self.path}, {self.prefix}{key}"[:400],
                    allowed=sorted(known),
                    got=f"{key} = {value!r}"[:200],
                    next_step="if it does not change the codes, take it out of a copy of the file, or put it "
                    "under metadata",
                )


@dataclass(slots=True)
class Weights:
    """Tensors of a file, taken one by one.

    Attributes:
        path: The file.
        tensors: Those that were not taken yet.
        names: All names of the file, for messages.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    names: str = ""

    def __post_init__(self) -> None:
        self.names = ", ".join(sorted(self.tensors))

    @classmethod
    def safetensors(cls, path: Path) -> Weights:
        """Read a safetensors file.

        Raises:
            ArtifactError: It is not there, truncated or damaged.
        """
        from safetensors.torch import load_file

        from sparsescope.core.tensor_header import read_header

        what = "the weights of the dictionary cannot be read"
        read_header(path, ArtifactError, what)
        return cls(path, _opened(path, lambda: load_file(path)))

    @classmethod
    def pickled(cls, path: Path) -> Weights:
        """Read a state dict that torch.save wrote.

        Raises:
            ArtifactError: It is not there, damaged, or holds other things than tensors.
        """
        from transformers.modeling_utils import load_state_dict  # with weights_only

        with storage_errors("read the weights of a dictionary", path):
            path.stat()
        state = _opened(path, lambda: load_state_dict(path, map_location="cpu"))
        if not isinstance(state, Mapping):
            raise _unreadable(path, f"a {type(state).__name__}")
        return cls(path, _only_tensors(path, state))

    @classmethod
    def npz(cls, path: Path) -> Weights:
        """Read an .npz file of arrays.

        Raises:
            ArtifactError: It is not there, damaged, or holds pickled objects.
        """
        import numpy as np

        def arrays() -> dict[str, torch.Tensor]:
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(file[name]) for name in file.files}

        with storage_errors("read the weights of a dictionary", path):
            path.stat()
        return cls(path, _opened(path, arrays))

    def renamed(self, names: Mapping[str, str]) -> None:
        """Give tensors other names where they have the first of a pair."""
        for old, new in names.items():
            if old in self.tensors and new not in self.tensors:
                self.tensors[new] = self.tensors.pop(old)

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor, for files whose configuration does not say it.

        Raises:
            ArtifactError: It is not there, or has another number of dimensions, or is empty.
        """
        found = tuple(self._found(name).shape)
        if len(found) != dimensions or 0 in found:
            raise self._fault(
                f"the tensor {name} has another shape", name, f"{dimensions} dimensions", list(found)
            )
        return found

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A tensor of this shape, as float32 or wider.

        Raises:
            ArtifactError: It is not there, has another shape or type, or is not finite.
        """
        tensor = self._found(name)
        if tuple(tensor.shape) != shape:
            raise self._fault(
                f"the tensor {name} has another shape", name, str(list(shape)), list(tensor.shape)
            )
        if not tensor.dtype.is_floating_point:
            raise self._fault(
                f"the tensor {name} holds no real numbers", name, ", ".join(DTYPES), tensor.dtype
            )
        del self.tensors[name]
        # The sum is finite only if each entry is; where it overflows, the entries are looked at
        if not bool(tensor.sum().isfinite()):
            bad = tensor.isnan() if name.endswith("threshold") else ~tensor.isfinite()
            if bool(bad.any()):
                raise self._fault(
                    f"the tensor {name} is NaN or infinite", name, "finite numbers",
                    f"{int(bad.sum())} of {tensor.numel()} entries, the first at {bad.nonzero()[0].tolist()}",
                )  # fmt: skip
        return tensor

    def number(self, name: str) -> float | int:
        """A tensor of one entry, as a number.

        Raises:
            ArtifactError: It is not there, or has more entries.
        """
        tensor = self._found(name)
        if tensor.numel() != 1:
            raise self._fault(f"the tensor {name} has another shape", name, "one number", list(tensor.shape))
        del self.tensors[name]
        found: float | int = tensor.item()
        return found

    def done(self) -> None:
        """Refuse tensors that were not taken.

        Raises:
            ArtifactError: There are some.
        """
        if self.tensors:
            raise ArtifactError(
                "the file has tensors that this kind of dictionary does not have",
                where=str(self.path),
                allowed="only those of its architecture",
                got=", ".join(sorted(self.tensors))[:300],
                next_step="check that configuration and weights belong together",
            )

    def _found(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise self._fault(f"the tensor {name} is missing", name, name, self.names[:300])
        return self.tensors[name]

    def _fault(self, what: str, name: str, allowed: str, got: object) -> ArtifactError:
        next_step = "check that configuration and weights belong together"
        return ArtifactError(
            what, where=f"{self.path}, {name}", allowed=allowed, got=got, next_step=next_step
        )


def dtype_named(name: object, where: str) -> torch.dtype:
    """A type of numbers by its name, also with ``torch.`` before it.

    Raises:
        SpecError: It is unknown.
    """
    found = DTYPES.get(str(name).removeprefix("torch."))
    if found is None:
        raise SpecError(
            "this type of numbers is unknown", where=where, allowed=list(DTYPES), got=repr(name)[:80],
            next_step="give one of these, or None for the type in the file",
        )  # fmt: skip
    return found


def build(
    kind: type[SparseAutoencoder],
    parts: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    *,
    k: int | None = None,
    **settings: Any,
) -> SparseAutoencoder:
    """Make a dictionary of tensors that are checked already.

    Args:
        kind: Its class.
        parts: Tensors by the names of its parameters.
        dtype: Type of its parameters.
        k: Active features of a row, for classes that have it.
        **settings: Arguments of the constructor.
    """
    (width, d_in), d_out = parts["encoder"].shape, parts["decoder"].shape[1]
    # Made with one feature: random directions of all would be drawn for nothing
    has_k = "k" in kind.settings
    if has_k:
        settings["k"] = 1
    found = kind(d_in, 1, d_out=d_out, skip="skip_weight" in parts, dtype=_NAMES[dtype], **settings)
    found.width = width
    if has_k:
        found.k = min(32, width) if k is None else k  # type: ignore[assignment]
    for name, tensor in parts.items():
        # A copy: what is mapped would change with the file
        plain = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
        setattr(found, name, torch.nn.Parameter(plain))
    return found


def _opened(path: Path, read: Any) -> Any:
    """Call what reads a file, and say what is wrong with one that cannot be read."""
    try:
        return read()
    except SparsescopeError:
        raise
    except Exception as error:  # torch, zipfile, NumPy and safetensors have errors of their own
        raise _unreadable(
            path, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        ) from error


def _only_tensors(path: Path, state: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The entries of a state dict.

    Raises:
        ArtifactError: One is no tensor.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or not isinstance(name, str):
            raise _unreadable(path, f"{name!r} is a {type(value).__name__}")
    return dict(state)


def _unreadable(path: Path, got: str) -> ArtifactError:
    return ArtifactError(
        "the weights of the dictionary cannot be read",
        where=str(path),
        allowed="tensors; no pickled code runs",
        got=got[:300],
        next_step="copy the file again; of a pickled module save its state_dict() instead",
    )


def _no_object(path: Path, got: str) -> ArtifactError:
    return ArtifactError(
        "the configuration of the dictionary cannot be read",
        where=str(path),
        allowed=f"a JSON object of at most {_LARGEST_CONFIG // 2**20} MiB",
        got=got[:200],
        next_step=_AGAIN,
    )
