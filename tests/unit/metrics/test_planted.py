"""Activations with known features, and measures of their recovery."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array, hstack

from sparsescope.errors import SpecError
from sparsescope.metrics import planted as module
from sparsescope.metrics.planted import plant, random_directions, recovery, zipf_probabilities

MEANS = ("mcc", "uniqueness", "mean_precision", "mean_recall", "mean_f1", "shrinkage")


def example(features=40, width=24, rows=4000, **options):
    planted = plant(features, width, 0, **options)
    return planted, *planted.sample(rows, seed=1)


@pytest.mark.parametrize(
    "options", [{}, {"rank": 3}, {"children": 0.3}, {"rank": 2, "children": 0.2, "noise": 0.1}]
)
def test_the_planted_dictionary_recovers_itself(options):
    planted, _, codes = example(**options)
    order = np.random.default_rng(2).permutation(40)
    found = recovery(planted.directions, codes, planted.directions[order], codes[:, order])
    assert [getattr(found, name) for name in MEANS] == pytest.approx([1] * 6, abs=1e-6)
    assert np.allclose(found.magnitude_ratio, 1, atol=1e-6) and (found.f1 == 1).all()
    assert found.dead == 0 and found.exact and found.mean_active == found.mean_fired
    assert np.array_equal(order[found.second], found.first)


def test_rows_are_codes_times_directions_plus_noise():
    planted, x, codes = example()
    assert x.dtype == codes.dtype == np.float32
    assert np.allclose(x, codes.toarray() @ planted.directions, atol=1e-6)
    assert (codes.data > 0).all() and codes.data.mean() == pytest.approx(1, abs=0.01)
    assert codes.data.std() == pytest.approx(0.2, abs=0.01)
    noisy, y, more = example(noise=0.5)
    residual = y - more.toarray() @ noisy.directions
    assert residual.std() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    "options", [{}, {"rank": 3, "correlation": 0.7}, {"children": 0.4}, {"rank": 3, "children": 0.4}]
)
def test_features_fire_as_often_as_planned(options, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 40 * 1000)
    planted, _, codes = example(rows=40_000, **options)
    rates = np.bincount(codes.indices, minlength=40) / 40_000
    p = planted.probabilities
    assert (np.abs(rates - p) < 5 * np.sqrt(p * (1 - p) / 40_000)).all()
    assert np.array_equal(p, zipf_probabilities(40))


def test_children_fire_only_with_their_parents():
    planted, _, codes = example(children=0.4)
    fires = codes.toarray() > 0
    children = np.flatnonzero(planted.parents >= 0)
    assert len(children) == 16 and (planted.parents[children] < children).all()
    for child in children:
        assert fires[fires[:, child], planted.parents[child]].all()
    assert (planted.parents[planted.parents[children]] >= 0).any()  # grandchildren too


def test_common_factors_make_features_fire_together():
    apart, _, one = example(rows=20_000)
    joined, _, two = example(rows=20_000, rank=1, correlation=0.8)

    def strongest(codes):
        fires = (codes.toarray() > 0)[:, :10].astype(float)
        return np.abs(np.corrcoef(fires.T) - np.eye(10)).max()

    assert not apart.loadings.any() and joined.loadings.shape == (40, 1)
    assert strongest(one) < 0.05 < 0.3 < strongest(two)


def test_directions_are_orthogonal_where_they_can_be():
    gram = random_directions(10, 16, 0, orthogonal=True) @ random_directions(10, 16, 0, orthogonal=True).T
    assert np.allclose(gram, np.eye(10), atol=1e-6)
    plain, tight = random_directions(48, 16, 0), random_directions(48, 16, 0, orthogonal=True)
    for directions in (plain, tight):
        assert np.allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-6)
    # The sum of squared cosines of F directions in d dimensions is at least F^2 / d.
    assert ((tight @ tight.T) ** 2).sum() == pytest.approx(48**2 / 16, rel=1e-4)
    assert ((plain @ plain.T) ** 2).sum() > 1.1 * 48**2 / 16


def test_the_law_of_probabilities():
    found = zipf_probabilities(100, 0.01, 0.3)
    assert found[0] == pytest.approx(0.3) and found[-1] == pytest.approx(0.01)
    law = 1 / np.arange(1, 101)
    assert np.corrcoef(found, law)[0, 1] == pytest.approx(1)
    assert zipf_probabilities(1).tolist() == [0.3]


def test_a_seed_gives_the_same_rows():
    planted, x, codes = example(rank=2, children=0.2, noise=0.1)
    again, y, more = example(rank=2, children=0.2, noise=0.1)
    assert np.array_equal(x, y) and (codes != more).nnz == 0
    assert np.array_equal(planted.directions, again.directions)
    assert not np.array_equal(x, planted.sample(4000, seed=2)[0])


def test_shrunken_codes_show_as_shrinkage_alone():
    planted, _, codes = example()
    found = recovery(planted.directions, codes, planted.directions * 4, codes * np.float32(0.2))
    assert found.shrinkage == pytest.approx(0.8, abs=1e-6) and found.mean_f1 == 1
    # A turned decoder row counts with what it contributes along the planted direction.
    eye = np.eye(3)
    codes = csr_array([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    turned = np.array([[0.8, 0.6, 0], [0, 1.0, 0], [0, 0, 1.0]])
    found = recovery(eye, codes, turned, codes)
    assert found.magnitude_ratio.tolist() == pytest.approx([0.8, 1, 1]) and found.shrinkage == 1
    # Rows on which only one of the two is active say nothing about magnitudes.
    here = csr_array(np.array([[2.0, 4.0, 0.0, 1.0], [1, 1, 1, 1]]).T)
    there = csr_array(np.array([[1.0, 0.0, 9.0, 1.0], [1, 1, 1, 1]]).T)
    assert recovery(np.eye(2), here, np.eye(2), there).magnitude_ratio.tolist() == pytest.approx([2 / 3, 1])
    flipped = recovery(eye, codes, -eye, -codes)
    assert flipped.mcc == flipped.shrinkage == 1


def test_precision_and_recall_by_hand():
    directions = np.eye(2)
    codes = csr_array(np.array([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]], float).T)
    learned = csr_array(np.array([[0, 0, 0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1, 1, 1]], float).T)
    found = recovery(directions, codes, directions, learned)
    assert found.precision.tolist() == [1, 2 / 5] and found.recall.tolist() == [1 / 4, 1]
    assert found.f1 == pytest.approx([2 / 5, 4 / 7]) and found.mean_active == 6 / 8
    assert found.mean_fired == 6 / 8 and found.mean_f1 == pytest.approx((2 / 5 + 4 / 7) / 2)


def test_copies_and_dead_features_are_counted():
    planted, _, codes = example()
    more = np.concatenate([planted.directions, planted.directions[:10] * 2])
    silent = csr_array((codes.shape[0], 10), dtype=np.float32)
    found = recovery(planted.directions, codes, more, csr_array(hstack([codes, silent])))
    assert found.uniqueness == 40 / 50 and found.dead == 10 / 50 and found.mcc == pytest.approx(1, abs=1e-6)
    stored = codes.copy()
    stored.data[stored.indices == 5] = 0
    less = recovery(planted.directions, codes, planted.directions, stored)
    assert less.dead == 1 / 40 and less.recall[5] == less.precision[5] == less.f1[5] == 0
    assert np.isnan(less.magnitude_ratio[5]) and less.shrinkage == pytest.approx(1, abs=1e-6)


def test_fewer_learned_than_planted():
    planted, _, codes = example()
    found = recovery(planted.directions, codes, planted.directions[5:15], codes[:, 5:15])
    assert found.first.tolist() == list(range(5, 15)) and found.mcc == pytest.approx(1, abs=1e-6)
    assert found.mean_f1 == 1 and found.uniqueness == 1


def test_random_directions_recover_little():
    planted, _, codes = example()
    order = np.random.default_rng(5).permutation(40)
    found = recovery(planted.directions, codes, random_directions(40, 24, 7), codes[:, order])
    assert found.mcc < 0.6 and found.mean_f1 < 0.4 and found.uniqueness < 0.9


def test_what_cannot_be_planted_is_refused():
    planted, _, codes = example(rows=10)
    for call in (
        lambda: plant(4, 2, 0, correlation=1.0),
        lambda: plant(4, 2, 0, children=1.0),
        lambda: plant(4, 2, 0, noise=-1),
        lambda: zipf_probabilities(4, 0.0, 0.3),
        lambda: zipf_probabilities(4, 0.1, 1.0),
        lambda: recovery(planted.directions, codes, planted.directions[:3], codes),
        lambda: recovery(planted.directions, codes, planted.directions, codes[:5]),
    ):
        with pytest.raises(SpecError):
            call()
