"""A sample of tokens: independent of batches, order and workers, and random."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.activations.samples import TokenSample, token_keys

LENGTHS = {0: 40, 1: 7, 2: 90, 5: 33}


def fed(documents=tuple(LENGTHS), size=25, piece=1000, seed=3):
    sample = TokenSample(size, {"value": ((2,), np.float32)})
    for document in documents:
        for start in range(0, LENGTHS[document], piece):
            n = min(piece, LENGTHS[document] - start)
            rows, slots = sample.plan(token_keys(seed, document, start, n), document)
            values = np.stack([np.full(n, document), np.arange(start, start + n)], axis=1)
            sample.parts["value"][slots] = values[rows]
    return sample


def same(a, b):
    a.sort()
    b.sort()
    for one, other in ((a.keys, b.keys), (a.documents, b.documents), (a.parts["value"], b.parts["value"])):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [1, 25, 170, 500])
def test_the_sample_is_the_tokens_with_the_smallest_keys(size):
    every = [(key, d, i) for d, n in LENGTHS.items() for i, key in enumerate(token_keys(3, d, 0, n))]
    expected = sorted(every)[:size]
    found = fed(size=size)
    found.sort()
    assert found.keys.tolist() == [key for key, _, _ in expected]
    assert found.parts["value"].tolist() == [[d, i] for _, d, i in expected]
    assert found.documents.tolist() == [d for _, d, _ in expected]


@pytest.mark.parametrize("piece", [1, 3, 16])
def test_pieces_and_order_do_not_matter(piece):
    same(fed(), fed(piece=piece))
    same(fed(), fed(documents=(5, 2, 1, 0), piece=piece))


def test_merged_samples_are_the_sample_of_both():
    first, second = fed(documents=(0, 5)), fed(documents=(1, 2))
    first.merge(second)
    same(first, fed())


def test_a_saved_sample_goes_on():
    begun, again = fed(documents=(0, 1)), TokenSample(25, {"value": ((2,), np.float32)})
    again.restore("s", begun.state("s"))
    same(again, begun)


def test_keys_are_even_and_depend_on_seed_document_and_index():
    keys = token_keys(0, 4, 0, 20_000)
    assert len(np.unique(keys)) == len(keys)
    shares = keys / 2.0**64
    assert abs(shares.mean() - 0.5) < 0.01 and abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 0.03
    np.testing.assert_array_equal(token_keys(0, 4, 100, 50), keys[100:150])
    assert (
        not np.isin(token_keys(1, 4, 0, 1000), keys).any()
        and not np.isin(token_keys(0, 5, 0, 1000), keys).any()
    )
