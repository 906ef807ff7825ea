"""The header of a GGUF file, walked once with limits before the ``gguf`` package maps the file.

That package trusts the counts in the header: an array that claims 2^60 numbers keeps it busy, and its memory
growing, long after the file has ended. Here every length is compared with what is left of the file.
Source of the format: the GGUF specification of ggml (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsescope.errors import SubjectError

MOST_TENSORS = 1_000_000
MOST_KEYS = 65_536
MOST_DIMENSIONS = 8
LONGEST_NAME = 65_535
_MOST_NESTED = 4
# Type code: struct format, size.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(slots=True)
class Header:
    """What is needed of a header.

    Attributes:
        values: Value of every key: a number, a text, a list of numbers; None for others and for long ones.
        shapes: Shape of every tensor by its name, as GGUF orders dimensions: the fastest first.
        elements: Number of weights.
    """

    values: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    elements: int = 0


class _Walk:
    """A position in the file that refuses to pass its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def refuse(self, allowed: str, got: object) -> SubjectError:
        return SubjectError(
            "the GGUF file is truncated or damaged",
            where=f"{self.path}, byte {self.at}",
            allowed=allowed,
            got=got,
            next_step="copy or download the file again",
        )

    def skip(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > len(self.data) - self.at:
            raise self.refuse(
                f"at most {len(self.data) - self.at} bytes, which is the rest of the file", f"{count} bytes"
            )
        begin, self.at = self.at, self.at + count
        return self.data[begin : self.at] if count <= LONGEST_NAME else b""

    def number(self, code: str) -> int | float:
        """Return the next number."""
        found: int | float = struct.unpack("<" + code, self.skip(struct.calcsize("<" + code)))[0]
        return found

    def count(self, most: int, what: str) -> int:
        """Return the next 64-bit count."""
        found = int(self.number("Q"))
        if found > most:
            raise self.refuse(f"at most {most} {what}", found)
        return found

    def string(self) -> str:
        return self.skip(self.count(len(self.data), "bytes of text")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """Pass a value; return it when it is one of those that ``Header.values`` holds."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY and depth < _MOST_NESTED:
            inner = int(self.number("I"))
            size = struct.calcsize("<" + _SCALARS[inner]) if inner in _SCALARS else 8
            length = self.count(
                (len(self.data) - self.at) // size, "values, which fit in the rest of the file"
            )
            if inner in _SCALARS and length * size <= LONGEST_NAME:
                return list(struct.unpack(f"<{length}{_SCALARS[inner]}", self.skip(length * size)))
            if inner in _SCALARS:
                self.skip(length * size)
            else:
                for _ in range(length):
                    self.value(inner, depth + 1)
        else:
            raise self.refuse(
                f"a type of value up to {max(_SCALARS)}, nested at most {_MOST_NESTED} times", f"type {kind}"
            )
        return None


def read_header(path: Path) -> Header:
    """Walk the header.

    Args:
        path: A file that begins with the bytes ``GGUF``.

    Returns:
        Its keys and tensors.

    Raises:
        SubjectError: A count or a length does not fit the file, or the version is not one that is read.
    """
    found = Header()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(path, data)
        walk.skip(4)
        version = int(walk.number("I"))
        if version not in (2, 3):
            raise walk.refuse("version 2 or 3, little-endian", f"version {version}")
        tensors, keys = walk.count(MOST_TENSORS, "tensors"), walk.count(MOST_KEYS, "keys")
        for _ in range(keys):
            key = walk.string()
            found.values[key] = walk.value(int(walk.number("I")))
        for _ in range(tensors):
            name = walk.string()
            dimensions = int(walk.number("I"))
            if dimensions > MOST_DIMENSIONS:
                raise walk.refuse(f"at most {MOST_DIMENSIONS} dimensions", dimensions)
            shape = [int(walk.number("Q")) for _ in range(dimensions)]
            walk.skip(12)  # type and offset
            # The smallest type has less than two bits for a weight.
            if math.prod(shape) > 8 * len(data):
                raise walk.refuse("tensors that fit in the file", f"shape {shape}")
            found.shapes[name] = tuple(shape)
            found.elements += math.prod(shape)
        return found
