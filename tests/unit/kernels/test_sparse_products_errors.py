"""What sparse products refuse: backends, inputs, rows and experts that do not fit, each in its own words."""

from __future__ import annotations

import pytest
import torch

from sparsescope.errors import KernelError, SpecError
from sparsescope.kernels import backends
from sparsescope.kernels.block_ffn import block_ffn
from sparsescope.kernels.shared_mask_gemm import shared_mask_gemm
from sparsescope.kernels.sparse_gemv import SparseGemv
from sparsescope.kernels.sparse_gemv import sparse_gemv as gemv
from sparsescope.kernels.weight_rows import WeightRows, rows_by_channel, rows_by_output


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def refused(error, match, make):
    with pytest.raises(error, match=match) as caught:
        make()
    return str(caught.value)


def test_backends_that_cannot_be_used(monkeypatch):
    weight, x = rows_by_channel([random(5, 3)]), random(3)
    up = rows_by_output(random(4, 3))
    down = rows_by_channel([random(3, 4)])
    calls = (
        lambda name: gemv(x, weight, 0.5, backend=name),
        lambda name: shared_mask_gemm(x[None], weight, 0.5, backend=name),
        lambda name: block_ffn(x, torch.ones(2), up, down, backend=name),
    )
    for call in calls:
        assert "numba" in refused(
            SpecError, "unknown backend|no backend|backend", lambda call=call: call("nunba")
        )
    with monkeypatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        for call in calls:
            text = refused(KernelError, "triton cannot be used here", lambda call=call: call("triton"))
            assert "TRITON_INTERPRET=1" in text and "reference, numba" in text
        patch.setattr(backends, "find_spec", lambda name: None)
        for call in calls:
            text = refused(KernelError, "the package numba is not installed", lambda call=call: call("numba"))
            assert "pip install numba" in text and "allowed: reference\n" in text
            assert "torch build" in refused(
                KernelError, "triton is not installed", lambda call=call: call("triton")
            )
            call("reference")
    away = WeightRows(torch.empty(3, 16, device="meta"), "float32", 5, "channel", (5,))
    refused(KernelError, "the weights are on meta", lambda: SparseGemv(away, 0.5))
    text = refused(KernelError, "different devices", lambda: gemv(x, away, 0.5, backend="reference"))
    assert "meta" in text and "cpu" in text


def test_inputs_that_do_not_fit():
    weight, by_output = rows_by_channel([random(5, 3)]), rows_by_output(random(5, 3))
    refused(SpecError, "these are by output", lambda: gemv(random(3), by_output, 0.5))
    refused(SpecError, "these are by output", lambda: shared_mask_gemm(random(2, 3), by_output, 0.5))
    for x in (random(4), random(1, 4), random(1, 1, 3), torch.tensor(1.0)):
        refused(SpecError, "another length than the matrices read", lambda x=x: gemv(x, weight, 0.5))
    assert "shared_mask_gemm" in refused(
        SpecError, "does not take so many tokens", lambda: gemv(random(2, 3), weight, 0.5)
    )
    assert "weight.product" in refused(
        SpecError, "does not take so many tokens", lambda: shared_mask_gemm(random(9, 3), weight, 0.5)
    )
    refused(SpecError, "there is no token", lambda: shared_mask_gemm(random(0, 3), weight, 0.5))
    refused(SpecError, "there is no token", lambda: gemv(random(0, 3), weight, 0.5))
    for limits in (torch.zeros(4), torch.zeros(1), torch.zeros(1, 3)):
        refused(SpecError, "one limit for each input", lambda limits=limits: gemv(random(3), weight, limits))
    for bias in (torch.zeros(1), torch.zeros(1, 5), torch.zeros(3)):
        refused(
            SpecError, "one bias for each output", lambda bias=bias: gemv(random(3), weight, 0.5, bias=bias)
        )
    assert "own" in refused(
        SpecError, "rule", lambda: shared_mask_gemm(random(2, 3), weight, 0.5, rule="union")
    )


def test_rows_that_kernels_would_read_wrongly():
    def made(data, stored="float32"):
        return lambda: WeightRows(data, stored, 5, "channel", (5,))

    for data, stored in ((torch.zeros(3, 16).double(), "float32"), (torch.zeros(3, 16), "bfloat16")):
        refused(SpecError, "of another type", made(data, stored))
    refused(SpecError, "of another type", made(torch.zeros(3, 16, dtype=torch.int8), "int8"))
    refused(SpecError, "of another type", made(torch.zeros(48)))
    refused(SpecError, "not contiguous", made(torch.zeros(16, 16).T))
    refused(SpecError, "not contiguous", made(torch.zeros(3, 32)[:, :16]))
    text = refused(SpecError, "misaligned", made(torch.zeros(49)[1:].reshape(3, 16)))
    assert "4 bytes off" in text
    refused(SpecError, "not padded", made(torch.zeros(4, 12)))
    made(torch.zeros(3, 16))()
    refused(SpecError, "float16", made(torch.zeros(3, 16).half(), "float16"))
    for store in (
        lambda kind: rows_by_channel([random(2, 3)], kind),
        lambda kind: rows_by_output(random(2, 3), kind),
    ):
        assert "bfloat16" in refused(SpecError, "type of weights", lambda store=store: store("int4"))
    for bad in (float("nan"), float("inf")):
        matrix = random(2, 3)
        matrix[1, 2] = bad
        refused(SpecError, "not finite", lambda matrix=matrix: rows_by_channel([matrix], "int8"))
        rows_by_channel([matrix], "float32")
    for matrices in ([], [random(2, 3), random(2, 4)], [random(3)]):
        refused(SpecError, "read one input", lambda matrices=matrices: rows_by_channel(matrices))


def test_experts_that_do_not_fit():
    up, down = rows_by_output(random(12, 5)), rows_by_channel([random(5, 12)])
    x, gates = random(2, 5), torch.ones(2, 4)
    block_ffn(x, gates, up, down)
    for first, second, weights in (
        (rows_by_channel([random(12, 5)]), down, gates),  # up by channel
        (up, rows_by_output(random(12, 5)), gates),  # down by output
        (rows_by_output(random(8, 5)), down, gates),  # fewer units
        (up, down, torch.ones(2, 5)),  # not so many experts
    ):
        refused(
            SpecError,
            "matrices of a block feed-forward layer",
            lambda a=first, b=second, c=weights: block_ffn(x, c, a, b),
        )
    for values, weights in ((random(2, 4), gates), (x, torch.ones(3, 4)), (x, torch.ones(4))):
        refused(SpecError, "inputs and router weights", lambda a=values, b=weights: block_ffn(a, b, up, down))
    refused(SpecError, "not take so many tokens", lambda: block_ffn(random(9, 5), torch.ones(9, 4), up, down))
    refused(SpecError, "there is no token", lambda: block_ffn(random(0, 5), torch.ones(0, 4), up, down))
