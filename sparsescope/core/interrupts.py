"""Ctrl-C that waits for the end of a step, so that what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class Interrupt:
    """Whether the user, or a scheduler, has asked for the end.

    Attributes:
        asked: A signal has come and is held back.
    """

    asked: bool = False

    def raise_if_asked(self) -> None:
        """Raise the ``KeyboardInterrupt`` that was held back, if there is one."""
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def held_interrupts() -> Iterator[Interrupt]:
    """Hold Ctrl-C back within the block until it is asked for, at the latest until its end. A second
    one is not held back.

    SIGTERM is held back too where it is treated as Ctrl-C (by the command line). Elsewhere than in the main
    thread, and with other handlers than Python's own, nothing changes.
    """
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.raise_if_asked()
        interrupt.asked = True

    ours = threading.current_thread() is threading.main_thread()
    held = [
        s
        for s in (signal.SIGINT, signal.SIGTERM)
        if ours and signal.getsignal(s) is signal.default_int_handler
    ]
    for number in held:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number in held:
            signal.signal(number, signal.default_int_handler)
    interrupt.raise_if_asked()
