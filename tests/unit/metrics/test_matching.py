"""Agreement of dictionaries: oracles, invariances and chance."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics import matching
from sparsescope.metrics.matching import asymptotic_mmcs, best_matches, chance, match


def directions(features=60, width=24, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((features, width)).astype(dtype)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_permuted_scaled_and_flipped_dictionary_is_recovered(exact, dtype):
    one, generator = directions(dtype=dtype), np.random.default_rng(1)
    order = generator.permutation(60)
    signs = generator.choice([-1, 1], 60)
    other = (one * generator.uniform(0.1, 9, (60, 1)) * signs[:, None]).astype(dtype)[order]
    found = match(one, other, signed=False, exact=exact, neighbours=5)
    assert np.array_equal(order[found.second], found.first) and np.array_equal(found.first, np.arange(60))
    limit = 1e-6 if dtype == np.float32 else 1e-14
    assert found.mcc == pytest.approx(1, abs=limit) and found.stable_70 == found.stable_90 == 1
    assert found.mmcs_forward == pytest.approx(1, abs=limit) and found.exact is exact
    positive = match(one, np.abs(signs)[order][:, None] * one[order], exact=exact, neighbours=5)
    assert positive.mcc == pytest.approx(1, abs=limit)
    # With signs, the flipped ones are no match at all.
    assert match(one, other, exact=exact).stable_70 == pytest.approx((signs > 0).mean(), abs=0.08)


def test_rotation_lowers_and_a_common_rotation_does_not():
    one = directions(seed=3)
    rotation = np.linalg.qr(directions(24, seed=4, dtype=np.float64))[0].astype(np.float32)
    assert match(one, one).mcc == pytest.approx(1, abs=1e-6)
    turned = match(one, one @ rotation)
    assert turned.mcc < 0.6 and turned.stable_90 == 0
    other = one + 0.5 * directions(seed=5)
    plain, both = match(one, other), match(one @ rotation, other @ rotation)
    assert both.mcc == pytest.approx(plain.mcc, abs=1e-5) and np.array_equal(plain.second, both.second)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
@pytest.mark.parametrize("signed", [True, False])
def test_the_matching_is_the_best_of_all(shape, signed):
    one, two = directions(shape[0], 3, 1, np.float64), directions(shape[1], 3, 2, np.float64)
    cosines = (one / np.linalg.norm(one, axis=1)[:, None]) @ (two / np.linalg.norm(two, axis=1)[:, None]).T
    cosines = cosines if signed else np.abs(cosines)
    short, wide = min(shape), max(shape)
    table = cosines if shape[0] <= shape[1] else cosines.T
    best = max(np.mean([table[i, j] for i, j in enumerate(p[:short])]) for p in permutations(range(wide)))
    found = match(one, two, signed=signed)
    assert found.mcc == pytest.approx(best, abs=1e-12) and len(found.first) == short
    assert found.cosines == pytest.approx(cosines[found.first, found.second], abs=1e-12)
    assert found.mmcs_forward == pytest.approx(cosines.max(1).mean(), abs=1e-12)
    assert found.mmcs_backward == pytest.approx(cosines.max(0).mean(), abs=1e-12)
    assert found.mcc <= found.bound + 1e-12
    assert found.stable_70 == (found.cosines >= 0.7).mean()
    filled = found.by_feature(shape[0])
    assert np.isnan(filled).sum() == shape[0] - short and filled[found.first[0]] == found.cosines[0]


def test_best_matches_ignore_multiplicity_and_the_matching_does_not():
    one = np.eye(8)
    two = np.repeat(np.eye(8)[:2], 4, 0)  # two directions, four times each
    found = match(one, two)
    assert found.mmcs_backward == 1 and found.mmcs_forward == 0.25 and found.mcc == 0.25
    nearest = best_matches(one, two)
    assert nearest.second_nearest.tolist() == [0] * 4 + [1] * 4
    assert nearest.first_cosines.tolist() == [1, 1] + [0] * 6


def test_tiles_change_nothing(monkeypatch):
    one, two = directions(50, 8, 1), directions(70, 8, 2)
    whole, pruned = best_matches(one, two, signed=False), match(one, two, exact=False, neighbours=6)
    monkeypatch.setattr(matching, "_TILE", 7 * 70)
    tiled, again = best_matches(one, two, signed=False), match(one, two, exact=False, neighbours=6)
    for name in ("first_nearest", "second_nearest"):
        assert np.array_equal(getattr(whole, name), getattr(tiled, name))
    assert tiled.forward == pytest.approx(whole.forward, abs=1e-7)
    assert tiled.backward == pytest.approx(whole.backward, abs=1e-7)
    assert again.mcc == pytest.approx(pruned.mcc, abs=1e-7)


@pytest.mark.parametrize("shape", [(120, 120), (80, 150), (150, 80)])
def test_few_neighbours_come_close_and_all_of_them_are_exact(shape):
    one, two = directions(shape[0], 16, 1), directions(shape[1], 16, 2)
    best = match(one, two)
    few, all_of_them = (match(one, two, exact=False, neighbours=k) for k in (4, 150))
    assert best.exact and not few.exact and not all_of_them.exact
    assert all_of_them.mcc == pytest.approx(best.mcc, abs=1e-6)
    assert best.mcc - 0.02 < few.mcc <= best.mcc + 1e-7 <= few.bound + 2e-7
    for found in (few, best):
        assert len(set(found.first)) == len(set(found.second)) == len(found.first) == min(shape)


def test_those_left_over_by_pruning_are_matched_among_each_other():
    # All of the first have the same neighbours, so that most find no one.
    one = np.ones((20, 6)) + 0.01 * directions(20, 6, 1, np.float64)
    two = directions(20, 6, 2, np.float64)
    found = match(one, two, exact=False, neighbours=1)
    assert len(found.first) == 20 and sorted(found.second) == list(range(20))
    assert match(one, two).mcc >= found.mcc


def test_large_dictionaries_are_pruned_by_size(monkeypatch):
    monkeypatch.setattr(matching, "EXACT_ENTRIES", 99)
    assert not match(directions(10), directions(10)).exact and match(directions(9), directions(11)).exact


def test_usage_weighs_the_stable_share():
    one = np.eye(4)
    two = np.eye(4).copy()
    two[1] = [0.0, 0.8, 0.6, 0.0]
    found = match(one, two, usage=[1.0, 5.0, 2.0, 2.0])
    assert (found.stable_70, found.stable_90) == (1, 0.75)
    assert (found.weighted_70, found.weighted_90) == (1, 0.5)
    assert np.isnan(match(one, two).weighted_70)


def test_rows_of_zeros_have_no_direction():
    one = directions(10, 5)
    one[3] = 0
    found = match(one, one)
    assert (found.zero_first, found.zero_second) == (1, 1) and found.mcc == pytest.approx(0.9, abs=1e-6)
    tiny = match(one * np.float32(1e-30), one)
    assert tiny.mcc == pytest.approx(0.9, abs=1e-6)


def test_chance_is_that_of_independent_normal_directions():
    found = chance(200, 300, 64, draws=4)
    assert found.asymptotic == asymptotic_mmcs(300, 64) == pytest.approx(np.sqrt(2 * np.log(300) / 64))
    # The mean largest of 300 normal numbers is 2.84 (numerically), its asymptote 3.38.
    maxima = np.random.default_rng(0).standard_normal((20_000, 300)).max(1).mean() / np.sqrt(64)
    assert found.mmcs_forward == pytest.approx(maxima, rel=0.02)
    assert found.mcc < found.mmcs_forward < found.asymptotic and found.mcc_sd < 0.01
    assert found.stable_70 == 0 and not found.from_covariance
    assert chance(200, 300, 64, draws=4) == found
    assert chance(200, 300, 64, draws=1, signed=False).mcc > found.mcc


def test_random_directions_of_the_data_agree_by_more():
    covariance = np.diag(np.r_[np.full(4, 100.0), np.full(60, 0.01)])
    found = chance(100, 100, 64, covariance=covariance)
    low = chance(100, 100, 4)
    assert found.from_covariance and np.isnan(found.asymptotic)
    assert found.mcc == pytest.approx(low.mcc, abs=0.03) and found.mcc > chance(100, 100, 64).mcc + 0.4
    # Directions drawn by hand, with variances that all count.
    variances, generator = np.arange(1.0, 9) ** 3, np.random.default_rng(0)
    by_hand = np.mean(
        [match(*(generator.standard_normal((2, 80, 8)) * np.sqrt(variances))).mcc for _ in range(8)]
    )
    drawn = chance(80, 80, 8, covariance=np.diag(variances), draws=8)
    assert drawn.mcc == pytest.approx(by_hand, abs=4 * drawn.mcc_sd / 2)
    rotation = np.linalg.qr(directions(64, 64, 4, np.float64))[0]
    turned = chance(100, 100, 64, covariance=rotation @ covariance @ rotation.T)
    assert turned.mcc == pytest.approx(found.mcc, abs=0.03)
    same = chance(100, 100, 64, covariance=np.eye(64) * 7)
    assert same.mcc == pytest.approx(chance(100, 100, 64).mcc, abs=0.01)


def test_what_cannot_be_compared_is_refused():
    one = directions(5, 4)
    for call in (
        lambda: match(one, directions(5, 3)),
        lambda: match(one, one[:0]),
        lambda: match(one, one * np.float32(np.nan)),
        lambda: match(one, one, usage=[1.0]),
        lambda: chance(5, 5, 4, covariance=np.eye(3)),
        lambda: chance(5, 5, 4, covariance=-np.eye(4)),
        lambda: chance(5, 0, 4),
        lambda: chance(5, 5, 4, draws=0),
    ):
        with pytest.raises(SpecError):
            call()
