"""Search by features in the text of a store."""

from __future__ import annotations

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.analysis.features.search import WINDOW, FeatureSearch
from sparsescope.dictionaries.topk import TopKSAE
from sparsescope.errors import SparsescopeError, SpecError


@pytest.fixture(scope="module")
def found(glass):
    dictionary = TopKSAE(341, 120, k=5, site="blocks.2.mlp.hook_post", seed=0)
    text = ss.corpus("python-docs+python-source", tokens=9000, context=128)
    small = {"resamples": 100, "permutations": 40, "shown": 3, "map": False, "queries": 25, "baselines": ()}
    return ss.run("features", glass, text, dictionary=dictionary, **small)


def dense(search):
    codes = np.concatenate([part.toarray() for part, _ in search.store.shards()])
    return np.maximum(codes, 0)


def test_windows_hold_their_largest_activations(found):
    search = FeatureSearch.of(found)
    codes = dense(search)
    made = search.activations.toarray()
    for unit, (begin, end) in enumerate(zip(search.bounds[:-1], search.bounds[1:], strict=True)):
        np.testing.assert_allclose(made[unit], codes[begin:end].max(0), rtol=1e-6)
        assert end - begin <= WINDOW
        assert search.store.document_of(np.array([begin, end - 1])).std() == 0
    active = codes > 0
    mean = np.where(active.any(0), codes.sum(0) / np.maximum(active.sum(0), 1), 1)
    np.testing.assert_allclose(search.scales, mean, rtol=1e-5)


def test_find_gives_the_units_that_use_a_feature_most(found):
    search = FeatureSearch.of(found)
    feature = int(np.argmax(dense(search).max(0)))
    rows = search.find({feature: 1.0}, k=3)
    wanted = np.argsort(-search.activations.toarray()[:, feature], kind="stable")[:3]
    begins = [
        int(
            search.bounds[u] - search.store.offsets[search.store.document_of(np.array([search.bounds[u]]))[0]]
        )
        for u in wanted
    ]
    assert rows["position"].tolist() == begins
    assert rows.attrs["postings"] == int((search.activations.toarray()[:, feature] > 0).sum())
    tokens = FeatureSearch.of(found, unit="token")
    best = tokens.find({feature: 1.0}, k=1).iloc[0]
    place = int(np.argmax(dense(tokens)[:, feature]))
    document = int(tokens.store.document_of(np.array([place]))[0])
    assert (best["document"], best["position"]) == (
        tokens.store.documents[document],
        place - tokens.store.offsets[document],
    )


def test_a_range_of_rows_asks_for_its_features(found):
    search = FeatureSearch.of(found)
    query = search.query_of_rows(40, 56)
    np.testing.assert_allclose(query, np.log1p(dense(search)[40:56].max(0) / search.scales), rtol=1e-5)
    named = search.features_of(query, 5)
    assert set(named["feature"]) <= set(np.flatnonzero(query)) and named["weight"].is_monotonic_decreasing
    scores = search.index.postings @ query
    assert search.find(query, k=1)["score"].iloc[0] == pytest.approx(scores.max())


def test_tables_of_retrieval(found):
    ranks, pruned = found.tables["retrieval"], found.tables["pruning"]
    assert set(ranks["index"]) == {"features", "BM25 of tokens"} and ranks["mrr"].between(0, 1).all()
    excerpt = ranks[ranks["task"].str.startswith("the window of an excerpt")].set_index("index")
    assert excerpt.loc["BM25 of tokens", "mrr"] > 0.5 and excerpt.loc["features", "mrr"] > 0.1
    safe = pruned[pruned["alpha"] == 1]
    assert (safe["recall"] == 1).all() and (safe["read"] <= 1).all()
    assert set(pruned["unit"]) == {"window", "token"}


def test_what_is_not_there_is_said(found):
    with pytest.raises(SparsescopeError, match="dictionary of this run"):
        FeatureSearch.of(found, "other")
    with pytest.raises(SparsescopeError, match="unit"):
        FeatureSearch.of(found, unit="page")
    with pytest.raises(SpecError, match="no such feature"):
        FeatureSearch.of(found).find({500: 1.0})
