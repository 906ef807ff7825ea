"""A safetensors file written past the page cache.

Activation shards are large and are read much later, if at all. Filling the page cache with them costs more
processor time than the forward pass can spare (0.2-0.5 GB/s on a virtual machine whose memory is given on
demand, against 1.2 GB/s at no cost for direct writes), so the file is written with ``O_DIRECT`` where the
file system takes it. The format is that of the safetensors library, which reads the files: 8 bytes header
length, JSON header, tensors.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

_BLOCK = 4096
_BUFFER_BYTES = 8 * 2**20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_shard(
    tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Write tensors to a new file and flush it to the disk; no copy of them is made.

    Args:
        tensors: Contiguous host tensors.
        path: The file.
        metadata: Texts that stand in the header.

    Returns:
        Its size in bytes and its XXH3 (128 bit), which guards against damage at 10 times
        the speed of SHA-256.

    Raises:
        OSError: If the disk refuses.
    """
    descriptor, direct = _open(path)
    digest = xxhash.xxh3_128()
    size = 0
    try:
        with mmap.mmap(-1, _BUFFER_BYTES) as buffer:
            filled = 0
            for piece in _pieces(tensors, metadata):
                while len(piece):
                    part = piece[: _BUFFER_BYTES - filled]
                    buffer[filled : filled + len(part)] = part
                    filled, piece = filled + len(part), piece[len(part) :]
                    if filled == _BUFFER_BYTES:
                        digest.update(buffer)
                        _write(descriptor, memoryview(buffer))
                        size, filled = size + filled, 0
            if filled:
                digest.update(buffer[:filled])
                # Direct writes come in whole blocks; what is too much is cut off again.
                padded = -(-filled // _BLOCK) * _BLOCK if direct else filled
                with memoryview(buffer) as view:
                    _write(descriptor, view[:padded])
                size += filled
                os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return size, digest.hexdigest()


def _open(path: Path) -> tuple[int, bool]:
    """Open for direct writing, or for ordinary writing where the system or file system has none."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            return os.open(path, flags | direct, 0o666), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666), False


def _write(descriptor: int, data: memoryview) -> None:
    """Write all of ``data``; the system may take it in parts."""
    with data:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                done += os.write(descriptor, rest)


def _pieces(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> Iterator[memoryview]:
    """Yield the bytes of the file: header, then every tensor."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8, as the library writes them
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for tensor in tensors.values():
        if tensor.numel():
            yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
