"""The factorization against dense computations, brute force and the published update."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from sparsescope.dictionaries.snmf.published import published_update, published_updates
from sparsescope.dictionaries.snmf.rows import Rows, Sums, gram
from sparsescope.dictionaries.snmf.solver import (
    Settings,
    _sweep_rows,
    dictionary_step,
    factorize,
    largest,
    support_size,
    timed,
)
from sparsescope.dictionaries.snmf.start import start_codes


def _data(n=120, d=24, k=6, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    x = random.exponential(size=(n, k)) @ (random.normal(size=(k, d)) * (random.random((k, d)) < 0.3))
    return (x + 0.1 * random.normal(size=(n, d))).astype(dtype), random.random((n, k)).astype(dtype) + 1e-3


VARIANTS = {
    "plain": {},
    "weights": {"weights": np.random.default_rng(8).random(120) * (np.arange(120) % 7 > 0)},
    "centred and scaled": {
        "mean": np.random.default_rng(7).normal(size=24),
        "scale": 0.5 + np.random.default_rng(6).random(24),
    },
}


def _seen(x, weights=None, mean=0.0, scale=1.0):
    return (x - mean) / scale, np.ones(len(x)) if weights is None else weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_and_losses_equal_dense_ones(variant):
    x, codes = _data()
    rows, (seen, weights) = Rows(x, **VARIANTS[variant]), _seen(x, **VARIANTS[variant])
    h = np.random.default_rng(1).normal(size=(6, 24)) * (np.random.default_rng(2).random((6, 24)) < 0.2)
    total, variance = rows.energy()
    mean = weights @ seen / weights.sum()
    assert total == pytest.approx(weights @ (seen**2).sum(1), rel=1e-12)
    assert variance == pytest.approx(weights @ ((seen - mean) ** 2).sum(1), rel=1e-10)
    sums = rows.sums(codes, total)
    np.testing.assert_allclose(sums.codes, (codes * weights[:, None]).T @ codes, rtol=1e-12)
    np.testing.assert_allclose(sums.products, (codes * weights[:, None]).T @ seen, rtol=1e-10, atol=1e-11)
    dense = weights @ ((seen - codes @ h) ** 2).sum(1)
    assert sums.loss(h) == pytest.approx(dense, rel=1e-10)
    np.testing.assert_allclose(rows.errors(codes, h), ((seen - codes @ h) ** 2).sum(1), rtol=1e-12)
    best, errors = rows.exact(h)
    np.testing.assert_allclose(errors, ((seen - best @ h) ** 2).sum(1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(rows.right(h.T), seen @ h.T, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_code_steps_see_the_same_rows_with_dense_and_sparse_dictionaries(variant, density):
    x, codes = _data()
    seen, _ = _seen(x, **VARIANTS[variant])
    h = np.random.default_rng(1).normal(size=(6, 24)) * (np.random.default_rng(2).random((6, 24)) < density)
    found, swept = codes.copy(), codes.copy()
    Rows(x, **VARIANTS[variant]).improve(found, h, 2, None)
    for _ in range(2):
        for c in np.flatnonzero(h.any(1)):
            slope = swept @ gram(h)[:, c] - seen @ h[c]
            swept[:, c] = np.maximum(0, swept[:, c] - slope / gram(h)[c, c])
    np.testing.assert_allclose(found, swept, rtol=1e-8, atol=1e-9)


def test_errors_of_rows_that_are_explained_do_not_drown_in_rounding():
    x = np.random.default_rng(0).random((40, 3)) @ np.eye(3, 9) * 1e6
    _, errors = Rows(x).exact(np.eye(3, 9))
    assert errors.max() < 1e-12 * (x**2).sum(1).max()


@pytest.mark.parametrize("scope", ["row", "global"])
@pytest.mark.parametrize("rule", ["hals", "mu"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_losses_never_rise(scope, rule, dtype):
    x, codes = _data(dtype=dtype)
    losses = [s.loss for s in factorize(Rows(x), codes, Settings(5, scope, rule), 60)]
    assert len(losses) > 5
    assert (np.diff(losses) <= 1e-9 * losses[0]).all()
    assert losses[-1] < 0.9 * losses[0]


def test_the_loss_of_a_state_is_that_of_its_codes_and_components():
    x, codes = _data()
    for state in factorize(Rows(x), codes, Settings(5), 8):
        assert state.loss == pytest.approx(((x - state.codes @ state.components) ** 2).sum(), rel=1e-10)
        assert state.codes.min() >= 0
        assert (np.count_nonzero(state.components, axis=1) <= 5).all()


def test_a_global_budget_is_kept_and_shared_unequally():
    x, codes = _data()
    *_, state = factorize(Rows(x), codes, Settings(5, "global"), 20)
    sizes = np.count_nonzero(state.components, axis=1)
    assert sizes.sum() <= 30
    assert len(set(sizes)) > 1


def test_annealing_ends_with_the_support_asked_for():
    x, codes = _data()
    states = list(factorize(Rows(x), codes, Settings(4, anneal=5), 9))
    for place in range(9):
        assert Settings(4, anneal=5).at(place, 24) == max(
            4, round(24 * (4 / 24) ** ((min(place, 4) + 1) / 5))
        )
    assert [s.annealed for s in states] == [False] * 4 + [True] * 5
    assert (np.count_nonzero(states[-1].components, axis=1) <= 4).all()


def test_one_iteration_equals_the_published_update():
    x, codes = _data(n=60)
    sparsity = 0.2  # 4.8 entries: 5 stay
    expected_codes, expected = published_update(x, codes, sparsity)
    settings = Settings(support_size(sparsity, 24), "row", "mu", inner=1, refit=False, monotone=False)
    state = next(factorize(Rows(x), codes.copy(), settings, 1))
    np.testing.assert_allclose(state.components, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(state.codes, expected_codes, rtol=1e-6, atol=1e-6 * expected_codes.max())
    in_torch = list(
        published_updates(torch.from_numpy(x), torch.from_numpy(codes), sparsity=0.2, iterations=2)
    )
    np.testing.assert_allclose(in_torch[0][0], expected_codes, rtol=1e-9)
    np.testing.assert_allclose(in_torch[0][1], expected, rtol=1e-9, atol=1e-12)
    again_codes, again = published_update(x, expected_codes, sparsity)
    np.testing.assert_allclose(in_torch[1][0], again_codes, rtol=1e-8)
    np.testing.assert_allclose(in_torch[1][1], again, rtol=1e-8, atol=1e-11)


def test_the_published_update_by_its_formulas():
    # Two rows, one component: H = (G'X) / (G'G + 1e-6), the larger entry stays, G / |G|, H |G|
    x, codes = np.array([[1.0, -3.0], [2.0, -4.0]]), np.array([[1.0], [2.0]])
    h = np.array([[0.0, -11.0]]) / (5 + 1e-6) * np.sqrt(5)
    g = codes / np.sqrt(5)
    p, q = x @ h.T, h @ h.T
    g = g * np.sqrt((np.maximum(p, 0) + 0) / (np.maximum(-p, 0) + g @ q + 1e-6))
    found_codes, found = published_update(x, codes, 0.5)
    np.testing.assert_allclose(found, h, rtol=1e-9)
    np.testing.assert_allclose(found_codes, g, rtol=1e-9)


def test_published_ties_keep_extra_and_ours_keep_exactly_s():
    x = np.array([[1.0, 1.0, -1.0, 0.5]])
    assert np.count_nonzero(published_update(x, np.ones((1, 1)), 0.5)[1]) == 3
    state = next(factorize(Rows(x), np.ones((1, 1)), Settings(2), 1))
    assert np.flatnonzero(state.components[0]).tolist() == [0, 1]  # of equal entries the first


def test_largest_keeps_exactly_so_many_and_breaks_ties_by_index():
    values = np.array([[2.0, -2, 2, 1], [0, 0, 0, 0], [1, -5, 3, 1]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    np.testing.assert_array_equal(largest(values, 2), np.array(expected, bool))
    assert largest(values, 9).all()


def test_support_size():
    assert [support_size(p, 100) for p in (0.07, 0.071, 1e-9, 1.0)] == [7, 8, 1, 100]
    assert support_size(0.01, 1536) == 16


def test_a_row_finds_its_best_support():
    x, codes = _data(d=7, k=2)
    sums = Rows(x).sums(codes, Rows(x).energy()[0])
    start = np.random.default_rng(5).normal(size=(2, 7)) * largest(
        np.random.default_rng(4).normal(size=(2, 7)), 3
    )
    found = _sweep_rows(sums, np.stack([start[0], start[1]]), np.array([3, 3]))
    # After the last sweep no other support of the last row is better, with the first as it is
    best = np.inf
    for kept in combinations(range(7), 3):
        row = np.zeros(7)
        row[list(kept)] = (sums.products[1] - sums.codes[1, 0] * found[0])[list(kept)] / sums.codes[1, 1]
        best = min(best, sums.loss(np.stack([found[0], row])))
    assert sums.loss(found) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("scope", ["row", "global"])
def test_dictionaries_are_refitted_on_their_support(scope):
    x, codes = _data()
    sums = Rows(x).sums(codes, Rows(x).energy()[0])
    h = dictionary_step(sums, np.zeros((6, 24)), Settings(5, scope))
    slope = sums.products - sums.codes @ h
    scale = np.abs(sums.products).max()
    assert np.abs(slope[h != 0]).max() < 1e-6 * scale
    assert np.abs(slope[h == 0]).max() > 1e-2 * scale
    loose = dictionary_step(sums, np.zeros((6, 24)), Settings(5, scope, refit=False, monotone=False))
    assert sums.loss(h) < sums.loss(loose)


def test_dense_dictionaries_are_least_squares():
    x, codes = _data()
    sums = Rows(x).sums(codes, 1.0)
    found = dictionary_step(sums, np.zeros((6, 24)), Settings(24))
    np.testing.assert_allclose(found, np.linalg.lstsq(codes, x, rcond=None)[0], rtol=1e-5, atol=1e-7)


def test_a_step_never_gives_up_a_better_dictionary():
    x, codes = _data()
    rows = Rows(x)
    *_, state = factorize(rows, codes, Settings(5), 40)
    sums = rows.sums(state.codes, 1.0)
    for scope in ("row", "global"):
        again = dictionary_step(sums, state.components, Settings(5, scope))
        assert sums.change(again) <= sums.change(state.components)


def test_dependent_and_silent_components_are_no_obstacle():
    x, codes = _data()
    codes[:, 1], codes[:, 2] = codes[:, 0], 0
    losses = [s.loss for s in factorize(Rows(x), codes, Settings(5), 5)]
    assert np.isfinite(losses).all()


def test_rescaled_and_faded_sums():
    x, codes = _data()
    norms = np.arange(1.0, 7)
    one, two = Rows(x).sums(codes * norms, 2.0), Rows(x).sums(codes, 2.0).rescaled(norms)
    np.testing.assert_allclose(one.codes, two.codes)
    np.testing.assert_allclose(one.products, two.products)
    added = one.faded(0.25) + two
    assert isinstance(added, Sums)
    assert added.total == 2.5
    np.testing.assert_allclose(added.products, 1.25 * two.products)
    np.testing.assert_allclose(added.codes, 1.25 * two.codes)


def test_rows_beyond_one_block_add_up(monkeypatch):
    from sparsescope.dictionaries.snmf import rows as module

    x, codes = _data()
    expected = Rows(x).sums(codes, 1.0)
    monkeypatch.setattr(module, "BLOCK", 50)
    blocks = [slice(0, 50), slice(50, 100), slice(100, 120)]
    assert list(Rows(x).blocks(50)) == blocks
    monkeypatch.setattr(module.Rows.blocks, "__defaults__", (50,))
    found = Rows(x).sums(codes, 1.0)
    np.testing.assert_allclose(found.products, expected.products, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.codes, expected.codes, rtol=1e-12)


def test_only_the_iteration_is_timed():
    import time

    def states():
        for number in range(2):
            time.sleep(0.02)
            yield number

    found = []
    for seconds, state in timed(states()):
        found.append((seconds, state))
        time.sleep(0.2)
    assert [state for _, state in found] == [0, 1]
    assert 0.02 <= found[0][0] < found[1][0] < 0.2


@pytest.mark.parametrize("kind", ["nndsvd", "kmeans", "random"])
@pytest.mark.parametrize("k", [3, 40, 130])
def test_starts_are_usable_and_come_from_the_state_alone(kind, k):
    x, _ = _data(dtype=np.float32)
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first = start_codes(Rows(x), k, kind, np.random.RandomState(5))
    again = start_codes(Rows(x), k, kind, np.random.RandomState(5))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert first.shape == (120, k)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert (first > 0).any(0).all()
    assert first.min() >= 0


def test_nndsvd_takes_the_heavier_half_of_each_singular_vector():
    x, _ = _data()
    u, _, _ = np.linalg.svd(x, full_matrices=False)
    codes = start_codes(Rows(x), 3, "nndsvd", np.random.RandomState(0))
    for c in range(3):
        halves = [np.maximum(u[:, c], 0), np.maximum(-u[:, c], 0)]
        heavy = max(halves, key=np.linalg.norm)
        np.testing.assert_allclose(codes[:, c], heavy, atol=2e-6)


def test_wide_rows_get_the_same_start_by_subspace_iteration(monkeypatch):
    from sparsescope.dictionaries.snmf import start as module

    random = np.random.default_rng(0)
    x = random.normal(size=(90, 5)) * [9, 7, 5, 3, 2] @ random.normal(size=(5, 60)) + 0.01 * random.normal(
        size=(90, 60)
    )
    exact = start_codes(Rows(x), 4, "nndsvd", np.random.RandomState(0))
    monkeypatch.setattr(module, "_EXACT_WIDTH", 1)
    np.testing.assert_allclose(start_codes(Rows(x), 4, "nndsvd", np.random.RandomState(0)), exact, atol=1e-5)


def test_kmeans_puts_each_cluster_into_its_own_component():
    random = np.random.default_rng(0)
    centers = np.eye(3, 10) * 5
    label = random.integers(0, 3, 90)
    x = centers[label] * (0.5 + random.random((90, 1))) + 0.01 * random.normal(size=(90, 10))
    codes = start_codes(Rows(x), 3, "kmeans", np.random.RandomState(0))
    own = codes.argmax(1)
    assert {tuple(np.unique(own[label == c])) for c in range(3)} == {(0,), (1,), (2,)}
