"""Train the language model of a recipe and write the series of its checkpoints.

The loop is ``training/loop.py``. Weights are trained in float32, on the CPU.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsescope.core.files import given_path, storage_errors
from sparsescope.core.spec import canonical_json
from sparsescope.errors import ArtifactError, SparsescopeError, SpecError, SubjectError
from sparsescope.models.formats import series_file
from sparsescope.models.structure.architectures import build_model, check_config
from sparsescope.models.torch_environment import torch_dtype
from sparsescope.training.data import AdditionData, Data
from sparsescope.training.loop import Training, run_training, torch_threads
from sparsescope.training.measure import measure, training_loss
from sparsescope.training.recipe import ModularAddition, Recipe
from sparsescope.training.state import alone
from sparsescope.training.writer import finish, write_checkpoint

PARTIAL = ".partial"


@dataclass(kw_only=True)
class _LanguageModel(Training):
    """A causal model of transformers on the data of a recipe."""

    recipe: Recipe
    data: Data
    folder: Path

    def update(self, step: int) -> None:
        """Descend the loss of one batch."""
        recipe = self.recipe.optimizer
        tokens, targets = self.data.batch(step, self.generator)
        loss = training_loss(self.model, tokens, targets, recipe.balance, torch_dtype(recipe.loss_dtype))
        self.optimizer.zero_grad()
        loss.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        after_step: Any = getattr(self.model, "after_step", None)
        if after_step is not None:
            after_step((step + 1) / self.steps)

    def measure(self, step: int) -> tuple[list[tuple[str, str, str, float]], str]:
        """Measure loss and accuracy of each split, and the squared norm of each parameter."""
        found = measure(self.model, self.data.examples(whole=False))
        rows = []
        for split, values in found.items():
            split, _, part = split.partition("/")
            rows += [(key, split, part, values[key]) for key in ("loss", "accuracy")]
        for name, parameter in self.model.named_parameters():
            rows.append(("squared_norm", "", name, float(parameter.detach().double().square().sum())))
        losses = {split: values["loss"] for split, values in found.items() if "/" not in split}
        if not all(map(math.isfinite, losses.values())):
            raise SubjectError(
                "the loss is not finite: the training has diverged",
                where=f"{self.name}, step {step}",
                got=str(losses),
                next_step="lower optimizer.learning_rate in the recipe",
            )
        return rows, ", ".join(f"{split} loss {value:.3g}" for split, value in losses.items())

    def checkpoint(self, step: int) -> dict[str, Any]:
        """Write the weights in float16."""
        return write_checkpoint(self.folder, self.model, self.recipe, self.data, step)

    def try_out(self) -> None:
        """Compute one loss, so that a configuration that does not fit the data fails now. No random
        number is used up.
        """
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            tokens, targets = self.data.batch(0, generator)
            training_loss(self.model, tokens, targets, self.recipe.optimizer.balance)


def train(
    recipe: Recipe, output: Path, *, recipe_text: str = "", stop_after: int | None = None
) -> Path | None:
    """Train a model and write its series.

    Args:
        recipe: What to do.
        output: Folder of the series; it must not hold a finished one. Unfinished work lies in
            ``.partial`` in it.
        recipe_text: Text of the recipe file, copied into the series.
        stop_after: End, with the state saved, after so many steps of this call; None to run to the end.

    Returns:
        The folder, or None where ``stop_after`` ended the run before its last step.

    Raises:
        ArtifactError: The folder holds a finished series, other files, unfinished work of another
            recipe, or is in use.
        KeyboardInterrupt: After Ctrl-C; the state was saved after the running step.
        SpecError: The model cannot be built, does not take the data, or has no such value
            in its configuration.
        SubjectError: The loss is not finite.
    """
    output = given_path(output, "output")
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
    with alone(folder), torch_threads(recipe.threads):
        _refuse_finished(output)  # by another process, between the first look and the lock
        try:
            training = _begin(recipe, folder)
            training.try_out()
        except SparsescopeError:
            raise
        except Exception as error:  # transformers and torch have many ways to refuse a configuration
            raise SpecError(
                "the model of this recipe cannot be built, or does not take its data",
                where=f"{recipe.name}: [model.config], [data]",
                got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                next_step="check sizes, names and the vocabulary in the recipe",
            ) from error
        progress = run_training(training, folder, stop_after=stop_after)
        if progress.step < recipe.steps:
            return None
        finish(output, folder, recipe, training.data, training.model, progress, recipe_text)
    return output


def _refuse_finished(output: Path) -> None:
    if (output / series_file.FILE).is_file():
        raise ArtifactError(
            "the folder holds a finished series",
            where=str(output),
            next_step="give another --output, or delete that folder",
        )


def make_data(recipe: Recipe) -> Data:
    """Return the data set of a recipe."""
    if isinstance(recipe.data, ModularAddition):
        return AdditionData(recipe.data)
    from sparsescope.training.byte_text import ByteTextData

    return ByteTextData(recipe.data)


def _begin(recipe: Recipe, folder: Path) -> _LanguageModel:
    check_config(recipe.model.architecture, recipe.model.config)
    data = make_data(recipe)
    model: Any = build_model(recipe.model.architecture, recipe.model.values, recipe.seed)
    if recipe.optimizer.balance and hasattr(model, "penalty_weight"):
        raise SpecError(
            "the gates of this model weigh their own penalties",
            where=f"{recipe.name}: [optimizer] balance",
            allowed="0, or nothing",
            got=recipe.optimizer.balance,
            next_step="set it in gate_options of [model.config], where the gate has such an option",
        )
    first, second = recipe.optimizer.betas
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.optimizer.learning_rate,
        betas=(first, second),
        weight_decay=recipe.optimizer.weight_decay,
        fused=True,
    )
    named = canonical_json([recipe.model_dump(), data.describe()])
    return _LanguageModel(
        name=recipe.name,
        mark=hashlib.sha256(named.encode()).hexdigest(),
        steps=recipe.steps,
        model=model.train(),
        optimizer=optimizer,
        generator=torch.Generator().manual_seed(recipe.seed + 1),
        schedule=recipe.optimizer.schedule(recipe.steps),
        log_every=recipe.log_every,
        checkpoints=frozenset(recipe.checkpoints),
        recipe=recipe,
        data=data,
        folder=folder,
    )
