"""Domains and token ids of experts: closed forms, chance, rare ids, no order of experts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics import specialization as s
from sparsescope.metrics.information import mutual_information


def test_shares_of_a_domain_add_up_to_k():
    generator = np.random.default_rng(0)
    chosen = generator.random((300, 8)).argsort(1)[:, :2]
    table = np.stack([np.bincount(part.ravel(), minlength=8) for part in np.split(chosen, 3)])
    found = s.domain_specialization(table, [100, 100, 100])
    np.testing.assert_allclose(found.sum(-1), 2)
    assert found.mean() == pytest.approx(2 / 8)  # k / E
    assert np.isnan(s.domain_specialization([[0, 0]], [0])).all()


def test_each_domain_with_its_own_experts_and_all_alike():
    own, alike = np.kron(np.eye(3), [[5, 5]]), np.full((3, 6), 5)
    assert mutual_information(own) == pytest.approx(math.log(3))
    assert s.domain_information_share(own) == pytest.approx(1)
    assert s.theils_u(own) == pytest.approx(math.log(3) / math.log(6))
    np.testing.assert_allclose(s.specialization_index(own), (1 / 2 - 1 / 6 + 2 * 1 / 6) / 2)
    np.testing.assert_allclose(s.domain_divergences(own), 1 - np.eye(3))
    for score in (s.domain_information_share, s.theils_u, s.specialization_index, s.domain_divergences):
        np.testing.assert_allclose(score(alike), 0, atol=1e-12)


def test_the_index_adds_up_to_the_distances_of_the_domains_from_the_text():
    table = np.random.default_rng(1).integers(0, 30, (4, 7)).astype(float)
    profiles, whole = table / table.sum(1, keepdims=True), table.sum(0) / table.sum()
    assert s.specialization_index(table).sum() == pytest.approx(np.abs(profiles - whole).sum() / 2)


def test_names_of_experts_and_leading_axes():
    tables = np.random.default_rng(2).integers(1, 30, (2, 3, 5))
    moved = tables[..., [4, 2, 0, 1, 3]]
    for score in (s.domain_information_share, s.theils_u, s.domain_divergences):
        np.testing.assert_allclose(score(tables), score(moved))
        np.testing.assert_allclose(score(tables)[1], score(tables[1]))
    np.testing.assert_allclose(
        s.specialization_index(tables)[..., [4, 2, 0, 1, 3]], s.specialization_index(moved)
    )


def test_vocabulary_of_a_table_of_ids_and_of_chance():
    hashed = np.zeros((8, 4))
    hashed[np.arange(8), np.arange(8) % 4] = 50
    found = s.vocabulary_specialization(hashed, np.full(8, 50))
    assert found.by_expert.tolist() == [1, 1, 1, 1] and found.mean == 1 and found.ids == 8
    assert found.favourite.tolist() == [0, 1, 2, 3] * 2
    many = np.random.default_rng(3).multinomial(100_000, np.full(4, 0.25), size=8)
    chance = s.vocabulary_specialization(many, many.sum(1))
    assert chance.mean == pytest.approx(0.25, abs=0.01)
    np.testing.assert_allclose(chance.shares, 0.25, atol=0.01)


def test_rare_ids_are_left_out():
    counts, seen = np.array([[9, 0], [10, 0], [6, 14]]), np.array([9, 10, 20])
    found = s.vocabulary_specialization(counts, seen)
    assert found.ids == 2 and np.isnan(found.shares[0]).all() and found.favourite.tolist() == [-1, 0, 1]
    assert found.by_expert.tolist() == [1.0, 0.7] and found.mean == pytest.approx(0.85)
    assert s.vocabulary_specialization(counts, seen, least=1).ids == 3
    none = s.vocabulary_specialization(counts, seen, least=100)
    assert none.ids == 0 and math.isnan(none.mean) and np.isnan(none.by_expert).all()
    with pytest.raises(SpecError, match="no share"):
        s.vocabulary_specialization(counts, seen, least=0)


def test_an_expert_that_is_no_favourite_has_no_mean():
    found = s.vocabulary_specialization([[20, 10], [20, 20]], [20, 20])
    assert found.favourite.tolist() == [0, 0] and np.isnan(found.by_expert[1]) and found.by_expert[0] == 1
