"""Allocations against optima: greedy steps where errors add up, tables of the blocks of a model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.inference.allocation import STEP, greedy_rows, greedy_tables
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.methods import recipe_of

SIZES = {"q": 40, "k": 20, "v": 20, "o": 40, "in": 120, "out": 160}


def convex(seed, power, sizes):
    """Errors a_j s_j^power with drawn a, larger for larger matrices: convex, and they add up."""
    drawn = np.random.default_rng(seed).uniform(0.5, 2.0, len(sizes))
    heights = {name: each * size for (name, size), each in zip(sizes.items(), drawn, strict=True)}
    return heights, lambda shares: sum(heights[name] * share**power for name, share in shares.items())


def lagrangian(heights, sizes, power, spent):
    """Shares of the least sum of a_j s_j^p with sum_j f_j s_j = S, in closed form, f the shares of the bytes:
    p a_j s_j^(p - 1) = lambda f_j, hence s_j = S u_j / sum_i f_i u_i with u_j = (f_j / a_j)^(1 / (p - 1)).
    """
    total = sum(sizes.values())
    parts = {name: size / total for name, size in sizes.items()}
    roots = {name: (parts[name] / heights[name]) ** (1 / (power - 1)) for name in sizes}
    scale = sum(parts[name] * roots[name] for name in sizes)
    return {name: spent * roots[name] / scale for name in sizes}


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_within_one_step_of_the_lagrangian_where_errors_add_up(seed, power):
    heights, error = convex(seed, power, SIZES)
    total, step, compared = sum(SIZES.values()), 0.01, 0
    for number, row in enumerate(greedy_rows(SIZES, error, step)):
        best = lagrangian(heights, SIZES, power, number * step)
        if max(max(best.values()), max(row.values())) + step * total / min(SIZES.values()) > 0.95:
            break  # the closed form knows no largest share
        compared += 1
        spent = {name: row[name] * size / total for name, size in SIZES.items()}
        assert sum(spent.values()) == pytest.approx(number * step, abs=1e-12)
        for name, size in SIZES.items():
            assert abs(spent[name] - best[name] * size / total) <= step + 1e-12, (number, name)
        assert error(best) <= error(row) + 1e-12
    assert compared >= 25
    # Equal shares, which a choice that saw no error might give, would not pass
    share = (compared - 1) * step
    best = lagrangian(heights, SIZES, power, share)
    assert any(abs(share - best[name]) * size / total > 1.1 * step for name, size in SIZES.items())


@pytest.mark.parametrize("seed", range(5))
def test_every_greedy_row_is_the_best_of_all_rows_of_as_many_steps(seed):
    """Exhaustively, the largest share included, which is a whole number of steps here."""
    sizes = {"q": 16, "k": 16, "out": 32}
    step, most = 1 / 32, 0.75  # so that every sum is exact
    _, error = convex(seed, 2, sizes)
    caps = {name: int(most * size / (step * 64)) for name, size in sizes.items()}  # in steps
    costs: dict[int, list[float]] = {}
    for taken in itertools.product(*(range(cap + 1) for cap in caps.values())):
        shares = {name: n * step * 64 / sizes[name] for name, n in zip(sizes, taken, strict=True)}
        costs.setdefault(sum(taken), []).append(error(shares))
    rows = greedy_rows(sizes, error, step, most)
    assert len(rows) == sum(caps.values()) + 1
    for number, row in enumerate(rows):
        assert error(row) == pytest.approx(min(costs[number]), rel=1e-9)
    assert max(costs[8]) > min(costs[8]) * 1.2, "all rows cost the same: the test says nothing"


def test_what_a_greedy_step_leaves_over_goes_to_the_others():
    """A name of a tenth of the bytes is full after a part of a step; each row has its bytes all the same."""
    sizes = {"small": 10, "large": 90}
    rows = greedy_rows(sizes, lambda shares: shares["large"], step=0.2, most=0.9)
    assert rows[0] == {"small": 0.0, "large": 0.0}
    assert rows[1]["small"] == pytest.approx(0.9) and rows[1]["large"] == pytest.approx((20 - 9) / 90)
    for number, row in enumerate(rows):
        assert sum(row[name] * size for name, size in sizes.items()) == pytest.approx(20 * number)


def test_greedy_tables_rise_by_one_step_of_bytes(llama):
    bench = Calibrator(llama, tokenized(ss.corpus("python-docs", tokens=2048, context=64), llama))
    masks = recipe_of("teal+greedy", bench).masks()
    tables = greedy_tables(bench, masks, tokens=128)
    for layer, rows in tables.items():
        sizes = {mask.name: bench.weights(mask) for mask in masks if mask.layer == layer}
        total = sum(sizes.values())
        for number, row in enumerate(rows):
            spent = sum(row[name] * sizes[name] for name in sizes) / total
            assert spent == pytest.approx(number * STEP, abs=1e-9)
        shares = np.array([[row[name] for name in sizes] for row in rows])
        assert (np.diff(shares, axis=0) >= -1e-12).all()
