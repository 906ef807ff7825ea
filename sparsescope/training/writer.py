"""Write the files of a series: checkpoints while the training runs, everything else when it is finished.

``series.json`` is moved to its place last, so a folder that has one is complete. What the files mean
stands in ``sparsescope/models/formats/series_file.py``.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsescope.core.environment import environment
from sparsescope.core.files import replace_file, sha256_file, storage_errors, sync_path
from sparsescope.errors import SubjectError
from sparsescope.metrics.onsets import ACCURACY, first_held
from sparsescope.models.formats import series_file
from sparsescope.models.formats.series_file import copy_weights, probe_digest
from sparsescope.models.identity import named_tensors, weight_hash
from sparsescope.training.data import Data
from sparsescope.training.measure import measure
from sparsescope.training.recipe import ModularAddition, Recipe
from sparsescope.training.state import TrainingRecord

# Values of a configuration that say nothing about the model.
_NOISE = ("transformers_version", "_name_or_path", "id2label", "label2id", "dtype", "output_router_logits")


def write_checkpoint(folder: Path, model: Any, recipe: Recipe, data: Data, step: int) -> dict[str, Any]:
    """Write the weights of a step in float16 and measure them before and after rounding.

    Returns:
        The record of ``series.json``.

    Raises:
        SubjectError: A weight does not fit into float16.
    """
    from safetensors.torch import save

    tensors = dict(named_tensors(model))
    rounded = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in tensors.items()}
    large = next((name for name, tensor in rounded.items() if not bool(torch.isfinite(tensor).all())), None)
    if large is not None:
        raise SubjectError(
            "a weight does not fit into float16, in which checkpoints are stored",
            where=f"{recipe.name}, step {step}: {large}",
            got=float(tensors[large].abs().max()),
            next_step="lower optimizer.learning_rate in the recipe, or raise its weight decay",
        )
    written = save(rounded)
    name = f"step-{step}.safetensors"
    replace_file(folder / name, written, action="write a checkpoint")
    twin = copy.deepcopy(model)
    copy_weights(dict(named_tensors(twin)), rounded)
    examples = data.examples(whole=True)
    return {
        "step": step,
        "file": name,
        "sha256": hashlib.sha256(written).hexdigest(),
        "float32_hash": weight_hash(model),
        "trained": measure(model, examples),
        "stored": measure(twin, [*examples, *data.probe_examples()]),
    }


def finish(
    output: Path,
    folder: Path,
    recipe: Recipe,
    data: Data,
    model: Any,
    progress: TrainingRecord,
    recipe_text: str,
) -> None:
    """Write what belongs to a finished series and move the checkpoints to their place.

    Args:
        output: Folder of the series.
        folder: Folder of the unfinished work; it is removed.
        recipe: The recipe.
        data: Its data.
        model: The trained model.
        progress: What was measured.
        recipe_text: Text of the recipe file; the recipe as JSON where it is empty.
    """
    from safetensors.numpy import save

    arrays = {name: tensor.numpy().astype("int32") for name, tensor in data.probe().items()}
    config = {
        key: value
        for key, value in json.loads(model.config.to_json_string(use_diff=False)).items()
        if key not in _NOISE
    }
    files = {
        series_file.CONFIG: json.dumps(config, indent=1, sort_keys=True).encode() + b"\n",
        series_file.RECIPE: (recipe_text or recipe.model_dump_json(indent=1)).encode(),
        series_file.CURVES: _curves(progress),
        series_file.PROBE: save(arrays),
    }
    content = series_file.SeriesFile(
        format=1,
        name=recipe.name,
        title=recipe.title,
        license=recipe.license,
        seed=recipe.seed,
        architecture=recipe.model.architecture,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        files={name: hashlib.sha256(text).hexdigest() for name, text in files.items()},
        probe_digest=probe_digest(arrays),
        data=data.describe(),
        baselines={part: dict(values) for part, values in data.baselines().items()},
        events=_events(progress) if isinstance(recipe.data, ModularAddition) else {},
        environment=environment(threads=recipe.threads, cpu_seconds=round(progress.cpu_seconds, 1)),
        checkpoints=[series_file.StoredCheckpoint(**record) for record in progress.checkpoints],
    )
    # Written beside the unfinished work and moved: what a killed process leaves half written
    # goes with that folder.
    for name, text in files.items():
        replace_file(folder / name, text)
    replace_file(folder / series_file.FILE, content.model_dump_json(indent=1).encode() + b"\n")
    with storage_errors("move the files of the series to their place", output):
        for record in content.checkpoints:
            if (folder / record.file).is_file():  # else moved already, by a call that was interrupted here
                (folder / record.file).replace(output / record.file)
            if sha256_file(output / record.file) != record.sha256:
                raise SubjectError(
                    "a checkpoint was changed after it was written",
                    where=str(output / record.file),
                    next_step="delete the folder and train again",
                )
        for name in files:
            (folder / name).replace(output / name)
        sync_path(output)
        (folder / series_file.FILE).replace(output / series_file.FILE)
        sync_path(output)
    # The series is complete: what a killed run left there must not fail it
    shutil.rmtree(folder, ignore_errors=True)


def _curves(progress: TrainingRecord) -> bytes:
    import pandas as pd

    frame = pd.DataFrame(progress.curves, columns=["step", "measure", "split", "part", "value"])
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _events(progress: TrainingRecord) -> dict[str, int | None]:
    """Steps of memorization and generalization, None where they did not happen."""
    accuracy: dict[str, list[tuple[int, float]]] = {"train": [], "test": []}
    for step, measured, split, _, value in progress.curves:
        if measured == "accuracy":
            accuracy[split].append((step, value))
    return {"t_mem": _onset(accuracy["train"]), "t_gen": _onset(accuracy["test"])}


def _onset(points: Sequence[tuple[int, float]]) -> int | None:
    """Return the first step from which the accuracy holds for some logs in a row; None if never."""
    steps, values = np.array(points).T
    return first_held(steps.astype(np.int64), values >= ACCURACY)
