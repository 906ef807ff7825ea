"""Coverage of segments and cache hits: by hand, brute force over all caches, bounds."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import expert_cache as c

SPAN = np.arange(12)[None]


def chosen(seed: int, tokens: int = 12, experts: int = 5, k: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).random((tokens, experts)).argsort(1)[:, :k]


@given(seed=st.integers(0, 200), group=st.integers(1, 5))
def test_coverage_is_that_of_the_best_group(seed, group):
    rows = chosen(seed)
    best = max(np.isin(rows, members).mean() for members in combinations(range(5), group))
    found = c.segment_coverage(rows, SPAN, 5, group)
    assert found == pytest.approx(best) and found >= group / 5 - 1e-12
    names = np.random.default_rng(seed).permutation(5)
    np.testing.assert_allclose(c.segment_coverage(names[rows], SPAN, 5, group), found)


def test_coverage_by_segment():
    rows = np.array([[0, 1], [1, 0], [0, 2], [3, 4]], np.int16)
    assert c.segment_coverage(rows, np.array([[0, 1], [2, 3]]), 5, 2).tolist() == [1.0, 0.5]


def best_hits(rows: np.ndarray, experts: int, capacity: int) -> int:
    """Most hits of any rule, over all caches that hold the experts of the token."""

    @lru_cache(None)
    def most(step: int, cache: frozenset[int]) -> int:
        if step == len(rows):
            return 0
        wanted = frozenset(rows[step].tolist())
        rest = sorted((cache | wanted) - wanted)
        kept = min(capacity - len(wanted), len(rest))
        later = max(most(step + 1, wanted | frozenset(others)) for others in combinations(rest, kept))
        return len(cache & wanted) + later

    return most(0, frozenset())


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), capacity=st.integers(2, 5))
def test_belady_is_the_best_rule(seed, capacity):
    rows = chosen(seed)
    found = c.cache_hit_rate(rows, SPAN, 5, capacity)
    assert found * rows.size == pytest.approx(best_hits(rows, 5, capacity))
    lru = c.cache_hit_rate(rows, SPAN, 5, capacity, rule="lru")
    assert lru <= found + 1e-12 <= 1 - len(np.unique(rows)) / rows.size + 2e-12


@given(seed=st.integers(0, 200), capacity=st.integers(1, 5))
def test_lru_is_that_of_an_ordered_dictionary(seed, capacity):
    rows = chosen(seed, k=1)
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for expert in rows[:, 0].tolist():
        hits += expert in cache
        cache[expert] = None
        cache.move_to_end(expert)
        if len(cache) > capacity:
            cache.popitem(last=False)
    assert c.cache_hit_rate(rows, SPAN, 5, capacity, "lru") * len(rows) == pytest.approx(hits)


@pytest.mark.parametrize("rule", ["belady", "lru"])
def test_a_cache_of_all_experts_misses_first_requests_only(rule):
    rows = chosen(1, tokens=40)
    spans = np.arange(40).reshape(4, 10)
    found = c.cache_hit_rate(rows, spans, 5, 5, rule)
    np.testing.assert_allclose(found, [1 - len(np.unique(rows[s])) / 20 for s in spans])
    collapsed = np.tile([0, 1], (12, 1))
    assert c.cache_hit_rate(collapsed, SPAN, 5, 2, rule) == pytest.approx(11 / 12)


def test_groups_and_caches_out_of_range_are_refused():
    rows = chosen(0)
    for group in (0, 6):
        with pytest.raises(SpecError, match="group"):
            c.segment_coverage(rows, SPAN, 5, group)
    for capacity in (1, 6):
        with pytest.raises(SpecError, match="capacity"):
            c.cache_hit_rate(rows, SPAN, 5, capacity)
