"""Paths of tokens: numbers in closed form, the ceiling of few tokens, Markov gain with and without a link."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest

from sparsescope.metrics import token_paths as t


def test_uniform_and_single_paths():
    grid = np.indices((3, 3, 3)).reshape(3, -1).T
    found = t.path_counts(np.repeat(grid, 200, axis=0))
    assert found.distinct == 27 and found.entropy == pytest.approx(math.log(27))
    assert found.effective == pytest.approx(27, rel=0.01) and found.largest == pytest.approx(1 / 27)
    one = t.path_counts(np.tile([1, 0, 2], (50, 1)))
    assert (one.distinct, one.effective, one.largest, one.tokens) == (1, 1.0, 1.0, 50)
    none = t.path_counts(np.zeros((0, 3), int))
    assert none.tokens == 0 and math.isnan(none.effective)


def test_the_correction_comes_nearer_to_the_truth_and_the_ceiling_stays():
    generator = np.random.default_rng(0)
    paths = generator.integers(0, 4, (400, 3))  # 64 paths
    found = t.path_counts(paths)
    plain = math.exp(found.entropy)
    assert plain < 62 and abs(found.effective - 64) < abs(plain - 64)
    many = t.path_counts(generator.integers(0, 64, (1000, 16)))
    assert many.distinct == 1000 and many.effective < 2 * 1000  # of 64^16


def test_names_of_experts_and_order_of_tokens_do_not_matter():
    generator = np.random.default_rng(1)
    paths, names = generator.integers(0, 4, (300, 3)) ** 2 // 3, generator.permutation(4)
    one, two = (astuple(t.path_counts(p)) for p in (paths, names[paths][::-1]))
    assert one == pytest.approx(two)
    np.testing.assert_allclose(
        t.markov_gain(t.transition_counts(paths, 4)), t.markov_gain(t.transition_counts(names[paths], 4))
    )


def test_transitions():
    paths = np.random.default_rng(2).integers(0, 5, (200, 4)).astype(np.int16)
    found = t.transition_counts(paths, 5)
    assert found.shape == (3, 5, 5) and (found.sum((1, 2)) == 200).all()
    assert found[1, 2, 3] == ((paths[:, 1] == 2) & (paths[:, 2] == 3)).sum()
    np.testing.assert_array_equal(found[0].sum(0), found[1].sum(1))


def test_gain_of_a_decided_and_of_an_independent_layer():
    generator = np.random.default_rng(3)
    first = generator.integers(0, 6, 5000)
    paths = np.stack([first, (first + 1) % 6, generator.integers(0, 6, 5000), np.zeros(5000, int)], axis=1)
    gain = t.markov_gain(t.transition_counts(paths, 6))
    assert gain[0] == pytest.approx(1) and 0 < gain[1] < 0.01 and np.isnan(gain[2])
    corrected = t.markov_gain(t.transition_counts(paths, 6), miller_madow=True)
    assert abs(corrected[1]) < 0.002
