"""Nulls of reuse against simulation and closed forms; inequality of rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsescope.metrics import reuse as r

RATES = hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))


def test_nulls_are_what_independent_tokens_do():
    generator = np.random.default_rng(0)
    rates = generator.random(400) ** 2
    fired = generator.random((4000, 8, 400)) < rates
    for level, k in enumerate((1, 2, 4, 8)):
        observed = fired[:, :k].any(1).mean()
        assert observed == pytest.approx(r.union_nulls(rates, 4)[level, 1], abs=3e-3)
    alike = np.full(50, 0.3)
    np.testing.assert_allclose(r.union_nulls(alike, 4)[:, 0], 1 - 0.7 ** np.array([1, 2, 4, 8]))
    np.testing.assert_allclose(r.union_nulls(alike, 4)[:, 1], r.union_nulls(alike, 4)[:, 0])


@given(rates=RATES)
def test_units_of_their_own_rates_join_to_less_than_units_all_alike(rates):
    found = r.union_nulls(rates, 7)
    assert (found[:, 1] <= found[:, 0] + 1e-12).all()
    assert (np.diff(found, axis=0) >= -1e-12).all() and (found <= 1).all() and (found >= -1e-12).all()
    assert found[0, 0] == pytest.approx(rates.mean()) and found[0, 1] == pytest.approx(rates.mean())


def test_hot_units_and_gini():
    even, one = np.full(10, 0.2), np.eye(10)[3]
    assert r.hot_share(even) == pytest.approx(0.8) and r.gini_of_rates(even) == pytest.approx(0)
    assert r.hot_share(one) == pytest.approx(0.1) and r.gini_of_rates(one) == pytest.approx(0.9)
    both = r.hot_share(np.stack([even, one, np.zeros(10)]))
    assert both[:2].tolist() == pytest.approx([0.8, 0.1]) and np.isnan(both[2])
    assert np.isnan(r.gini_of_rates(np.zeros(4)))


def test_lorenz_curve_holds_the_gini_coefficient():
    rates = np.random.default_rng(1).random(1000) ** 3
    units, firings = r.lorenz_curve(rates, points=1001)
    assert units[0] == firings[0] == 0 and units[-1] == pytest.approx(1) and firings[-1] == pytest.approx(1)
    assert (np.diff(firings, 2) <= 1e-12).all()  # most used first: concave
    assert 2 * np.trapezoid(firings, units) - 1 == pytest.approx(float(r.gini_of_rates(rates)), abs=1e-9)
    crossing = units[np.searchsorted(firings, 0.8)]
    assert crossing == pytest.approx(float(r.hot_share(rates)), abs=1e-3)
    assert len(r.lorenz_curve(rates[:5])[0]) == 6
