"""How far a training is: a bar with loss and time left on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_SECONDS = 10.0

#: Called as ``show(step, note)``; the note is a short text such as ``loss 0.0123``.
Show = Callable[[int, str], None]


@contextmanager
def training_progress(name: str, steps: int, begin: int = 0, *, quiet: bool = False) -> Iterator[Show]:
    """Yield the function that shows progress, on standard error.

    Args:
        name: Name of the run.
        steps: Its last step.
        begin: The step that it goes on from.
        quiet: Whether nothing is shown.
    """
    if quiet:
        yield lambda step, note: None
        return
    if not sys.stderr.isatty():
        yield _plain(name, steps, begin)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
        TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=steps, completed=begin, note="")
        yield lambda step, note: bar.update(task, completed=step, note=note)


def _plain(name: str, steps: int, begin: int) -> Show:
    """One line at the first call, every ``PLAIN_SECONDS``, and at the end."""
    start = time.monotonic()
    last: list[float] = []

    def show(step: int, note: str) -> None:
        now = time.monotonic()
        if step < steps and last and now - last[0] < PLAIN_SECONDS:
            return
        last[:] = [now]
        rate = (step - begin) / (now - start) if step > begin and now > start else 0.0
        left = f", {rate:,.1f} steps/s, {(steps - step) / rate:,.0f} s left" if rate else ""
        sys.stderr.write(f"{name}: {step:,} of {steps:,} steps, {note}{left}\n")
        sys.stderr.flush()

    return show
