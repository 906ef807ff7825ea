"""Stored runs: ``<home>/<analysis>-<12 hex>/`` with ``manifest.json`` (written last), ``tables/*.parquet``,
``tensors/*.safetensors`` and ``events.jsonl``.

A run is built in a hidden temporary folder on the same file system, flushed, and renamed. So a run is
complete or absent, whatever happens to the process. Runs are immutable: the same digest is the same run.
Half-finished work lives in ``<home>/.partial/<digest>/``, one file for each finished step.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sparsescope.core.artifact_store import FOLDER, ArtifactStore
from sparsescope.core.artifacts import Artifact
from sparsescope.core.files import FOR_RUNS, given_path, replace_file, storage_errors, write_file
from sparsescope.core.manifest import MANIFEST, RUN_ID, Manifest, read_manifest
from sparsescope.core.publish import publish, remove_strays, temporary_path
from sparsescope.core.result import Result, Tensor
from sparsescope.core.run_files import find_damage, inside, read_table, read_tensor, write_contents
from sparsescope.core.spec import Spec
from sparsescope.core.text_notes import notes_of_text
from sparsescope.errors import ArtifactError

_HEAD = 4096  # bytes of a manifest that its time stands in
_CREATED = re.compile(rb'^ "created": "([^"]*)"', re.MULTILINE)


def home() -> Path:
    """Folder of the stored runs: ``$SPARSESCOPE_HOME``, else ``runs`` in the working directory."""
    return given_path(os.environ.get("SPARSESCOPE_HOME") or "runs", "$SPARSESCOPE_HOME")


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What ``verify`` says of one run: ``status`` is ``ok``, ``damaged`` or ``unreadable``."""

    run_id: str
    status: str
    detail: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Partial work of a run that was not completed: its digest, size in bytes, seconds since it
    was last added to.
    """

    digest: str
    bytes: int
    age: float


class Store:
    """The runs under one folder.

    Args:
        root: The folder; ``home()`` when None. It is created on the first write.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = given_path(root, "the folder of runs") if root is not None else home()

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifacts beside the runs."""
        return ArtifactStore(self.root)

    # -- reading ---------------------------------------------------------------------------------

    def path(self, run_id: str) -> Path:
        """Return the folder of a run.

        Raises:
            ArtifactError: If ``run_id`` is not of the form ``<analysis>-<12 hex>``.
        """
        if not RUN_ID.fullmatch(run_id):
            raise ArtifactError(
                "not the id of a run",
                allowed="<analysis>-<12 hex digits>",
                got=repr(run_id)[:120],
                next_step="run: sparsescope list",
            )
        return self.root / run_id

    def has(self, run_id: str) -> bool:
        """Whether the run is stored and complete."""
        return holds_run(self.path(run_id))

    def run_ids(self) -> list[str]:
        """Ids of the complete runs, newest first by the time in their manifests, then by id."""
        if not self.root.is_dir():
            return []
        with storage_errors("read the folder of runs", self.root):
            found = sorted(p.name for p in self.root.iterdir() if RUN_ID.fullmatch(p.name) and holds_run(p))
            return sorted(found, key=lambda name: _made(self.root / name / MANIFEST), reverse=True)

    def manifest(self, run_id: str) -> Manifest:
        """Read the manifest of a run; see ``read_manifest`` for what it raises."""
        folder = self.path(run_id)
        if not folder.is_dir():
            raise self._missing(run_id)
        return read_manifest(folder)

    def missing_artifacts(self, run_id: str) -> list[str]:
        """Ids of the artifacts that the run made and that are no longer there; see ``manifest``
        for what it raises.
        """
        made = self.manifest(run_id).artifacts.made
        return sorted({artifact_id for artifact_id in made.values() if not self.artifacts.has(artifact_id)})

    def open(self, run_id: str) -> Result:
        """Read a stored run: its tables are read and checked, its tensors and artifacts when they are used.

        Raises:
            ArtifactError: If the run is missing, damaged or newer than this program.
        """
        manifest = self.manifest(run_id)
        folder = self.path(run_id)
        with storage_errors("read the run", folder):
            damage = find_damage(folder, manifest, tensors=False)
        if damage:
            raise ArtifactError(
                "the run is damaged",
                where=str(folder),
                got="; ".join(damage[:4]),
                next_step="delete the folder and run the analysis again, or restore it from a copy; all "
                "runs: sparsescope verify",
            )
        result = Result(manifest.spec.analysis)
        result.scalars = {scalar.name: scalar for scalar in manifest.scalars}
        result.notes = list(manifest.notes)
        for severity, message in notes_of_text(manifest.spec.corpus):
            result.note(severity, message)
        for name, entry in manifest.tables.items():
            result.tables[name] = read_table(inside(folder, entry.file), entry)
            result.columns[name] = entry.columns
        files = {entry.file: entry for entry in manifest.files}
        for name, tensor in manifest.tensors.items():
            result.tensors[name] = Tensor(
                tensor.dims, partial(read_tensor, folder, name, tensor, files[tensor.file])
            )
        result.artifacts = self._artifacts(manifest)
        result.provenance = provenance(manifest)
        return result

    def _artifacts(self, manifest: Manifest) -> dict[str, Artifact]:
        """The artifacts that a run made and read; those that are missing know the command
        that makes them again.
        """
        found = {
            name: self.artifacts.find(made, remake=manifest.command)
            for name, made in manifest.artifacts.made.items()
        }
        for role, read in manifest.artifacts.read.items():
            there = self.artifacts.has(read)
            found[role] = self.artifacts.find(read, remake="" if there else self._command_of(read))
        return found

    def _command_of(self, artifact_id: str) -> str:
        """The command of a stored run that made an artifact; empty where there is none."""
        for run_id in self.run_ids():
            with contextlib.suppress(ArtifactError):  # a run that cannot be read does not say what it made
                manifest = self.manifest(run_id)
                if artifact_id in manifest.artifacts.made.values():
                    return manifest.command
        return ""

    def verify(self) -> list[RunCheck]:
        """Check the size and checksum of every file of every run; ``ArtifactStore.verify``
        does it for artifacts.
        """
        verdicts = []
        for run_id in self.run_ids():
            try:
                manifest = self.manifest(run_id)
                with storage_errors("read the run", self.path(run_id)):
                    damage = find_damage(self.path(run_id), manifest, tensors=True)
            except ArtifactError as error:
                verdicts.append(RunCheck(run_id, "unreadable", error.message()))
                continue
            verdicts.append(RunCheck(run_id, "damaged" if damage else "ok", "; ".join(damage)))
        return verdicts

    # -- writing ---------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Fail now, not after minutes of computing, when the folder cannot be written to.

        Raises:
            ArtifactError: With the reason.
        """
        probe = temporary_path(self.root, "probe")
        with storage_errors("write to the folder of runs", self.root, instead=FOR_RUNS):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                write_file(probe, b"probe")
            finally:
                probe.unlink(missing_ok=True)

    def write(
        self,
        result: Result,
        spec: Spec,
        *,
        seconds: float,
        environment: dict[str, Any],
        events: list[dict[str, Any]] | None = None,
        command: str = "",
        preset: str = "",
        replace: bool = False,
    ) -> Path:
        """Store a result atomically and return its folder. A run that exists is left as it is.

        Args:
            result: What to store. Its ``provenance`` is filled in. An artifact under the name of a role of
                ``spec.inputs`` was read, any other was made.
            spec: Names the run.
            seconds: Wall time of the computation.
            environment: Versions and hardware, recorded but not part of the digest.
            events: Log lines.
            command: Command line that makes this run again.
            preset: Name of the preset that the parameters come from, a label that is not part of the digest.
            replace: Take the place of a run that exists, as one does whose artifacts were lost.

        Raises:
            ArtifactError: If the disk refuses. No other run is touched and nothing half-written stays.
        """
        final = self.path(spec.run_id)
        for name in result.artifacts.keys() - (spec.inputs or {}).keys():  # those of a run that had no store
            result.artifacts[name] = self.artifacts.adopt(result.artifacts[name])
        temporary = temporary_path(self.root, spec.run_id)
        with storage_errors("store the run", final, instead=FOR_RUNS):
            self.root.mkdir(parents=True, exist_ok=True)
            remove_strays(self.root)
            remove_strays(self.root / FOLDER)
            try:
                temporary.mkdir()
                manifest = write_contents(
                    temporary, result, spec, seconds, environment, events or [], command, preset
                )
                result.provenance = provenance(manifest)
                publish(temporary, final, lambda path: (path / MANIFEST).is_file(), replace=replace)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return final

    # -- partial work ----------------------------------------------------------------------------

    def partial(self, digest: str) -> Path:
        """Folder for the unfinished steps of the run with this digest."""
        return self.root / ".partial" / digest

    def save_step(self, digest: str, step: str, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Store the state after a finished step, atomically.

        Raises:
            ArtifactError: If the disk refuses.
        """
        from safetensors.numpy import save

        # ascontiguousarray gives a number an axis
        whole = {name: np.ascontiguousarray(v).reshape(np.shape(v)) for name, v in arrays.items()}
        data = save(whole, {"meta": json.dumps(meta)})
        path = self.partial(digest) / f"{step}.safetensors"
        replace_file(path, data, action="save the state of the run", instead=FOR_RUNS)

    def load_step(self, digest: str, step: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the state of a step, or None when there is none or it cannot be read."""
        from safetensors import SafetensorError, safe_open

        path = self.partial(digest) / f"{step}.safetensors"
        try:
            with safe_open(path, framework="numpy") as handle:
                meta = json.loads((handle.metadata() or {})["meta"])
                # Not a dict
                return {key: handle.get_tensor(key) for key in handle.keys()}, meta  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return None  # a step is a convenience: without it the run starts from the beginning

    def drop_partial(self, digest: str) -> None:
        """Delete the partial work of a run that is now complete."""
        shutil.rmtree(self.partial(digest), ignore_errors=True)

    def unfinished(self) -> list[Unfinished]:
        """List the partial work of runs that were not completed, the oldest first."""
        with storage_errors("read the unfinished runs", self.root / ".partial"):
            folders = sorted(self.root.glob(".partial/*"))
            found = []
            for folder in folders:
                if re.fullmatch(r"[0-9a-f]{64}", folder.name) and folder.is_dir() and not folder.is_symlink():
                    states = [path.lstat() for path in (folder, *folder.rglob("*"))]
                    newest = max(state.st_mtime for state in states)
                    found.append(
                        Unfinished(
                            folder.name, sum(state.st_size for state in states[1:]), time.time() - newest
                        )
                    )
        return sorted(found, key=lambda entry: -entry.age)

    def remove_unfinished(self, older_than: float) -> list[Unfinished]:
        """Delete partial work that nothing was added to for ``older_than`` seconds, and return what it was.

        A run that is going on adds to it every few seconds, so an hour is safe.
        """
        old = [entry for entry in self.unfinished() if entry.age > older_than]
        for entry in old:
            self.drop_partial(entry.digest)
        return old

    def _missing(self, run_id: str) -> ArtifactError:
        return ArtifactError(
            f"no run {run_id!r}",
            where=str(self.root),
            allowed=self.run_ids()[:8] or "there is no run yet",
            next_step="run: sparsescope list",
        )


def open_run(path: str | Path, home: str | Path | None = None) -> Result:
    """Open a stored run.

    Args:
        path: Its folder (``runs/<id>``), a link to it (``runs/latest``), or its id.
        home: The folder of runs that an id is looked for in; ``home()`` when None.

    Raises:
        ArtifactError: If it is missing, damaged, renamed or newer than this program.
        SpecError: If no file can have this name.
    """
    folder = given_path(path, "name of a run")
    if holds_run(folder):
        folder = folder.resolve()
        if not RUN_ID.fullmatch(folder.name):
            read_manifest(folder)  # says which run it is and that folders are not renamed
    elif folder.parent == Path() and not folder.is_dir():
        return Store(home).open(folder.name)
    return Store(folder.parent).open(folder.name)


def holds_run(folder: Path) -> bool:
    """Whether a folder, or what a link leads to, is that of a complete run."""
    return (folder / MANIFEST).is_file()


def means_run(name: str) -> bool:
    """Whether a name is that of a stored run, whether or not it is there: an id, or the folder of one."""
    folder = given_path(name, "name")
    return bool(RUN_ID.fullmatch(folder.name)) or holds_run(folder)


@lru_cache(maxsize=4096)
def _time_in(path: Path, changed: int) -> bytes:
    """The time in a manifest, of which the beginning is read; ``changed`` is the time of the file."""
    with path.open("rb") as file:
        stated = _CREATED.search(file.read(_HEAD))
    return stated[1] if stated else b""


def _made(path: Path) -> bytes:
    return _time_in(path, path.stat().st_mtime_ns)


def provenance(manifest: Manifest) -> dict[str, Any]:
    """Flatten what reports and pages show about the origin of a run."""
    return {
        "run_id": manifest.run_id,
        "digest": manifest.spec.digest,
        "version": manifest.spec.version,
        "created": manifest.created,
        "seconds": manifest.seconds,
        "subject": manifest.spec.subject,
        "corpus": manifest.spec.corpus,
        "params": manifest.spec.params,
        "inputs": manifest.spec.inputs,
        "environment": manifest.environment,
        "command": manifest.command,
        "preset": manifest.preset,
        "artifacts": manifest.artifacts.model_dump(),
    }
