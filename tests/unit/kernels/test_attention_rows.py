"""Compiled measures of attention rows against the definitions in metrics/attention.py."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.kernels import attention_rows as k
from sparsescope.metrics import attention as m

SHARES, LEVELS = (0.5, 0.9, 0.99), (0.1, 0.3)


def rows(kind, heads=3, length=40, seed=0):
    """Weights [head, row, key], and first key and end of each row."""
    position = np.arange(length)
    low = np.maximum(position - 11, 0) if kind == "sliding" else np.zeros(length, np.int64)
    high = np.full(length, length) if kind == "full" else position + 1
    allowed = (position >= low[:, None]) & (position < high[:, None])
    scores = np.random.default_rng(seed).normal(size=(heads, length, length)) * 3
    scores[1] = np.round(scores[1])  # ties
    weights = np.where(allowed, np.exp(scores), 0)
    return (
        (weights / weights.sum(2, keepdims=True)).astype(np.float32),
        low.astype(np.int64),
        high.astype(np.int64),
    )


@pytest.fixture(params=["causal", "sliding", "full"])
def case(request):
    return rows(request.param)


def each(weights, low, high):
    for h in range(weights.shape[0]):
        for r in range(weights.shape[1]):
            yield h, r, weights[h, r, low[r] : high[r]]


def test_shapes(case):
    found = k.row_shapes(*case, SHARES)
    for h, r, row in each(*case):
        wanted = [m.entropy(row), np.exp(m.entropy(row)), m.gini(row), m.log_spread(row)]
        np.testing.assert_allclose(found[h, r, :4], wanted, rtol=1e-6, atol=1e-6)
        assert [m.top_share_count(row, p) for p in SHARES] == list(found[h, r, 4:])


@pytest.mark.parametrize("start", [0, 5])
def test_places_lines_and_blocks(case, start):
    weights = case[0]
    part, keys = weights[:, start:, 0:], weights.shape[2]
    found = k.row_places(np.ascontiguousarray(part), start, 0, (1, 16))
    columns, diagonals = np.zeros((3, keys)), np.zeros((3, 2 * keys - 1))
    wanted = np.arange(start, keys) % 3 == 0
    k.add_lines(np.ascontiguousarray(part), wanted, start, 0, columns, diagonals)
    q, j = np.mgrid[start:keys, :keys]
    for h in range(3):
        np.testing.assert_allclose(found[h, :, 0], part[h, :, 0], rtol=1e-6)
        np.testing.assert_allclose(found[h, :, 1], part[h, :, :4].sum(1), rtol=1e-5)
        np.testing.assert_allclose(found[h, :, 2], np.where(j == q - 1, part[h], 0).sum(1), rtol=1e-6)
        np.testing.assert_allclose(found[h, :, 3], np.where(j == q, part[h], 0).sum(1), rtol=1e-6)
        np.testing.assert_allclose(found[h, :, 4], np.where(abs(j - q) < 16, part[h], 0).sum(1), rtol=1e-5)
        np.testing.assert_allclose(columns[h], part[h][wanted].sum(0), rtol=1e-5, atol=1e-7)
        by_distance = np.bincount((q - j + keys - 1)[wanted].ravel(), part[h][wanted].ravel(), 2 * keys - 1)
        np.testing.assert_allclose(diagonals[h], by_distance, rtol=1e-5, atol=1e-7)
    blocks = k.block_mass(weights, 0, keys, 16)
    np.testing.assert_allclose(blocks[1, 2, 1], weights[1, 32:, 16:32].sum(), rtol=1e-5)
    np.testing.assert_allclose(blocks.sum(), weights.sum(), rtol=1e-6)


def test_a_slice_of_the_keys_is_placed_where_it_belongs():
    weights, _, _ = rows("sliding")
    cut = np.ascontiguousarray(weights[:, 20:, 9:])
    columns, diagonals = np.zeros((3, 40)), np.zeros((3, 79))
    k.add_lines(cut, np.ones(20, np.bool_), 20, 9, columns, diagonals)
    np.testing.assert_allclose(columns, weights[:, 20:].sum(1), rtol=1e-5, atol=1e-7)
    whole = k.row_places(weights, 0, 0, (1, 16))[:, 20:]
    np.testing.assert_allclose(k.row_places(cut, 20, 9, (1, 16)), whole, rtol=1e-6)
    np.testing.assert_allclose(
        k.block_mass(cut, 9, 40, 16)[:, 0, 0], weights[:, 20:36, :16].sum((1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        k.row_places(cut[:, :, 1:].copy(), 20, 2, (1,))[..., 1], cut[..., 1:3].sum(-1), rtol=1e-5
    )


def test_dropped_outputs(case):
    values = np.random.default_rng(5).normal(size=(1, 40, 6)).astype(np.float32)
    chosen = np.array([0, 3, 17, 39])
    found = k.dropped_outputs(case[0], values, case[1], case[2], chosen, SHARES, LEVELS)
    for h in (0, 2):  # without ties, where the order is not decided by rounding
        for i, r in enumerate(chosen):
            part = slice(case[1][r], case[2][r])
            wanted = m.dropped_output(case[0][h, r, part], values[0, part], SHARES, LEVELS)
            np.testing.assert_allclose(found[h, i], np.concatenate(wanted), rtol=1e-4, atol=1e-6)
    silent = k.dropped_outputs(case[0], values * 0, case[1], case[2], chosen, SHARES, LEVELS)
    assert np.isnan(silent).all()


def test_grouped_heads_use_the_values_of_their_group():
    weights, low, high = rows("causal", heads=4)
    values = np.random.default_rng(5).normal(size=(2, 40, 6)).astype(np.float32)
    both = k.dropped_outputs(weights, values, low, high, np.arange(40), SHARES, LEVELS)
    alone = k.dropped_outputs(weights[2:], values[1:], low, high, np.arange(40), SHARES, LEVELS)
    np.testing.assert_array_equal(both[2:], alone)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_keep_top(case, share):
    weights, low, high = case
    new, kept = k.keep_top(weights, low, high, share)
    assert kept == (new > 0).sum()
    for h, r, row in each(*case):
        size = m.top_share_count(row, share)
        mine = new[h, r, low[r] : high[r]]
        assert (mine > 0).sum() == size and mine.sum() == pytest.approx(row.sum(), rel=1e-5)
        assert row[mine > 0].min() >= row[mine == 0].max(initial=0)
        np.testing.assert_allclose(mine[mine > 0] / mine.max(), row[mine > 0] / row.max(), rtol=1e-5)


def test_random_keys_are_as_many_and_any():
    weights, low, high = rows("causal", length=24)
    _, kept = k.keep_top(weights, low, high, 0.9)
    total = np.zeros((24, 24))
    for seed in range(400):
        new, drawn = k.keep_top(weights, low, high, 0.9, seed=seed)
        assert drawn == kept
        total += new[0] > 0
    size = m.top_share_count(weights[0, 23], 0.9)
    assert (new[0, 23] > 0).sum() == size
    assert abs(total[23] / 400 - size / 24).max() < 5 * np.sqrt(size / 24 / 400)
    again, _ = k.keep_top(weights, low, high, 0.9, seed=399)
    np.testing.assert_array_equal(again, new)


def test_keep_local(case):
    weights, low, high = case
    new, kept = k.keep_local(weights, low, high, 0, 0, 5)
    q, j = np.mgrid[:40, :40]
    wanted = ((j < 4) | (abs(q - j) < 5)) & (j >= low[:, None]) & (j < high[:, None])
    assert kept == 3 * wanted.sum()
    np.testing.assert_array_equal(new > 0, np.broadcast_to(wanted, new.shape))
    np.testing.assert_allclose(new.sum(2), weights.sum(2), rtol=1e-5)


def test_dealt_rows_keep_their_weights_within_their_keys(case):
    weights, low, high = case
    dealt = k.shuffled_rows(weights, low, high, 3)
    for h, r, row in each(*case):
        np.testing.assert_array_equal(np.sort(dealt[h, r, low[r] : high[r]]), np.sort(row))
    assert (dealt != weights).mean() > 0.1 and dealt is not weights
    np.testing.assert_array_equal(dealt, k.shuffled_rows(weights, low, high, 3))
    mean = np.mean([k.shuffled_rows(weights, low, high, seed)[0, 30] for seed in range(600)], axis=0)
    t = high[30] - low[30]
    assert abs(mean[low[30] : high[30]] - 1 / t).max() < 6 * weights[0, 30].std() / np.sqrt(600) + 0.01


def test_order_of_keys_and_heads_does_not_matter():
    weights, low, high = rows("full")
    order = np.random.default_rng(2).permutation(40)
    found = k.row_shapes(weights, low, high, SHARES)
    np.testing.assert_allclose(
        k.row_shapes(weights[:, :, order].copy(), low, high, SHARES), found, rtol=1e-12
    )
    np.testing.assert_array_equal(k.row_shapes(weights[::-1].copy(), low, high, SHARES), found[::-1])
