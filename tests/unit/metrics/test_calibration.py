"""Expected calibration error: closed forms, the published null, invariances."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics.calibration import (
    expected_calibration_error,
    null_calibration_errors,
    reliability_bins,
)


def test_closed_forms():
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1
    # 0.8 sure and right 3 times of 4: |0.75 - 0.8|.
    assert expected_calibration_error(np.full(4, 0.8), [1, 1, 1, 0]) == pytest.approx(0.05)
    # Two bins, weighted by their sizes.
    confidence = [0.9, 0.9, 0.9, 0.1]
    assert expected_calibration_error(confidence, [1, 1, 0, 1]) == pytest.approx(
        0.75 * (0.9 - 2 / 3) + 0.25 * 0.9
    )


def test_confidence_of_one_is_in_the_last_bin():
    bins = reliability_bins(np.array([1.0, 0.99, 0.0]), np.array([True, True, False]))
    assert bins.count.tolist() == [1, *[0] * 13, 2]


def test_order_does_not_matter():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), rng.random(500) < 0.4
    order = rng.permutation(500)
    assert expected_calibration_error(confidence, correct) == pytest.approx(
        expected_calibration_error(confidence[order], correct[order]), rel=1e-12
    )


@pytest.mark.parametrize(("n", "percent"), [(500, 4.7), (1000, 3.4), (5000, 1.5), (10_000, 1.1)])
def test_null_of_a_calibrated_model(n, percent):
    """Confidences from Beta(5, 2): a calibrated model still shows these errors."""
    confidence = np.random.default_rng(1).beta(5, 2, n)
    assert 100 * null_calibration_errors(confidence, 200, 0).mean() == pytest.approx(percent, abs=0.3)


def test_null_covers_a_calibrated_sample_and_not_an_overconfident_one():
    rng = np.random.default_rng(2)
    confidence = rng.beta(5, 2, 4000)
    calibrated = rng.random(4000) < confidence
    over = rng.random(4000) < confidence - 0.1
    limit = np.quantile(null_calibration_errors(confidence, 300, 0), 0.999)
    assert (
        expected_calibration_error(confidence, calibrated)
        < limit
        < expected_calibration_error(confidence, over)
    )


@pytest.mark.parametrize("arguments", [([], []), ([0.5], [True, False]), ([1.5], [True]), ([np.nan], [True])])
def test_nonsense_is_refused(arguments):
    with pytest.raises(SpecError):
        expected_calibration_error(*arguments)
