"""The files of one run: written into a folder, and read back with every claim of the manifest checked.

A foreign run is a folder that others wrote. Nothing in it is believed before it was compared: paths stay
in the folder, sizes and checksums agree, a table has the rows, columns and plain types that the manifest
states, a tensor its shape and dtype. Limits come before the reading, because a small Parquet file can
hold very many rows.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from sparsescope.core.columns import Column
from sparsescope.core.escaping import well_formed, well_formed_values
from sparsescope.core.files import sha256_file, storage_errors, sync_path, write_file
from sparsescope.core.manifest import MANIFEST, SCHEMA_VERSION, ArtifactIds, Manifest, TableEntry, TensorEntry
from sparsescope.core.numbers import Scalar
from sparsescope.core.result import Note, Result
from sparsescope.core.sealed import NAME, FileEntry, sealed_bytes
from sparsescope.core.spec import Spec
from sparsescope.core.tensor_header import read_header
from sparsescope.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

CELL_LIMIT = 50_000_000
DAMAGED = "sparsescope verify lists what is damaged; delete that run's folder and run the analysis again"
_Record = TypeVar("_Record", Column, Note, Scalar)


def write_contents(
    folder: Path,
    result: Result,
    spec: Spec,
    seconds: float,
    environment: dict[str, Any],
    events: list[dict[str, Any]],
    command: str,
    preset: str,
) -> Manifest:
    """Write tables, tensors, events and last the manifest into ``folder``."""
    from safetensors.numpy import save

    for kind, names in (("table", result.tables), ("tensor", result.tensors), ("artifact", result.artifacts)):
        for name in names:
            if not NAME.fullmatch(name):
                raise ArtifactError(
                    f"a {kind} of this name cannot be stored",
                    where=f"result of {result.analysis}",
                    allowed=f"names that match {NAME.pattern}",
                    got=repr(name)[:120],
                )

    def put(name: str, data: bytes) -> FileEntry:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write_file(path, data)
        return FileEntry(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    tables = {}
    for name, frame in result.tables.items():
        columns = _storable(result.columns[name])
        entry = put(
            f"tables/{name}.parquet",
            _parquet(name, frame.set_axis([column.name for column in columns], axis=1)),
        )
        tables[name] = TableEntry(**entry.model_dump(), rows=len(frame), columns=columns)
    tensors, files = {}, []
    for name, tensor in result.tensors.items():
        files.append(
            put(
                f"tensors/{name}.safetensors",
                save({name: np.ascontiguousarray(tensor.array).reshape(np.shape(tensor.array))}),
            )
        )
        tensors[name] = TensorEntry(
            file=files[-1].file, dims=tensor.dims, shape=tensor.array.shape, dtype=str(tensor.array.dtype)
        )
    files.append(put("events.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode()))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        run_id=spec.run_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        spec=spec,
        environment=well_formed_values(environment),
        scalars=_storable(result.scalars.values()),
        notes=_storable(result.notes),
        tables=tables,
        tensors=tensors,
        files=tuple(files),
        command=well_formed(command),
        artifacts=artifact_ids(result, spec),
        preset=well_formed(preset),
    )
    for sub in folder.iterdir():
        if sub.is_dir():
            sync_path(sub)
    write_file(folder / MANIFEST, sealed_bytes(manifest))
    sync_path(folder)
    return manifest


def artifact_ids(result: Result, spec: Spec) -> ArtifactIds:
    """The artifacts of a result: under the name of an input role it was read, under any
    other name it was made.
    """
    ids = {name: artifact.id for name, artifact in result.artifacts.items()}
    # dictionary, dictionary.1, ...
    read = {name for name in ids if name.partition(".")[0] in (spec.inputs or {})}
    made = {name: made_id for name, made_id in ids.items() if name not in read}
    return ArtifactIds(made=made, read={name: ids[name] for name in sorted(read)})


def _storable(records: Iterable[_Record]) -> tuple[_Record, ...]:
    """Records with every string as UTF-8 can hold it."""
    return tuple(
        replace(record, **{f.name: well_formed_values(getattr(record, f.name)) for f in fields(record)})
        for record in records
    )


def _parquet(name: str, frame: pd.DataFrame) -> bytes:
    """A frame as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    objects = [column for column in frame.columns if frame[column].dtype == object]
    clean = {
        column: [well_formed(v) if isinstance(v, str) else v for v in frame[column]] for column in objects
    }
    buffer = io.BytesIO()
    try:
        pq.write_table(
            pa.Table.from_pandas(frame.assign(**clean), preserve_index=False), buffer, compression="zstd"
        )
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ArtifactError(
            f"table {name!r} cannot be stored",
            allowed="columns of numbers, truth values or strings, each of one type",
            got=f"{type(error).__name__}: {str(error)[:160]}",
        ) from error
    return buffer.getvalue()


def inside(folder: Path, name: str) -> Path:
    """Join and refuse a path that leaves the folder of a run or an artifact, also through a symbolic link."""
    try:
        path = (folder / name).resolve()
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise _unreadable(folder / name, error) from error
    if not path.is_relative_to(folder.resolve()):
        raise ArtifactError("a stored file lies outside its folder", where=str(folder), got=name[:200])
    return path


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        "a file of the run cannot be read",
        where=str(path),
        got=f"{type(error).__name__}: {str(error)[:160]}",
        next_step=DAMAGED,
    )


def read_table(path: Path, entry: TableEntry) -> pd.DataFrame:
    """Read a table; its size and the types of its columns are checked before its rows are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    described = [column.name for column in entry.columns]
    try:
        with pq.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            odd = [
                f.name for f in file.schema_arrow if pa.types.is_nested(f.type) or pa.types.is_binary(f.type)
            ]
            if names == described and rows == entry.rows and rows * len(names) <= CELL_LIMIT and not odd:
                frame = file.read().to_pandas()
                if list(frame.columns) == described and len(frame) == rows:
                    return frame
    except Exception as error:  # a damaged file fails anywhere in Arrow, Thrift or pandas
        raise _unreadable(path, error) from error
    raise ArtifactError(
        "a table differs from its manifest",
        where=str(path),
        allowed=f"{entry.rows} rows of numbers and strings, at most {CELL_LIMIT:,} cells; columns "
        f"{', '.join(described)}",
        got=f"{rows} rows; columns {', '.join(names)}"
        + (f"; nested or binary: {', '.join(odd)}" if odd else ""),
        next_step=DAMAGED,
    )


def read_tensor(folder: Path, name: str, entry: TensorEntry, file: FileEntry) -> np.ndarray:
    """Read one tensor of a run; its checksum, name, shape and dtype must be those of the manifest."""
    from safetensors import safe_open

    path = inside(folder, entry.file)
    with storage_errors("read the run", path):
        damage = damage_of(path, file, checksum=True)
    if damage:
        raise ArtifactError("a tensor is damaged", where=str(path), got=damage[0], next_step=DAMAGED)
    header = read_header(path).get(name)
    if header is None or header.shape != entry.shape or len(entry.dims) != len(entry.shape):
        raise ArtifactError(
            "a tensor differs from its manifest",
            where=str(path),
            allowed=f"{name} of shape {list(entry.shape)}, dimensions {', '.join(entry.dims)}",
            got="no such tensor" if header is None else f"shape {list(header.shape)}",
            next_step=DAMAGED,
        )
    try:
        with safe_open(path, framework="numpy") as handle:
            array: np.ndarray = handle.get_tensor(name)
    except Exception as error:  # SafetensorError, and TypeError for types that numpy lacks
        raise _unreadable(path, error) from error
    if str(array.dtype) != entry.dtype:
        raise ArtifactError(
            "a tensor differs from its manifest",
            where=str(path),
            allowed=entry.dtype,
            got=str(array.dtype),
            next_step=DAMAGED,
        )
    return array


def find_damage(folder: Path, manifest: Manifest, *, tensors: bool) -> list[str]:
    """List what differs between the files of a run and its manifest.

    Args:
        folder: The run.
        manifest: What it should hold.
        tensors: Also compare the checksums of tensors; otherwise their sizes alone:
            ``read_tensor`` compares them.
    """
    later = set() if tensors else {tensor.file for tensor in manifest.tensors.values()}
    listed = {entry.file for entry in (*manifest.tables.values(), *manifest.files)}
    damage = [f"{t.file} has no checksum" for t in manifest.tensors.values() if t.file not in listed]
    for entry in (*manifest.tables.values(), *manifest.files):
        damage += damage_of(inside(folder, entry.file), entry, checksum=entry.file not in later)
    return damage


def damage_of(path: Path, entry: FileEntry, *, checksum: bool) -> list[str]:
    """What differs between a file and its entry: nothing, or one sentence."""
    if not path.is_file():
        return [f"{entry.file} is missing"]
    if path.stat().st_size != entry.bytes:
        return [f"{entry.file} has {path.stat().st_size} bytes, not {entry.bytes}"]
    if checksum and sha256_file(path) != entry.sha256:
        return [f"{entry.file} has another checksum"]
    return []
