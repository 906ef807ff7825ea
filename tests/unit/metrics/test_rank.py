"""Effective ranks against known spectra, their invariances, and the references against random matrices."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.metrics import rank as r


def points(m=60, n=40, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n)) * np.linspace(0.2, 2, n)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_equal_directions_are_counted_by_every_measure(k):
    np.testing.assert_allclose(r.effective_ranks(np.r_[np.full(k, 2.5), np.zeros(7)]), k)


def test_a_known_spectrum():
    entropy, stable, participation = r.effective_ranks(np.array([9.0, 4.0, 1.0]))
    p = np.array([3, 2, 1]) / 6
    assert entropy == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert stable == pytest.approx(14 / 9) and participation == pytest.approx(14**2 / (81 + 16 + 1))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_both_ways_give_the_singular_values_of_the_centered_points(shape):
    x = points(*shape) + 5.0
    expected = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    few = min(shape)
    np.testing.assert_allclose(r.centered_spectrum(x @ x.T)[:few], expected, atol=1e-8 * expected[0])
    np.testing.assert_allclose(r.column_spectrum(x)[:few], expected, atol=1e-8 * expected[0])


def test_a_subset_of_points_is_a_subset_of_rows_and_columns():
    x, rows = points(30, 50), np.arange(0, 30, 2)
    product = (x @ x.T)[np.ix_(rows, rows)]
    np.testing.assert_allclose(
        r.centered_spectrum(product), r.centered_spectrum(x[rows] @ x[rows].T), atol=1e-9
    )


def test_ranks_do_not_see_shift_scale_rotation_and_order():
    x = points()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((40, 40)))[0]
    expected = r.effective_ranks(r.column_spectrum(x))
    for same in (x + 3.0, x * 1e-4, x @ rotation, x[::-1], x[:, ::-1], -x):
        np.testing.assert_allclose(r.effective_ranks(r.column_spectrum(same)), expected, rtol=1e-9)
    entropy, stable, participation = expected
    assert 1 <= stable <= participation <= entropy <= 40


def test_rounding_is_no_direction():
    """Points on a line far from the origin have one direction, whatever the rounding of the others."""
    x = 1e3 + np.linspace(-1, 1, 50)[:, None] * np.ones(80)
    for spectrum in (r.centered_spectrum(x @ x.T), r.column_spectrum(x)):
        np.testing.assert_allclose(r.effective_ranks(spectrum)[1:], 1, rtol=1e-6)
    assert np.isnan(r.effective_ranks(np.zeros(5))).all()


@pytest.mark.parametrize("shape", [(256, 1024), (1024, 256), (400, 400), (600, 500)])
def test_references_are_those_of_independent_entries(shape):
    x = np.random.default_rng(2).standard_normal(shape)
    found = r.effective_ranks(np.linalg.svd(x, compute_uv=False) ** 2)
    expected = r.independent_ranks(*shape)
    assert found[0] == pytest.approx(expected[0], rel=5e-3)
    # The edge of a finite spectrum is off by order m^(-2/3)
    assert found[1] == pytest.approx(expected[1], rel=5e-2)
    assert found[2] == pytest.approx(expected[2], rel=5e-3)
    m, n = shape
    assert expected[1] == pytest.approx(m * n / (np.sqrt(m) + np.sqrt(n)) ** 2) and expected[
        2
    ] == pytest.approx(m * n / (m + n))


def test_energy_of_the_largest_components_of_independent_entries():
    x = np.random.default_rng(3).standard_normal((300, 900))
    energies = np.linalg.svd(x, compute_uv=False) ** 2
    at = np.array([1, 10, 50, 150, 300])
    held = np.cumsum(energies)[at - 1] / energies.sum()
    np.testing.assert_allclose(r.independent_energy(300, 900, at), held, atol=4e-3)
    assert r.independent_energy(300, 900, np.array([300]))[0] == pytest.approx(1)
