"""The header of a safetensors file, read with limits before the file is mapped.

A header is JSON of a stated length: name, dtype, shape and byte range of every tensor. Everything in it is
checked against the file (format of huggingface/safetensors): the length, the depth, that ranges lie in
the file, follow one another and agree with dtype and shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsescope.core.strict_json import parse
from sparsescope.errors import ArtifactError, SparsescopeError

HEADER_LIMIT = 100 * 1024 * 1024
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a file: dtype as the format spells it, shape, byte range after the header."""

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(
    path: Path,
    error: type[SparsescopeError] = ArtifactError,
    what: str = "the header of a tensor file is not valid",
) -> dict[str, TensorHeader]:
    """Read and check the header of a safetensors file.

    Args:
        path: The file.
        error: Class of the exception.
        what: Its first sentence.

    Returns:
        The tensors by name.

    Raises:
        SparsescopeError: Of the class ``error``: the file cannot be read, is too short, or its
            header is not valid.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:

            def span(begin: int, end: int) -> bytes:
                handle.seek(begin)
                return handle.read(end - begin)

            return header_of(span, size, str(path), error, what)
    except OSError as problem:
        said = f"{type(problem).__name__}: {problem.strerror}"
        raise _refusal(error, what, str(path), "a readable file", said) from problem


def header_of(
    span: Callable[[int, int], bytes],
    size: int,
    where: str,
    error: type[SparsescopeError] = ArtifactError,
    what: str = "the header of a tensor file is not valid",
) -> dict[str, TensorHeader]:
    """The same of a file that need not be here: no more than its header is read.

    Args:
        span: Gives the bytes from one place up to another.
        size: Bytes of the file.
        where: Its name in messages.
        error: Class of the exception.
        what: Its first sentence.

    Raises:
        SparsescopeError: As of ``read_header``.
    """
    refuse = partial(_refusal, error, what, where)
    length = int.from_bytes(span(0, 8), "little") if size >= 8 else 0
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise refuse(
            f"2 to {max(min(HEADER_LIMIT, size - 8), 2)} bytes", f"{length} bytes in a file of {size}"
        )
    raw = span(8, 8 + length)
    try:
        entries = parse(raw)
    except ValueError as problem:
        raise refuse("JSON", str(problem)) from None
    if not isinstance(entries, dict):
        raise refuse("a JSON object", type(entries).__name__)
    found = {name: _entry(entry) for name, entry in entries.items() if name != "__metadata__"}
    broken = next((name for name, entry in found.items() if entry is None), None)
    if broken is not None:
        raise refuse(
            "dtype, shape and data_offsets that agree, for every tensor",
            f"tensor {broken!r}: {entries[broken]!r}",
        )
    known = {name: entry for name, entry in found.items() if entry is not None}
    at = 0
    for begin, end in sorted(entry.span for entry in known.values()):
        if begin != at:
            raise refuse("byte ranges that follow one another", f"{begin} after {at}")
        at = end
    if at != size - 8 - length:
        raise refuse(f"{at} bytes of data", f"{size - 8 - length} bytes of data")
    return known


def _refusal(
    error: type[SparsescopeError], what: str, where: str, allowed: str, got: str
) -> SparsescopeError:
    next_step = "the file is truncated or damaged: copy or make it again"
    return error(what, where=where, allowed=allowed, got=got[:160], next_step=next_step)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a safetensors file, read-only: what is not indexed is not read.

    Raises:
        ArtifactError: If the file is not valid, or has a type that numpy lacks (``BF16``).
    """
    header = read_header(path)
    odd = sorted({entry.dtype for entry in header.values()} - set(_NUMPY))
    if odd:
        raise ArtifactError(
            "a tensor has a type that numpy lacks", where=str(path), allowed=_NUMPY, got=", ".join(odd)
        )
    mapped = np.memmap(path, np.uint8, mode="r")
    start = mapped.size - max((entry.span[1] for entry in header.values()), default=0)
    found = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry.span)
        found[name] = mapped[begin:end].view(_NUMPY[entry.dtype]).reshape(entry.shape)
    return found


def _entry(entry: Any) -> TensorHeader | None:
    """One tensor, None where its description is not valid."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    lists = isinstance(shape, list) and isinstance(span, list) and len(span) == 2 and len(shape) <= 32
    if not lists or not isinstance(dtype, str) or dtype not in _BITS:
        return None
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, *span)):
        return None
    if math.prod(shape) * _BITS[dtype] != 8 * (span[1] - span[0]):
        return None
    return TensorHeader(dtype, tuple(shape), (span[0], span[1]))
