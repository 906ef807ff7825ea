"""Entropies and mutual information: closed forms, scikit-learn, bias correction, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import mutual_info_score

from sparsescope.metrics import information as i

TABLES = hnp.arrays(np.int64, st.tuples(st.integers(2, 5), st.integers(2, 6)), elements=st.integers(0, 20))


def test_entropy_of_equal_and_of_single_values():
    assert i.entropy(np.ones(8)) == pytest.approx(math.log(8))
    assert i.effective_number(np.full(8, 3)) == pytest.approx(8)
    assert i.entropy(np.eye(4)[0]) == 0 and i.effective_number(np.eye(4)[0]) == 1
    assert np.isnan(i.entropy(np.zeros(4))) and np.isnan(i.shares(np.zeros(4))).all()


def test_miller_madow_takes_most_of_the_bias_away():
    counts = np.random.default_rng(0).multinomial(100, np.full(16, 1 / 16), size=4000)
    plain, corrected = i.entropy(counts).mean(), i.entropy(counts, miller_madow=True).mean()
    assert math.log(16) - plain == pytest.approx(15 / 200, rel=0.1)
    assert abs(math.log(16) - corrected) < 0.1 * (math.log(16) - plain)


def test_mutual_information_of_independent_counts_without_its_bias():
    generator = np.random.default_rng(1)
    tables = generator.multinomial(400, np.full(20, 1 / 20), size=2000).reshape(-1, 4, 5)
    assert i.mutual_information(tables).mean() == pytest.approx(3 * 4 / 800, rel=0.1)
    assert i.mutual_information(tables, miller_madow=True).mean() == pytest.approx(0, abs=1e-3)


@given(table=TABLES.filter(lambda t: t.sum() > 0))
def test_mutual_information_is_that_of_scikit_learn_and_has_no_order(table):
    found = float(i.mutual_information(table))
    assert found == pytest.approx(mutual_info_score(None, None, contingency=table), abs=1e-9)
    generator = np.random.default_rng(0)
    moved = table[generator.permutation(len(table))][:, generator.permutation(table.shape[1])]
    assert float(i.mutual_information(moved)) == pytest.approx(found, abs=1e-9)
    assert float(i.mutual_information(table.T)) == pytest.approx(found, abs=1e-9)


def test_leading_axes_are_kept():
    tables = np.random.default_rng(2).integers(0, 9, (2, 3, 4, 5))
    one = i.mutual_information(tables)
    assert one.shape == (2, 3) and one[1, 2] == pytest.approx(float(i.mutual_information(tables[1, 2])))


def test_conditional_information_is_what_the_condition_leaves():
    generator = np.random.default_rng(3)
    marginal = generator.random((6, 4, 1)) * generator.random((6, 1, 5))  # independent given x, not overall
    assert i.conditional_mutual_information(marginal) == pytest.approx(0, abs=1e-12)
    assert i.mutual_information(marginal.sum(0)) > 1e-3
    same = np.tile(generator.random((4, 5)), (6, 1, 1))  # x tells nothing
    assert i.conditional_mutual_information(same) == pytest.approx(float(i.mutual_information(same[0])))
    with_nothing = np.concatenate([same, np.zeros((1, 4, 5))])
    assert i.conditional_mutual_information(with_nothing) == pytest.approx(
        float(i.mutual_information(same[0]))
    )


def test_chain_rule():
    joint = np.random.default_rng(4).integers(1, 9, (3, 4, 5)).astype(float)  # x, a, b
    pair = joint.reshape(12, 5)  # (x, a) against b
    chain = i.mutual_information(joint.sum(1)) + i.conditional_mutual_information(joint)
    assert float(i.mutual_information(pair)) == pytest.approx(float(chain))


def test_uncertainty_coefficients():
    assert i.uncertainty_coefficient(np.eye(3)) == pytest.approx(1)
    assert i.uncertainty_coefficient(np.ones((3, 4))) == pytest.approx(0, abs=1e-12)
    assert np.isnan(i.uncertainty_coefficient([[1, 2, 3]]))


def test_jensen_shannon_is_the_square_of_scipys_distance_and_information_of_two_equal_groups():
    from scipy.spatial.distance import jensenshannon

    p, q = np.random.default_rng(5).dirichlet(np.ones(6), size=(2, 10))
    found = i.jensen_shannon(p, q)
    np.testing.assert_allclose(found, jensenshannon(p, q, base=2, axis=1) ** 2)
    np.testing.assert_allclose(found, i.mutual_information(np.stack([p, q], 1)) / math.log(2))
    np.testing.assert_allclose(found, i.jensen_shannon(q, p))
