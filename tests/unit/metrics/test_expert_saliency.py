"""Pruning scores from sums: constant outputs in closed form, tokens routed elsewhere, super experts."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics import expert_saliency as s


def tokens(count: int = 50, experts: int = 6, k: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    soft = generator.dirichlet(np.ones(experts), size=count)
    chosen = soft.argsort(1)[:, ::-1][:, :k]
    return chosen, np.take_along_axis(soft, chosen, 1), generator.random((count, k)), soft


def test_scores_are_those_of_loops():
    chosen, weights, norms, soft = tokens()
    found = s.saliency_sums(chosen, weights, norms, soft)
    for expert in range(6):
        here = chosen == expert
        assert found.tokens[expert] == here.sum()
        assert found.mass[expert] == pytest.approx(soft[:, expert].sum())
        assert found.norms[expert] == pytest.approx(norms[here].sum())
        assert found.reap[expert] == pytest.approx((weights * norms)[here].mean())


def test_reap_of_constant_weight_and_norm_and_of_other_tokens():
    chosen, _, _, soft = tokens()
    found = s.saliency_sums(chosen, np.full(chosen.shape, 0.25), np.full(chosen.shape, 3.0), soft)
    np.testing.assert_allclose(found.reap, 0.75)
    elsewhere = np.array([[4, 5]] * 10)
    more = found + s.saliency_sums(
        elsewhere, np.ones((10, 2)), np.full((10, 2), 9.0), np.full((10, 6), 1 / 6)
    )
    np.testing.assert_allclose(more.reap[:4], 0.75)
    assert (more.reap[4:] > 0.75).all()


def test_parts_add_up_and_names_do_not_matter():
    chosen, weights, norms, soft = tokens()
    whole = s.saliency_sums(chosen, weights, norms, soft)
    parts = [s.saliency_sums(chosen[p], weights[p], norms[p], soft[p]) for p in (slice(20), slice(20, None))]
    np.testing.assert_allclose((parts[0] + parts[1]).reap, whole.reap)
    names = np.random.default_rng(1).permutation(6)
    moved = s.saliency_sums(names[chosen], weights, norms, soft[:, np.argsort(names)])
    np.testing.assert_allclose(moved.reap[names], whole.reap)
    np.testing.assert_allclose(moved.mass[names], whole.mass)


def test_an_expert_without_tokens_has_no_reap():
    found = s.saliency_sums(np.array([[0]]), [[1.0]], [[1.0]], [[0.5, 0.5]])
    assert np.isnan(found.reap[1]) and found.tokens[1] == 0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(SpecError, match="a weight and a norm"):
        s.saliency_sums(np.array([[0]]), [[1.0, 2.0]], [[1.0]], [[0.5, 0.5]])


def test_super_experts_pass_both_levels_in_the_layers_of_massive_activations():
    outputs = np.random.default_rng(2).random((8, 64))
    assert s.super_experts(np.full((8, 64), 1.0)).sum() == 0  # none is above a quantile of equal ones
    outputs[2, 5], outputs[6, 9] = 900.0, 50.0  # the second is below a tenth of the first
    assert np.argwhere(s.super_experts(outputs)).tolist() == [[2, 5]]
    outputs[6, 9] = 500.0
    assert np.argwhere(s.super_experts(outputs)).tolist() == [[2, 5], [6, 9]]
    assert np.argwhere(s.super_experts(outputs, np.arange(8) == 6)).tolist() == [[6, 9]]
    outputs[0] = np.nan
    assert s.super_experts(outputs).sum() == 2 and s.super_experts(np.full((2, 3), np.nan)).sum() == 0
