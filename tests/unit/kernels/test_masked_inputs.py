"""The compiled mask and the counts of scores against their references, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.kernels.masked_inputs import mask_inputs
from sparsescope.kernels.score_histograms import (
    add_scores,
    edges,
    new_counts,
    quantile,
    share_below,
    shares_below,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (33, 1536)])
def test_compiled_is_the_reference(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-8], dtype=dtype)
    x.view(-1)[: min(5, x.numel())] = special[: min(5, x.numel())]
    vector = torch.rand(shape[1], generator=generator).to(dtype)
    vector[0] = -1.0
    vector[-1] = float("inf")
    rows = torch.rand(shape[0], generator=generator) > 0.5
    for limits in (vector, 0.5, 0.0, -1.0, float("inf")):
        for some in (None, rows):
            ours, kept = mask_inputs(x, limits, some)
            theirs, expected = mask_inputs(x, limits, some, backend="reference")
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(ours.view(bits), theirs.view(bits))
            assert torch.equal(kept, expected)


def test_what_stays_is_untouched_and_dense_rows_are_too():
    x = torch.tensor([[0.1, -0.6, 0.7], [0.1, -0.6, 0.7]])
    found, kept = mask_inputs(x, 0.65, torch.tensor([True, False]))
    assert found.tolist() == [[0.0, 0.0, x[0, 2].item()], x[1].tolist()] and kept.tolist() == [1, 1]


def test_unknown_backends_are_refused():
    with pytest.raises(SpecError, match="numba"):
        mask_inputs(torch.ones(1, 1), 0.0, backend="nunba")
    with pytest.raises(SpecError, match="numba"):
        add_scores(new_counts(), torch.ones(1, 1), backend="nunba")


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_of_both_backends_are_equal(dtype):
    x = torch.randn(50, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = torch.rand(96, generator=torch.Generator().manual_seed(1))
    centre = torch.randn(96, generator=torch.Generator().manual_seed(2)) / 10
    for given in ((None, None), (scale, None), (scale, centre)):
        one, other = new_counts(), new_counts()
        add_scores(one, x, *given)
        add_scores(other, x, *given, backend="reference")
        np.testing.assert_array_equal(one, other)
        assert one.sum() == x.numel()


def test_quantiles_and_their_inverse():
    counts = new_counts()
    x = torch.rand(2000, 64, generator=torch.Generator().manual_seed(0)) ** 4  # five decades
    add_scores(counts, x)
    values = x.flatten().numpy()
    running = np.cumsum(counts)[None]
    for share in (0.01, 0.25, 0.5, 0.9, 0.999):
        limit = quantile(counts, share)
        assert limit == pytest.approx(float(np.quantile(values, share)), rel=0.01)
        assert share_below(counts, limit) == pytest.approx(share, abs=1e-6)
        assert shares_below(running, np.array([limit]))[0] == pytest.approx(share, abs=1e-6)
    assert quantile(counts, 0) == -1.0 and share_below(counts, -1.0) == 0.0
    assert edges(np.array([16256])).tolist() == [1.0]


def test_nothing_that_is_not_finite_is_counted():
    for bad in (float("nan"), float("inf")):
        for backend in ("numba", "reference"):
            with pytest.raises(SpecError, match="not finite"):
                add_scores(new_counts(), torch.tensor([[1.0, bad]]), backend=backend)
    with pytest.raises(SpecError, match="no such quantile"):
        quantile(new_counts(), 0.5)
