"""Crossings of a tolerance: known points, noise, breakdowns, censoring."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.metrics.isotonic_crossing import monotone, resampled_crossings, tolerance_crossing

LEVELS = np.linspace(0, 0.9, 10)


def test_piecewise_linear_score_is_inverted_exactly():
    damage = np.maximum(0, LEVELS - 0.5) * 0.1  # 1 % is lost at 0.6
    found = tolerance_crossing(LEVELS, damage, 0.01)
    assert found.at == pytest.approx(0.6) and found.bracket == pytest.approx(0.1) and found.censored == ""
    assert tolerance_crossing(LEVELS, damage, 0.015).at == pytest.approx(0.65)


def test_order_and_common_scale_do_not_matter():
    damage = np.maximum(0, LEVELS - 0.3) ** 2
    order = np.random.default_rng(0).permutation(10)
    assert tolerance_crossing(LEVELS[order], damage[order], 0.05).at == pytest.approx(
        tolerance_crossing(LEVELS, damage, 0.05).at
    )
    assert tolerance_crossing(LEVELS, 7 * damage, 0.35).at == pytest.approx(
        tolerance_crossing(LEVELS, damage, 0.05).at
    )


def test_one_unlucky_point_does_not_end_the_plateau():
    damage = np.array([0, 0.012, 0, 0, 0, 0, 0.02, 0.05, 0.1, 0.2])
    assert tolerance_crossing(LEVELS, damage, 0.01).at > 0.5  # the first level that violates is 0.1


def test_censoring():
    assert tolerance_crossing(LEVELS, np.zeros(10), 0.01).censored == "right"
    assert tolerance_crossing(LEVELS, np.zeros(10), 0.01).at == pytest.approx(0.9)
    assert tolerance_crossing(LEVELS, np.full(10, 0.5), 0.01).censored == "left"


def test_a_broken_model_is_worse_than_any_tolerance():
    damage = np.array([0, 0, 0, 0, 0.005, 0.02, np.inf, np.inf, np.inf, np.inf])
    assert tolerance_crossing(LEVELS, damage, 0.01).at == pytest.approx(0.4 + 0.1 / 3)


def test_interval_covers_the_true_crossing():
    """True 1 % point at 0.5; 40 examples each with their own noise; nominal 95 %."""
    rng = np.random.default_rng(3)
    covered, draws = 0, 60
    for _ in range(draws):
        truth = 0.01 * (LEVELS / 0.5) ** 4
        examples = (
            truth
            + rng.normal(0, 0.003, (40, 1)) * (LEVELS > 0)
            + rng.normal(0, 0.004, (40, 10)) * (LEVELS > 0)
        )
        weights = rng.multinomial(40, np.full(40, 1 / 40), size=200) / 40
        found = resampled_crossings(np.broadcast_to(LEVELS, (200, 10)), weights @ examples, 0.01)
        low, high = np.quantile(found, [0.025, 0.975])
        covered += low <= 0.5 <= high
    # Interpolation bias is below 0.005 here; 85 % is four standard errors below the nominal coverage.
    assert covered >= 0.85 * draws


def test_monotone_fit_pools_violators_and_survives_what_is_not_finite():
    assert monotone(np.array([0.0, 3.0, 1.0, 4.0])).tolist() == [0, 2, 2, 4]
    fitted = monotone(np.array([0.3, -0.2, 0.1, np.nan]))
    assert (np.diff(fitted) >= 0).all() and np.isfinite(fitted).all()
    assert fitted[:3] == pytest.approx([0.05, 0.05, 0.1]), "the broken point pulled its neighbors up"
