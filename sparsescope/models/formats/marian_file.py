"""Read the binary weight files of Marian, the translation toolkit of the Bergamot models.

Layout, all numbers little-endian: version (uint64, 1); number n of entries (uint64); n headers of four uint64
(length of the name with its final zero byte, type, rank, bytes of data); n names; n shapes (int32); length of
a padding (uint64) and the padding; the data, each entry padded to 256 bytes. Source:
``src/common/binary.cpp`` and ``src/common/types.h`` of https://github.com/marian-nmt/marian-dev.

``intgemm8`` entries are int8 values followed by one float32 multiplier: weight = value / multiplier. They
are stored transposed (so that products read them row by row), except the embedding ``Wemb``. Their shape is
that of the matrix.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsescope.errors import SubjectError

CONFIG_ENTRY = "special:model.yml"
_VERSION = 1
_INT8, _FLOAT32, _INTGEMM8 = 0x0101, 0x0404, 0x4101
_TYPES = {_INT8: "int8", _FLOAT32: "float32", _INTGEMM8: "intgemm8"}
_NOT_TRANSPOSED = frozenset({"Wemb"})
_ALIGNMENT = 256
_LEAST_MULTIPLIER = 1e-30  # below it weights overflow
_MOST_ENTRIES, _LONGEST_NAME, _HIGHEST_RANK = 100_000, 4096, 8


@dataclass(frozen=True, slots=True)
class MarianFile:
    """The content of a weight file.

    Attributes:
        weights: Name -> float32 array of the stored shape; matrices are (in, out) as Marian multiplies them.
        config: The text of ``special:model.yml``, the options of the architecture; empty when there is none.
        precision: The stored type that holds most weights, ``intgemm8`` or ``float32``.
    """

    weights: Mapping[str, NDArray[np.float32]]
    config: str
    precision: str

    def option(self, name: str) -> str | None:
        """Return the value of a plain ``name: value`` line of the configuration as text, or None."""
        for line in self.config.splitlines():
            key, colon, value = line.partition(":")
            if colon and key == name:
                return value.strip().strip("\"'")
        return None


@dataclass(frozen=True, slots=True)
class _Entry:
    """Header of one entry: name, type, shape, and the length of its data in bytes."""

    name: str
    type: int
    shape: tuple[int, ...]
    length: int


def read_marian(path: Path) -> MarianFile:
    """Read a weight file.

    Args:
        path: A ``.bin`` file in the binary format of Marian.

    Raises:
        SubjectError: The file cannot be read, is truncated or damaged, or holds types that we do not know.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SubjectError(
            f"the file cannot be read: {error}", where=str(path), next_step="check the path"
        ) from error
    return parse_marian(data, str(path))


def parse_marian(data: bytes, where: str) -> MarianFile:
    """Read the content of a weight file.

    Args:
        data: All bytes of the file.
        where: What to call it in messages.

    Raises:
        SubjectError: As ``read_marian``.
    """
    reader = _Reader(data, where)
    entries = reader.headers()
    weights: dict[str, NDArray[np.float32]] = {}
    stored: dict[str, int] = {}
    config = ""
    for entry in entries:
        raw = reader.take(entry.length, entry.name)
        if entry.name == CONFIG_ENTRY:
            config = raw.rstrip(b"\0").decode("utf-8", errors="replace")
            continue
        if entry.name in weights:
            raise reader.damaged(f"the entry {entry.name!r} is there twice")
        weights[entry.name] = _values(entry, raw, reader)
        stored[_TYPES[entry.type]] = stored.get(_TYPES[entry.type], 0) + math.prod(entry.shape)
    if reader.left:
        raise reader.damaged(f"{reader.left} bytes follow the last entry")
    if not weights:
        raise reader.damaged("it holds no weights")
    return MarianFile(weights, config, max(stored, key=lambda name: stored[name]))


def _values(entry: _Entry, raw: bytes, reader: _Reader) -> NDArray[np.float32]:
    """Return the float32 values of an entry in its shape."""
    count = math.prod(entry.shape)
    if entry.type == _FLOAT32:
        return np.frombuffer(raw, "<f4", count).reshape(entry.shape).astype(np.float32)
    values = np.frombuffer(raw, np.int8, count)
    if entry.type == _INT8:
        return values.reshape(entry.shape).astype(np.float32)
    multiplier = float(np.frombuffer(raw, "<f4", 1, offset=count)[0])
    if not _LEAST_MULTIPLIER < multiplier < math.inf:
        raise reader.damaged(f"the multiplier of {entry.name!r} is {multiplier}")
    scaled = values.astype(np.float32) / np.float32(multiplier)
    if entry.name in _NOT_TRANSPOSED or len(entry.shape) != 2:
        return scaled.reshape(entry.shape)
    return np.ascontiguousarray(scaled.reshape(entry.shape[::-1]).T)


class _Reader:
    """Takes bytes from the front of a file and refuses whatever does not add up."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where, self._at = memoryview(data), where, 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._at

    def take(self, length: int, what: str) -> bytes:
        """Return the next ``length`` bytes.

        Raises:
            SubjectError: There are not as many.
        """
        if length > self.left:
            raise self.damaged(f"{what!r} needs {length} bytes and {self.left} are left")
        self._at += length
        return bytes(self._data[self._at - length : self._at])

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        """Return the next integers, given in the notation of ``struct``, little-endian."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}"), what))

    def headers(self) -> list[_Entry]:
        """Return the headers of all entries; afterwards the data of the first is next.

        Raises:
            SubjectError: A header is impossible.
        """
        version, count = self.numbers("QQ", "head of the file")
        if version != _VERSION:
            raise self.damaged(f"its version is {version}, and version {_VERSION} is known")
        if not 0 < count <= _MOST_ENTRIES:
            raise self.damaged(f"it says that it holds {count} entries")
        fields = [self.numbers("QQQQ", f"header {n}") for n in range(count)]
        names = [self._name(length, n) for n, (length, _, _, _) in enumerate(fields)]
        entries = []
        for name, (_, type_, rank, length) in zip(names, fields, strict=True):
            if rank > _HIGHEST_RANK:
                raise self.damaged(f"{name!r} has {rank} dimensions")
            shape = self.numbers(f"{rank}i", f"shape of {name}")
            entries.append(self._checked(_Entry(name, type_, shape, length)))
        (padding,) = self.numbers("Q", "length of the padding")
        if padding > _ALIGNMENT:
            raise self.damaged(f"the padding before the data has {padding} bytes")
        self.take(padding, "padding")
        return entries

    def _name(self, length: int, n: int) -> str:
        """Return the name of entry ``n``."""
        if not 1 < length <= _LONGEST_NAME:
            raise self.damaged(f"the name of entry {n} has {length} bytes")
        raw = self.take(length, f"name of entry {n}")
        try:
            name = raw[:-1].decode("ascii")
        except UnicodeDecodeError:
            name = ""
        if raw[-1] or not name.isprintable() or not name:
            raise self.damaged(f"the name of entry {n} is no text: {raw[:40]!r}")
        return name

    def _checked(self, entry: _Entry) -> _Entry:
        """Return the entry, or raise when its type is unknown or its length does not fit type and shape."""
        if entry.type not in _TYPES:
            known = ", ".join(f"{name} ({number:#x})" for number, name in _TYPES.items())
            raise SubjectError(
                "the file holds a type of numbers that is not known",
                where=f"{self._where}, entry {entry.name}",
                allowed=known,
                got=f"{entry.type:#x}",
                next_step="types packed for one kind of processor cannot be read; convert the model "
                "to intgemm8 or float32",
            )
        if any(size < 1 for size in entry.shape):
            raise self.damaged(f"the shape of {entry.name!r} is {entry.shape}")
        count = math.prod(entry.shape)
        needed = {_INT8: count, _FLOAT32: 4 * count, _INTGEMM8: count + 4}[entry.type]
        if not needed <= entry.length < needed + _ALIGNMENT:
            raise self.damaged(
                f"{entry.name!r} of shape {entry.shape} needs {needed} bytes and has {entry.length}"
            )
        return entry

    def damaged(self, why: str) -> SubjectError:
        """Build the error for a file that does not add up."""
        return SubjectError(
            "this is not a weight file of Marian, or it is truncated or damaged",
            where=self._where,
            allowed="a binary .bin file of Marian, version 1",
            got=why,
            next_step="copy or download the file again",
        )
