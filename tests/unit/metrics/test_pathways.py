"""Pathways of samples: sets by rule, cosines and their gauge, roughness, effective dimension."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import pathways as p
from sparsescope.metrics.information import effective_number, entropy


def profiles(samples: int = 20, layers: int = 5, experts: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(experts, 0.5), size=(samples, layers))


@given(seed=st.integers(0, 200), share=st.floats(0.05, 0.95))
def test_a_top_p_set_is_the_shortest_prefix(seed, share):
    given_ = profiles(3, 2, seed=seed)
    sets = p.top_p_sets(given_, share)
    for profile, kept in zip(given_.reshape(-1, 8), sets.reshape(-1, sets.shape[-1]), strict=True):
        ids = kept[kept >= 0]
        assert ids.tolist() == np.argsort(-profile)[: len(ids)].tolist() and (kept[len(ids) :] == -1).all()
        assert profile[ids].sum() >= share - 1e-9 > profile[ids[:-1]].sum() - 1e-6


def test_weights_that_do_not_reach_the_share_are_refused():
    with pytest.raises(SpecError, match="do not add up to 1") as error:
        p.top_p_sets(profiles() * 0.4)
    assert "renormalize" in error.value.next_step
    with pytest.raises(SpecError):
        p.top_p_sets(profiles(), share=1.0)


def test_sets_by_number_and_level():
    given_ = profiles()
    sets = p.top_k_sets(given_, 3)
    assert sets.shape == (20, 5, 3)
    np.testing.assert_array_equal(sets[..., 0], given_.argmax(-1))
    above = p.threshold_sets(given_, 1 / 8)
    np.testing.assert_array_equal((above >= 0).sum(-1), (given_ > 1 / 8).sum(-1))
    assert p.threshold_sets(given_, 2.0).shape == (20, 5, 0)
    with pytest.raises(SpecError, match="no such size"):
        p.top_k_sets(given_, 9)


def test_ties_go_to_the_lower_id():
    assert p.top_k_sets(np.full((1, 1, 4), 0.25), 2).tolist() == [[[0, 1]]]
    assert p.top_p_sets(np.full((1, 4), 0.25), 0.6).tolist() == [[0, 1, 2]]


def test_entropy_and_effective_experts_of_profiles():
    uniform = np.full((2, 3, 8), 1 / 8)
    np.testing.assert_allclose(entropy(uniform), np.log(8))
    np.testing.assert_allclose(effective_number(uniform), 8)


def test_cosines_are_those_of_mixed_rows():
    given_, routers = profiles(), np.random.default_rng(1).normal(size=(5, 8, 16))
    found = p.consecutive_cosines(given_, routers, "raw")
    assert found.shape == (20, 4)
    one, two = given_[3, 1] @ routers[1], given_[3, 2] @ routers[2]
    assert found[3, 1] == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))


def test_what_the_softmax_cannot_see_moves_raw_cosines_only():
    generator = np.random.default_rng(2)
    given_, routers = profiles(), generator.normal(size=(5, 8, 16))
    moved = routers + generator.normal(size=(5, 1, 16))  # one row added to all of a layer
    raw = [p.consecutive_cosines(given_, r, "raw") for r in (routers, moved)]
    centered = [p.consecutive_cosines(given_, r, "centered") for r in (routers, moved)]
    assert np.abs(raw[0] - raw[1]).max() > 0.1
    np.testing.assert_allclose(*centered, atol=1e-9)
    np.testing.assert_allclose(p.consecutive_cosines(given_, 7 * routers), centered[0], atol=1e-9)


def test_names_of_experts_do_not_matter():
    given_, routers = profiles(), np.random.default_rng(3).normal(size=(5, 8, 16))
    names = np.random.default_rng(4).permutation(8)
    np.testing.assert_allclose(
        p.consecutive_cosines(given_[..., names], routers[:, names]), p.consecutive_cosines(given_, routers)
    )


def test_cosines_of_other_layers_are_refused():
    with pytest.raises(SpecError, match="cannot be compared"):
        p.consecutive_cosines(profiles(), np.zeros((4, 8, 16)))


def test_smoothness_and_roughness_of_equal_and_of_few_layers():
    equal = np.full((3, 5), 0.6)
    assert p.roughness(equal) == pytest.approx(1e-8 / (0.6 + 1e-8), abs=1e-12)
    found = p.smoothness(equal)
    np.testing.assert_allclose([found.mean, found.least], 0.6)
    np.testing.assert_allclose(found.sd, 0, atol=1e-12)
    assert np.isnan(p.roughness(np.full((3, 2), 0.6))).all()  # three layers
    assert np.isnan(p.roughness(np.full((3, 1), 0.6))).all()
    assert np.isnan(p.roughness(np.full((3, 4), -0.1))).all()
    assert p.roughness(np.array([[0.9, 0.3, 0.3]])) == pytest.approx(1 - 0.5 / 0.9)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 2.0])
def test_effective_dimension_in_closed_form(ridge):
    n = 12
    alike, apart = (p.effective_dimension(h, (ridge,)) for h in (np.ones((n, n)), np.eye(n)))
    assert apart.dimensions == pytest.approx(n / (1 + ridge)) and apart.participation == pytest.approx(n)
    assert alike.dimensions == pytest.approx(n / (n + ridge)) and alike.participation == pytest.approx(1)
    assert alike.stable_rank == pytest.approx(1) and apart.stable_rank == pytest.approx(n)


def test_effective_dimension_by_its_definition():
    inputs = np.random.default_rng(5).normal(size=(30, 4))
    kernel = p.routing_kernel(profiles(30)[:, 0], inputs @ inputs.T)
    found = p.effective_dimension(kernel)
    for dimension, ridge in zip(found.dimensions, p.RIDGES, strict=True):
        lam = ridge * np.trace(kernel) / 30
        expected = np.trace(kernel @ np.linalg.inv(kernel + lam * np.eye(30)))
        assert dimension == pytest.approx(expected)
    assert (np.diff(found.dimensions) < 0).all()
    order = np.random.default_rng(6).permutation(30)
    np.testing.assert_allclose(
        p.effective_dimension(kernel[np.ix_(order, order)]).dimensions, found.dimensions
    )


def test_samples_that_are_all_alike_have_no_dimension_left_once_centered():
    assert np.isnan(p.effective_dimension(np.zeros((3, 3))).dimensions).all()
    given_ = profiles(30)[:, 0]
    centered = given_ - given_.mean(0)
    np.testing.assert_allclose(
        p.effective_dimension(given_ @ given_.T, center=True).dimensions,
        p.effective_dimension(centered @ centered.T).dimensions,
    )
    with pytest.raises(SpecError, match="positive"):
        p.effective_dimension(np.eye(2), (0.0,))
