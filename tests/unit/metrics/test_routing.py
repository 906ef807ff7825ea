"""Selections of routers: checks, and overlap with its chances."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import routing as r


def chosen(tokens: int, experts: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((tokens, experts)).argsort(1)[:, :k]


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[0, 0]]),
        np.array([[0, 4]]),
        np.array([[-1, 2]]),
        np.array([0, 1]),
        np.array([[0.0, 1.0]]),
        np.zeros((3, 0), np.int64),
    ],
)
def test_what_is_no_selection_is_refused(rows):
    with pytest.raises(SpecError, match="not the experts of tokens"):
        r.check_selections(rows, experts=4)
    r.check_selections(np.zeros((0, 2), np.int64), experts=4)


def test_counts_by_group():
    rows, groups = chosen(100, 5, 2), np.random.default_rng(1).integers(0, 4, 100)
    found = r.expert_counts(rows, groups, 5)
    for group in range(4):
        np.testing.assert_array_equal(found[group], np.bincount(rows[groups == group].ravel(), minlength=5))
    np.testing.assert_array_equal(found, r.expert_counts(rows.astype(np.int16), groups.astype(np.int16), 5))


@pytest.mark.parametrize(("k", "experts"), [(1, 4), (2, 8), (3, 6)])
def test_overlap_with_an_independent_uniform_router(k, experts):
    rows = np.array(list(combinations(range(experts), k)))
    one, two = (rows[i.ravel()] for i in np.indices((len(rows), len(rows))))
    shared = r.overlap(one, two)
    assert shared.mean() == pytest.approx(k / experts)
    assert k * shared.mean() == pytest.approx(k * k / experts)  # experts that two tokens share
    assert (shared > 0).mean() == pytest.approx(r.uniform_intersection(k, experts))
    loads = r.expert_counts(rows, np.zeros(len(rows), np.int64), experts)
    assert float(r.overlap_chance(loads, loads, [len(rows)])) == pytest.approx(k / experts)


def test_chance_that_two_sets_meet():
    assert r.uniform_intersection(2, 8) == pytest.approx(13 / 28)
    assert r.uniform_intersection(1, 8) == pytest.approx(1 / 8) and r.uniform_intersection(5, 8) == 1


def test_a_checkpoint_is_saturated_at_itself_whatever_the_order():
    rows = chosen(50, 8, 3)
    assert (r.overlap(rows, rows[:, ::-1]) == 1).all()
    assert (r.overlap(np.zeros((5, 1), int), np.ones((5, 1), int)) == 0).all()
    with pytest.raises(SpecError, match="different tokens"):
        r.overlap(rows, rows[:-1])


@given(seed=st.integers(0, 300))
def test_overlap_does_not_know_names_of_experts_nor_the_order_of_tokens(seed):
    one, two = chosen(40, 7, 3, seed), chosen(40, 7, 3, seed + 1)
    generator = np.random.default_rng(seed)
    names, order = generator.permutation(7), generator.permutation(40)
    np.testing.assert_array_equal(r.overlap(one, two), r.overlap(names[one], names[two]))
    np.testing.assert_array_equal(r.overlap(one, two)[order], r.overlap(one[order], two[order]))


def test_chance_at_loads_and_given_the_token_id_are_what_drawing_gives():
    generator = np.random.default_rng(2)
    tokens, experts, k = 40_000, 6, 2
    ids = generator.integers(0, 3, tokens)
    taste = generator.gumbel(size=(3, experts)) * 2  # each id has its favourites, at both checkpoints
    one, two = ((taste[ids] + generator.gumbel(size=(tokens, experts))).argsort(1)[:, -k:] for _ in range(2))
    observed = r.overlap(one, two).mean()
    tables = [r.expert_counts(rows, ids, experts) for rows in (one, two)]
    given_id = float(r.overlap_chance(*tables, np.bincount(ids)))
    loads = float(r.overlap_chance(*(t.sum(0, keepdims=True) for t in tables), [tokens]))
    assert observed == pytest.approx(given_id, abs=0.005)
    assert loads < given_id - 0.05
    shuffled = r.overlap(one, two[generator.permutation(tokens)]).mean()
    assert shuffled == pytest.approx(loads, abs=0.005)


def test_ids_that_do_not_occur_do_not_matter():
    tables = np.array([[3.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 3.0], [0.0, 0.0]])
    assert float(r.overlap_chance(*tables, [4, 0])) == pytest.approx((3 * 1 + 1 * 3) / 16)
