"""Repetition over lags, its chances and shift null; sparsity of tokens and chunks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import routing_locality as p
from sparsescope.metrics.null_comparison import against_null
from sparsescope.metrics.routing import expert_counts, overlap, uniform_intersection

EXPERTS, K = 8, 2


def independent(tokens: int, seed: int = 0, slope: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (slope * np.arange(EXPERTS) + generator.gumbel(size=(tokens, EXPERTS))).argsort(1)[:, ::-1][:, :K]


def test_repetition_by_hand_stays_within_documents():
    chosen = np.array([[0, 1], [0, 2], [2, 0], [2, 0], [2, 3]])
    found = p.repetition(chosen, np.array([0, 0, 0, 1, 1]), lags=2)
    assert found.pairs.tolist() == [[2, 1], [1, 0]]
    assert found.first.tolist() == [[1, 0], [1, 0]]
    assert found.shared.tolist() == [[0.5 + 1, 0.5], [0.5, 0]]
    assert found.any.tolist() == [[2, 1], [1, 0]]
    np.testing.assert_allclose(found.means()[:, 0], [2 / 3, 2 / 3, 1])


def test_lags_beyond_every_document_are_not_known():
    found = p.repetition(np.array([[0], [0]]), np.array([0, 0]), lags=4).means()
    assert found[:, 0].tolist() == [1, 1, 1] and np.isnan(found[:, 1:]).all()


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_independent_tokens_repeat_at_the_chance_of_their_loads(slope):
    chosen, documents = independent(40_000, slope=slope), np.repeat(np.arange(200), 200)
    counts = expert_counts(chosen, np.zeros(len(chosen), int), EXPERTS)[0]
    first = np.bincount(chosen[:, 0], minlength=EXPERTS)
    chance = p.repetition_chance(counts, first)
    found = p.repetition(chosen, documents, lags=3).means()
    for lag in range(3):
        assert found[:2, lag] == pytest.approx(chance, abs=0.01)
    if slope == 0:
        assert chance == pytest.approx([1 / 8, 2 / 8], abs=1e-3)
        assert found[2] == pytest.approx(uniform_intersection(K, EXPERTS), abs=0.01)
        assert K * found[1] == pytest.approx(K * K / EXPERTS, abs=0.02)
    else:
        assert chance[0] > 1 / 8 + 0.02
    null = p.shifted_repetition(chosen, documents, lags=3, draws=20)
    assert null.mean(0) == pytest.approx(found[:, 0], abs=0.01)


def test_chance_of_a_uniform_router_in_closed_form():
    rows = np.array(list(combinations(range(6), 3)))
    counts = np.bincount(rows.ravel(), minlength=6)
    assert p.repetition_chance(counts, np.full(6, len(rows) / 6)) == pytest.approx([1 / 6, 3 / 6])


def test_the_shift_null_keeps_what_a_document_prefers_and_takes_order_away():
    generator = np.random.default_rng(1)
    documents = np.repeat(np.arange(30), 100)
    topic = np.repeat(generator.integers(0, EXPERTS, 30), 100)
    by_document = (
        (np.arange(EXPERTS) == topic[:, None]) * 2 + generator.gumbel(size=(3000, EXPERTS))
    ).argsort(1)
    chosen = by_document[:, ::-1][:, :K]
    lag = p.repetition(chosen, documents, lags=4).means()[0]
    null = against_null(lag[0], p.shifted_repetition(chosen, documents, 4, draws=100, seed=2)[:, 0])
    loads = p.repetition_chance(
        expert_counts(chosen, np.zeros(3000, int), EXPERTS)[0], np.bincount(chosen[:, 0], minlength=EXPERTS)
    )
    assert lag[0] > loads[0] + 0.1 and abs(null.z) < 4  # documents differ, order tells nothing
    runs = np.repeat(independent(600, seed=3), 5, axis=0)
    local = p.repetition(runs, documents, lags=4).means()[0]
    assert local[0] > local[3] > 0.2
    assert against_null(local[0], p.shifted_repetition(runs, documents, 4, draws=100)[:, 0]).z > 10


def test_shifts_are_longer_than_the_lags_and_short_documents_are_left_out():
    ids = np.arange(20)[:, None]  # each expert comes once in a run of two
    runs = np.repeat(ids, 2, axis=0)
    assert p.repetition(runs, np.zeros(40, int), lags=1).means()[0] == pytest.approx(20 / 39)
    assert (p.shifted_repetition(runs, np.zeros(40, int), lags=1, draws=200) == 0).all()
    assert np.isnan(p.shifted_repetition(runs, np.repeat(np.arange(10), 4), lags=2, draws=3)).all()
    mixed = p.shifted_repetition(np.zeros((10, 1), int), np.array([0] * 8 + [1] * 2), lags=3, draws=3)
    assert (mixed == 1).all()


@given(seed=st.integers(0, 200))
def test_names_of_experts_do_not_matter(seed):
    chosen, names = independent(60, seed), np.random.default_rng(seed).permutation(EXPERTS)
    documents = np.repeat([0, 1, 2], 20)
    one, two = (p.repetition(c, documents, 3).means() for c in (chosen, names[chosen]))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "documents", [np.array([1, 0, 0]), np.array([0, 0]), np.array([-1, 0, 0]), np.zeros((3, 1), int)]
)
def test_tokens_out_of_order_are_refused(documents):
    with pytest.raises(SpecError, match="order of the text"):
        p.repetition(np.zeros((3, 1), int), documents, 1)


def test_windows():
    documents = np.array([0] * 7 + [1] * 2 + [3] * 6)
    spans = p.windows(documents, 3)
    assert spans.tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11], [12, 13, 14]]
    assert (documents[spans] == documents[spans[:, :1]]).all()
    assert p.windows(documents, 8).shape == (0, 8)
    with pytest.raises(SpecError):
        p.windows(documents, 0)


@given(seed=st.integers(0, 200), length=st.integers(1, 10))
def test_sparsity_of_tokens_is_fixed_and_that_of_chunks_is_never_larger(seed, length):
    active = p.expert_mask(independent(100, seed), EXPERTS)
    documents = np.zeros(100, int)
    tokens = p.chunk_sparsity(active, p.windows(documents, 1))
    np.testing.assert_allclose(tokens, 1 - K / EXPERTS)  # TLS of top-k
    chunks = p.chunk_sparsity(active, p.windows(documents, length))
    assert (chunks <= 1 - K / EXPERTS + 1e-12).all()


def test_chunks_of_independent_tokens_are_at_chance():
    for slope in (0.0, 0.4):
        active = p.expert_mask(independent(80_000, slope=slope), EXPERTS)
        found = p.chunk_sparsity(active, p.windows(np.zeros(80_000, int), 4)).mean()
        alike, own = p.chunk_sparsity_chance(active.mean(0), 4)
        assert found == pytest.approx(own, abs=5e-3)
        assert alike == pytest.approx(0.75**4) and own >= alike - 1e-12


def test_masks_take_ids_below_zero_for_none():
    assert p.expert_mask(np.array([-1, -1]), 3).sum() == 0
    rows = independent(50)
    one, two = p.expert_mask(rows, EXPERTS), p.expert_mask(rows[::-1], EXPERTS)
    np.testing.assert_allclose((one & two).sum(1) / K, overlap(rows, rows[::-1]))
