"""Pairs of experts: a planted pair, a uniform router, brute force, no order of tokens or experts."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import coactivation as c


def chosen(tokens: int, experts: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((tokens, experts)).argsort(1)[:, :k]


def neighbours(selections: np.ndarray, experts: int) -> np.ndarray:
    """Counts of experts next to each other in the order of the router, as a well-known script has them."""
    found = np.zeros((experts, experts))
    for row in selections:
        for one, two in pairwise(row):
            found[one, two] += 1
            found[two, one] += 1
    return found


def test_a_planted_pair_is_read_in_full_and_neighbours_miss_nearly_half_of_it():
    together = (
        [[0, 1, 2, 3]] * 17 + [[0, 2, 1, 3]] * 6 + [[0, 2, 3, 1]] * 7
    )  # 30 tokens of 0 and 1, 17 in a row
    apart = [[0, 2, 3, 4]] * 6
    rows = np.array(together + apart)
    found = c.coactivation(c.pair_counts(rows, experts=8), tokens=len(rows))
    assert found.shares[0, 1] == pytest.approx(30 / 36)  # 0.833
    assert neighbours(rows, 8)[0, 1] / 36 == pytest.approx(17 / 36)  # 0.472
    shuffled = np.random.default_rng(0).permuted(rows, axis=1)
    assert c.coactivation(c.pair_counts(shuffled, 8), len(rows)).shares[0, 1] == pytest.approx(30 / 36)


@pytest.mark.parametrize(("k", "experts"), [(2, 8), (3, 6), (8, 10)])
def test_a_uniform_router_is_at_chance(k, experts):
    rows = np.array(list(combinations(range(experts), k)))
    found = c.coactivation(c.pair_counts(rows, experts), len(rows))
    off = ~np.eye(experts, dtype=bool)
    np.testing.assert_allclose(found.shares[off], c.coactivation_chance(k, experts))
    np.testing.assert_allclose(found.lift[off], (k - 1) * experts / (k * (experts - 1)))
    np.testing.assert_allclose(found.pmi[off], np.log(found.lift[off]))
    assert np.isnan(np.diagonal(found.shares)).all()


@given(seed=st.integers(0, 500), k=st.integers(2, 5))
def test_rows_add_up_and_counts_are_those_of_masks(seed, k):
    rows = chosen(60, 7, k, seed)
    pairs = c.pair_counts(rows, experts=7)
    mask = np.zeros((60, 7))
    np.put_along_axis(mask, rows, 1, axis=1)
    np.testing.assert_array_equal(pairs, mask.T @ mask)
    shares = c.coactivation(pairs, 60).shares
    used = pairs.diagonal() > 0
    np.testing.assert_allclose(np.nansum(shares, axis=1)[used], k - 1)


def test_phi_is_the_correlation_of_the_indicators():
    rows = chosen(200, 6, 3)
    mask = np.zeros((200, 6))
    np.put_along_axis(mask, rows, 1, axis=1)
    found = c.coactivation(c.pair_counts(rows, 6), 200).phi
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(found[off], np.corrcoef(mask.T)[off])


def test_order_of_tokens_and_names_of_experts():
    rows = chosen(100, 6, 3)
    pairs, names = c.pair_counts(rows, 6), np.random.default_rng(1).permutation(6)
    np.testing.assert_array_equal(pairs, c.pair_counts(rows[::-1, ::-1], 6))
    np.testing.assert_array_equal(pairs, c.pair_counts(names[rows], 6)[np.ix_(names, names)])
    np.testing.assert_array_equal(pairs, c.pair_counts(rows.astype(np.int16), 6))


def test_documents_and_weights():
    rows, documents = chosen(90, 6, 2), np.repeat([0, 1, 2], 30)
    each = c.pair_counts(rows, 6, documents=documents)
    np.testing.assert_array_equal(each.sum(0), c.pair_counts(rows, 6))
    drawn = np.array([2.0, 0.0, 1.0])
    weighted = c.pair_counts(rows, 6, weights=drawn[documents])
    np.testing.assert_allclose(weighted, np.tensordot(drawn, each, 1))
    both = c.coactivation(each, [30, 30, 30])
    assert both.lift.shape == (3, 6, 6)
    np.testing.assert_allclose(both.lift[1], c.coactivation(each[1], 30).lift)


def test_experts_that_are_never_chosen_have_no_shares():
    found = c.coactivation(c.pair_counts(np.array([[0, 1], [0, 1]]), experts=3), 2)
    assert np.isnan(found.shares[2]).all() and found.shares[0, 2] == 0


def test_one_expert_for_each_token_is_refused():
    with pytest.raises(SpecError, match="co-activation is not defined") as error:
        c.pair_counts(np.array([[0], [1]]), experts=2)
    assert error.value.got == "k = 1" and error.value.next_step
