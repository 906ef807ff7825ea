"""Labels of features against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, roc_auc_score

from sparsescope.errors import SpecError
from sparsescope.metrics.feature_labels import (
    indicator_information,
    levels_auroc,
    matched_types,
    type_label,
)


def test_information_of_two_events_is_that_of_sklearn():
    random = np.random.default_rng(0)
    one, two = random.random(500) < 0.2, random.random(500) < 0.3
    two |= one & (random.random(500) < 0.7)
    wanted = mutual_info_score(one, two) / np.log(2)
    found = indicator_information([(one & two).sum()], [one.sum()], two.sum(), 500)
    assert found[0] == pytest.approx(wanted, rel=1e-12)


def test_area_under_the_curve_of_levels_is_that_of_sklearn():
    random = np.random.default_rng(1)
    level, fires = random.integers(0, 5, 400), random.random(400) < 0.3
    positive = np.bincount(level[fires], minlength=5)
    negative = np.bincount(level[~fires], minlength=5)
    assert levels_auroc(positive, negative) == pytest.approx(roc_auc_score(fires, level), rel=1e-12)
    assert np.isnan(levels_auroc([0, 0], [3, 4]))


def test_a_planted_label_is_found_and_nothing_else():
    random = np.random.default_rng(2)
    named = random.choice(300, 20_000, p=random.dirichlet(np.ones(300)))
    planted = [17, 120, 211]
    fires = (np.isin(named, planted) & (random.random(20_000) < 0.9)) | (random.random(20_000) < 0.002)
    found = type_label(np.bincount(named[fires], minlength=300), np.bincount(named, minlength=300))
    assert sorted(found.types.tolist()) == planted
    assert found.firing_share > 0.5 and found.precision == pytest.approx(0.9, abs=0.1)


def test_firing_that_has_nothing_to_do_with_tokens_gets_no_label():
    random = np.random.default_rng(3)
    labels = []
    for _ in range(200):
        named = random.integers(0, 200, 5000)
        fires = random.random(5000) < 0.05
        labels.append(type_label(np.bincount(named[fires], minlength=200), np.bincount(named, minlength=200)))
    assert sum(label is not None for label in labels) <= 16  # 5 % of 200 are expected


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(SpecError, match="do not belong together"):
        type_label([2, 0], [1, 5])
    assert type_label([0, 0], [4, 5]) is None
    assert type_label([4, 5], [4, 5]) is None  # fires everywhere


def test_matched_types_are_about_as_frequent():
    random = np.random.default_rng(4)
    tokens = np.bincount(random.zipf(1.5, 5000) % 400, minlength=400)
    for wanted in (1, 20, 300):
        chosen = matched_types(tokens, wanted, random.permutation(400))
        assert (
            wanted <= tokens[chosen].sum() <= 2 * wanted
            or len(chosen) == (tokens[tokens <= wanted] > 0).sum()
        )
        assert len(set(chosen.tolist())) == len(chosen)
