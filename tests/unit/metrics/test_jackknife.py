"""The jackknife against closed forms; folds that neither order nor domain decides."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from sparsescope.metrics.jackknife import FOLDS, fold_of, jackknife_interval, mixed


def test_for_a_mean_of_equal_groups_it_is_the_standard_error_of_the_mean():
    groups = np.random.default_rng(0).standard_normal(8)
    without = (groups.sum() - groups) / 7
    low, high = jackknife_interval(np.asarray(groups.mean()), without, 0.95)
    reach = t.ppf(0.975, 7) * groups.std(ddof=1) / np.sqrt(8)
    assert low == pytest.approx(groups.mean() - reach) and high == pytest.approx(groups.mean() + reach)


def test_intervals_cover_the_mean_about_as_often_as_they_say():
    generator, hits = np.random.default_rng(1), 0
    for _ in range(400):
        groups = generator.standard_normal(8)
        low, high = jackknife_interval(np.asarray(groups.mean()), (groups.sum() - groups) / 7, 0.9)
        hits += low <= 0 <= high
    assert 0.85 <= hits / 400 <= 0.95


def test_missing_replicates_are_left_out_and_one_is_not_enough():
    whole = np.array([1.0, 1.0])
    replicates = np.array([[1.0, 2.0], [1.2, np.nan], [0.8, np.nan]])
    low, high = jackknife_interval(whole, replicates, 0.95)
    assert low[0] < 1 < high[0] and np.isnan(low[1]) and np.isnan(high[1])
    assert np.isnan(jackknife_interval(np.asarray(1.0), np.empty(0), 0.95)).all()


def test_folds_are_even_and_split_both_of_two_alternating_domains():
    folds = np.array([fold_of(document) for document in range(4000)])
    for domain in (0, 1):
        counts = np.bincount(folds[domain::2], minlength=FOLDS)
        assert counts.min() > 200 and counts.max() < 300
    assert len({mixed(number) for number in range(1000)}) == 1000
    assert mixed(1) == mixed(1) < 2**64
