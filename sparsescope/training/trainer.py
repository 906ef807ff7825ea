"""Run a recipe: optimizer steps, measures along the way, checkpoints, and a state from which it goes on exactly.

Order at step s, before update s + 1: measure if s is a multiple of ``log_every``; write a checkpoint if s is one of them;
update. An interrupted run that is started again gives the same checkpoints, bit for bit. Weights are trained in float32.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from sparsescope.core.files import storage_errors
from sparsescope.core.spec import canonical_json
from sparsescope.errors import ArtifactError, SparsescopeError, SpecError, SubjectError
from sparsescope.models import series_file
from sparsescope.models.architectures import build_model
from sparsescope.models.quiet import torch_dtype
from sparsescope.training.data import AdditionData, Data
from sparsescope.training.measure import measure, training_loss
from sparsescope.training.progress import Show, training_progress
from sparsescope.training.recipe import ModularAddition, Recipe
from sparsescope.training.state import Progress, load_state, save_state
from sparsescope.training.writer import finish, write_checkpoint

PARTIAL = ".partial"
SAVE_SECONDS = 60.0


@dataclass(slots=True)
class _Run:
    """The parts of a running training."""

    recipe: Recipe
    data: Data
    model: Any
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    folder: Path
    mark: str


def train(recipe: Recipe, output: Path, *, recipe_text: str = "", stop_after: int | None = None) -> Path | None:
    """Train a model and write its series.

    Args:
        recipe: What to do.
        output: Folder of the series; it must not hold a finished one. Unfinished work lies in ``.partial`` in it.
        recipe_text: Text of the recipe file, copied into the series.
        stop_after: End, with the state saved, after so many steps of this call; None to run to the end.

    Returns:
        The folder, or None where ``stop_after`` ended the run before its last step.

    Raises:
        ArtifactError: The folder holds a finished series, other files, unfinished work of another recipe, or is in use.
        SpecError: The model cannot be built, or does not take the data.
        SubjectError: The loss is not finite.
    """
    _refuse_finished(output)
    folder = output / PARTIAL
    if output.is_dir() and not folder.is_dir() and any(output.iterdir()):
        raise ArtifactError(
            "the folder holds other files, which a series would overwrite",
            where=str(output),
            allowed="a folder that is new or empty, or one with unfinished work of the same recipe",
            next_step="give another --output",
        )
    with storage_errors("make the folder of the training", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder), _threads(recipe.threads):
        _refuse_finished(output)  # by another process, between the first look and the lock
        try:
            run = _begin(recipe, folder)
            _try(run)
        except SparsescopeError:
            raise
        except Exception as error:  # transformers and torch have many ways to refuse a configuration
            raise SpecError(
                "the model of this recipe cannot be built, or does not take its data",
                where=f"{recipe.name}: [model.config], [data]",
                got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                next_step="check sizes, names and the vocabulary in the recipe",
            ) from error
        progress = load_state(folder, run.mark, run.model, run.optimizer, run.generator) or Progress()
        with training_progress(recipe.name, recipe.steps, progress.step) as show:
            if not _loop(run, progress, show, stop_after):
                return None
        finish(output, folder, recipe, run.data, run.model, progress, recipe_text)
    return output


def _refuse_finished(output: Path) -> None:
    if (output / series_file.FILE).is_file():
        raise ArtifactError(
            "the folder holds a finished series",
            where=str(output),
            next_step="give another --output, or delete that folder",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder: two trainings in it would replace each other's checkpoints."""
    lock = FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(
            "another training writes to this folder",
            where=str(folder.parent),
            next_step="wait until it has ended, or give another --output",
        ) from None
    try:
        yield
    finally:
        lock.release()


def make_data(recipe: Recipe) -> Data:
    """Return the data set of a recipe."""
    if isinstance(recipe.data, ModularAddition):
        return AdditionData(recipe.data)
    from sparsescope.training.byte_text import ByteTextData

    return ByteTextData(recipe.data)


def _begin(recipe: Recipe, folder: Path) -> _Run:
    data = make_data(recipe)
    model: Any = build_model(recipe.model.architecture, recipe.model.values, recipe.seed)
    first, second = recipe.optimizer.betas
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.optimizer.learning_rate,
        betas=(first, second),
        weight_decay=recipe.optimizer.weight_decay,
        fused=True,
    )
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    named = canonical_json([recipe.model_dump(), data.describe()])
    return _Run(recipe, data, model.train(), optimizer, generator, folder, hashlib.sha256(named.encode()).hexdigest())


def _try(run: _Run) -> None:
    """Compute one loss, so that a configuration that does not fit the data fails now. No random number is used up."""
    generator = torch.Generator()
    generator.set_state(run.generator.get_state())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        tokens, targets = run.data.batch(0, generator)
        training_loss(run.model, tokens, targets, run.recipe.optimizer.balance)


def _loop(run: _Run, progress: Progress, show: Show, stop_after: int | None) -> bool:
    """Make the steps that are left; return whether the last one was reached."""
    recipe = run.recipe
    last_step = recipe.steps if stop_after is None else min(recipe.steps, progress.step + stop_after)
    begun, saved = time.process_time(), time.monotonic()
    spent, note = progress.cpu_seconds, "goes on from the saved state"
    for step in range(progress.step, recipe.steps + 1):
        if step % recipe.log_every == 0 or step == recipe.steps:
            note = _log(run, progress, step)
        if step in recipe.checkpoints:
            progress.checkpoints.append(write_checkpoint(run.folder, run.model, recipe, run.data, step))
        show(step, note)
        if step == recipe.steps:
            break
        _update(run, step)
        now = time.monotonic()
        progress.step, progress.cpu_seconds = step + 1, spent + time.process_time() - begun
        stop = progress.step == last_step < recipe.steps
        if stop or step in recipe.checkpoints or now - saved > SAVE_SECONDS:
            save_state(run.folder, run.mark, progress, run.model, run.optimizer, run.generator)
            saved = now
        if stop:
            return False
    return True


def _update(run: _Run, step: int) -> None:
    """Make one optimizer step."""
    optimizer = run.recipe.optimizer
    for group in run.optimizer.param_groups:
        group["lr"] = optimizer.rate(step, run.recipe.steps)
    tokens, targets = run.data.batch(step, run.generator)
    loss = training_loss(run.model, tokens, targets, optimizer.balance, torch_dtype(optimizer.loss_dtype))
    run.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if optimizer.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), optimizer.clip_norm)
    run.optimizer.step()


def _log(run: _Run, progress: Progress, step: int) -> str:
    """Measure the model, add the rows to the curves, and return a note for the progress line."""
    found = measure(run.model, run.data.examples(whole=False))
    for split, values in found.items():
        split, _, part = split.partition("/")
        progress.curves += [(step, key, split, part, values[key]) for key in ("loss", "accuracy")]
    for name, parameter in run.model.named_parameters():
        progress.curves.append((step, "squared_norm", "", name, float(parameter.detach().double().square().sum())))
    losses = {split: values["loss"] for split, values in found.items() if "/" not in split}
    if not all(map(_finite, losses.values())):
        raise SubjectError(
            "the loss is not finite: the training has diverged",
            where=f"{run.recipe.name}, step {step}",
            got=str(losses),
            next_step="lower optimizer.learning_rate in the recipe",
        )
    return ", ".join(f"{split} loss {value:.3g}" for split, value in losses.items())


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch on so many threads: sums over another number of them may differ in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
