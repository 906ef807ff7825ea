"""How a recipe divides its text and mixes its rows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sparsescope.dictionaries.from_recipe import mixed, split_documents
from sparsescope.errors import SpecError


class Rows:
    """Documents of 100 rows, one after the other in a buffer; a batch draws 256 rows of it."""

    n_rows = 100 * 500

    def __init__(self, buffer_rows):
        self.buffer_rows = buffer_rows

    def batches(self):
        rows = np.random.default_rng(0).permutation(min(self.buffer_rows, self.n_rows))[:256]
        yield SimpleNamespace(documents=rows // 100)


@pytest.mark.parametrize(
    ("begin", "documents", "end"), [(512, 500, 16384), (20_000, 500, 20_000), (512, 5, 512)]
)
def test_the_buffer_grows_until_a_batch_mixes_64_documents(begin, documents, end):
    found = mixed(Rows, begin, documents)
    assert found.buffer_rows <= end
    assert len(np.unique(next(found.batches()).documents)) >= min(64, documents)
    if begin < end:  # no larger than it must be
        before = Rows(found.buffer_rows // 2)
        assert len(np.unique(next(before.batches()).documents)) < 64


def test_a_short_text_is_mixed_as_a_whole():
    class Few(Rows):
        n_rows = 1000

    assert mixed(Few, 512, 10).buffer_rows in (512, 1024)


def text(*lengths):
    return SimpleNamespace(documents=[Document(index, length) for index, length in enumerate(lengths)])


class Document:
    def __init__(self, index, length):
        self.index, self.length = index, length

    def __len__(self):
        return self.length


def test_documents_are_held_out_by_their_tokens():
    tokens = text(*([50] * 100))
    found = split_documents(tokens, 0.2, 0)
    assert [len(found.train), len(found.thresholds), len(found.held_out)] == [80, 10, 10]
    parts = [*found.train, *found.thresholds, *found.held_out]
    assert sorted(parts) == list(range(100))
    assert split_documents(tokens, 0.2, 0) == found != split_documents(tokens, 0.2, 1)


def test_eight_documents_are_enough_and_seven_are_not():
    found = split_documents(text(*([9] * 8)), 0.01, 0)
    assert (len(found.train), len(found.thresholds), len(found.held_out)) == (4, 2, 2)
    with pytest.raises(SpecError, match="too few documents to hold some out"):
        split_documents(text(*([9] * 7)), 0.01, 0)
