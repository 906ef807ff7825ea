"""Kept sets against sorting by hand: sizes, ties, dtypes, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsescope.errors import SpecError
from sparsescope.kernels.topk_masks import random_k_mask, top_k_mask, top_p_mask
from sparsescope.metrics.sparsity import top_p_count

ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 2.0, -3.0]) | st.floats(-10, 10, width=32),
)


@given(ROWS, st.integers(0, 15))
def test_top_k_keeps_exactly_the_k_largest(values, k):
    mask = top_k_mask(torch.from_numpy(values), k).numpy()
    size = min(k, values.shape[1])
    assert (mask.sum(1) == size).all()
    for row, kept in zip(np.abs(values), mask, strict=True):
        if 0 < size < len(row):
            assert row[kept].min() >= row[~kept].max()
            expected = np.zeros(len(row), bool)
            expected[np.argsort(-row, kind="stable")[:size]] = True
            np.testing.assert_array_equal(kept, expected)  # ties go by index


@given(ROWS, st.sampled_from([0.1, 0.5, 0.9, 0.99]), st.sampled_from([1, 2]))
def test_top_p_has_the_size_of_the_definition(values, share, power):
    mask = top_p_mask(torch.from_numpy(values), share, power).numpy()
    mass = np.abs(values.astype(np.float64)) ** power
    for row, kept in zip(mass, mask, strict=True):
        if row.sum() == 0:
            assert not kept.any()
            continue
        assert row[kept].sum() >= share * row.sum() * (1 - 1e-12)
        smallest = np.flatnonzero(kept)[np.argmin(row[kept])]
        assert row[kept].sum() - row[smallest] < share * row.sum() * (1 + 1e-12), "a smaller set would do"


def test_top_p_agrees_with_the_measure_in_every_dtype():
    values = torch.randn(64, 257, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = values.to(dtype)
        for share in (0.5, 0.9, 0.99):
            expected = top_p_count(cast.float().numpy(), share)
            np.testing.assert_array_equal(top_p_mask(cast, share).sum(-1).numpy(), expected)


def test_scale_and_order_do_not_matter():
    values = torch.randn(8, 33, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(33, generator=torch.Generator().manual_seed(2))
    for mask in (lambda v: top_k_mask(v, 7), lambda v: top_p_mask(v, 0.8)):
        assert torch.equal(mask(values), mask(4 * values))
        assert torch.equal(mask(values)[:, order], mask(values[:, order]))


def test_share_one_keeps_what_is_not_zero():
    values = torch.tensor([[0.0, 1e-30, -2.0]])
    assert top_p_mask(values, 1.0).tolist() == [[False, True, True]]


def test_random_sets_are_eligible_uniform_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    eligible = torch.ones(4000, 8, dtype=torch.bool)
    eligible[:, 0] = False
    mask = random_k_mask(eligible, 3, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert (mask.sum(1) == 3).all() and not mask[:, 0].any()
    # Each of 7 units is kept with probability 3/7; 5 standard errors.
    share = mask[:, 1:].float().mean(0).numpy()
    assert np.abs(share - 3 / 7).max() < 5 * np.sqrt(3 / 7 * 4 / 7 / 4000)
    few = torch.zeros(2, 8, dtype=torch.bool)
    few[:, :2] = True
    assert random_k_mask(few, 5, torch.Generator().manual_seed(0)).sum(1).tolist() == [2, 2]


@pytest.mark.parametrize(
    "call", [lambda v: top_k_mask(v, -1), lambda v: top_p_mask(v, 0.0), lambda v: top_p_mask(v, 0.5, 3)]
)
def test_nonsense_is_refused(call):
    with pytest.raises(SpecError):
        call(torch.ones(2, 3))
