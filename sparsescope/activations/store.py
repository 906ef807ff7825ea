"""Activation shards on disk, readable as a source.

``<folder>/plan.json`` says what is stored, ``shards/00000.safetensors`` hold whole batches in stream order,
and ``manifest.json`` is written last: its presence means complete. Shards appear under their name only when
complete, so writing that was killed goes on after the last one. Reading yields the very batches that were
written. Shapes in a shard: ``values/<site>`` [rows, width], ``rows/<site>`` [rows] at expert sites;
``token_ids``, ``positions`` [token]; ``batches`` [batch, 4]: index, document, domain, tokens.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from sparsescope.activations.capture import ActivationBatch, LiveSource
from sparsescope.activations.shard_file import save_shard
from sparsescope.core.files import given_path, replace_file, storage_errors, sync_path
from sparsescope.core.locks import locked
from sparsescope.core.shown import Shown
from sparsescope.core.spec import canonical_json
from sparsescope.errors import ArtifactError
from sparsescope.models.structure.sites import Site

SHARD_BYTES = 64 * 2**20
SCHEMA_VERSION = 1


def write_store(
    source: LiveSource,
    folder: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], None] | None = None,
) -> ActivationStore:
    """Run a source and store what it yields; go on where an interrupted call stopped.

    Args:
        source: From ``capture``; its ``dtype`` is the type that is stored.
        folder: A new folder, or one that an interrupted call left.
        shard_bytes: A shard is closed when it holds at least as much. Two are in memory.
        progress: Told how many tokens are done.

    Returns:
        The complete store.

    Raises:
        ArtifactError: If the folder holds something else, another process writes to it, or the disk refuses.
            Finished shards stay.
    """
    folder = given_path(folder, "folder of activations")
    plan = _plan(source)
    _claim(folder, plan, source.subject.unstorable)
    if (folder / "manifest.json").is_file():
        return ActivationStore(folder)
    with locked(
        folder,
        "another process writes these activations",
        where=folder,
        next_step="wait until it has ended: the same call then reads them",
    ):
        _write(source, folder, shard_bytes, progress)
    return ActivationStore(folder)


def _write(
    source: LiveSource, folder: Path, shard_bytes: int, progress: Callable[[int], None] | None
) -> None:
    """Add the shards that are not there, and the manifest."""
    writer = _Writer(folder, *_finished(folder))
    done = sum(shard["tokens"] for shard in writer.shards)
    try:
        shard = writer.empty()
        for batch in source.batches(writer.next_batch):
            shard.add(batch)
            done += len(batch.token_ids)
            if progress is not None:
                progress(done)
            if shard.nbytes >= shard_bytes:
                writer.put(shard)
                shard = writer.empty()
        if shard.heads:
            writer.put(shard)
    finally:
        writer.close()
    manifest = {"schema_version": SCHEMA_VERSION, "shards": writer.shards}
    replace_file(
        folder / "manifest.json", json.dumps(manifest).encode(), action="finish the activation store"
    )


class ActivationStore(Shown):
    """A complete store, readable as a source.

    Args:
        folder: Written by ``write_store``.

    Attributes:
        sites: The stored sites.
        n_batches: Batches in it.
        n_tokens: Tokens in it.
        plan: Subject identity, corpus digest, sites and type.

    Raises:
        ArtifactError: If the folder holds no complete store of a known version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = given_path(folder, "folder of activations")
        if not (self.folder / "manifest.json").is_file():
            raise ArtifactError(
                "this is not a complete activation store",
                where=str(self.folder),
                next_step="call write_store again with the same source: it goes on where it stopped",
            )
        self.plan = _read_json(self.folder / "plan.json")
        manifest = _read_json(self.folder / "manifest.json")
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise ArtifactError(
                "this activation store has another version",
                where=str(self.folder),
                allowed=str(SCHEMA_VERSION),
                got=manifest.get("schema_version"),
                next_step="write it again, or upgrade sparsescope",
            )
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self.sites = tuple(
            Site(**{**site, "part": site["part"] and tuple(site["part"])}) for site in self.plan["sites"]
        )
        self.n_batches = sum(shard["batches"] for shard in self._shards)
        self.n_tokens = sum(shard["tokens"] for shard in self._shards)

    def _shown(self) -> dict[str, object]:
        return {
            "folder": self.folder,
            "sites": len(self.sites),
            "tokens": self.n_tokens,
            "shards": len(self._shards),
        }

    @property
    def fingerprint(self) -> dict[str, Any]:
        """That of the source that was stored, so that a pass over one can go on with the other."""
        found = {name: self.plan[name] for name in ("batch_tokens", "padding_side", "corpus")}
        rounded = self.plan["dtype"] != self.plan["subject"]["dtype"]
        return found | ({"dtype": self.plan["dtype"]} if rounded else {})

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[ActivationBatch]:
        """Yield batches from number ``start`` on; shards before it are not opened. Values are
        mapped from the disk.
        """
        first = 0
        for shard, path in zip(self._shards, self.shard_paths, strict=True):
            if first + shard["batches"] > start:
                yield from (batch for batch in _read_shard(path, self.sites) if batch.index >= start)
            first += shard["batches"]

    @property
    def shard_paths(self) -> list[Path]:
        """Files of the shards, in stream order."""
        return [self.folder / "shards" / shard["file"] for shard in self._shards]

    def verify(self) -> list[str]:
        """Return what is wrong with the shards; empty when sizes and checksums are right."""
        damage = []
        for shard in self._shards:
            path = self.folder / "shards" / shard["file"]
            if not path.is_file():
                damage.append(f"{shard['file']} is missing")
            elif path.stat().st_size != shard["bytes"] or _checksum(path) != shard["xxh3_128"]:
                damage.append(f"{shard['file']} is damaged")
        return damage


class _Shard:
    """The batches of one shard, in memory that is used again: fresh memory costs more
    than the copy into it.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the batches, keep the memory."""
        self.heads: list[list[int]] = []
        self.tokens: dict[str, list[np.ndarray]] = {"token_ids": [], "positions": []}
        self.rows: dict[str, list[np.ndarray]] = {}
        self.filled: dict[str, int] = {}
        self.nbytes = 0

    def add(self, batch: ActivationBatch) -> None:
        """Copy a batch."""
        self.heads.append([batch.index, batch.document, batch.domain, len(batch.token_ids)])
        self.tokens["token_ids"].append(batch.token_ids)
        self.tokens["positions"].append(batch.positions)
        for name, values in batch.values.items():
            begin = self.filled.get(name, 0)
            end = begin + len(values)
            buffer = self._buffers.get(name)
            if buffer is None or len(buffer) < end:
                grown = torch.empty((2 * end, values.shape[1]), dtype=values.dtype)
                if buffer is not None:
                    grown[:begin] = buffer[:begin]
                self._buffers[name] = buffer = grown
            buffer[begin:end].copy_(values)
            self.filled[name] = end
            self.nbytes += values.nbytes
            if name in batch.rows:
                self.rows.setdefault(name, []).append(batch.rows[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """What goes into the file; values are views of the buffers."""
        found = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in self.tokens.items()}
        found["batches"] = torch.tensor(self.heads, dtype=torch.int64)
        for name, end in self.filled.items():
            found[f"values/{name}"] = self._buffers[name][:end]
        for name, parts in self.rows.items():
            found[f"rows/{name}"] = torch.from_numpy(np.concatenate(parts))
            found[f"lengths/{name}"] = torch.tensor([len(part) for part in parts])
        return found


class _Writer:
    """Writes shards in one background thread; two shards in memory, one being filled, one being written."""

    def __init__(self, folder: Path, shards: list[dict[str, Any]], next_batch: int) -> None:
        self.folder, self.shards, self.next_batch = folder, shards, next_batch
        self._queue: queue.Queue[_Shard | None] = queue.Queue()
        self._free: queue.Queue[_Shard] = queue.Queue()
        for _ in range(2):
            self._free.put(_Shard())
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="activation-store", daemon=True)
        self._thread.start()

    def empty(self) -> _Shard:
        """Wait for an empty shard; raises what the thread met."""
        shard = self._free.get()
        self._raise()
        return shard

    def put(self, shard: _Shard) -> None:
        """Hand a filled shard over."""
        self._queue.put(shard)

    def close(self) -> None:
        """Wait for the last shard; raises what the thread met."""
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (shard := self._queue.get()) is not None:
            if self._error is None:  # after an error the queue is only drained
                try:
                    self.shards.append(_write_shard(self.folder / "shards", len(self.shards), shard))
                except BaseException as error:  # handed to the caller's thread
                    self._error = error
            shard.clear()
            self._free.put(shard)


def _plan(source: LiveSource) -> dict[str, Any]:
    """What a store holds; equal plans give equal stores."""
    return {
        "subject": source.subject.identity.as_dict(),
        "corpus": source.corpus.digest,
        "dtype": str(source.dtype or source.subject.torch_dtype).removeprefix("torch."),
        "batch_tokens": source.batch_tokens,
        "padding_side": source.padding_side,
        "sites": [{name: getattr(site, name) for name in Site.__slots__} for site in source.sites],
    }


def _claim(folder: Path, plan: dict[str, Any], unstorable: tuple[str, ...]) -> None:
    """Write the plan, or check that the folder was begun with the same one, which a plan that
    does not cover all that computes cannot tell.
    """
    path = folder / "plan.json"
    with storage_errors("make the activation store", folder):
        (folder / "shards").mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        replace_file(path, json.dumps(plan).encode(), action="begin the activation store")
        return
    if unstorable:
        raise ArtifactError(
            "whether the folder holds the activations of this very model cannot be told",
            where=str(folder),
            got=unstorable[0],
            next_step="choose a new folder",
        )
    found = _read_json(path)
    different = [
        key
        for key in plan
        if canonical_json(found.get(key)) != canonical_json(json.loads(json.dumps(plan[key])))
    ]
    if different:
        raise ArtifactError(
            "the folder holds other activations",
            where=str(folder),
            got=f"another {', '.join(different)}",
            next_step="choose a new folder",
        )


def _finished(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Entries of the shards that are complete, and the number of the batch after them."""
    shards: list[dict[str, Any]] = []
    next_batch = 0
    while (path := folder / "shards" / f"{len(shards):05d}.safetensors").is_file():
        batches = load_shard(path)["batches"]
        if int(batches[0, 0]) != next_batch:  # left by a writer with other shards: it is written again
            break
        tokens = int(batches[:, 3].sum())
        shards.append(_entry(path, len(batches), tokens, path.stat().st_size, _checksum(path)))
        next_batch = int(batches[-1, 0]) + 1
    return shards, next_batch


def _write_shard(folder: Path, number: int, shard: _Shard) -> dict[str, Any]:
    """Write one shard atomically and return its manifest entry."""
    path = folder / f"{number:05d}.safetensors"
    temporary = folder / f".{path.name}.{os.getpid()}.tmp"
    with storage_errors("write an activation shard", path):
        try:
            size, checksum = save_shard(shard.tensors(), temporary)
            temporary.replace(path)
            sync_path(folder)
        finally:
            temporary.unlink(missing_ok=True)
    return _entry(path, len(shard.heads), sum(head[3] for head in shard.heads), size, checksum)


def _entry(path: Path, batches: int, tokens: int, size: int, checksum: str) -> dict[str, Any]:
    return {"file": path.name, "batches": batches, "tokens": tokens, "bytes": size, "xxh3_128": checksum}


def _checksum(path: Path) -> str:
    """XXH3 (128 bit) of a file, as ``save_shard`` returns it."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while chunk := handle.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def _read_shard(path: Path, sites: tuple[Site, ...]) -> Iterator[ActivationBatch]:
    """Yield the batches of a shard."""
    tensors = load_shard(path)
    token, seen = 0, dict.fromkeys((site.name for site in sites), 0)
    for number, (index, document, domain, count) in enumerate(tensors["batches"].tolist()):
        batch = ActivationBatch(
            index,
            document,
            domain,
            tensors["token_ids"][token : token + count].numpy(),
            tensors["positions"][token : token + count].numpy(),
        )
        for site in sites:
            rows = tensors.get(f"rows/{site.name}")
            length = count if rows is None else int(tensors[f"lengths/{site.name}"][number])
            part = slice(seen[site.name], seen[site.name] + length)
            batch.values[site.name] = tensors[f"values/{site.name}"][part]
            if rows is not None:
                batch.rows[site.name] = rows[part].numpy()
            seen[site.name] += length
        token += count
        yield batch


def load_shard(path: Path) -> dict[str, torch.Tensor]:
    """Open a shard; tensors are mapped from the file, not read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            "an activation shard cannot be read",
            where=str(path),
            got=str(error)[:200],
            next_step="delete the folder and write the store again",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            "a file of the activation store cannot be read", where=str(path), got=str(error)[:200]
        ) from error
    if not isinstance(value, dict):
        raise ArtifactError(
            "a file of the activation store is malformed", where=str(path), got=type(value).__name__
        )
    return value
