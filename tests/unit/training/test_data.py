"""Data sets: pairs of residues, windows of bytes, and the n-gram models that language models
are compared with.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sparsescope.activations.text.documents import Document
from sparsescope.errors import SpecError
from sparsescope.training.byte_text import FIRST_BYTE, _Windows, split_domain
from sparsescope.training.data import AdditionData
from sparsescope.training.ngrams import NgramModel
from sparsescope.training.recipe import ByteText, ModularAddition


def addition(**more):
    return AdditionData(ModularAddition(kind="modular_addition", modulus=11, train_fraction=0.3, **more))


def test_pairs_are_split_once_and_answers_are_sums():
    data = addition()
    tokens, answers = data.batch(0, torch.Generator())
    assert (
        len(tokens) == int(0.3 * 121)
        and torch.equal(answers, tokens[:, :2].sum(1) % 11)
        and (tokens[:, 2] == 11).all()
    )
    train, test = data.examples(whole=True)
    pairs = {tuple(row) for row in torch.cat([train.tokens, test.tokens])[:, :2].tolist()}
    assert (
        pairs == set(itertools.product(range(11), repeat=2)) and len(train.tokens) + len(test.tokens) == 121
    )
    probe = data.probe()
    assert torch.equal(probe["tokens"][probe["train"] == 1], train.tokens)
    assert torch.equal(probe["answer"], probe["tokens"][:, :2].sum(1) % 11)


def test_minibatches_are_drawn_from_training_pairs_by_the_generator():
    data = addition(batch_size=50, replacement=True)
    batches = [data.batch(0, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    train = {tuple(row) for row in data.examples(whole=True)[0].tokens.tolist()}
    assert {tuple(row) for row in batches[0].tolist()} <= train


def test_a_pass_without_replacement_takes_each_pair_once_in_an_order_of_its_own():
    data, generator = addition(batch_size=10), torch.Generator().manual_seed(3)
    passes = [
        torch.cat([data.batch(4 * number + part, generator)[0] for part in range(4)]) for number in range(2)
    ]
    whole = data.examples(whole=True)[0].tokens
    for found in passes:
        assert sorted(found.tolist()) == sorted(whole.tolist())
    assert not torch.equal(*passes)
    generator.set_state(torch.Generator().manual_seed(3).get_state())
    assert torch.equal(data.batch(5, generator)[0], passes[1][10:20])
    other = data.batch(0, torch.Generator().manual_seed(4))[0]
    assert not torch.equal(other, passes[0][:10])


def text(**more):
    return ByteText(kind="byte_text", corpora=["x"], context=8, windows_per_domain=4, **more)


def documents(n=40, length=60):
    rng = np.random.default_rng(0)
    return [
        Document(f"d{i}", "toy", " ".join(map(str, rng.integers(0, 10**6, length // 7)))) for i in range(n)
    ]


def test_a_domain_is_split_by_document_without_near_duplicates():
    found = documents()
    domain = split_domain([*found, Document("twin", "toy", found[3].text)], text())
    assert domain.near_duplicates == 1
    train, validation = ({data.tobytes() for data in part} for part in (domain.train, domain.validation))
    assert not train & validation and len(train) + len(validation) == 40
    share = sum(map(len, domain.validation)) / sum(map(len, (*domain.train, *domain.validation)))
    assert 0.1 <= share < 0.15
    assert split_domain(reversed(found), text()).digest == split_domain(found, text()).digest
    assert split_domain(found, text(split_seed=1)).digest != domain.digest


def test_a_domain_holds_at_most_so_many_bytes():
    domain = split_domain(documents(200), text(max_domain_bytes=1000))
    assert 990 < sum(map(len, (*domain.train, *domain.validation))) <= 1000


def test_a_domain_of_one_document_is_refused():
    with pytest.raises(SpecError, match="too little text"):
        split_domain(documents(1), text())


def test_windows_lie_in_one_document_and_all_are_drawn_alike():
    parts = tuple(np.arange(begin, begin + n, dtype=np.uint8) for begin, n in ((0, 8), (100, 11), (200, 9)))
    rows = _Windows(parts, 8).draw(7000, torch.Generator().manual_seed(0)) - FIRST_BYTE
    assert (rows.diff(dim=1) == 1).all()
    starts, counts = rows[:, 0].unique(return_counts=True)
    assert starts.tolist() == [0, 100, 101, 102, 103, 200, 201]
    assert counts.min() > 850 and counts.max() < 1150  # 1000 each, sd 29


def test_unigram_and_bigram_by_hand():
    # "aab": c(a) = 2, c(b) = 1, N = 3, T = 2 -> p(a) = (2 + 2/256) / 5; after a: c(a) = c(b) = 1, N = T = 2
    data = [np.frombuffer(b"aab", np.uint8)]
    a, b = 97, 98
    unigram = (2 + 2 / 256) / 5
    model = NgramModel(data, 1)
    none = np.empty((2, 0), np.int64)
    assert model.probabilities(none, np.array([a, 0])) == pytest.approx([unigram, (2 / 256) / 5])
    bigram = NgramModel(data, 2)
    assert bigram.probabilities(np.array([[a], [b], [-1]]), np.array([a, a, a])) == pytest.approx(
        [(1 + 2 * unigram) / 4, unigram, unigram]
    )
    assert model.mean_loss(np.array([[b, a, a]])) == pytest.approx(-math.log(unigram))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_every_history(order):
    rng = np.random.default_rng(1)
    model = NgramModel(
        [rng.integers(0, 5, 300).astype(np.uint8), rng.integers(3, 9, 50).astype(np.uint8)], order
    )
    for history in ([1, 2], [4, 4], [7, 8], [200, 1], [-1, 3], [-1, -1]):
        rows = (
            np.tile(history[2 - (order - 1) :] if order > 1 else [], (256, 1))
            .astype(np.int64)
            .reshape(256, order - 1)
        )
        assert model.probabilities(rows, np.arange(256)).sum() == pytest.approx(1, abs=1e-12)


def test_a_trigram_model_finds_what_a_unigram_model_cannot():
    cycle = np.tile(np.arange(10, dtype=np.uint8), 500)
    window = cycle[None, :100].astype(np.int64)
    assert NgramModel([cycle], 3).mean_loss(window) < 0.1
    assert NgramModel([cycle], 1).mean_loss(window) == pytest.approx(math.log(10), abs=0.01)
