"""Measures of attention rows: closed forms, and the detector of the critical sparsity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.metrics import attention as m


@pytest.mark.parametrize("t", [2, 3, 10, 64, 257, 1000])
def test_uniform_rows(t):
    row = np.full(t, np.float32(1 / t))
    assert m.entropy(row) == pytest.approx(math.log(t), rel=1e-6)
    assert m.gini(row) == pytest.approx(0, abs=1e-6)
    assert m.log_spread(row) == pytest.approx(0, abs=1e-9)
    for tenths in (5, 9, 10):
        assert m.top_share_count(row, tenths / 10) == math.ceil(tenths * t / 10)


@pytest.mark.parametrize("t", [2, 50])
def test_one_hot_rows(t):
    row = np.zeros(t)
    row[t // 2] = 1
    assert (
        m.entropy(row) == 0 and m.top_share_count(row, 0.99) == 1 and m.gini(row) == pytest.approx(1 - 1 / t)
    )
    assert math.isnan(m.gini(np.ones(1))) and math.isnan(m.gini(np.zeros(5)))


def test_sink_of_uniform_rows():
    assert m.sink_of_uniform(64) == pytest.approx(0.0741, abs=5e-5)
    rows = np.tril(np.ones((64, 64))) / np.arange(1, 65)[:, None]
    assert rows[:, 0].mean() == pytest.approx(m.sink_of_uniform(64))


def test_normal_null_keeps_the_variance_and_nothing_else():
    rng = np.random.default_rng(0)
    scores = 1.5 * rng.normal(size=4000)
    row = np.exp(scores) / np.exp(scores).sum()
    null = m.normal_null(4000, m.log_spread(row))
    assert m.entropy(row) == pytest.approx(m.entropy(null), abs=0.1)
    assert m.log_spread(null) == pytest.approx(m.log_spread(row), rel=0.01)
    spiked = row.copy()
    spiked[7] = 1.0  # one key far out: below its null
    spiked /= spiked.sum()
    assert m.entropy(spiked) < m.entropy(m.normal_null(4000, m.log_spread(spiked))) - 1
    np.testing.assert_allclose(m.normal_null(5, 0), 0.2)


def test_concentration_and_blocks():
    assert m.concentration(np.ones(200)) == pytest.approx(0.01)
    assert m.concentration(np.eye(50)[3]) == 1
    assert m.blocks_needed(np.array([0.96, 0.02, 0.02])) == 1 and m.blocks_needed(np.ones(4)) == 4
    assert m.causal_block_density(8, 8) == 1 and m.causal_block_density(9, 8) == 1
    kept = sum(min(row + 1, 3) for row in range(8))
    assert m.causal_block_density(3, 8) == pytest.approx(kept / 36)


def test_dropped_output_with_orthonormal_values_is_the_energy_left_out():
    rng = np.random.default_rng(1)
    row = rng.dirichlet(np.ones(12) * 0.3)
    found = m.dropped_output(row, np.eye(12), (0.5, 0.9), (0.1, 0.9999))
    ordered = np.sort(row)[::-1]
    for share, error in zip((0.5, 0.9), found.errors, strict=True):
        left = ordered[m.top_share_count(row, share) :]
        assert error == pytest.approx(math.sqrt((left**2).sum() / (row**2).sum()))
    tails = np.sqrt(np.cumsum(np.sort(row) ** 2) / (row**2).sum())
    assert found.fractions[0] == pytest.approx(1 - (tails <= 0.1).sum() / 12)
    assert math.isnan(m.dropped_output(row, np.zeros((12, 3)), (0.5,), (0.1,)).errors[0])


def test_classes_of_heads():
    assert m.head_class(0.9, 0.05, 0.1) == "sink" and m.head_class(0.1, 0.6, 0.9) == "previous token"
    assert m.head_class(0.1, 0.1, 0.8) == "local" and m.head_class(0.3, 0.49, 0.79) == "mixed"
