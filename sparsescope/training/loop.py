"""The training loop: steps, measures along the way, checkpoints, and a state from which it goes on exactly.

It knows no language model: what is trained is a ``Training``, which makes one update at a time. Order at step
s, before update s + 1: measure if s is a multiple of ``log_every``, and at the end; checkpoint if s is one of
``checkpoints``; update. A run that was interrupted and started again ends with the same bits as one that was
not, if an update depends on nothing but its number and what the state holds.

The state is saved so often that a killed process loses the work of at most ``SAVE_SECONDS`` or of ``SAVES``
times one save, whichever is longer (never less than one step); after the last step; and after the running
step when Ctrl-C has come, or SIGTERM where it is treated as Ctrl-C.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsescope.core.interrupts import held_interrupts
from sparsescope.training.progress import training_progress
from sparsescope.training.schedule import Schedule
from sparsescope.training.state import TrainingRecord, load_state, save_state

SAVE_SECONDS = 10.0
SAVES = 10.0


@dataclass(kw_only=True)
class Training(ABC):
    """What the loop trains, and all that it saves of it.

    Attributes:
        name: Shown to the user.
        mark: Digest of all that decides the numbers: recipe and data. A state with another mark is refused.
        steps: Number of updates.
        model: Everything that is trained, several modules in a ``torch.nn.ModuleDict``; stored buffers
            are saved with it.
        optimizer: Over parameters of the model; its state is tensors.
        generator: Source of every random number that an update draws.
        schedule: Learning rate of all groups of the optimizer; None leaves them alone.
        extra: Other tensors that an update reads and changes, for example counters of steps without
            firing, or a cursor in the data. Going on replaces the tensors in this mapping, which may have
            another shape then.
        log_every: Steps between two measures; 0 for none.
        checkpoints: Steps at which ``checkpoint`` is called; 0 is the initialization.
        saves: Work between two saves, in times of one save, where that is more than ten seconds: 20 for
            saves that take 5 % of the time; None for ``SAVES``.
        keep_two: Whether the state before the last one is kept too, for a file that was damaged.
        quiet: Whether nothing is shown, because the caller shows what is done.
    """

    name: str
    mark: str
    steps: int
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    schedule: Schedule | None = None
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    log_every: int = 0
    checkpoints: Collection[int] = ()
    saves: float | None = None
    keep_two: bool = False
    quiet: bool = False

    @abstractmethod
    def update(self, step: int) -> None:
        """Make one optimizer step; the learning rate is set already."""

    def measure(self, step: int) -> tuple[list[tuple[str, str, str, float]], str]:
        """Return rows (measure, split, part, value) for the curves, and a short note for
        the line of progress.
        """
        return [], ""

    def checkpoint(self, step: int) -> dict[str, Any]:
        """Write a checkpoint and return its record, plain JSON values. After an interruption it
        may be called again.
        """
        return {"step": step}


class Saving:
    """When to save, so that the work between two saves takes at most ten seconds, or ten times a save."""

    def __init__(self, clock: Callable[[], float], saves: float | None = None) -> None:
        self.clock, self.saves = clock, SAVES if saves is None else saves
        self.saved = self.looked = clock()
        self.cost = 0.0

    def due(self) -> bool:
        """Whether to save now; asked after every step. A next step as long as this one must still fit in."""
        now = self.clock()
        step, self.looked = now - self.looked, now
        return now - self.saved + step > max(SAVE_SECONDS, self.saves * self.cost)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure the seconds of one save."""
        begun = self.clock()
        yield
        self.saved = self.looked = self.clock()
        self.cost = self.saved - begun


def run_training(
    training: Training,
    folder: Path,
    *,
    stop_after: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingRecord:
    """Make the steps that are left.

    Args:
        training: What is trained, at its beginning.
        folder: Where its state lies; the caller holds its lock (``state.alone``).
        stop_after: End, with the state saved, after so many steps of this call; None to run to the end.
        clock: Gives seconds.

    Returns:
        What the run has come to; its ``step`` is below ``training.steps`` where ``stop_after`` ended it.

    Raises:
        ArtifactError: The state cannot be read or saved, or belongs to another training.
        SpecError: The optimizer holds what cannot be saved.
        KeyboardInterrupt: After Ctrl-C; the state was saved after the running step.
    """
    progress = load_state(folder, training)
    last = training.steps if stop_after is None else min(training.steps, progress.step + stop_after)
    begun, spent = time.process_time(), progress.cpu_seconds
    saving, note = Saving(clock, training.saves), "goes on from the saved state" if progress.step else ""
    with (
        training_progress(training.name, training.steps, progress.step, quiet=training.quiet) as show,
        held_interrupts() as interrupt,
    ):
        for step in range(progress.step, training.steps + 1):
            if training.log_every and (step % training.log_every == 0 or step == training.steps):
                rows, note = training.measure(step)
                progress.curves += [(step, *row) for row in rows]
            if step in training.checkpoints:
                progress.checkpoints.append(training.checkpoint(step))
            show(step, note)
            if step == training.steps:
                break
            _update(training, step)
            progress.step, progress.cpu_seconds = step + 1, spent + time.process_time() - begun
            due = saving.due()
            if due or interrupt.asked or progress.step == last:
                with saving.measured():
                    save_state(folder, training, progress)
            interrupt.raise_if_asked()
            if progress.step == last < training.steps:
                break
    return progress


def _update(training: Training, step: int) -> None:
    if training.schedule is not None:
        for group in training.optimizer.param_groups:
            group["lr"] = training.schedule.rate(step)
    training.update(step)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on so many threads: sums over another number of them may differ in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
