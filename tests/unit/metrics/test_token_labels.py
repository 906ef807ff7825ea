"""Labels of tokens from their text."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.metrics import token_labels as labels

TEXTS = [
    " The",
    "cat",
    "'s",
    " 12",
    "3a",
    "...",
    "\n",
    "",
    " Über",
    "ß",
    "²",
    "İ",
    "\u00a0x",
    "A\u0301",
    "’",
    " $+",
]


def of(function):
    return np.flatnonzero(function(TEXTS)).tolist()


def test_labels_of_hand_picked_tokens():
    assert labels.first_letters(TEXTS).tolist() == [
        19,
        2,
        -1,
        -1,
        -1,
        -1,
        -1,
        -1,
        20,
        -1,
        -1,
        8,
        23,
        0,
        -1,
        -1,
    ]
    assert of(labels.has_digit) == [3, 4] and of(labels.is_number) == [3]
    assert of(labels.is_capitalised) == [0, 8, 11, 13]
    assert of(labels.is_punctuation) == [5, 14, 15]
    assert of(labels.starts_with_space) == [0, 3, 6, 8, 12, 15]


def test_every_letter_has_its_number():
    assert labels.first_letters([f" {a}x" for a in labels.LETTERS]).tolist() == list(range(26))
    assert labels.first_letters([a.upper() for a in labels.LETTERS]).tolist() == list(range(26))


def test_buckets_of_positions_are_closed_below():
    assert labels.position_buckets([0, 1, 3, 4, 15, 16, 255, 256]).tolist() == [0, 1, 1, 2, 2, 3, 4, 5]


def test_tasks_are_the_labels_side_by_side():
    names, table = labels.binary_tasks(TEXTS, range(len(TEXTS)))
    column = dict(zip(names, table.T, strict=True))
    assert table.shape == (len(TEXTS), 4 + 26 + 6) and table.dtype == bool
    assert np.flatnonzero(column["letter_u"]).tolist() == [8] and column["digit"].sum() == 2
    assert table[:, [n.startswith("position_") for n in names]].sum(1).tolist() == [1] * len(TEXTS)
    assert "letter_a" not in labels.binary_tasks(TEXTS, letters=False)[0]


@pytest.mark.parametrize("function", [labels.first_letters, labels.has_digit, labels.is_punctuation])
def test_no_tokens_have_no_labels(function):
    assert function([]).shape == (0,)
