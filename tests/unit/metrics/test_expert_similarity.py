"""Similarity of experts: invariances of CKA, permuted copies, a well-known other measure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics import expert_similarity as s


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_cka_does_not_see_rotation_scale_and_mean():
    x = normal(200, 6)
    rotation = np.linalg.qr(normal(6, 6, seed=1))[0]
    assert s.linear_cka(x, x) == pytest.approx(1)
    assert s.linear_cka(x, 3 * x @ rotation + normal(6, seed=2)) == pytest.approx(1)
    assert s.linear_cka(x, x @ normal(6, 6, seed=3)) < 0.999


def test_cka_is_that_of_centered_gram_matrices():
    x, y = normal(40, 6), normal(40, 9, seed=1) + 2
    center = np.eye(40) - 1 / 40
    a, b = (center @ v @ v.T @ center for v in (x, y))
    assert s.linear_cka(x, y) == pytest.approx(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b)))
    order = np.random.default_rng(2).permutation(40)
    assert s.linear_cka(x[order], y[order]) == pytest.approx(s.linear_cka(x, y))
    assert s.linear_cka(x, y) == pytest.approx(s.linear_cka(y, x))


def test_a_common_mean_is_no_similarity():
    x, y = normal(2000, 4) + 10, normal(2000, 4, seed=1) + 10
    assert s.linear_cka(x, y) < 0.01  # cosines of these outputs are near 1


def test_cka_without_variation_and_of_different_tokens():
    assert math.isnan(s.linear_cka(np.ones((5, 2)), normal(5, 2)))
    with pytest.raises(SpecError, match="same tokens"):
        s.linear_cka(normal(5, 2), normal(6, 2))


def test_a_permuted_copy_is_the_same_expert():
    neurons, order = normal(64, 48), np.random.default_rng(1).permutation(64)
    found = s.aligned_cosine(neurons, neurons[order])
    assert found.aligned == pytest.approx(1) and abs(found.raw) < 0.2
    np.testing.assert_array_equal(neurons[order][found.order], neurons)
    assert s.aligned_cosine(neurons, neurons).raw == pytest.approx(1)


def test_matching_raises_the_cosine_of_unrelated_experts():
    found = s.aligned_cosine(normal(64, 48), normal(64, 48, seed=1))
    assert abs(found.raw) < 0.05 < found.aligned < 0.5


def test_no_other_order_is_better():
    one, two = normal(6, 4), normal(6, 4, seed=1)
    found = s.aligned_cosine(one, two)
    scale = np.linalg.norm(one) * np.linalg.norm(two)
    assert found.aligned == pytest.approx(np.sum(one * two[found.order]) / scale)
    orders = [np.random.default_rng(i).permutation(6) for i in range(200)]
    assert max(np.sum(one * two[order]) / scale for order in orders) <= found.aligned + 1e-12


def test_an_expert_of_zeros_and_other_shapes():
    assert math.isnan(s.aligned_cosine(np.zeros((3, 2)), normal(3, 2)).raw)
    with pytest.raises(SpecError, match="different shapes"):
        s.aligned_cosine(normal(3, 2), normal(4, 2))
