"""Segmentation into lines: exact on lines, equal to brute force, invariant, and quiet on noise."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from sparsescope.metrics.changepoints import _best, _costs, segment


def broken_line(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(60.0)
    y = np.where(x < 20, x, np.where(x < 40, 20 - 3 * (x - 20), -40.0))
    return x, y + noise * np.random.default_rng(seed).normal(size=60)


def test_lines_without_noise_are_found_exactly() -> None:
    x, y = broken_line(0)
    found = segment(x, y)
    # A corner lies on both of its lines
    assert [s.first for s in found.segments] == pytest.approx([0, 20, 40], abs=1)
    assert [s.slope for s in found.segments] == pytest.approx([1, -3, 0], abs=1e-9)
    assert found.explained == pytest.approx(1)


def test_lines_under_noise_are_found_and_are_no_accident() -> None:
    x, y = broken_line(0.5)
    found = segment(x, y)
    assert [s.first for s in found.segments] == pytest.approx([0, 20, 40], abs=1)
    assert found.p_value == pytest.approx(1 / 200)
    other = segment(x * 10 + 3, -2 * y + 8)
    assert [(s.first, s.last) for s in other.segments] == [(s.first, s.last) for s in found.segments]
    assert other.segments[0].slope == pytest.approx(-0.2 * found.segments[0].slope)


def test_programming_finds_what_trying_all_finds() -> None:
    generator = np.random.default_rng(3)
    x, y = np.sort(generator.uniform(size=14)), generator.normal(size=14)
    costs = _costs(x, y, 3)
    rss, bounds = _best(costs, 4)
    for k in (1, 2, 3, 4):
        tried = [[0, *cut, 14] for cut in combinations(range(1, 14), k - 1)]
        totals = [sum(costs[a, b] for a, b in pairwise(cut)) for cut in tried]
        assert rss[k] == pytest.approx(min(totals))
        assert bounds[k] == tried[int(np.argmin(totals))]
    slope, offset = np.polyfit(x[2:7], y[2:7], 1)
    assert costs[2, 7] == pytest.approx(((y[2:7] - slope * x[2:7] - offset) ** 2).sum())


def test_a_line_with_white_noise_stays_one_line() -> None:
    generator = np.random.default_rng(5)
    x = np.arange(50.0)
    lines = [len(segment(x, 0.3 * x + generator.normal(size=50), surrogates=0).segments) for _ in range(40)]
    assert np.mean(np.array(lines) == 1) >= 0.8


def test_a_random_walk_gets_breaks_that_the_null_calls_chance() -> None:
    """The penalty is fooled by neighboring values that are alike; the autoregressive null much less."""
    found = [
        segment(np.arange(60.0), np.cumsum(np.random.default_rng(seed).normal(size=60)), surrogates=59)
        for seed in range(12)
    ]
    assert np.mean([len(s.segments) > 1 for s in found]) > 0.9
    sharp = segment(*broken_line(0.5), surrogates=59)
    assert np.median([s.p_value for s in found]) > 3 * sharp.p_value


def test_missing_values_and_short_curves() -> None:
    x, y = broken_line(0.1)
    y[5] = np.nan
    assert segment(x, y, surrogates=0).segments[-1].last == 59
    assert segment(x[:2], y[:2]).segments == ()
    constant = segment(x, np.ones(60), surrogates=0)
    assert len(constant.segments) == 1 and np.isnan(constant.p_value)
