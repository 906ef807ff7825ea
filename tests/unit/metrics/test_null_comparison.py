"""An observed number among draws of its null: p counts it, ties are ties, NaN is not compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsescope.metrics.null_comparison import against_null


def test_mean_spread_and_p():
    draws = np.random.default_rng(0).normal(2, 3, 999)
    found = against_null(5.0, draws)
    assert found.mean == pytest.approx(draws.mean()) and found.sd == pytest.approx(draws.std(ddof=1))
    assert found.z == pytest.approx((5 - draws.mean()) / draws.std(ddof=1))
    assert found.p_above == pytest.approx((1 + (draws >= 5).sum()) / 1000)
    assert found.p_above + found.p_below == pytest.approx(1 + 1 / 1000)
    assert found.difference == pytest.approx(5 - draws.mean())
    assert found.reduction == pytest.approx((draws.mean() - 5) / draws.mean())


def test_p_is_never_zero_and_rounding_makes_no_difference():
    assert against_null(9.0, np.zeros(99)).p_above == 0.01
    found = against_null(0.3, np.full(4, 0.1 + 0.2))
    assert (found.p_above, found.p_below) == (1, 1) and math.isnan(found.z)


@pytest.mark.parametrize(("observed", "draws"), [(1.0, []), (math.nan, [1.0]), (1.0, [1.0, math.nan])])
def test_what_is_not_finite_is_not_compared(observed, draws):
    found = against_null(observed, draws)
    assert math.isnan(found.mean) and math.isnan(found.p_above) and math.isnan(found.z)


def test_one_draw_has_no_spread():
    found = against_null(2.0, [1.0])
    assert math.isnan(found.sd) and math.isnan(found.z) and found.p_above == 0.5
