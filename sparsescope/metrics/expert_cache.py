"""What a cache of experts would hold: segments served by a fixed group, and hit rates.

After arXiv 2505.16056. SRP: share of the choices in a segment of m tokens that the best fixed
group of experts covers; the group of the most chosen ones is the best. SCH: share of requests that are in a
cache of limited size when each segment begins with an empty one. Belady's rule, which sees the rest of the
segment, is the best that any rule can do; LRU sees the past. Chance: the same with the tokens in another
order.

Shapes: selections int [N, k]; windows int [W, m], rows of tokens (``routing_locality.windows``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from sparsescope.errors import SpecError
from sparsescope.metrics.routing import check_selections
from sparsescope.metrics.routing_locality import expert_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def segment_coverage(
    selections: NDArray[np.integer], spans: NDArray[np.int64], experts: int, group: int
) -> Array:
    """Share of the choices in each segment that its most chosen experts cover (SRP).

    Args:
        selections: int [N, k].
        spans: int [W, m].
        experts: E.
        group: Experts in the group, from 1 to E.

    Returns:
        [W], between group / E and 1.

    Raises:
        SpecError: If the selections are not k different ids below E, or the group is out of range.

    Example:
        >>> chosen = np.array([[0, 1], [0, 2], [0, 1], [3, 4]])
        >>> segment_coverage(chosen, np.array([[0, 1], [2, 3]]), experts=8, group=2).tolist()
        [0.75, 0.5]
    """
    check_selections(selections, experts)
    _check("group", group, 1, experts)
    places = selections[spans].reshape(len(spans), -1) + experts * np.arange(len(spans))[:, None]
    counts = np.bincount(places.reshape(-1), minlength=len(spans) * experts).reshape(-1, experts)
    return np.sort(counts, axis=1)[:, experts - group :].sum(1) / places.shape[1]


def cache_hit_rate(
    selections: NDArray[np.integer],
    spans: NDArray[np.int64],
    experts: int,
    capacity: int,
    rule: Literal["belady", "lru"] = "belady",
) -> Array:
    """Share of the requests of each segment that find their expert in the cache (SCH).

    The k experts of a token are requested at once and stay until the next token; then the cache keeps,
    besides them, those that are needed soonest (Belady), or were needed last (LRU). First requests are
    misses.

    Args:
        selections: int [N, k].
        spans: int [W, m].
        experts: E.
        capacity: Experts that the cache holds, from k to E.
        rule: Which experts stay.

    Returns:
        [W], at most 1 - (experts used in the segment) / (m k), which a cache of E reaches.

    Raises:
        SpecError: If the selections are not k different ids below E, or the capacity is out of range.

    Example:
        >>> chosen, span = np.array([[0], [1], [2], [0], [1], [2]]), np.arange(6)[None]
        >>> cache_hit_rate(chosen, span, experts=3, capacity=2, rule="lru").tolist()  # each a step too late
        [0.0]
        >>> cache_hit_rate(chosen, span, experts=3, capacity=2).round(2).tolist()
        [0.33]
    """
    check_selections(selections, experts)
    k = selections.shape[1]
    _check("capacity", capacity, k, experts)
    wanted = expert_mask(selections[spans], experts)  # [W, m, E]
    steps = spans.shape[1]
    age = _until_next(wanted) if rule == "belady" else _until_next(wanted[:, ::-1])[:, ::-1]
    cache = np.zeros((len(spans), experts), bool)
    hits = np.zeros(len(spans), np.int64)
    for step in range(steps):
        now = wanted[:, step]
        hits += (cache & now).sum(1)
        present = cache | now
        # Those of this token stay, then the nearest, of equally near ones the first: no two are equal.
        distance = np.where(present, np.where(now, 0, age[:, step]), steps + 1) * experts + np.arange(experts)
        last = np.partition(distance, capacity - 1, axis=1)[:, capacity - 1 : capacity]
        cache = present & (distance <= last)
    return hits / (steps * k)


def _until_next(wanted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Tokens until each expert is wanted again, after each token: int [W, m, E]; m where it never is."""
    _, steps, _ = wanted.shape
    found = np.full(wanted.shape, steps, np.int64)
    for step in range(steps - 2, -1, -1):
        later = np.minimum(found[:, step + 1] + 1, steps)
        found[:, step] = np.where(wanted[:, step + 1], 1, later)
    return found


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise SpecError(f"{name} is out of range", where=name, allowed=f"{least} to {most}", got=value)
