"""Interrupts that wait for the end of a step."""

from __future__ import annotations

import signal
import threading

import pytest

from sparsescope.core.interrupts import held_interrupts


@pytest.fixture
def terminate_as_interrupt():
    """What the command line does: SIGTERM is treated as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_first_is_held_back_until_it_is_asked_for(terminate_as_interrupt):
    for number in (signal.SIGINT, signal.SIGTERM):
        done = []
        with pytest.raises(KeyboardInterrupt), held_interrupts() as interrupt:
            interrupt.raise_if_asked()
            signal.raise_signal(number)
            done.append("step")
            assert interrupt.asked
            interrupt.raise_if_asked()
            done.append("never")
        assert done == ["step"]
        assert signal.getsignal(number) is signal.default_int_handler


def test_it_is_raised_at_the_end_of_the_block_at_the_latest():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        done.append("step")
    assert done == ["step"]


def test_the_second_is_not_held_back():
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second Ctrl-C was held back")


def test_an_exception_of_the_block_is_the_one_that_is_seen():
    with pytest.raises(ValueError, match="the block's own"), held_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("the block's own")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_and_other_threads_are_left_alone(monkeypatch):
    seen = []
    mine = lambda number, frame: seen.append(number)  # noqa: E731  # compared by identity below
    before = signal.signal(signal.SIGINT, mine)
    try:
        with held_interrupts() as interrupt:
            assert signal.getsignal(signal.SIGINT) is mine
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT] and not interrupt.asked
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere():
        with held_interrupts():  # signal.signal would raise here
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen[1:] == [signal.default_int_handler]
