"""Blocks of neurons: sizes, planted groups, the best of all divisions, shares of what is written."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics.neuron_partitions import alike, block_masses, dealt, neighbors


@given(neurons=st.integers(2, 60), blocks=st.integers(2, 60), seed=st.integers(0, 9))
def test_blocks_have_equal_sizes(neurons, blocks, seed):
    if blocks > neurons:
        with pytest.raises(SpecError, match="so many blocks"):
            neighbors(neurons, blocks)
        return
    for labels in (neighbors(neurons, blocks), dealt(neurons, blocks, np.random.default_rng(seed))):
        sizes = np.bincount(labels, minlength=blocks)
        assert len(labels) == neurons and len(sizes) == blocks and sizes.max() - sizes.min() <= 1
    assert (np.diff(neighbors(neurons, blocks)) >= 0).all()


def test_planted_groups_of_alike_neurons_are_found():
    generator = np.random.default_rng(0)
    centers = generator.normal(0, 5, (6, 10))
    group = generator.permutation(np.repeat(np.arange(6), 8))
    labels = alike(centers[group] + generator.normal(0, 0.3, (48, 10)), 6)
    pairs = {(int(one), int(two)) for one, two in zip(group, labels, strict=True)}
    assert len(pairs) == 6 and np.bincount(labels).tolist() == [8] * 6


def test_unequal_groups_are_cut_to_equal_blocks():
    """Six neurons lie together and two apart: k-means alone would make blocks of six and two."""
    weights = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 9.1])[:, None]
    labels = alike(weights, 2)
    assert np.bincount(labels).tolist() == [4, 4] and labels[6] == labels[7]
    assert labels[4] == labels[5] == labels[6], "the nearest neurons fill the block"


def test_the_division_is_no_worse_than_any_neighboring_one():
    """Against every division of eight neurons into two blocks of four."""
    weights = np.random.default_rng(3).normal(size=(8, 2))

    def cost(members: tuple[int, ...]) -> float:
        inside = np.isin(np.arange(8), members)
        return sum(float(((weights[part] - weights[part].mean(0)) ** 2).sum()) for part in (inside, ~inside))

    found = cost(tuple(np.flatnonzero(alike(weights, 2) == 0)))
    every = sorted(cost(members) for members in combinations(range(8), 4))
    assert found <= np.quantile(every, 0.1)


def test_masses_are_shares_of_what_is_written():
    generator = np.random.default_rng(1)
    activations, written, labels = generator.normal(size=(5, 9)), generator.random(9), np.arange(9) % 3
    found = block_masses(activations, written, labels, 3)
    for token in range(5):
        whole = [abs(activations[token, j]) * written[j] for j in range(9)]
        for block in range(3):
            part = sum(mass for j, mass in enumerate(whole) if labels[j] == block)
            assert found[token, block] == pytest.approx(part / sum(whole))
    assert block_masses(np.zeros((1, 9)), written, labels, 3).tolist() == [[1 / 3] * 3]
