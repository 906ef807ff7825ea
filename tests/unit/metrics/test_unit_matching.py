"""Matching of units: what is planted is found, and likeness does not change under what it should not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group

from sparsescope.errors import SpecError
from sparsescope.metrics.unit_matching import (
    CLASSES,
    blocks,
    classify,
    correlations,
    few_predictors,
    linear_cka,
    match_units,
    mean_canonical_correlation,
    standardized,
)


@pytest.fixture(scope="module")
def units():
    random = np.random.default_rng(0)
    mixed = random.normal(size=(600, 12)) @ random.normal(size=(12, 40)) + 0.3 * random.normal(size=(600, 40))
    return np.maximum(mixed, 0)  # as neurons are


def test_a_permuted_and_sign_flipped_dictionary_is_recovered_exactly(units):
    random = np.random.default_rng(1)
    order, signs, scales = random.permutation(40), random.choice([-1.0, 1.0], 40), random.uniform(0.1, 9, 40)
    turned = (units * signs * scales)[:, order]
    found = match_units(correlations(units, turned))
    assert found.partner.tolist() == order.tolist() == found.best.tolist()
    np.testing.assert_allclose(found.partner_values, 1, rtol=1e-12)
    assert found.mutual.all()
    signed = match_units(correlations(units, turned), signed=True)
    kept = signs[order] > 0
    assert (signed.partner[kept] == order[kept]).all() and np.nanmax(signed.partner_values[~kept]) < 1


def test_correlations_are_those_of_numpy(units):
    random = np.random.default_rng(2)
    other = units @ random.normal(size=(40, 7)) + 5
    wanted = np.corrcoef(units.T, other.T)[:40, 40:]
    np.testing.assert_allclose(correlations(units, other), wanted, atol=1e-12)
    constant = units.copy()
    constant[:, 3] = 7.0
    assert not correlations(constant, other)[3].any()
    assert not standardized(np.full((5, 2), 1e-9)).any()


def test_likeness_of_layers_does_not_change_under_what_it_should_not(units):
    random = np.random.default_rng(3)
    other = np.tanh(units @ random.normal(size=(40, 20)))
    turn, linear = ortho_group.rvs(20, random_state=4), random.normal(size=(20, 20)) + 4 * np.eye(20)
    cka, cca = linear_cka(units, other), mean_canonical_correlation(units, other, 1.0)
    assert linear_cka(units, 7.5 * other @ turn + 3) == pytest.approx(cka, rel=1e-9)
    assert linear_cka(units, other @ linear) != pytest.approx(cka, rel=1e-2)
    assert mean_canonical_correlation(units, other @ linear + 1, 1.0) == pytest.approx(cca, rel=1e-6)
    assert mean_canonical_correlation(units @ random.normal(size=(40, 40)), other, 1.0) == pytest.approx(
        cca, rel=1e-6
    )
    assert linear_cka(units, units) == pytest.approx(1) and mean_canonical_correlation(
        units, units
    ) == pytest.approx(1)


def test_classes_are_what_was_planted():
    random = np.random.default_rng(5)
    u = random.normal(size=(2000, 30))
    v = np.stack(
        [
            u[:, 0],  # one-to-one
            -3 * u[:, 1] + 0.2 * random.normal(size=2000),  # one-to-one, the other sign, some noise
            u[:, 2] + u[:, 3] + u[:, 4],  # one-to-few
            u[:, 5:25].sum(1),  # distributed
            random.normal(size=2000),  # unique
            0.8 * u[:, 28] + u[:, 29] + 1.0 * random.normal(size=2000),  # between
        ],
        axis=1,
    )
    targets = np.arange(6)
    path = few_predictors(u, v, np.arange(2000) % 2 == 0, targets)
    found = [CLASSES[c] for c in classify(match_units(correlations(u, v)), path, targets)]
    assert found == ["one-to-one", "one-to-one", "one-to-few", "distributed", "unique", "between"]
    assert path.needed[:3].tolist() == [1, 1, 3]
    assert path.explained[2, 3] == pytest.approx(1, abs=1e-3) and path.explained[2, 1] == pytest.approx(
        1 / 3, abs=0.06
    )
    assert abs(path.dense[4]) < 0.1


def test_r_squared_is_of_rows_that_were_not_fitted():
    """With as many units as rows everything can be fitted, and nothing is said of other rows."""
    random = np.random.default_rng(6)
    u, v = random.normal(size=(100, 60)), random.normal(size=(100, 4))
    path = few_predictors(u, v, np.arange(100) < 50, np.arange(4), most=20)
    assert (path.dense < 0.2).all()
    assert (path.explained[:, 1:] < 0.3).all()


def test_a_target_that_does_not_vary_has_no_path(units):
    v = np.zeros((600, 2))
    v[:, 0] = units[:, 0]
    path = few_predictors(units, v, np.arange(600) % 2 == 0, np.array([0, 1]))
    assert np.isnan(path.dense[1]) and path.dense[0] > 0.99


def test_blocks_are_found_in_any_order():
    random = np.random.default_rng(7)
    latent = random.normal(size=(800, 3))
    labels = [np.repeat([0, 1, 2], 8), np.repeat([2, 0, 1], 6)]
    u, v = (latent[:, label] + 0.5 * random.normal(size=(800, len(label))) for label in labels)
    found = blocks(correlations(u, v), 3)
    for label, got in zip(labels, (found.first, found.second), strict=True):
        assert all(len(set(got[label == block].tolist())) == 1 for block in range(3))
    assert found.within > 0.7 > 0.2 > found.between
    with pytest.raises(SpecError, match="fewer units"):
        blocks(correlations(u, v), 30)


def test_bad_units_are_refused(units):
    with pytest.raises(SpecError, match="same rows"):
        correlations(units, units[:-1])
    with pytest.raises(SpecError, match="finite"):
        correlations(units, np.full((600, 2), np.nan))
    with pytest.raises(SpecError, match="to fit and to judge"):
        few_predictors(units, units, np.ones(600, bool), np.array([0]))
