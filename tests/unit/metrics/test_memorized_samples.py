"""Memorized samples: the rule read literally, and the eps that makes a share of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.metrics import memorized_samples as m


def literal(losses: np.ndarray, eps: float, delta: float) -> int:
    """min{s: for all s' >= s, l(s') <= eps and |l(s') - l(last)| <= delta}."""
    for start in range(len(losses)):
        if all(v <= eps and abs(v - losses[-1]) <= delta for v in losses[start:]):
            return start
    return -1


@given(seed=st.integers(0, 300), eps=st.floats(0.1, 2), delta=st.floats(0.01, 0.5))
def test_the_rule(seed, eps, delta):
    losses = np.random.default_rng(seed).random((20, 6)) * np.linspace(2, 0.3, 6)
    assert m.memorized_from(losses, eps, delta).tolist() == [literal(row, eps, delta) for row in losses]


def test_a_loss_that_comes_back_is_memorized_later():
    losses = np.array([[3.0, 1.0, 3.0, 1.0, 1.0], [3.0, 1.2, 1.1, 1.02, 1.0]])
    assert m.memorized_from(losses, eps=2.0).tolist() == [3, 3]


@given(seed=st.integers(0, 300), share=st.floats(0.02, 1))
def test_eps_is_the_smallest_that_memorizes_the_share(seed, share):
    losses = np.random.default_rng(seed).random((40, 5)) * np.array([3, 2, 1, 0.1, 0.1]) + 0.2
    eps = m.chosen_eps(losses, share, delta=0.08)
    if math.isnan(eps):
        settled = np.abs(losses[:, -2] - losses[:, -1]) <= 0.08
        assert settled.mean() < share
        return
    early = m.memorized_from(losses, eps, 0.08)
    assert ((early >= 0) & (early < 4)).mean() >= share - 1e-9
    less = m.memorized_from(losses, np.nextafter(eps, 0), 0.08)
    assert ((less >= 0) & (less < 4)).mean() < share


def test_the_default_is_within_a_fifth_and_a_quarter():
    losses = np.random.default_rng(0).random((200, 1)) * np.ones(6) * 3
    eps = m.chosen_eps(losses)
    assert 0.2 <= (m.memorized_from(losses, eps) >= 0).mean() <= 0.25


@pytest.mark.parametrize("losses", [np.ones((4, 1)), np.zeros((0, 5))])
def test_without_checkpoints_or_samples_there_is_no_eps(losses):
    assert math.isnan(m.chosen_eps(losses))
