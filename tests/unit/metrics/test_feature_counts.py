"""Densities of features: shares, histogram, the curve of dead ones and the law by rank."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array, random_array

from sparsescope.errors import SpecError
from sparsescope.metrics.feature_counts import (
    DENSITY_EDGES,
    NEVER,
    dead_share_curve,
    density_histogram,
    density_shares,
    first_active_rows,
    zipf_mandelbrot,
)


def test_shares_are_counted_strictly_above_their_limits():
    found = density_shares([0, 0, 100, 101, 1000, 1001, 10_000, 3], rows=10_000)
    assert (found.dead, found.dense_1, found.dense_10) == (2 / 8, 4 / 8, 2 / 8)
    assert found.rare == 3 / 8  # below a tenth of the mean, 1525.6: 100, 101, 3
    assert found.mean_active == pytest.approx(12_205 / 10_000)
    assert found.dead_bound == pytest.approx(3 / 10_000, rel=2e-3)


def test_the_order_of_the_features_does_not_matter():
    counts = np.random.default_rng(0).integers(0, 500, 300)
    mixed = np.random.default_rng(1).permutation(counts)
    assert density_shares(counts, 500) == density_shares(mixed, 500)
    assert zipf_mandelbrot(counts, 500) == zipf_mandelbrot(mixed, 500)
    one, two = density_histogram(counts, 500), density_histogram(mixed, 500)
    assert np.array_equal(one.features, two.features) and one.dead == two.dead


def test_the_histogram_holds_every_feature_once():
    counts = np.random.default_rng(0).integers(0, 50, 1000)
    counts[:3] = 1_000_000
    found = density_histogram(counts, 1_000_000)
    assert found.features.sum() + found.dead + found.below == found.width == 1000
    assert found.dead == (counts == 0).sum() and found.features[-1] == 3 and len(DENSITY_EDGES) == 65
    narrow = density_histogram(counts, 1_000_000, np.array([-5.0, 0.0]))
    assert narrow.below == ((counts > 0) & (counts < 10)).sum()


def test_first_rows_do_not_depend_on_how_a_stream_is_cut():
    codes = csr_array(random_array((300, 40), density=0.01, rng=np.random.default_rng(0)))
    dense = codes.toarray() != 0
    expected = np.where(dense.any(0), dense.argmax(0), NEVER)
    assert np.array_equal(first_active_rows(codes), expected)
    known = None
    for begin in range(0, 300, 37):
        known = first_active_rows(codes[begin : begin + 37], begin, known)
    assert np.array_equal(known, expected)
    stored_zero = csr_array(([0.0, 1.0], ([0, 1], [0, 0])), shape=(2, 1))
    assert first_active_rows(stored_zero).tolist() == [1]


def test_the_curve_of_dead_features_is_that_of_looking_at_the_first_rows():
    codes = csr_array(random_array((300, 40), density=0.01, rng=np.random.default_rng(0)))
    points = [0, 1, 10, 100, 300]
    found = dead_share_curve(first_active_rows(codes), points)
    dense = codes.toarray() != 0
    assert found.tolist() == pytest.approx([1 - dense[:n].any(0).mean() for n in points])
    assert (np.diff(found) <= 0).all() and found[0] == 1


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (1.5, 12.0), (0.7, 100.0)])
def test_a_planted_law_is_found(alpha, beta):
    law = (np.arange(1, 4001) + beta) ** -alpha
    counts = np.round(law / law[0] * 3e8)
    found = zipf_mandelbrot(counts, 1_000_000_000)
    assert found.alpha == pytest.approx(alpha, rel=1e-3)
    assert found.beta == pytest.approx(beta, rel=2e-2, abs=1e-3)
    assert found.scale * (1 + beta) ** -alpha == pytest.approx(0.3, rel=1e-3)
    assert found.r2 > 0.9999 and found.fitted == 4000 and found.left_out == 0


def test_the_noise_of_rare_features_is_left_out():
    generator = np.random.default_rng(0)
    law = 0.3 * np.arange(1, 2001) ** -1.3
    counts = generator.poisson(law * 20_000)
    found = zipf_mandelbrot(counts, 20_000)
    assert found.alpha == pytest.approx(1.3, abs=0.05) and found.r2 > 0.99
    assert found.left_out == ((counts > 0) & (counts < 10)).sum() > 100
    assert found.fitted == (counts >= 10).sum()
    with_tail = zipf_mandelbrot(counts, 20_000, least_rows=1)
    assert abs(with_tail.alpha - 1.3) > abs(found.alpha - 1.3)


def test_the_share_that_is_explained_is_a_squared_correlation():
    generator = np.random.default_rng(0)
    counts = np.sort(np.round(3e6 / np.arange(1, 301) * generator.lognormal(0, 1.0, 300)))[::-1]
    counts[:150] *= 3  # a step, which no law fits
    found = zipf_mandelbrot(counts, 10**9)
    weights = counts / (1 + counts / 100) / np.arange(1, 301)
    table = np.cov(np.log(np.arange(1, 301) + found.beta), np.log(counts), aweights=weights)
    assert found.r2 == pytest.approx(table[0, 1] ** 2 / table[0, 0] / table[1, 1], rel=1e-9)
    assert 0.5 < found.r2 < 0.99


def test_too_few_features_have_no_law():
    assert np.isnan(zipf_mandelbrot([50, 40, 30, 2], 100).alpha)
    assert np.isnan(zipf_mandelbrot([50] * 20, 100).r2)


@pytest.mark.parametrize("counts", [[-1, 2], [3, 11], [[1, 2]]])
def test_impossible_counts_are_refused(counts):
    for call in (density_shares, density_histogram, zipf_mandelbrot):
        with pytest.raises(SpecError):
            call(counts, 10)
