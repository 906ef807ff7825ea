"""Non-negative codes against plain NumPy, SciPy and the conditions of an optimum."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from scipy.optimize import nnls

from sparsescope.kernels.nonnegative_codes import (
    coordinate_sweeps,
    coordinate_sweeps_reference,
    kkt_residual,
    nonnegative_least_squares,
    nonnegative_least_squares_reference,
    sparse_products,
    sparse_products_reference,
)


def _problem(kind: str, rows: int = 25):
    random = np.random.default_rng(3)
    k, d = 18, 30
    h = random.normal(size=(k, d))
    if kind == "sparse":
        h *= random.random((k, d)) < 0.2
    if kind == "dependent":
        h[3], h[4], h[5] = h[7], 0, h[1] + h[2]
    if kind == "wide":  # more components than neurons
        h = h[:, :7]
    if kind == "correlated":  # sweeps alone would need thousands of rounds
        h = random.normal(size=d) + 0.05 * h
    x = random.normal(size=(rows, h.shape[1]))
    if kind == "correlated":
        x += random.random((rows, k)) @ h  # so that many codes are above zero
    return x, h


KINDS = ["plain", "sparse", "dependent", "wide", "correlated"]


@pytest.mark.parametrize("kind", KINDS)
def test_exact_codes_are_optimal(kind):
    x, h = _problem(kind)
    p, q = x @ h.T, h @ h.T
    codes = np.full_like(p, 9.0)  # what was there does not matter
    nonnegative_least_squares(p.copy(), q, codes)
    assert (codes >= 0).all()
    assert kkt_residual(p, q, codes).max() < 1e-6 * 1e-3
    for row, g in zip(x, codes, strict=True):
        assert np.linalg.norm(row - g @ h) == pytest.approx(nnls(h.T, row)[1], abs=1e-9)


@pytest.mark.parametrize("kind", ["plain", "sparse", "correlated"])
def test_exact_codes_equal_the_reference_where_they_are_unique(kind):
    x, h = _problem(kind)
    p, q = x @ h.T, h @ h.T
    codes = np.empty_like(p)
    nonnegative_least_squares(p.copy(), q, codes)
    np.testing.assert_allclose(codes, nonnegative_least_squares_reference(p, q), rtol=1e-6, atol=1e-8)


def test_a_row_gets_the_same_to_the_bit_in_any_company():
    x, h = _problem("correlated", rows=40)
    p, q = x @ h.T, h @ h.T
    together, order = np.empty_like(p), np.random.default_rng(0).permutation(40)
    nonnegative_least_squares(p.copy(), q, together)
    for part in (slice(0, 1), slice(7, 9), slice(1, 40)):
        alone = np.empty_like(p[part])
        nonnegative_least_squares(p[part].copy(), q, alone)
        np.testing.assert_array_equal(alone, together[part])
    shuffled = np.empty_like(p)
    nonnegative_least_squares(p[order].copy(), q, shuffled)
    np.testing.assert_array_equal(shuffled, together[order])


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_optimum_does_not_depend_on_the_unit(scale):
    x, h = _problem("plain")
    p, q = x @ h.T, h @ h.T
    one, other = np.empty_like(p), np.empty_like(p)
    nonnegative_least_squares(p.copy(), q, one)
    nonnegative_least_squares(p * scale, q, other)
    np.testing.assert_allclose(other, one * scale, rtol=1e-8, atol=1e-9 * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_sweeps_equal_the_reference_and_never_raise_the_objective(kind, dtype):
    x, h = _problem(kind)
    p, q = (x @ h.T).astype(dtype), (h @ h.T).astype(dtype)
    codes = np.random.default_rng(1).random(p.shape).astype(dtype)
    codes[codes < 0.3] = 0
    expected = coordinate_sweeps_reference(p, q, codes, 2)

    def objective(g):
        return ((g @ q) * g / 2 - p * g).sum(1)

    before = objective(codes)
    gradient = p.copy()
    coordinate_sweeps(gradient, q, codes, 2)
    tolerance = 2e-3 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(codes, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(gradient, codes @ q - p, atol=tolerance * np.abs(p).max())
    assert codes.min() >= 0
    assert (objective(codes) <= before + 1e-5).all()


@pytest.mark.parametrize(
    "types", [(np.float32, np.float32), (np.float32, np.float64), (np.float64, np.float64)]
)
def test_sparse_products(types):
    x, h = _problem("sparse")
    h[2] = 0
    x, components = x.astype(types[0]), scipy.sparse.csr_array(h.astype(types[1]))
    out = np.empty((len(x), len(h)), types[1])
    sparse_products(x, components, out)
    tolerance = 1e-5 if types[1] == np.float32 else 1e-12
    np.testing.assert_allclose(out, sparse_products_reference(x, components), rtol=tolerance, atol=tolerance)


def test_the_residual_sees_codes_that_should_change_and_codes_that_should_not_be_zero():
    q = np.eye(2)
    p = np.array([[1.0, -1.0], [1.0, -1.0], [1.0, 0.5], [1.0, -1.0]])
    codes = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 0.0], [1.0, 0.25]])
    np.testing.assert_allclose(kkt_residual(p, q, codes), [0, 3 * 2, 0.5, 0.25 * 1.25])


def test_rows_of_zeros_and_components_of_zeros_have_codes_of_zero():
    q = np.diag([0.0, 1.0])
    codes = np.ones((2, 2))
    nonnegative_least_squares(np.array([[0.0, 0.0], [0.0, 2.0]]), q, codes)
    np.testing.assert_array_equal(codes, [[0, 0], [0, 2]])
    codes = np.zeros((1, 2))
    coordinate_sweeps(np.array([[0.0, 2.0]]), q, codes, 1)
    np.testing.assert_array_equal(codes, [[0, 2]])
