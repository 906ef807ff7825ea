"""Fourier measures: closed forms for odd and even moduli, invariances, and brute force with
the full projector.
"""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics import fourier as f
from sparsescope.metrics.sparsity import gini

MODULI = (2, 3, 4, 7, 10, 13)


def pairs(p: int) -> tuple[np.ndarray, np.ndarray]:
    grid = np.arange(p * p)
    return grid // p, grid % p


def cosine_logits(p: int, keys: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Lambda = sum_k cos w_k(a + b - c)."""
    a, b = pairs(p)
    angle = 2 * np.pi * ((a + b)[:, None] - np.arange(p)) / p
    return scale * sum(np.cos(k * angle) for k in keys)


@pytest.mark.parametrize("p", MODULI)
def test_the_basis_is_orthonormal_and_complete(p: int) -> None:
    basis = f.fourier_basis(p)
    assert basis.shape == (p, p)
    np.testing.assert_allclose(basis @ basis.T, np.eye(p), atol=1e-12)
    assert f.row_frequencies(p).tolist() == sorted([0, *range(1, p // 2 + 1), *range(1, (p + 1) // 2)])


@pytest.mark.parametrize("p", MODULI)
def test_the_projector_is_idempotent_and_its_trace_counts_two_for_each_frequency(p: int) -> None:
    for keys in ([1], list(f.frequencies(p))):
        pi = f.projector(p, keys)
        np.testing.assert_allclose(pi @ pi, pi, atol=1e-12)
        np.testing.assert_allclose(pi, pi.T, atol=1e-12)
        assert np.trace(pi) == pytest.approx(sum(1 if 2 * k == p else 2 for k in keys))


def test_the_projector_is_that_of_the_paper() -> None:
    p, k = 7, 2
    basis = f.fourier_basis(p)
    cos, sin = basis[2 * k - 1], basis[2 * k]
    u = (np.kron(cos, cos) - np.kron(sin, sin)) / np.sqrt(2)
    q = (np.kron(sin, cos) + np.kron(cos, sin)) / np.sqrt(2)
    np.testing.assert_allclose(f.projector(p, [k]), np.outer(u, u) + np.outer(q, q), atol=1e-12)


@pytest.mark.parametrize("p", [6, 7])
def test_sums_give_what_the_full_projector_gives(p: int) -> None:
    logits = np.random.default_rng(0).normal(size=(p * p, p))
    a, b = pairs(p)
    sums = (a + b) % p
    means = f.sum_means(logits)
    keys = [1, 3]
    pi = f.projector(p, keys)
    kept = pi @ logits
    np.testing.assert_allclose(f.restrict(means, keys)[sums], kept, atol=1e-12)
    restricted = kept + (logits - kept).mean(0)
    np.testing.assert_allclose(f.restricted_logits(means, keys)[sums], restricted, atol=1e-12)
    assert f.restricted_loss(means, keys) == pytest.approx(f.cross_entropy(restricted, sums).mean())
    rows = np.arange(0, p * p, 3)
    counts = np.bincount(sums[rows], minlength=p)
    assert f.restricted_loss(means, keys, counts) == pytest.approx(
        f.cross_entropy(restricted, sums)[rows].mean()
    )
    assert f.excluded_loss(logits, means, keys, rows) == pytest.approx(
        f.cross_entropy(logits - kept, sums)[rows].mean()
    )


@pytest.mark.parametrize(("p", "scale"), [(6, 1.0), (7, 40.0), (7, 2000.0)])
def test_all_excluded_losses_at_once(p: int, scale: float) -> None:
    logits = scale * np.random.default_rng(6).normal(size=(p * p, p))
    means, rows = f.sum_means(logits), np.array([0, 3, 4, 9, 17, 20, 30])
    expected = [f.excluded_loss(logits, means, [int(k)], rows) for k in f.frequencies(p)]
    np.testing.assert_allclose(f.excluded_losses(logits, means, rows), expected, rtol=1e-9)


@pytest.mark.parametrize(("p", "keys"), [(13, (1, 4)), (12, (2, 5)), (10, (3, 5)), (4, (2,))])
def test_logits_made_of_key_cosines(p: int, keys: tuple[int, ...]) -> None:
    logits = cosine_logits(p, keys, 3.0)
    means = f.sum_means(logits)
    a, b = pairs(p)
    full = f.cross_entropy(logits, (a + b) % p).mean()
    assert f.explained_variance(logits, means, keys) == pytest.approx(1)
    assert f.restricted_loss(means, keys) == pytest.approx(full)
    assert f.excluded_loss(logits, means, keys, np.arange(p * p)) == pytest.approx(np.log(p))
    found = f.cosine_coefficients(means)
    others = np.setdiff1d(f.frequencies(p), keys) - 1
    np.testing.assert_allclose(found[others], 0, atol=1e-9)
    norms = [np.linalg.norm(cosine_logits(p, (k,), 3.0)) for k in keys]
    np.testing.assert_allclose(found[np.array(keys) - 1], norms)
    assert f.keys_of_energies(f.sum_energies(means), 1.5 if p > 4 else 0.9) == keys
    assert f.keys_of_energies(np.ones(9), 1.5) == () == f.keys_of_energies(np.zeros(9), 1.5)


def test_the_class_bias_is_kept_by_restricted_logits_alone() -> None:
    p, keys = 11, (2,)
    bias = np.random.default_rng(1).normal(size=p)
    logits = cosine_logits(p, keys) + bias
    means = f.sum_means(logits)
    sums = np.add.outer(np.arange(p), np.arange(p)).ravel() % p
    np.testing.assert_allclose(f.restricted_logits(means, keys)[sums], logits, atol=1e-12)
    expected = f.cross_entropy(np.broadcast_to(bias, (p * p, p)), sums).mean()
    assert f.excluded_loss(logits, means, keys, np.arange(p * p)) == pytest.approx(expected)
    assert f.explained_variance(logits, means, keys) == pytest.approx(1)


def test_all_frequencies_together_keep_what_depends_on_the_sum() -> None:
    p = 9
    logits = np.random.default_rng(2).normal(size=(p * p, p))
    means = f.sum_means(logits)
    np.testing.assert_allclose(f.restricted_logits(means, list(f.frequencies(p))), means, atol=1e-12)
    assert f.sum_energies(means).sum() == pytest.approx(1)


@pytest.mark.parametrize("p", [7, 8])
def test_energies_of_neurons_against_a_plain_transform(p: int) -> None:
    hidden = np.random.default_rng(3).normal(size=(p * p, 5)) ** 2
    fractions, total = f.neuron_energies(hidden)
    power = np.abs(np.fft.fft2(hidden.reshape(p, p, 5), axes=(0, 1))) ** 2 / p**2
    power[0, 0] = 0
    np.testing.assert_allclose(total, power.sum((0, 1)))
    for k in f.frequencies(p):
        cells = {(i % p, j % p) for i in (0, k, -k) for j in (0, k, -k)} - {(0, 0)}
        np.testing.assert_allclose(fractions[k - 1] * total, sum(power[i, j] for i, j in cells))


def test_a_neuron_of_one_frequency_is_explained_and_a_constant_one_is_not() -> None:
    p = 13
    a, b = pairs(p)
    w = 2 * np.pi / p
    tuned = np.cos(3 * w * a + 0.4) * np.sin(3 * w * b) + 0.2 * np.cos(3 * w * a) + 5
    mixed = np.cos(w * a) + np.cos(2 * w * b)
    hidden = np.stack([tuned, mixed, np.full(p * p, 2.0)], 1).astype(np.float32)
    fractions, total = f.neuron_energies(hidden)
    assert fractions[2, 0] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(fractions[:2, 1], 0.5, atol=1e-5)
    assert np.isnan(fractions[:, 2]).all() and total[2] == 0
    dominant = f.dominant_frequencies(fractions, 0.85)
    assert dominant.tolist() == [3, 0, 0]
    assert f.keys_of_neurons(dominant, 0.02) == (3,)
    assert f.keys_of_neurons(dominant, 0.5) == ()


def test_fractions_do_not_depend_on_scale_shift_or_order_of_residues() -> None:
    p = 11
    hidden = np.random.default_rng(4).normal(size=(p * p, 3))
    before = f.neuron_energies(hidden)[0]
    np.testing.assert_allclose(f.neuron_energies(4 * hidden + 7)[0], before, rtol=1e-9)
    rolled = np.roll(hidden.reshape(p, p, 3), (2, 5), (0, 1)).reshape(p * p, 3)  # a shift turns phases alone
    np.testing.assert_allclose(f.neuron_energies(rolled)[0], before, rtol=1e-9)
    multiplied = np.arange(p) * 3 % p  # residues times 3: frequencies are permuted, nothing else
    turned = f.neuron_energies(hidden.reshape(p, p, 3)[np.ix_(multiplied, multiplied)].reshape(p * p, 3))[0]
    new = [min(3 * k % p, -3 * k % p) for k in f.frequencies(p)]
    np.testing.assert_allclose(turned[np.array(new) - 1], before, rtol=1e-9)


def test_norms_of_components() -> None:
    p, d = 12, 4
    basis = f.fourier_basis(p)
    directions = np.linalg.qr(np.random.default_rng(5).normal(size=(d, d)))[0]
    matrix = (
        3 * np.outer(basis[5], directions[0])
        + 4 * np.outer(basis[6], directions[1])
        + np.outer(basis[11], directions[2])
    )
    norms = f.component_norms(matrix)
    np.testing.assert_allclose(norms, [0, 0, 5, 0, 0, 1], atol=1e-12)
    assert gini(np.ones(6)) == pytest.approx(0)
    assert gini(np.eye(6)[2]) == pytest.approx(5 / 6)
    np.testing.assert_allclose(
        gini(f.component_norms(np.eye(p)))[()], gini(np.array([2**0.5] * 5 + [1.0])), atol=1e-12
    )


def test_small_losses_are_not_rounded_away() -> None:
    losses = f.cross_entropy(
        np.array([[40.0, 0.0, 0.0], [0.0, 1000.0, 0.0], [0.0, 0.0, 0.0]]), np.array([0, 0, 2])
    )
    np.testing.assert_allclose(losses, [2 * np.exp(-40), 1000, np.log(3)])
    shifted = f.cross_entropy(np.array([[1e4 + 1.0, 1e4]]), np.array([0]))
    np.testing.assert_allclose(shifted, np.log1p(np.exp(-1)), rtol=1e-9)


def test_what_is_no_addition_is_refused() -> None:
    with pytest.raises(SpecError, match="no addition"):
        f.frequencies(1)
    with pytest.raises(SpecError, match="no such frequency"):
        f.sum_filter(7, [4])
    with pytest.raises(SpecError, match="all pairs"):
        f.sum_means(np.zeros((10, 3)))
    with pytest.raises(SpecError, match="all pairs"):
        f.neuron_energies(np.zeros((10, 3)))
