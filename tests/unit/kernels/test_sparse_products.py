"""Sparse products on a CPU against float64: shapes, types, shares and numbers of tokens; what they refuse."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import silu

from sparsescope.kernels import block_ffn as block_ffn_module
from sparsescope.kernels import shared_mask_gemm as gemm_module
from sparsescope.kernels import sparse_gemv, weight_rows
from sparsescope.kernels.block_ffn import block_ffn
from sparsescope.kernels.shared_mask_gemm import RULES, shared_mask_gemm
from sparsescope.kernels.sparse_gemv import product_bytes, threads
from sparsescope.kernels.sparse_gemv import sparse_gemv as gemv
from sparsescope.kernels.weight_rows import STORED, WeightRows, rows_by_channel, rows_by_output

FAST = ("reference", "numba")
BOUND = {"float32": 2e-6, "bfloat16": 2e-6, "int8": 2e-5}
INPUTS, OUTPUTS = (1, 2, 37, 64, 131), (1, 5, 33, 96, 257)
SHARES = (0.0, 0.5, 0.9, 1.0, None)  # of what is dropped; None: limits below 0
MANY = 16_407  # outputs that are split over threads, not inputs


@pytest.fixture(autouse=True)
def two_threads():
    """So that splits are tried also where the tests have one thread each."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert threads() == 2
    yield
    torch.set_num_threads(before)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(weight: WeightRows):
    """The stored matrix as float64 [N, K], read anew from the bytes."""
    stored = weight.data[:, : weight.width].double()
    if weight.by == "channel":
        stored = stored.T
    return stored if weight.scale is None else (stored - 128) * weight.scale[:, None].double()


def placed(scores, share):
    """A threshold in the middle of two scores that drops a share of them."""
    ordered = scores.double().sort().values
    below = round(share * len(ordered))
    if below == 0:
        return float(ordered[0]) / 2
    return float(ordered[-1]) * 2 if below == len(ordered) else float(ordered[below - 1 : below + 1].mean())


def limits_for(x, share, rule="own"):
    """Limits threshold / c with drawn c that drop a share of x, [T, K]; below 0 for None."""
    if share is None:
        return torch.full((x.shape[-1],), -1.0)
    c = torch.rand(x.shape[-1], generator=torch.Generator().manual_seed(5)) + 0.5
    sizes = x.abs().max(0).values if rule == "own" else x.double().square().mean(0).sqrt()
    return (placed(sizes * c, share) / c).float()


def wanted(x, weight, limits, rule="own"):
    """y in float64 [T, N], and the share that is dropped."""
    x, limits = x.double().reshape(-1, x.shape[-1]), limits.double()
    size = x.abs() if rule == "own" else x.square().mean(0).sqrt().expand_as(x)
    kept = torch.where(size <= limits, 0.0, x)
    return kept @ exact(weight).T, kept, float((size <= limits).double().mean())


def error(y, truth, kept, weight):
    """Of the largest entry, relative to the largest; where terms cancel, to what does not: their norm."""
    assert y.dtype == torch.float32 and y.shape == truth.shape
    norms = (kept.square() @ exact(weight).square().T).sqrt()
    largest = float(torch.maximum(truth.abs(), norms).max())
    wrong = float((y.double() - truth).abs().max())
    return wrong / largest if largest else wrong


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("stored", STORED)
def test_one_token_equals_float64(stored, backend):
    wrong, tried = [], set()
    for (inputs, outputs), share in product(product(INPUTS, OUTPUTS), SHARES):
        weight = rows_by_channel([random(outputs, inputs, seed=outputs)], stored)
        x = random(inputs, seed=inputs)
        limits = limits_for(x[None], share)
        truth, kept, dropped = wanted(x, weight, limits)
        assert abs(dropped - (share or 0)) <= 0.5 / inputs + 1e-9 or inputs < 3
        tried.add(round(dropped, 1))
        off = error(gemv(x, weight, limits, backend=backend)[None], truth, kept, weight)
        if not off <= BOUND[stored]:
            wrong.append((inputs, outputs, share, off))
    assert not wrong, wrong[:5]
    assert tried >= {0.0, 0.5, 0.9, 1.0}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("stored", STORED)
def test_several_tokens_equal_float64(stored, backend):
    wrong, unions = [], []
    shapes = ((37, 33), (131, 257), (65, 2500), (1, 1))
    for (inputs, outputs), rule, share in product(shapes, RULES, SHARES):
        weight = rows_by_channel([random(outputs, inputs, seed=1)], stored)
        for tokens in (1, 2, 3, 5, 8) if outputs > 2000 else range(1, 9):
            x = random(tokens, inputs, seed=tokens)
            limits = limits_for(x, share, rule)
            truth, kept, _ = wanted(x, weight, limits, rule)
            unions.append(bool(((kept != 0).any(0) != (kept != 0).all(0)).any()))
            off = error(shared_mask_gemm(x, weight, limits, rule=rule, backend=backend), truth, kept, weight)
            if not off <= BOUND[stored]:
                wrong.append((inputs, outputs, rule, share, tokens, off))
    assert not wrong, wrong[:5]
    assert sum(unions) > 20  # tokens that keep other inputs than their neighbours


@pytest.mark.parametrize("stored", STORED)
def test_very_many_outputs_are_split_another_way(stored):
    weight, x = rows_by_channel([random(MANY, 37)], stored), random(37, seed=1)
    for share in SHARES:
        limits = limits_for(x[None], share)
        truth, kept, _ = wanted(x, weight, limits)
        for count in (1, 2):
            torch.set_num_threads(count)
            y = gemv(x, weight, limits)
            assert error(y[None], truth, kept, weight) <= BOUND[stored], (share, count)
            assert y.tolist() == gemv(x, weight, limits).tolist()


@pytest.mark.parametrize("stored", STORED)
def test_no_rounding_beside_that_of_storage(stored):
    """As exact as the dense product of torch in float32, not in bfloat16."""
    weight, x = rows_by_channel([random(257, 1031)], stored), random(1031, seed=1)
    limits = limits_for(x[None], 0.5)
    truth, kept, _ = wanted(x, weight, limits)
    ours = error(gemv(x, weight, limits)[None], truth, kept, weight)
    half = (kept.bfloat16() @ exact(weight).bfloat16().T).float()
    single = (kept.float() @ exact(weight).float().T).float()
    assert ours <= error(half, truth, kept, weight) / 100
    assert ours <= error(single, truth, kept, weight) * (10 if stored == "int8" else 4)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("outputs", [(12, 4, 4), (5, 3), (1, 1, 1)])
def test_stacked_matrices_are_those_apart(outputs, stored, backend):
    matrices = [random(rows, 37, seed=rows + n) for n, rows in enumerate(outputs)]
    weight, x = rows_by_channel(matrices, stored), random(37, seed=9)
    bias, limits = random(sum(outputs), seed=4), limits_for(x[None], 0.5)
    parts = [gemv(x, rows_by_channel([one], stored), limits, backend="reference") for one in matrices]
    y = gemv(x, weight, limits, backend=backend, bias=bias)
    assert weight.outputs == outputs and weight.n_outputs == len(y) == sum(outputs)
    torch.testing.assert_close(y, torch.cat(parts) + bias, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stored", STORED)
def test_what_is_kept_may_lie_side_by_side(stored, rule):
    """All in one part: threads share what is kept, not the inputs."""
    weight = rows_by_channel([random(33, 1031)], stored)
    x = torch.zeros(3, 1031)
    x[:, 700:741] = random(3, 41, seed=1) + 3
    limits = torch.full((1031,), 1e-3)
    truth, kept, dropped = wanted(x, weight, limits, rule)
    assert dropped == pytest.approx(1 - 41 / 1031)
    assert error(shared_mask_gemm(x, weight, limits, rule=rule), truth, kept, weight) <= BOUND[stored]
    one = gemv(x[0], weight, limits)
    assert error(one[None], truth[:1], kept[:1], weight) <= BOUND[stored]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("stored", STORED)
def test_a_nan_is_not_hidden(stored, backend):
    weight, x = rows_by_channel([random(33, 37)], stored), random(3, 37, seed=1)
    x[1, 5] = float("nan")
    assert gemv(x[1], weight, float("inf"), backend=backend).isnan().all()
    for rule in RULES:
        y = shared_mask_gemm(x, weight, 10.0, rule=rule, backend=backend)
        assert y.isnan().all(1).tolist() == [False, True, False], rule
        assert y[[0, 2]].isfinite().all(), rule
    x[1, 5] = float("inf")
    assert not gemv(x[1], weight, 1.0, backend=backend).isfinite().any()


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_rows_that_are_dropped_are_not_read(stored):
    """Those of c = 0 among them, whose limit is infinite."""
    x, limits = random(3, 37, seed=1), torch.full((37,), 0.5)
    limits[7] = float("inf")
    x[:, 7], x[:, 8], x[:, 9] = float("inf"), 0.5, -0.5  # exactly at the limit
    weight = rows_by_channel([random(33, 37)], stored)
    clean = weight.data.clone()
    weight.data[[7, 8, 9]] = float("nan")
    zero = WeightRows(clean.index_fill(0, torch.tensor([7, 8, 9]), 0), stored, 33, "channel", (33,))
    for token in x:
        y = gemv(token, weight, limits)
        assert y.isfinite().all() and y.tolist() == gemv(token, zero, limits).tolist()
    for rule in RULES:
        y = shared_mask_gemm(x, weight, limits, rule=rule)
        assert y.isfinite().all() and y.tolist() == shared_mask_gemm(x, zero, limits, rule=rule).tolist()


@pytest.mark.parametrize("backend", FAST)
def test_zeros_and_numbers_below_the_normal_ones(backend):
    weight = rows_by_channel([torch.tensor([[1e30, 1e30, 1e30], [1.0, 2.0, 4.0]])])
    x = torch.tensor([-0.0, 1e-40, 0.0])
    assert float(x[1]) > 0  # or this says nothing
    y = gemv(x, weight, 0.0, backend=backend)
    assert float(y[0]) == pytest.approx(1e-10, rel=1e-4)
    assert gemv(x, weight, 1e-40, backend=backend).tolist() == [0.0, 0.0]
    half = rows_by_channel([torch.full((3, 1), 1e-40)], "bfloat16")
    assert float(half.dense()[0, 0]) == pytest.approx(1e-40, rel=0.01)
    y = gemv(torch.tensor([1e30]), half, 0.0, backend=backend)
    assert float(y[0]) == pytest.approx(float(half.dense()[0, 0]) * 1e30, rel=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("stored", STORED)
def test_the_ends(stored, backend):
    """Nothing kept is the bias; a limit that drops nothing is the dense product, bit for bit."""
    weight, x = rows_by_channel([random(33, 37)], stored), random(37, seed=1)
    bias = random(33, seed=2)
    assert gemv(x, weight, 1e9, bias=bias, backend=backend).tolist() == bias.tolist()
    dense = gemv(x, weight, -1.0, backend=backend)
    assert dense.tolist() == gemv(x, weight, 0.0, backend=backend).tolist()
    torch.testing.assert_close(dense, weight.product(x[None])[0], rtol=0, atol=5e-5)
    with_zero = x.clone()
    with_zero[3] = 0
    assert product_bytes(weight, 36) < product_bytes(weight, 37) == weight.nbytes
    kept = gemv(with_zero, weight, -1.0, backend=backend)
    torch.testing.assert_close(kept, gemv(with_zero, weight, 0.0, backend=backend), rtol=0, atol=5e-5)


class Poisoned:
    """Numpy, but what is not written is NaN."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        return np.full(shape, np.nan, dtype)


@contextmanager
def poisoned(monkeypatch):
    with monkeypatch.context() as patch:
        for module in (sparse_gemv, gemm_module, block_ffn_module):
            patch.setattr(module, "np", Poisoned())
        yield


@pytest.mark.parametrize("stored", STORED)
def test_results_depend_on_nothing_but_inputs(stored, monkeypatch):
    """Not on what memory holds, and not on the call before."""
    weight = rows_by_channel([random(33, 131)], stored)
    many = rows_by_channel([random(MANY, 5)], stored)
    up, down = rows_by_output(random(24, 37), stored), rows_by_channel([random(37, 24, seed=1)], stored)
    gates = torch.tensor([[0.5, 0, 0, 1.5], [0, 0, 2.0, 0], [0, 0, 0, 0]])
    x = random(3, 131, seed=1)

    def results():
        made = [gemv(x[0], weight, 0.5), gemv(x[0], weight, 99.0), gemv(x[0, :5], many, 0.5)]
        made += [shared_mask_gemm(x, weight, limit, rule=rule) for limit in (0.5, 99.0) for rule in RULES]
        made += [block_ffn(x[:n, :37], gates[:n], up, down) for n in (1, 3)]
        made.append(block_ffn(x[2, :37], gates[2], up, down))
        return [one.flatten().tolist() for one in made]

    first = results()
    assert all(np.isfinite(one).all() for one in first) and len({str(one) for one in first}) >= 7
    bad = torch.full((3, 131), float("nan"))
    shared_mask_gemm(bad, weight, 0.5)
    gemv(bad[0], weight, 0.5)
    block_ffn(bad[:, :37], torch.ones(3, 4), up, down)
    assert results() == first
    with poisoned(monkeypatch):
        assert np.isnan(sparse_gemv.np.empty(3, np.float32)).all()
        assert results() == first


@pytest.mark.parametrize("stored", STORED)
def test_the_number_of_threads_moves_rounding_only(stored):
    weight, x = rows_by_channel([random(257, 131)], stored), random(5, 131, seed=1)
    up, down = rows_by_output(random(64, 131), stored), rows_by_channel([random(131, 64, seed=1)], stored)
    gates = torch.rand(5, 8, generator=torch.Generator().manual_seed(2)) - 0.5
    gates[gates < 0] = 0

    def results():
        made = [gemv(x[0], weight, 0.5), *(shared_mask_gemm(x, weight, 0.5, rule=rule) for rule in RULES)]
        return [*made, block_ffn(x, gates, up, down), block_ffn(x[0], gates[0], up, down)]

    found = {}
    for count in (1, 2):
        torch.set_num_threads(count)
        found[count] = results()
        for one, again in zip(found[count], results(), strict=True):
            assert one.tolist() == again.tolist()
    for one, other in zip(found[1], found[2], strict=True):
        assert float((one - other).abs().max()) <= BOUND[stored] * float(one.abs().max())


def layer(x, gates, up, down, width):
    """The layer in float64, expert by expert, and what it would be without signs."""
    y = torch.zeros(len(x), down.width, dtype=torch.float64)
    first, second = exact(up), exact(down)
    for expert in range(gates.shape[1]):
        rows = slice(expert * width, (expert + 1) * width)
        hidden = silu(x.double() @ first[rows].T) * gates[:, expert : expert + 1].double()
        y += hidden @ second[:, rows].T
    return y


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("stored", STORED)
def test_block_ffn_equals_float64(stored, backend):
    wrong, used = [], set()
    for (experts, width), tokens in product(((5, 3), (160, 4), (1, 7)), (1, 2, 5, 8)):
        up = rows_by_output(random(experts * width, 37) / 6, stored)
        down = rows_by_channel([random(41, experts * width, seed=1)], stored)
        x, scores = random(tokens, 37, seed=2), random(tokens, experts, seed=3)
        for kind in ("none", "some", "all", "one"):
            gates = torch.where(scores > 0.5, scores, 0) if kind == "some" else scores * (kind != "none")
            if kind == "one":
                gates = torch.zeros_like(scores)
                gates[-1, -1] = 0.5
            used.add(int((gates != 0).any(0).sum()))
            y = block_ffn(x, gates, up, down, backend=backend)
            truth = layer(x, gates, up, down, width)
            if kind == "none":
                assert y.eq(0).all() and y.shape == (tokens, 41)
                continue
            off = float((y - truth).abs().max() / truth.abs().max().clamp(min=1e-6))
            if not off <= BOUND[stored]:
                wrong.append((experts, tokens, kind, off))
    assert not wrong, wrong[:5]
    assert used >= {0, 1, 5, 160} and len([n for n in used if 5 < n < 160]) >= 3
    one = block_ffn(random(37), torch.ones(1), up, down, backend=backend)
    assert one.shape == (41,)


def test_experts_that_no_token_uses_are_not_read():
    up, down = rows_by_output(random(12, 37)), rows_by_channel([random(37, 12, seed=1)])
    gates = torch.tensor([[0.0, 1.0, 0.0, 0.5], [0.0, 2.0, 0.0, 0.0]])
    x = random(2, 37, seed=2)
    before = block_ffn(x, gates, up, down), block_ffn(x[0], gates[0], up, down)
    up.data[[0, 1, 2, 6, 7, 8]] = down.data[[0, 1, 2, 6, 7, 8]] = float("nan")
    after = block_ffn(x, gates, up, down), block_ffn(x[0], gates[0], up, down)
    assert [one.tolist() for one in before] == [one.tolist() for one in after]
    assert after[0].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_block_ffn_hides_no_nan(backend):
    up, down = rows_by_output(random(12, 37)), rows_by_channel([random(37, 12, seed=1)])
    gates = torch.tensor([[0.0, 1.0, 0.0], [0.0, float("nan"), 0.0], [2.0, 0.0, 0.0]])
    x = random(3, 37, seed=2)
    y = block_ffn(x, gates, up, down, backend=backend)
    assert y.isnan().all(1).tolist() == [False, True, False] and y[[0, 2]].isfinite().all()
    assert block_ffn(x[1], gates[1], up, down, backend=backend).isnan().all()
    x[0, 3] = float("nan")
    assert block_ffn(x[0], gates[0], up, down, backend=backend).isnan().all()


@pytest.mark.parametrize("by", ["channel", "output"])
@pytest.mark.parametrize("stored", STORED)
def test_stored_rows_say_what_was_stored(stored, by, monkeypatch):
    matrix = random(33, 37) * torch.logspace(-3, 3, 33)[:, None]
    matrix[4] = 0
    weight = rows_by_channel([matrix], stored) if by == "channel" else rows_by_output(matrix, stored)
    torch.testing.assert_close(weight.dense().double(), exact(weight), rtol=1e-6, atol=0)
    assert (weight.n_outputs, weight.n_inputs) == (33, 37)
    if stored == "int8":
        steps = weight.scale[:, None]
        assert weight.scale[:4].tolist() == pytest.approx((matrix[:4].abs().amax(1) / 127).tolist())
        assert ((weight.dense() - matrix).abs() <= steps * 0.50001).all() and weight.dense()[4].eq(0).all()
        assert int(weight.data[:, : weight.width].min()) >= 1
    else:
        own = matrix if stored == "float32" else matrix.bfloat16().float()
        assert weight.dense().equal(own)
        again = rows_by_channel([own], stored) if by == "channel" else rows_by_output(own, stored)
        assert again.dense().equal(own)
    rows, width = (37, 33) if by == "channel" else (33, 37)
    assert weight.data.shape == (rows, 48) and weight.width == width
    assert (weight.data[:, width:] == (128 if stored == "int8" else 0)).all()
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[stored]
    assert weight.row_bytes == size * width
    assert weight.nbytes == 33 * 37 * size + (4 * 33 if stored == "int8" else 0)
    x = random(5, 37, seed=1)
    truth = x.double() @ exact(weight).T
    for chunk in (weight_rows._CHUNK, 100, 1):  # all rows at once, some, one
        monkeypatch.setattr(weight_rows, "_CHUNK", chunk)
        off = (weight.product(x) - truth).abs().amax(0) / truth.abs().amax(0).clamp(min=1e-30)
        assert float(off.max()) <= 2e-6, chunk


def test_threads_are_there_before_cached_code_is_loaded():
    """Without them it ends the process where the loops that it calls were cached earlier than itself."""
    code = "import numba, sparsescope.kernels.sparse_products_compiled; print(numba.threading_layer())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() in ("omp", "tbb", "workqueue"), done.stderr[-2000:]
