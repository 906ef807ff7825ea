"""Writes small files in the binary format of Marian, as its documentation describes it, for
tests of the reader.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

INT8, FLOAT32, INTGEMM8 = 0x0101, 0x0404, 0x4101


def float_data(values: np.ndarray) -> bytes:
    """Bytes of a float32 entry."""
    return values.astype("<f4").tobytes()


def intgemm_data(values: np.ndarray, multiplier: float, *, transpose: bool = True) -> bytes:
    """Bytes of an intgemm8 entry: int8 values, transposed for matrices of products, then the multiplier."""
    stored = values.T if transpose else values
    return np.ascontiguousarray(stored).astype(np.int8).tobytes() + struct.pack("<f", multiplier)


def marian_bytes(entries: Mapping[str, tuple[int, tuple[int, ...], bytes]], *, version: int = 1) -> bytes:
    """The file of entries name -> (type, shape, data); data is padded to 256 bytes, but
    for the configuration.
    """
    padded = {}
    for name, (kind, shape, data) in entries.items():
        missing = 0 if name.startswith("special:") else -len(data) % 256
        padded[name] = (kind, shape, data + bytes(missing))
    head = struct.pack("<QQ", version, len(padded))
    for name, (kind, shape, data) in padded.items():
        head += struct.pack("<QQQQ", len(name) + 1, kind, len(shape), len(data))
    head += b"".join(name.encode() + b"\0" for name in padded)
    head += b"".join(struct.pack(f"<{len(shape)}i", *shape) for _, shape, _ in padded.values())
    padding = -(len(head) + 8) % 256
    return head + struct.pack("<Q", padding) + bytes(padding) + b"".join(data for *_, data in padded.values())
