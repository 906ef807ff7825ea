"""Load of experts: uniform and collapsed routers in closed form, dead experts, losses, order of experts."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import expert_load as e
from sparsescope.metrics.routing import expert_counts


def counted(selections: np.ndarray, experts: int) -> np.ndarray:
    return expert_counts(selections, np.zeros(len(selections), np.int64), experts)[0]


@pytest.mark.parametrize(("k", "experts"), [(1, 4), (2, 8), (8, 12)])
def test_a_uniform_router(k, experts):
    chosen = np.array(list(combinations(range(experts), k)))
    counts, tokens = counted(chosen, experts), len(chosen)
    load = e.expert_load(counts, tokens)
    assert load.normalized_entropy == pytest.approx(1) and load.effective_experts == pytest.approx(experts)
    assert load.cv == pytest.approx(0) and load.max_violation == pytest.approx(0)
    assert load.gini == pytest.approx(0)
    assert load.max_over_mean == pytest.approx(1) and load.min_over_mean == pytest.approx(1)
    assert load.max_token_share == pytest.approx(k / experts)
    assert load.slot_shares.sum() == pytest.approx(1) and load.token_shares.sum() == pytest.approx(k)
    even = np.full(experts, tokens / experts)
    assert e.auxiliary_loss(counts, even, tokens) == pytest.approx(k)


@pytest.mark.parametrize(("k", "experts"), [(1, 4), (2, 8), (8, 64)])
def test_a_collapsed_router(k, experts):
    tokens = 1000
    counts = np.where(np.arange(experts) < k, tokens, 0)
    load = e.expert_load(counts, tokens)
    assert load.cv == pytest.approx(math.sqrt(experts / k - 1))
    assert load.max_violation == pytest.approx(experts / k - 1)
    assert load.effective_experts == pytest.approx(k) and load.max_token_share == 1
    assert load.dead == pytest.approx(1 - k / experts) and load.min_over_mean == 0
    assert load.gini == pytest.approx(1 - k / experts)
    assert e.auxiliary_loss(counts, counts / k, tokens) == pytest.approx(experts)


def test_experts_are_called_dead_only_after_enough_tokens():
    few = np.array([25 * 4 - 1, 0, 0, 0]) * 2
    assert np.isnan(e.expert_load([99, 99, 0, 0], 99).dead)  # 50 * 4 / 2 tokens are needed
    assert e.expert_load([100, 100, 0, 0], 100).dead == 0.5
    assert np.isnan(e.expert_load(few, few.sum()).dead)


def test_nothing_counted_has_no_load():
    load = e.expert_load(np.zeros((2, 4)), np.zeros(2))
    assert all(np.isnan(getattr(load, f.name)).all() for f in fields(load))


def test_more_choices_than_tokens_are_refused():
    with pytest.raises(SpecError, match="more tokens than there are"):
        e.expert_load([5, 1], 4)


@given(counts=st.lists(st.integers(0, 50), min_size=2, max_size=12), seed=st.integers(0, 99))
def test_the_order_of_experts_and_leading_axes_do_not_matter(counts, seed):
    n = np.array([*counts, 1])
    moved = np.random.default_rng(seed).permutation(n)
    one, both = e.expert_load(n, n.sum()), e.expert_load(np.stack([n, moved]), np.full(2, n.sum()))
    for f in fields(one):
        if f.name.endswith("_shares"):
            continue
        value = getattr(one, f.name)
        np.testing.assert_allclose(getattr(both, f.name), [value, value], atol=1e-12)
    assert 1 - 1e-9 <= one.effective_experts <= len(n) + 1e-9


def test_importance():
    weights = np.random.default_rng(0).dirichlet(np.ones(8), size=100)
    sums = weights.sum(0)
    assert e.squared_variation(sums) == pytest.approx(np.var(sums) / np.mean(sums) ** 2)
    assert e.squared_variation(5 * sums) == pytest.approx(float(e.squared_variation(sums)))
    assert np.isnan(e.squared_variation(np.zeros(3)))


def test_auxiliary_loss_pooled_over_layers_hides_a_collapse():
    counts = np.array([[100, 100, 0, 0], [0, 0, 100, 100]])
    layers = e.auxiliary_loss(counts, counts / 2, np.full(2, 100))
    assert layers.tolist() == [4, 4]
    assert e.auxiliary_loss(counts.sum(0), counts.sum(0) / 2, 200) == pytest.approx(2)  # as if balanced


def test_z_loss_of_logits():
    logits = np.random.default_rng(1).normal(size=(50, 8))
    expected = np.log(np.exp(logits).sum(-1)) ** 2
    np.testing.assert_allclose(e.squared_logsumexp(logits), expected)
    assert np.isfinite(e.squared_logsumexp([[1000.0, 0.0]])).all()
    assert e.squared_logsumexp(np.zeros((1, 8))) == pytest.approx(math.log(8) ** 2)
