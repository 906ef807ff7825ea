"""The routers of a checkpoint and nothing else: their matrices are read by byte ranges.

From a folder or a hub; of OLMoE-1B-7B that is 4 MB in place of 14 GB, so that routers can be followed over
many revisions without loading a model. Names of router matrices: ``...layers.N...gate.weight``,
``...router.weight`` or ``...router.layer.weight``, [E, d], with E as the configuration says it (dense layers
may have a matrix of such a name). Format of huggingface/safetensors; requests as of RFC 9110, section 14.

Shapes: L layers with a router, E experts, d model width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsescope.core.strict_json import parse
from sparsescope.core.tensor_header import TensorHeader, header_of
from sparsescope.errors import DependencyError, SubjectError

_NAME = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(?:.+\.)?(?:gate|router(?:\.layer)?)\.weight$")
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "num_routed_experts", "moe_num_experts")
_INDEX, _WEIGHTS, _CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"
_MOST = 64 * 2**20  # bytes of an index, of a configuration, or of one router
_MOST_FILES = 1000
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


class Files(Protocol):
    """Files that can be read in parts."""

    @property
    def where(self) -> str:
        """Name for messages."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""

    def span(self, name: str, begin: int, end: int) -> bytes:
        """The bytes from one place up to another."""


@dataclass(frozen=True, slots=True)
class RouterRows:
    """The routers of a checkpoint.

    Attributes:
        layers: Numbers of the blocks that have one.
        rows: float32 [L, E, d].
        digest: SHA-256 of layers, shape and values as they are stored.
        bytes_read: Bytes that were read for it.
        bytes_whole: Bytes of all files of weights.
    """

    layers: tuple[int, ...]
    rows: NDArray[np.float32]
    digest: str
    bytes_read: int
    bytes_whole: int


@dataclass(slots=True)
class FolderFiles:
    """The files of a folder.

    Attributes:
        folder: The folder.
        weights: Name of the file of weights, where it is another than usual: a checkpoint of our own trainer.
    """

    folder: Path
    weights: str = _WEIGHTS

    @property
    def where(self) -> str:
        """Name for messages."""
        return self.folder.name

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        path = self.folder / (self.weights if name == _WEIGHTS else name)
        return path.stat().st_size if path.is_file() else None

    def span(self, name: str, begin: int, end: int) -> bytes:
        """The bytes from one place up to another."""
        with (self.folder / (self.weights if name == _WEIGHTS else name)).open("rb") as handle:
            handle.seek(begin)
            return handle.read(end - begin)


@dataclass(slots=True)
class HubFiles:
    """The files of a revision on a hub, read by range requests.

    Attributes:
        repository: ``organization/model``.
        revision: Branch, tag or commit.
    """

    repository: str
    revision: str

    @property
    def where(self) -> str:
        """Name for messages."""
        return f"{self.repository}@{self.revision}"

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there.

        Raises:
            DependencyError: The hub cannot be reached, refuses, or does not serve ranges.
        """
        answer = self._get(name, 0, 1)
        if answer.status_code == 404:
            return None
        self._check(answer, name)
        return int(answer.headers["content-range"].rpartition("/")[2])

    def span(self, name: str, begin: int, end: int) -> bytes:
        """The bytes from one place up to another; raises as ``size``."""
        answer = self._get(name, begin, end)
        self._check(answer, name)
        found: bytes = answer.content
        if len(found) != end - begin:
            raise self._error(name, f"{len(found)} bytes where {end - begin} were asked for")
        return found

    def _get(self, name: str, begin: int, end: int) -> Any:
        from huggingface_hub import get_session, hf_hub_url

        # Documented, and imported there under its own name, which mypy takes for private
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        url = hf_hub_url(self.repository, name, revision=self.revision)
        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        try:
            # As a stream: a server that does not know ranges would send the whole file
            with get_session().stream(
                "GET", url, headers=headers, follow_redirects=True, timeout=30
            ) as answer:
                if answer.status_code == 206:
                    answer.read()
                return answer
        except Exception as error:  # connection and access errors of several libraries
            raise self._error(name, f"{type(error).__name__}: {str(error).strip()[:160]}") from error

    def _check(self, answer: Any, name: str) -> None:
        if answer.status_code == 200:
            raise self._error(name, "the server sends whole files: it does not serve byte ranges")
        size = answer.headers.get("content-range", "").rpartition("/")[2]
        if answer.status_code != 206 or not size.isascii() or not size.isdigit():
            raise self._error(name, f"status {answer.status_code}")

    def _error(self, name: str, got: str) -> DependencyError:
        return DependencyError(
            "the routers of this model cannot be read from the hub",
            where=f"{self.where}, {name}",
            allowed="a hub that can be reached and serves byte ranges",
            got=got,
            next_step="check the network, the name and the revision (HF_HUB_OFFLINE must not be set); or "
            "give a folder with the files",
        )


class _Counted:
    """Files, and how much of them was read."""

    def __init__(self, files: Files) -> None:
        self.files, self.read = files, 0

    def span(self, name: str, begin: int, end: int) -> bytes:
        self.read += end - begin
        return self.files.span(name, begin, end)

    def document(self, name: str) -> Any:
        """A JSON file, None where it is not there."""
        size = self.files.size(name)
        if size is None:
            return None
        if size > _MOST:
            raise _odd(self.files, f"{name} of at most {_MOST} bytes", f"{size} bytes")
        try:
            return parse(self.span(name, 0, size))
        except ValueError as error:
            raise _odd(self.files, f"JSON in {name}", str(error)[:160]) from None


def read_router_rows(files: Files) -> RouterRows:
    """Read the routers of a checkpoint.

    Args:
        files: Its files: ``FolderFiles`` or ``HubFiles``.

    Raises:
        SubjectError: There are no safetensors, no routers of a known name, or shapes that do not agree.
        DependencyError: The hub cannot be reached, or does not serve byte ranges.
    """
    counted = _Counted(files)
    config = counted.document(_CONFIG)
    experts = (
        next((config[key] for key in _COUNTS if config.get(key)), None) if isinstance(config, dict) else None
    )
    found: dict[int, tuple[str, int, TensorHeader]] = {}
    whole = 0
    for name, size in _weights(counted):
        whole += size
        span = partial(counted.span, name)
        header = header_of(span, size, f"{files.where}, {name}", SubjectError)
        start = size - max((entry.span[1] for entry in header.values()), default=0)
        for tensor, entry in header.items():
            match = _NAME.search(tensor)
            if match and len(entry.shape) == 2 and entry.shape[0] == (experts or entry.shape[0]):
                found[int(match[1])] = (name, start, entry)
    shapes = {entry.shape for _, _, entry in found.values()}
    if len(shapes) != 1 or experts is None:
        raise _odd(
            files,
            "matrices layers.N...gate.weight or ...router.weight, [experts, width], alike in every layer, "
            "and a "
            f"configuration with one of {', '.join(_COUNTS)}",
            f"shapes {sorted(shapes)}, {experts} experts by the configuration",
        )
    digest = hashlib.sha256()
    rows = []
    for layer in sorted(found):
        name, start, entry = found[layer]
        if entry.span[1] - entry.span[0] > _MOST:
            raise _odd(files, f"a router of at most {_MOST} bytes", f"{entry.shape} in layer {layer}")
        raw = counted.span(name, start + entry.span[0], start + entry.span[1])
        digest.update(f"{layer} {entry.dtype} {entry.shape}".encode() + raw)
        rows.append(_values(raw, entry, files))
    return RouterRows(tuple(sorted(found)), np.stack(rows), digest.hexdigest(), counted.read, whole)


def _weights(counted: _Counted) -> Iterator[tuple[str, int]]:
    """Files of weights that hold a router, or of which that is not known, with their sizes."""
    files = counted.files
    index = counted.document(_INDEX)
    if index is None:
        size = files.size(_WEIGHTS)
        if size is None:
            raise _odd(
                files, f"{_WEIGHTS}, or {_INDEX}", "neither: is this a revision or a folder of a model?"
            )
        yield _WEIGHTS, size
        return
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise _odd(files, f"a weight_map in {_INDEX}", type(places).__name__)
    if len(set(places.values())) > _MOST_FILES:
        raise _odd(files, f"at most {_MOST_FILES} files of weights", len(set(places.values())))
    for name in sorted(set(places.values())):
        if "/" in name or "\\" in name or name.startswith("."):
            raise _odd(files, "names of files beside the index", repr(name)[:80])
        size = files.size(name)
        if size is None:
            raise _odd(files, f"{name}, which the index names", "no such file")
        yield name, size


def _values(raw: bytes, entry: TensorHeader, files: Files) -> NDArray[np.float32]:
    if entry.dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
    if entry.dtype not in _PLAIN:
        raise _odd(files, f"a type of {', '.join(['BF16', *_PLAIN])}", entry.dtype)
    return np.frombuffer(raw, _PLAIN[entry.dtype]).astype(np.float32).reshape(entry.shape)


def _odd(files: Files, allowed: str, got: object) -> SubjectError:
    return SubjectError(
        "the routers of this checkpoint cannot be read by themselves",
        where=files.where,
        allowed=allowed,
        got=got,
        next_step="load the model, whose routers are found by role: analysis moe_routing",
    )
