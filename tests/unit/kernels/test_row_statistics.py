"""Both backends against the readable definitions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsescope.kernels import row_statistics as k
from sparsescope.metrics import sparsity as m

SHARES = (0.5, 0.9, 0.99)
MEASURES = (
    m.hoyer,
    m.gini,
    m.participation_ratio,
    lambda x: m.participation_ratio(x, 4),
    m.entropy_number,
    m.kurtosis,
    m.treves_rolls,
)


def sample(kind, rows=300, width=100):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator)
    return {
        "normal": x,
        "relu": x.relu(),
        "bfloat16": x.bfloat16(),
        "float16": x.half(),
        "tiny": x * 1e-30,
        "huge": x * 1e30,
        "ties": torch.randint(-2, 3, (rows, width), generator=generator).float(),
        "zero": torch.zeros(rows, width),
        "one row zero": x * (torch.arange(rows) != 3)[:, None],
        "outlier": x + 1e6 * (torch.arange(width) == 5),
    }[kind]


KINDS = ["normal", "relu", "bfloat16", "float16", "tiny", "huge", "ties", "zero", "one row zero", "outlier"]
BACKENDS = {"numba": k.row_statistics_numba, "torch": k.row_statistics_torch}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [2, 100, 341])
def test_backends_agree_with_the_definitions(backend, kind, width):
    values = sample(kind, width=width)
    x = values.float().numpy()
    found = BACKENDS[backend](values, SHARES, 0.9)
    sets = [m.top_p_count(x, share, power) for power in (1, 2) for share in SHARES]
    # A share that is met to the last bit may go either way by rounding, nothing else may differ.
    difference = np.abs(found.counts - np.stack([np.count_nonzero(x, axis=1), *sets], axis=1))
    assert difference.max(initial=0) <= 1 and np.count_nonzero(difference) <= 2 + (kind == "ties") * 10
    shapes = [measure(x) for measure in MEASURES]
    np.testing.assert_allclose(found.shapes, np.stack(shapes, axis=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found.nonzero, np.count_nonzero(x, axis=0))
    np.testing.assert_allclose(found.magnitude, np.abs(x).sum(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.energy, (x.astype(np.float64) ** 2).sum(0), rtol=1e-12)
    assert found.in_use.sum() == found.counts[:, 1 + len(SHARES) + SHARES.index(0.9)].sum()


@pytest.mark.parametrize("exponent", [-148, -140, -126, -101, -99, 0, 60])
def test_entropy_of_every_magnitude_that_float32_holds(exponent):
    """Numbers below 2^-126 are subnormal: their exponent is not in their bits."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(0, 9, (20, 64), generator=generator).float() * 2.0**exponent
    assert torch.count_nonzero(values)
    found = k.row_statistics_numba(values, SHARES, 0.9).shapes[:, k.SHAPE_MEASURES.index("entropy_number")]
    np.testing.assert_allclose(found, m.entropy_number(values.numpy()), rtol=3e-7)


@given(seed=st.integers(0, 2**32 - 1), power=st.floats(-20, 20), spread=st.floats(0.1, 6))
@settings(max_examples=60, deadline=None)
def test_entropy_is_exact_enough_for_any_spread(seed, power, spread):
    generator = np.random.default_rng(seed)
    values = (10**power * np.exp(spread * generator.standard_normal((4, 200)))).astype(np.float32)
    found = k.row_statistics_numba(torch.from_numpy(values), SHARES, 0.9).shapes[
        :, k.SHAPE_MEASURES.index("entropy_number")
    ]
    np.testing.assert_allclose(found, m.entropy_number(values), rtol=3e-7)


def test_ties_go_to_the_lower_index():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    for backend in BACKENDS.values():
        np.testing.assert_array_equal(backend(values, SHARES, 0.5).in_use, [1, 1, 0, 0])


def test_threads_and_chunks_change_nothing():
    values = sample("normal", rows=3 * k.CHUNK_ROWS + 7)
    one = k.row_statistics(values, SHARES, 0.9)
    with ThreadPoolExecutor(3) as executor:
        three = k.row_statistics(values, SHARES, 0.9, executor)
    for name in k.RowStatistics.__slots__:
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))


def test_no_rows_give_empty_statistics():
    found = k.row_statistics(torch.empty(0, 12), SHARES, 0.9)
    assert found.counts.shape == (0, 7) and found.shapes.shape == (0, 7) and found.nonzero.shape == (12,)


def test_a_layout_with_gaps_is_read_rightly():
    values = sample("normal").T
    np.testing.assert_array_equal(
        k.row_statistics(values, SHARES, 0.9).counts,
        k.row_statistics(values.contiguous(), SHARES, 0.9).counts,
    )
