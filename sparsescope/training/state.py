"""The state of a running training on disk, from which it goes on exactly: weights, optimizer, generator, what was measured.

One safetensors file, replaced atomically; no pickle. A state belongs to one recipe and one data set: another one is refused
instead of being continued.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsescope.core.files import replace_file
from sparsescope.errors import ArtifactError
from sparsescope.models.identity import named_tensors

FILE = "state.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(slots=True)
class Progress:
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


def save_state(
    folder: Path, mark: str, progress: Progress, model: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Write the state.

    Args:
        folder: Where.
        mark: Digest of recipe and data.
        progress: What the run has come to.
        model: The model.
        optimizer: AdamW over its parameters.
        generator: Draws batches.
    """
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor.detach() for name, tensor in named_tensors(model)}
    for name, parameter in model.named_parameters():
        tensors |= {f"{key}.{name}": optimizer.state[parameter][key] for key in _MOMENTS if parameter in optimizer.state}
    tensors["generator"] = generator.get_state()
    facts = {
        "mark": mark,
        "step": progress.step,
        "curves": progress.curves,
        "checkpoints": progress.checkpoints,
        "cpu_seconds": progress.cpu_seconds,
    }
    data = save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {"facts": json.dumps(facts)})
    replace_file(folder / FILE, data, action="save the state of the training")


def load_state(
    folder: Path, mark: str, model: Any, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> Progress | None:
    """Put a run back to where it was; None where there is no state.

    Raises:
        ArtifactError: The state is damaged, or belongs to another recipe or other data.
    """
    from safetensors import safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # safe_open is no dict
    except Exception as error:  # safetensors has an exception of its own
        raise ArtifactError(
            "the state of the training cannot be read",
            where=str(path),
            got=str(error)[:200],
            next_step="delete the file and begin again",
        ) from error
    if facts["mark"] != mark:
        raise ArtifactError(
            "the unfinished training in this folder is of another recipe, or of other texts",
            where=str(path),
            next_step="give another --output, or delete the folder .partial in it",
        )
    with torch.no_grad():
        for name, tensor in named_tensors(model):
            tensor.copy_(tensors[f"model.{name}"])
    for name, parameter in model.named_parameters():
        if f"exp_avg.{name}" in tensors:
            optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in _MOMENTS}
    generator.set_state(tensors["generator"])
    curves = [(int(step), measure, split, part, float(value)) for step, measure, split, part, value in facts["curves"]]
    return Progress(int(facts["step"]), curves, facts["checkpoints"], float(facts["cpu_seconds"]))
