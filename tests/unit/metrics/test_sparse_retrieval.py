"""Search with sparse vectors against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from sparsescope.errors import SpecError
from sparsescope.metrics.sparse_retrieval import (
    SparseIndex,
    bm25_weights,
    feature_weights,
    recall,
    reciprocal_rank,
)


def vectors(units=500, terms=80, density=0.1, seed=0):
    random = np.random.default_rng(seed)
    dense = random.exponential(size=(units, terms)) * (random.random((units, terms)) < density)
    return dense, scipy.sparse.csr_array(dense)


@pytest.mark.parametrize("units", [1, 31, 32, 33, 500])
def test_exact_and_safe_search_equal_brute_force(units):
    dense, sparse = vectors(units)
    index = SparseIndex(sparse)
    random = np.random.default_rng(1)
    for _ in range(20):
        query = random.exponential(size=80) * (random.random(80) < 0.1)
        scores = dense @ query
        order = np.lexsort((np.arange(units), -scores))
        wanted = [int(u) for u in order if scores[u] > 0][:10]
        for alpha in (None, 1.0):
            found = index.search(query, 10, alpha)
            np.testing.assert_allclose(found.scores, scores[wanted], rtol=1e-12)
            assert (
                set(found.units[found.scores > found.scores.min()].tolist()) <= set(wanted)
                if wanted
                else True
            )
            assert found.postings <= found.all_postings == int((dense[:, query > 0] > 0).sum())
        assert index.search(query, 10).units.tolist() == wanted


def test_pruning_reads_less_and_says_so():
    """Topics: units of a block use the same terms, so that whole blocks cannot matter."""
    random = np.random.default_rng(2)
    dense = np.zeros((3200, 400))
    for block in range(100):
        terms = random.choice(400, 20, replace=False)
        dense[block * 32 : block * 32 + 32, terms] = random.exponential(size=(32, 20)) * (
            random.random((32, 20)) < 0.5
        )
    index = SparseIndex(scipy.sparse.csr_array(dense))
    read, lost = [], []
    for unit in range(0, 3200, 200):
        query = dense[unit]
        exact = index.search(query, 10)
        safe, fast = index.search(query, 10, 1.0), index.search(query, 10, 0.5)
        assert recall(safe, exact) == 1
        assert fast.postings <= safe.postings
        read.append(safe.postings / safe.all_postings)
        lost.append(recall(fast, exact))
        assert reciprocal_rank(exact, unit) > 0
    assert np.mean(read) < 0.8 and np.mean(lost) > 0.7


def test_bm25_is_the_formula():
    counts = np.array([[2.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    found = bm25_weights(scipy.sparse.csr_array(counts)).toarray()
    k1, b, lengths = 1.2, 0.75, counts.sum(1)
    for unit in range(3):
        for term in range(3):
            present = (counts[:, term] > 0).sum()
            idf = np.log(1 + (3 - present + 0.5) / (present + 0.5))
            norm = k1 * (1 - b + b * lengths[unit] / lengths.mean())
            wanted = idf * counts[unit, term] * (k1 + 1) / (counts[unit, term] + norm)
            assert found[unit, term] == pytest.approx(wanted)


def test_weights_of_features_are_the_formula():
    activations = np.array([[2.0, 0.0], [1.0, 4.0]])
    found = feature_weights(scipy.sparse.csr_array(activations), [1.0, 2.0]).toarray()
    assert found[0, 0] == pytest.approx(np.log1p(2) * np.log1p((2 - 2 + 0.5) / 2.5))
    assert found[1, 1] == pytest.approx(np.log1p(2) * np.log1p((2 - 1 + 0.5) / 1.5))


@pytest.mark.parametrize(
    ("query", "options"),
    [
        (np.ones(3), {}),
        (-np.ones(80), {}),
        (np.full(80, np.nan), {}),
        (np.ones(80), {"k": 0}),
        (np.ones(80), {"alpha": 1.5}),
    ],
)
def test_bad_queries_are_refused(query, options):
    index = SparseIndex(vectors()[1])
    with pytest.raises(SpecError):
        index.search(query, **options)
    with pytest.raises(SpecError, match="not negative"):
        SparseIndex(scipy.sparse.csr_array(np.array([[-1.0]])))


def test_a_query_of_nothing_finds_nothing():
    found = SparseIndex(vectors()[1]).search(np.zeros(80))
    assert len(found.units) == 0 and found.postings == 0
    assert recall(found, found) == 1
