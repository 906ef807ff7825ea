"""Learning rates by step, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from sparsescope.training.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (Schedule(0.1, 100, 10), (0, 4, 9, 10, 99), [0.01, 0.05, 0.1, 0.1, 0.1]),
        (Schedule(0.1, 100, decay="cosine", final_fraction=0.2), (0, 50, 100), [0.1, 0.06, 0.02]),
        (Schedule(0.1, 100, decay="linear", final_fraction=0.2), (0, 25, 50, 100), [0.1, 0.08, 0.06, 0.02]),
        (
            Schedule(1.0, 100, 10, "linear", 20, 0.0),
            (9, 10, 80, 85, 90, 100),
            [1.0, 1.0, 1.0, 0.75, 0.5, 0.0],
        ),
        (Schedule(1.0, 100, 10, "cosine", 20, 0.0), (10, 80, 90, 100), [1.0, 1.0, 0.5, 0.0]),
        # The ramp comes first
        (Schedule(1.0, 20, 10, "linear", 100, 0.0), (9, 10, 15, 20), [1.0, 1.0, 0.5, 0.0]),
        (Schedule(1.0, 3, 3, "cosine", None, 0.0), (0, 2, 3), [1 / 3, 1.0, 1.0]),
    ],
)
def test_rates(schedule, steps, expected):
    assert [schedule.rate(step) for step in steps] == pytest.approx(expected)


def test_the_rate_of_a_cosine_has_the_bits_that_trained_the_shipped_models():
    """Another order of the operations may change the last bit of a rate, and so every weight."""
    schedule = Schedule(2e-3, 1500, 50, "cosine", None, 0.1)
    for step in range(50, 1500):
        done = (step - 50) / max(1, 1500 - 50)
        assert schedule.rate(step) == 2e-3 * (0.1 + (1 - 0.1) * (1 + math.cos(math.pi * min(1.0, done))) / 2)
    assert [schedule.rate(step) for step in range(50)] == [2e-3 * (step + 1) / 50 for step in range(50)]
