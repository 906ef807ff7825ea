"""What the checks of a pass cost: that every site is seen once, and what is tried once for each subject."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sparsescope.core.columns import Column

if TYPE_CHECKING:
    from sparsescope.models.subject import Subject

PASS = "sites are seen once, every pass"  # noqa: S105  no password
CHECKS = (
    Column("check", "label", "What is checked, and when."),
    Column("seconds", "seconds", "Median time for all tokens; of what is tried once, the time of that.", "s"),
    Column("share", "fraction", "Median over repeats of its time / the time of the same copying pass."),
    Column("share_q1", "fraction", "First quartile.", low_of="share"),
    Column("share_q3", "fraction", "Third quartile.", high_of="share"),
    Column("repeats", "count", "Repeats; what is tried once has one, and no share."),
)


def check_cost(subject: Subject, sites: str, stream: Callable[[], None], repeats: int) -> Any:
    """Measure the checks.

    Args:
        subject: The model.
        sites: What is edited once.
        stream: Copies the sites of all tokens.
        repeats: Of ``stream``.

    Returns:
        A frame of the columns ``CHECKS``.
    """
    import numpy as np
    import pandas as pd

    from sparsescope.models.structure.visits import clocked

    seconds, shares = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        with clocked() as clock:
            stream()
        seconds.append(clock.seconds)
        shares.append(clock.seconds / (time.perf_counter() - begin))
    quartiles = np.percentile(shares, [50, 25, 75])
    rows: list[tuple[Any, ...]] = [(PASS, float(np.median(seconds)), *map(float, quartiles), repeats)]
    fresh = subject.loaded_as(subject.source or subject.id)  # the same model, of which nothing was tried

    def edits() -> None:
        with fresh.edit(fresh.sites(sites), lambda site, tensor, rows=None: tensor):
            pass

    def matrices() -> None:
        for site in fresh.parameter_sites("weight:blocks.*.*"):
            fresh.parameter(site)

    once: dict[str, Callable[[], Any]] = {
        "causality is measured, once": lambda: fresh.capabilities,
        "padding is measured, once": lambda: fresh.takes_padding("right"),
        "edits are tried, once": edits,
        "matrices are those applied, once": matrices,
    }
    for name, tried in once.items():
        begin = time.perf_counter()
        tried()
        rows.append((name, time.perf_counter() - begin, np.nan, np.nan, np.nan, 1))
    return pd.DataFrame(rows, columns=[column.name for column in CHECKS])
