"""Permuted domains of documents: tables, size of the test, conditional information against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from sparsescope.errors import SpecError
from sparsescope.metrics import document_nulls as d
from sparsescope.metrics.information import conditional_mutual_information, mutual_information
from sparsescope.metrics.routing import expert_counts
from sparsescope.metrics.statistics import bootstrap_weights


def text(
    seed: int = 0, documents: int = 40, length: int = 60, by_id: float = 0.0, by_domain: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two of eight experts, documents, ids, labels: domains prefer ids, ids and domains prefer experts."""
    generator = np.random.default_rng(seed)
    labels = np.arange(documents) % 2
    where = np.repeat(np.arange(documents), length)
    ids = generator.integers(0, 4, len(where)) + 2 * labels[where] * (generator.random(len(where)) < 0.5)
    taste = (
        by_id * generator.normal(size=(6, 8))[ids] + by_domain * generator.normal(size=(2, 8))[labels[where]]
    )
    scores = taste + generator.gumbel(size=(len(where), 8))
    return scores.argsort(1)[:, -2:], where, ids, labels


def test_tables_are_sums_over_documents():
    generator = np.random.default_rng(0)
    counts, labels = generator.integers(0, 9, (10, 3, 5)).astype(float), generator.integers(0, 3, 10)
    found = d.domain_tables(counts, labels)
    assert found.shape == (3, 3, 5)
    for domain in range(3):
        np.testing.assert_allclose(found[:, domain], counts[labels == domain].sum(0))
    several = d.domain_tables(counts, np.stack([labels, labels[::-1]]))
    np.testing.assert_allclose(several[0], found)
    np.testing.assert_allclose(several[1], d.domain_tables(counts, labels[::-1]))
    drawn = bootstrap_weights(labels, 4, seed=1)
    weighted = d.domain_tables(counts, labels, drawn)
    for row, weights in zip(weighted, drawn, strict=True):
        np.testing.assert_allclose(row, d.domain_tables(counts * weights[:, None, None], labels))


@pytest.mark.parametrize("labels", [np.zeros(3, int), np.full(4, -1), np.zeros((2, 3, 4), int)])
def test_labels_of_other_documents_are_refused(labels):
    with pytest.raises(SpecError, match="labels are not those"):
        d.domain_tables(np.ones((4, 2)), labels)


def test_the_permutations_are_those_of_one_at_a_time(monkeypatch):
    chosen, where, _, labels = text()
    counts = expert_counts(chosen, where, 8)
    found = d.document_null(counts, labels, mutual_information, permutations=50, seed=3)
    generator = np.random.default_rng(3)
    dealt = generator.permuted(np.tile(labels, (50, 1)), axis=1)
    alone = [float(mutual_information(d.domain_tables(counts, row))) for row in dealt]
    assert found.mean == pytest.approx(np.mean(alone)) and found.sd == pytest.approx(np.std(alone, ddof=1))
    assert found.observed == pytest.approx(float(mutual_information(d.domain_tables(counts, labels))))
    monkeypatch.setattr(d, "_CELLS", 1000)  # in parts
    again = d.document_null(counts, labels, mutual_information, permutations=50, seed=3)
    assert again.mean == pytest.approx(found.mean) and again.p_above == found.p_above


def test_documents_that_differ_are_no_domains_and_domains_are():
    generator = np.random.default_rng(4)
    small = []
    for _ in range(60):  # every document has its own taste, which has nothing to do with its label
        counts = np.stack([generator.multinomial(200, p) for p in generator.dirichlet(np.ones(6), 20)])
        small.append(d.document_null(counts.astype(float), np.arange(20) % 2, mutual_information, 99).p_above)
    assert np.mean(np.array(small) <= 0.1) == pytest.approx(0.1, abs=0.1)
    chosen, where, _, labels = text(by_domain=1.0)
    found = d.document_null(expert_counts(chosen, where, 8), labels, mutual_information, 199)
    assert found.p_above == 1 / 200 and found.z > 5


def test_names_of_experts_and_order_of_documents_do_not_matter():
    chosen, where, _, labels = text(by_domain=0.3)
    counts = expert_counts(chosen, where, 8)
    order, names = np.random.default_rng(5).permutation(40), np.random.default_rng(6).permutation(8)
    one = d.document_null(counts, labels, mutual_information, 50)
    two = d.document_null(counts[order][:, names], labels[order], mutual_information, 50)
    assert one.observed == pytest.approx(two.observed) and one.mean == pytest.approx(two.mean, rel=0.3)


def dense(counts: scipy.sparse.csr_array, labels: np.ndarray, experts: int) -> np.ndarray:
    """[x, domain, expert] of the sparse counts."""
    by_document = counts.toarray().reshape(len(labels), -1, experts)
    return np.stack([by_document[labels == domain].sum(0) for domain in range(labels.max() + 1)], axis=1)


@pytest.mark.parametrize("corrected", [False, True])
def test_conditional_information_is_that_of_the_dense_table(corrected):
    chosen, where, ids, labels = text(by_id=1.0, by_domain=0.5)
    counts = d.conditional_counts(chosen, where, ids + 7, experts=8)  # ids below 7 never occur
    found = d.conditional_information(counts, labels, 8, miller_madow=corrected)
    table = dense(counts, labels, 8)
    assert table.sum() == chosen.size
    expected = conditional_mutual_information(table, miller_madow=corrected)
    assert float(found) == pytest.approx(float(expected))
    several = d.conditional_information(counts, np.stack([labels, 1 - labels]), 8, miller_madow=corrected)
    np.testing.assert_allclose(several, float(found))


def test_weights_of_documents():
    chosen, where, ids, labels = text(by_domain=0.5)
    counts = d.conditional_counts(chosen, where, ids, experts=8)
    drawn = bootstrap_weights(labels, 5, seed=0)
    found = d.conditional_information(counts, labels, 8, weights=drawn)
    for value, weights in zip(found, drawn, strict=True):
        table = dense(scipy.sparse.csr_array(counts * weights[:, None]), labels, 8)
        assert value == pytest.approx(float(conditional_mutual_information(table)))


def test_a_domain_that_only_has_other_ids_tells_nothing_once_the_id_is_known():
    chosen, where, ids, labels = text(by_id=2.0)
    plain = d.document_null(expert_counts(chosen, where, 8), labels, mutual_information, 199)
    known = d.conditional_document_null(d.conditional_counts(chosen, where, ids, 8), labels, 8, 199)
    assert plain.p_above == 1 / 200
    assert known.p_above > 0.05 and known.observed < plain.observed
    chosen, where, ids, labels = text(by_id=2.0, by_domain=1.0)
    for corrected in (False, True):
        counts = d.conditional_counts(chosen, where, ids, 8)
        found = d.conditional_document_null(counts, labels, 8, 199, miller_madow=corrected)
        assert found.p_above == 1 / 200 and found.z > 5


def test_a_table_of_ids_decides_everything():
    _, where, ids, labels = text()
    hashed = (np.arange(6)[:, None] + np.arange(2)) % 8
    counts = d.conditional_counts(hashed[ids], where, ids, 8)
    assert float(d.conditional_information(counts, labels, 8)) == pytest.approx(0, abs=1e-12)
