"""What the command line shows: progress, tables, errors, JSON.

On a terminal a progress bar with rate and time left, otherwise a plain line now and then, always on standard
error: standard output carries results only, so that it can be piped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sparsescope.errors import SparsescopeError

if TYPE_CHECKING:
    from sparsescope.runner.engine import ProgressCallback

PLAIN_SECONDS = 10.0
WIDEST_CELL = 400  # one very long name must not pad every row of a table to its length; --json has all of it


def show_log() -> None:
    """Show what the library says of long work (downloads, dequantizing) on standard error."""
    logger = logging.getLogger("sparsescope")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


class OutputLost(SparsescopeError):
    """Standard output took no more: a full disk. What was computed and stored is there all the same."""


def say(text: str) -> None:
    """Tell the user what is going on, on standard error; where that cannot be written to nobody is told."""
    with contextlib.suppress(OSError):
        print(_lines(text), file=sys.stderr, flush=True)


def out(text: str) -> None:
    """Print a result on standard output.

    Raises:
        OutputLost: It cannot be written to.
        BrokenPipeError: Its reader has gone.
    """
    _print(_lines(text))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(
            "standard output cannot be written to",
            got=error.strerror,
            next_step="send it elsewhere; what is stored is not lost, see: sparsescope list",
        ) from error


def out_json(value: Any) -> None:
    """Print one JSON document; NaN and infinity, which JSON does not have, become null."""
    # All of it is ASCII, and the one control character that JSON leaves alone is escaped: no name can
    # reach the terminal.
    _print(json.dumps(_finite(value), indent=1, default=str).replace("\x7f", "\\u007f"))


def error_json(error: SparsescopeError) -> None:
    """Print an error as JSON."""
    parts = ("what", "where", "allowed", "got", "next_step")
    kind = type(error).__name__
    out_json({"error": {"kind": kind, **{part: getattr(error, part) for part in parts}}})


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows in aligned columns as plain text."""
    cells = [[_cell(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(headings))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """Yield a function that shows progress."""
    if not sys.stderr.isatty():
        yield _plain_progress()
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}
        begin: dict[str, tuple[float, int]] = {}

        def show(phase: str, done: int, total: int, unit: str = "tokens") -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total, rate="", unit=unit)
                begin[phase] = (time.monotonic(), done)
            start, first = begin[phase]
            rate = (done - first) / max(time.monotonic() - start, 1e-9)
            shown = f"{rate:,.{0 if rate >= 10 else 1}f}/s" if done > first else ""
            bar.update(tasks[phase], completed=done, total=total, unit=unit, rate=shown)  # a total may grow

        yield show


def _plain_progress() -> ProgressCallback:
    """One line at the start of a phase, every ``PLAIN_SECONDS``, and at its end."""
    last: dict[str, float] = {}
    start: dict[str, tuple[float, int]] = {}

    def show(phase: str, done: int, total: int, unit: str = "tokens") -> None:
        now = time.monotonic()
        begin, first = start.setdefault(phase, (now, done))
        if done < total and phase in last and now - last[phase] < PLAIN_SECONDS:
            return
        last[phase] = now
        rate = (done - first) / (now - begin) if now > begin else 0.0
        left = (
            f", {rate:,.{0 if rate >= 10 else 1}f} {unit}/s, {(total - done) / rate:,.0f} s left"
            if rate
            else ""
        )
        say(f"{phase}: {done:,} of {total:,} {unit}{left}")

    return show


def _lines(text: str) -> str:
    """Text of several lines without terminal sequences: names and messages come from files
    that others wrote.
    """
    return "\n".join(_plain(line.expandtabs()) for line in text.split("\n"))


def _plain(cell: Any) -> str:
    """Text of a cell without control characters: names come from files and models."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(cell))


def _cell(value: Any) -> str:
    """Text of a cell on one line, cut where it would fill the screen."""
    text = " · ".join(filter(None, map(str.strip, str(value).splitlines())))
    return _plain(text) if len(text) <= WIDEST_CELL else _plain(text[:WIDEST_CELL]) + " ..."


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
