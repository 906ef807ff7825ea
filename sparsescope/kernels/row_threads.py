"""Threads that each take whole blocks of rows: matrix products and what follows them stay in one thread.

Torch's own threads wait busily after each product and then compete with compiled code that runs on other
threads. Here a thread makes the product of its rows alone and goes on with the result while that is in its
cache. Blocks are of a fixed size, so the results do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Value = TypeVar("Value")


def in_row_blocks(work: Callable[[int, int], Value], rows: int, block: int) -> list[Value]:
    """Call ``work(begin, end)`` for blocks of rows, on as many threads as torch is set to use.

    Args:
        work: Called on a thread whose own torch products take one thread.
        rows: Number of rows.
        block: Rows in a block; the last one may be smaller.

    Returns:
        What the calls returned, in the order of the rows.
    """
    bounds = [(begin, min(begin + block, rows)) for begin in range(0, rows, block)]
    threads = min(torch.get_num_threads(), len(bounds))
    if threads <= 1:
        return [work(*bound) for bound in bounds]
    return list(_pool(threads).map(lambda bound: work(*bound), bounds))


def _compute_alone() -> None:
    torch.set_num_threads(1)
    # A thread that asks for the first time takes over what was set last, by whichever thread
    torch.get_num_threads()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that are kept; torch's number of threads belongs to each thread."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rows", initializer=_compute_alone)
    met = Barrier(threads)  # all threads must begin, or a later one would take over the number set below
    for done in [pool.submit(met.wait) for _ in range(threads)]:
        done.result()
    torch.set_num_threads(before)  # what threads that begin later inherit
    return pool


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: the child would wait for them for ever
    os.register_at_fork(after_in_child=_pool.cache_clear)
