"""The state of a running training on disk, from which it goes on exactly, and the lock of the
folder that holds it.

One safetensors file, replaced atomically; no pickle. A state belongs to one recipe and one data set: another
one is refused instead of being continued. Names of tensors: ``model.NAME`` for parameters and stored buffers;
``KEY.NAME`` for what the optimizer holds of a parameter, for example ``exp_avg.NAME`` of Adam;
``extra.NAME``; ``generator``. What was measured is JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsescope.activations.shard_file import save_shard
from sparsescope.core.files import storage_errors, sync_path
from sparsescope.core.locks import locked
from sparsescope.errors import ArtifactError, SpecError
from sparsescope.models.identity import named_tensors

if TYPE_CHECKING:
    from sparsescope.training.loop import Training

FILE = "state.safetensors"
PREVIOUS = "state.previous.safetensors"


@dataclass(slots=True)
class TrainingRecord:
    """What a run has come to.

    Attributes:
        step: The next step: how many updates were made.
        curves: Rows (step, measure, split, part, value) so far.
        checkpoints: Records of the checkpoints written so far.
        cpu_seconds: Processor time spent so far; wall time would count what else the machine did.
    """

    step: int = 0
    curves: list[tuple[int, str, str, str, float]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    cpu_seconds: float = 0.0


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: two trainings in it would replace each other's checkpoints.

    Args:
        folder: Folder of unfinished work within that of the output.

    Raises:
        ArtifactError: Another process holds it.
    """
    with locked(
        folder,
        "another training writes to this folder",
        where=folder.parent,
        next_step="wait until it has ended, or give another --output",
    ):
        yield


def save_state(folder: Path, training: Training, progress: TrainingRecord) -> None:
    """Write the state of a training.

    Raises:
        ArtifactError: The disk refuses; the state that was saved before stays.
        SpecError: The optimizer holds what is no tensor, or parameters that are not the model's.
    """
    tensors = {f"model.{name}": tensor.detach() for name, tensor in named_tensors(training.model)}
    for name, parameter in _optimized(training):
        for key, value in training.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{key}.{name}"] = value
            elif value is not None:  # SGD without momentum holds None
                raise SpecError(
                    "the optimizer holds what cannot be saved",
                    where=f"{type(training.optimizer).__name__}: {key} of {name}",
                    allowed="tensors",
                    got=type(value).__name__,
                    next_step="choose an optimizer whose state is tensors, for example torch.optim.Adam",
                )
    tensors |= {f"extra.{name}": tensor.detach() for name, tensor in training.extra.items()}
    tensors["generator"] = training.generator.get_state()
    facts = {
        "mark": training.mark,
        "step": progress.step,
        "curves": progress.curves,
        "checkpoints": progress.checkpoints,
        "cpu_seconds": progress.cpu_seconds,
    }
    with storage_errors("save the state of the training", folder / FILE):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{FILE}.{os.getpid()}.tmp"
        for left in folder.glob(f".{FILE}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process that was killed; the caller holds the lock
        try:
            # Written tensor by tensor: a copy of all of them would double the memory
            save_shard(
                {name: tensor.contiguous().cpu() for name, tensor in tensors.items()},
                temporary,
                {"facts": json.dumps(facts)},
            )
            if training.keep_two and (folder / FILE).is_file():
                (folder / FILE).replace(folder / PREVIOUS)
            temporary.replace(folder / FILE)
            sync_path(folder)
        finally:
            temporary.unlink(missing_ok=True)


def load_state(folder: Path, training: Training) -> TrainingRecord:
    """Put a training back to where it was; without a saved state it stays at its beginning.

    Raises:
        ArtifactError: The state is damaged, or belongs to another recipe, other data or another model.
        SpecError: The optimizer holds parameters that are not the model's.
    """
    optimized, path = _optimized(training), folder / FILE
    if not path.is_file():
        path = folder / PREVIOUS  # the process was killed between two renames
    if not path.is_file():
        return TrainingRecord()
    try:
        facts, tensors = _read(path)
    except ArtifactError:
        if path.name == PREVIOUS or not (folder / PREVIOUS).is_file():
            raise
        path = folder / PREVIOUS
        facts, tensors = _read(path)
    if facts["mark"] != training.mark:
        raise ArtifactError(
            "the unfinished training in this folder is of another recipe, or of other texts",
            where=str(path),
            next_step="give another --output, or delete the folder .partial in it",
        )
    held = dict(named_tensors(training.model))
    wrong = [
        name
        for name, tensor in held.items()
        if getattr(tensors.get(f"model.{name}"), "shape", None) != tensor.shape
    ]
    wrong += [name for name in training.extra if f"extra.{name}" not in tensors]
    if wrong or "generator" not in tensors:
        raise ArtifactError(
            "the state of the training does not fit its model",
            where=str(path),
            got=f"missing, or of another shape: {', '.join(wrong) or 'generator'}"[:200],
            next_step="it was saved by another version: delete the file and begin again",
        )
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(tensors[f"model.{name}"])
    for name, before in training.extra.items():
        training.extra[name] = tensors[f"extra.{name}"].to(before.device)
    _restore(training.optimizer, [name for name, _ in optimized], tensors)
    training.generator.set_state(tensors["generator"])
    curves = [
        (int(step), measure, split, part, float(value))
        for step, measure, split, part, value in facts["curves"]
    ]
    return TrainingRecord(int(facts["step"]), curves, facts["checkpoints"], float(facts["cpu_seconds"]))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts and tensors of a saved state."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            # safe_open is no dict
            return facts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own
        raise ArtifactError(
            "the state of the training cannot be read",
            where=str(path),
            got=str(error)[:200],
            next_step="delete the file and begin again",
        ) from error


def _optimized(training: Training) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters of the optimizer in its order, with the names that they have in the model."""
    names = {parameter: name for name, parameter in training.model.named_parameters()}
    found = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    strange = sum(parameter not in names for parameter in found)
    if strange:
        raise SpecError(
            "the optimizer changes parameters that are not the model's, which would not be saved",
            where=training.name,
            got=f"{strange} of {len(found)} parameters",
            next_step="put all that is trained into one module, for example a torch.nn.ModuleDict",
        )
    return [(names[parameter], parameter) for parameter in found]


def _restore(optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, torch.Tensor]) -> None:
    """Give the optimizer back what it held; torch puts each tensor on the device where it belongs."""
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, tensor in tensors.items():
        key, _, name = full.partition(".")
        if key not in ("model", "extra") and name in numbers:
            state.setdefault(numbers[name], {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
