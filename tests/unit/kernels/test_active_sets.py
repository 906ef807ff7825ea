"""Sets of units as bits against plain numpy; unions and overlaps against their definitions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsescope.kernels import active_sets as u
from sparsescope.kernels.row_statistics import row_statistics


def sample(kind, rows=150, width=100):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator)
    return {
        "normal": x,
        "relu": x.relu(),
        "bfloat16": x.bfloat16(),
        "tiny": x * 1e-30,
        "zero": torch.zeros(rows, width),
        "ties": torch.randint(-2, 3, (rows, width), generator=generator).float(),
        "outlier": x + 1e6 * (torch.arange(width) == 5),
    }[kind]


@pytest.mark.parametrize("kind", ["normal", "relu", "bfloat16", "tiny", "zero", "ties", "outlier"])
@pytest.mark.parametrize("width", [1, 63, 64, 100, 341])
def test_bits_are_the_sets_of_the_definition(kind, width):
    values = sample(kind, width=width)
    found = u.unpack(u.active_bits(values, np.arange(150), 0.9), width)
    expected = u.active_bits_reference(values.float().numpy(), 0.9)
    np.testing.assert_array_equal(found[0], expected[0])
    # A share that is met to the last bit may go either way by rounding; ties of small whole
    # numbers meet it often.
    assert np.count_nonzero((found[1] != expected[1]).any(1)) <= (8 if kind == "ties" else 0)


@pytest.mark.parametrize("kind", ["normal", "relu", "ties", "bfloat16"])
def test_both_kernels_agree_on_which_units_are_in_use(kind):
    values = sample(kind)
    counts = u.count_units(u.active_bits(values, np.arange(150), 0.9), 100)
    other = row_statistics(values, (0.5,), 0.9)
    np.testing.assert_array_equal(counts[0], other.nonzero)
    np.testing.assert_array_equal(counts[1], other.in_use)


def test_rows_are_chosen_and_threads_change_nothing():
    values, rows = sample("normal", rows=700), np.arange(3, 690, 2)
    one = u.active_bits(values, rows, 0.9)
    with ThreadPoolExecutor(3) as executor:
        np.testing.assert_array_equal(u.active_bits(values, rows, 0.9, executor), one)
    np.testing.assert_array_equal(u.active_bits(values, np.arange(700), 0.9)[:, rows], one)
    assert u.active_bits(values, np.arange(0), 0.9).shape == (2, 0, 2)


def bits_of(members):
    """Bits of boolean members [rule, token, unit]."""
    rules, tokens, units = members.shape
    padded = np.zeros((rules, tokens, u.words_of(units) * 64), bool)
    padded[..., :units] = members
    return np.packbits(padded, axis=-1, bitorder="little").view("<u8")


@given(
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    units=st.integers(1, 130),
)
@settings(max_examples=60, deadline=None)
def test_unions_are_those_of_whole_chunks_within_windows(seed, lengths, units):
    members = np.random.default_rng(seed).random((2, sum(lengths), units)) < 0.2
    bits, ends = bits_of(members), np.cumsum(lengths)
    before = bits.copy()
    total, chunks, first, firsts = u.union_sizes(bits, ends, 5)
    np.testing.assert_array_equal(bits, before)
    for level in range(5):
        k, sizes, heads = 1 << level, [], []
        for end, length in zip(ends, lengths, strict=True):
            window = members[:, end - length : end]
            here = [window[:, i : i + k].any(1).sum(1) for i in range(0, length - k + 1, k)]
            sizes, heads = sizes + here, heads + here[:1]
        assert chunks[level] == len(sizes) and firsts[level] == len(heads)
        np.testing.assert_array_equal(total[:, level], np.sum(sizes, axis=0) if sizes else [0, 0])
        np.testing.assert_array_equal(first[:, level], np.sum(heads, axis=0) if heads else [0, 0])


@given(seed=st.integers(0, 999), units=st.integers(1, 130))
@settings(max_examples=60, deadline=None)
def test_overlaps_are_jaccard_indices(seed, units):
    generator = np.random.default_rng(seed)
    members = generator.random((2, 12, units)) < generator.random((2, 12, 1))
    one, other = generator.integers(0, 12, (2, 30))
    total, pairs = u.overlaps(bits_of(members), one, other)
    for rule in range(2):
        a, b = members[rule, one], members[rule, other]
        either = (a | b).sum(1)
        assert pairs[rule] == np.count_nonzero(either)
        expected = ((a & b).sum(1)[either > 0] / either[either > 0]).sum()
        assert total[rule] == pytest.approx(expected, rel=1e-12)


def test_full_words_are_counted_whole():
    members = np.ones((1, 2, 128), bool)
    assert u.union_sizes(bits_of(members), np.array([2]), 2)[0].tolist() == [[256, 128]]
    np.testing.assert_array_equal(u.count_units(bits_of(members), 128), np.full((1, 128), 2))
    np.testing.assert_array_equal(u.unpack(bits_of(members), 128), members)
