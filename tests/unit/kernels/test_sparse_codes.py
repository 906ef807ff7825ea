"""Operations on the entries of codes against dense algebra: compiled loops (float32) and torch (float64)."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsescope.kernels import row_threads
from sparsescope.kernels import sparse_codes as kernels
from sparsescope.kernels.row_threads import in_row_blocks

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "torch"])
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
#: Few different numbers, so that ties are frequent.
SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 14)),
    elements=st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0]),
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def top_by_hand(scores, k, positive=True):
    """Mask of the k largest of each row, of equal ones those of lower index."""
    mask = np.zeros(scores.shape, bool)
    for row, kept in zip(scores.double().numpy(), mask, strict=True):
        kept[np.argsort(-row, kind="stable")[:k]] = True
    return torch.from_numpy(mask & (scores.numpy() > 0) if positive else mask)


def check_entries(found, mask, scores):
    indices, values, counts = found
    rows, features = mask.nonzero(as_tuple=True)
    assert indices.dtype == torch.int32 and indices.tolist() == features.tolist()
    assert counts.dtype == torch.int64 and counts.tolist() == mask.sum(1).tolist()
    assert values.dtype == scores.dtype and torch.equal(values, scores[rows, features])


def some_codes(dtype, rows=70, width=90, density=0.1, seed=0):
    """Codes with empty rows and features, dense and as entries."""
    generator = rng(seed)
    mask = torch.rand(rows, width, generator=generator) < density
    mask[3] = mask[rows - 1] = False
    mask[:, 5] = mask[:, 0] = False
    mask[7] = True
    dense = torch.where(mask, torch.randn(rows, width, generator=generator, dtype=dtype), 0)
    row, feature = mask.nonzero(as_tuple=True)
    offsets = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(mask.sum(1), 0, out=offsets[1:])
    return dense, feature.int(), dense[row, feature], offsets


@DTYPES
@pytest.mark.parametrize(
    ("width", "k"),
    [
        (1, 1),
        (7, 1),
        (7, 7),
        (511, 3),
        (512, 32),
        (513, 512),
        (1000, 600),
        (1000, 1000),
        (1700, 1),
        (2048, 33),
    ],
)
def test_top_entries_are_the_k_largest_positive_scores(width, k, dtype):
    scores = torch.randn(9, width, generator=rng(width + k), dtype=dtype)
    scores[1] = -scores[1].abs()  # nothing is positive
    scores[2] = 1.5  # all are equal
    scores[3] = (scores[3] * 2).round() / 2  # many ties
    scores[4] = 0.0
    scores[5] = torch.arange(width, dtype=dtype) - width / 2
    scores[6] = -scores[5]
    scores[7, : width // 2] = 3.0
    found = kernels.top_entries(scores, k)
    check_entries(found, top_by_hand(scores, k), scores)
    assert found[2].tolist()[:3] == [min(k, int((scores[0] > 0).sum())), 0, k]


@DTYPES
@settings(max_examples=60, deadline=None)
@given(scores=SCORES, k=st.integers(1, 14))
def test_top_entries_break_ties_by_the_lower_index(dtype, scores, k):
    scores = torch.from_numpy(scores).to(dtype)
    k = min(k, scores.shape[1])
    check_entries(kernels.top_entries(scores, k), top_by_hand(scores, k), scores)


def test_ties_across_the_strided_groups_go_to_the_lower_index():
    """512 groups of 4: the k-th score is shared by features of several groups."""
    generator = rng(5)
    for _ in range(20):
        scores = torch.randint(-1, 4, (4, 2048), generator=generator).float()
        for k in (1, 17, 400, 512, 513, 1000):
            check_entries(kernels.top_entries(scores, k), top_by_hand(scores, k), scores)


@DTYPES
def test_entries_above_thresholds(dtype):
    scores = torch.randn(40, 33, generator=rng(1), dtype=dtype)
    scores[0] = 9.0  # the compiled loop makes room again and again
    scores[10:] = 8.0
    thresholds = torch.rand(33, generator=rng(2), dtype=dtype)
    scores[1] = thresholds  # equal is not above
    check_entries(kernels.entries_above(scores, thresholds), scores > thresholds, scores)
    assert kernels.entries_above(scores, thresholds)[2][1] == 0
    for one in (0.0, 0.25, 100.0):
        bound = torch.tensor(one, dtype=dtype)
        check_entries(kernels.entries_above(scores, bound), scores > one, scores)


@DTYPES
@settings(max_examples=60, deadline=None)
@given(scores=SCORES, data=st.data())
def test_largest_of_rows_takes_its_count_of_each_row(dtype, scores, data):
    scores = torch.from_numpy(scores).to(dtype)
    rows, width = scores.shape
    counts = torch.tensor(
        data.draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows)), dtype=torch.int64
    )
    indices, values = kernels.largest_of_rows(scores, counts)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for r in range(rows):
        mask[r] = top_by_hand(scores[r : r + 1], int(counts[r]), positive=False)[0]
    check_entries((indices, values, counts), mask, scores)


@DTYPES
def test_largest_of_rows_none_and_all(dtype):
    scores = -torch.rand(70, 19, generator=rng(3), dtype=dtype)  # negative ones count
    nothing, _ = kernels.largest_of_rows(scores, torch.zeros(70, dtype=torch.int64))
    assert len(nothing) == 0
    indices, values = kernels.largest_of_rows(scores, torch.full((70,), 19))
    assert torch.equal(indices.reshape(70, 19).long(), torch.arange(19).expand(70, 19))
    assert torch.equal(values.reshape(70, 19), scores)


@DTYPES
@pytest.mark.parametrize("rows", [70, 1100])
def test_decode_and_products_equal_dense_algebra(rows, dtype):
    dense, indices, values, offsets = some_codes(dtype, rows)
    decoder = torch.randn(90, 13, generator=rng(4), dtype=dtype)
    out = kernels.decode(indices, values, offsets, decoder)
    torch.testing.assert_close(out, dense @ decoder, **TOLERANCE[dtype])
    assert not out[3].any()
    others = torch.randn(rows, 13, generator=rng(5), dtype=dtype)
    row, feature = (dense != 0).nonzero(as_tuple=True)
    products = kernels.row_products(indices, offsets, others, decoder)
    torch.testing.assert_close(products, (others @ decoder.T)[row, feature], **TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("width", [90, 1100])
def test_sums_by_feature_equal_dense_algebra(width, dtype):
    dense, indices, values, offsets = some_codes(dtype, 60, width)
    rows = torch.randn(60, 11, generator=rng(6), dtype=dtype)
    order = kernels.by_feature(indices, offsets, width)
    torch.testing.assert_close(kernels.feature_sums(order, values, rows), dense.T @ rows, **TOLERANCE[dtype])
    torch.testing.assert_close(
        kernels.sums_by_feature(indices, values, width), dense.sum(0), **TOLERANCE[dtype]
    )
    assert kernels.sums_by_feature(indices, values, width).dtype == dtype


def test_by_feature_keeps_the_order_of_rows():
    dense, indices, values, offsets = some_codes(torch.float32)
    order = kernels.by_feature(indices, offsets, 90)
    feature, row = (dense != 0).T.nonzero(as_tuple=True)
    assert order.rows.dtype == torch.int32 and order.rows.tolist() == row.tolist()
    assert torch.equal(values[order.entries], dense[row, feature])
    assert order.starts.diff().tolist() == (dense != 0).sum(0).tolist() and order.starts[0] == 0


@DTYPES
def test_no_rows_and_no_entries(dtype):
    empty = torch.empty(0, 6, dtype=dtype)
    decoder = torch.randn(6, 4, generator=rng(), dtype=dtype)
    for found in (
        kernels.top_entries(empty, 2),
        kernels.entries_above(empty, torch.zeros((), dtype=dtype)),
        (*kernels.largest_of_rows(empty, torch.zeros(0, dtype=torch.int64)), torch.zeros(0)),
    ):
        assert [len(part) for part in found] == [0, 0, 0]
    none, no_values = torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=dtype)
    for rows in (0, 3):
        offsets = torch.zeros(rows + 1, dtype=torch.int64)
        assert torch.equal(
            kernels.decode(none, no_values, offsets, decoder), torch.zeros(rows, 4, dtype=dtype)
        )
        others = torch.ones(rows, 4, dtype=dtype)
        assert kernels.row_products(none, offsets, others, decoder).shape == (0,)
        order = kernels.by_feature(none, offsets, 6)
        assert order.starts.tolist() == [0] * 7
        if rows:
            assert torch.equal(kernels.feature_sums(order, no_values, others), torch.zeros(6, 4, dtype=dtype))
    assert torch.equal(kernels.sums_by_feature(none, no_values, 6), torch.zeros(6, dtype=dtype))


def test_memory_in_another_order_gives_the_same_and_compiles_nothing():
    from sparsescope.kernels import sparse_codes_compiled as loops

    dense, indices, values, offsets = some_codes(torch.float32)
    decoder = torch.randn(13, 90, generator=rng(7))
    first = kernels.decode(indices, values, offsets, decoder.T.contiguous())
    before = len(loops.decode.signatures)
    assert torch.equal(kernels.decode(indices, values, offsets, decoder.T), first)
    order = kernels.by_feature(indices, offsets, 90)
    rows = torch.randn(13, 70, generator=rng(8)).T
    torch.testing.assert_close(kernels.feature_sums(order, values, rows), dense.T @ rows)
    scores = dense.T
    check_entries(kernels.top_entries(scores, 3), top_by_hand(scores, 3), scores)
    check_entries(kernels.entries_above(scores, torch.zeros(())), scores > 0, scores)
    counts = torch.full((90,), 2)
    assert len(kernels.largest_of_rows(scores, counts)[0]) == 180
    assert len(loops.decode.signatures) == before


def test_the_bits_do_not_depend_on_the_number_of_threads(threads):
    """Blocks of rows and of features are larger in number than the threads."""
    dense, indices, values, offsets = some_codes(torch.float32, 1500, 1300, 0.02)
    decoder = torch.randn(1300, 24, generator=rng(8))
    rows = torch.randn(1500, 24, generator=rng(9))
    counts = torch.arange(1500) % 9

    def everything():
        order = kernels.by_feature(indices, offsets, 1300)
        return [
            *kernels.largest_of_rows(dense, counts),
            kernels.decode(indices, values, offsets, decoder),
            kernels.row_products(indices, offsets, rows, decoder),
            kernels.feature_sums(order, values, rows),
        ]

    made = []
    for count in (1, 2, 3):
        threads(count)
        made.append(everything())
        assert torch.get_num_threads() == count
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


def test_blocks_come_in_order_on_threads_of_one_each(threads):
    def look(begin, end):
        return begin, end, torch.get_num_threads(), threading.current_thread().name

    for count in (2, 3) * 15:
        row_threads._pool.cache_clear()  # each time, threads begin in another order
        threads(count)
        seen = in_row_blocks(look, 10, 3)
        assert [(begin, end) for begin, end, *_ in seen] == [(0, 3), (3, 6), (6, 9), (9, 10)]
        assert all(alone == 1 and name.startswith("rows") for *_, alone, name in seen)
        assert torch.get_num_threads() == count
        with ThreadPoolExecutor(1) as other:
            assert other.submit(torch.get_num_threads).result() == count, "other threads take over the one"
    threads(1)
    assert in_row_blocks(lambda begin, end: threading.current_thread() is threading.main_thread(), 4, 2) == [
        True,
        True,
    ]
    assert in_row_blocks(lambda begin, end: 1, 0, 2) == []


def test_an_error_in_a_block_is_raised(threads):
    def work(begin, end):
        if begin:
            raise ValueError("block")

    for count in (1, 2):
        threads(count)
        with pytest.raises(ValueError, match="block"):
            in_row_blocks(work, 10, 3)


def test_a_forked_process_has_threads_of_its_own(threads):
    """Threads do not survive a fork: a pool made before would wait for ever."""
    threads(2)
    assert in_row_blocks(lambda begin, end: begin, 4, 2) == [0, 2]
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            assert in_row_blocks(lambda begin, end: begin, 4, 2) == [0, 2]
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
