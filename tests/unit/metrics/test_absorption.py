"""Absorption on planted hierarchies, where it is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from sparsescope.errors import SpecError
from sparsescope.metrics.absorption import CODE, PAPER, absorbed_fraction, absorption
from sparsescope.metrics.probing import Split, linear_probes

LETTERS, WORDS, ROWS, WIDTH = 3, 90, 6000, 100
BOTH = pytest.mark.parametrize("parameters", [PAPER, CODE], ids=lambda p: p.name)


def language(seed=0):
    """Words, 30 for each of three letters, each with a direction of its own; the letter has one too."""
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.standard_normal((WIDTH, LETTERS + WORDS)))[0].T
    words = generator.integers(0, WORDS, ROWS)
    x = directions[words % LETTERS] + directions[LETTERS + words]
    labels = (words % LETTERS)[:, None] == np.arange(LETTERS)
    return x, directions, words, labels


def dictionary(directions, words, absorbed=(), share=1.0):
    """One that has every letter and word; absorbed words carry a share of the letter, which is then that much
    weaker.
    """
    decoder, table = directions.copy(), np.zeros((len(words), len(directions)))
    rows = np.arange(len(words))
    table[rows, words % LETTERS] = 1
    table[rows, LETTERS + words] = 1
    for word in absorbed:
        decoder[LETTERS + word] += share * directions[word % LETTERS]
        table[words == word, word % LETTERS] = 1 - share
    return csr_array(table), decoder


@pytest.fixture(scope="module")
def text():
    x, directions, words, labels = language()
    probes = linear_probes(x, labels)
    assert (probes.scores[:, 3] > 0.99).all()
    return x, directions, words, labels, probes


@BOTH
def test_a_dictionary_of_letters_and_words_absorbs_nothing(text, parameters):
    x, directions, words, labels, probes = text
    codes, decoder = dictionary(directions, words)
    found = absorption(x, codes, decoder, labels, probes, parameters=parameters)
    assert found.evaluated.all() and found.parameters is parameters
    assert [m.tolist() for m in found.main] == [[0], [1], [2]] and found.main_f1.tolist() == [1, 1, 1]
    assert found.full.tolist() == [0, 0, 0] and all(len(a) == 0 for a in found.absorbers)
    assert found.split_share == 0 and found.mean_full == 0
    assert found.fired.tolist() == labels[probes.split.test].sum(0).tolist()
    if parameters is CODE:
        assert found.mean_fraction == 0
    else:  # without a share that they must carry, words that the probe leans on count a little
        assert found.mean_fraction < 0.25


@BOTH
def test_absorbed_words_are_found(text, parameters):
    x, directions, words, labels, probes = text
    gone = (0, 3, 1)  # two words of the first letter, one of the second
    codes, decoder = dictionary(directions, words, gone)
    found = absorption(x, codes, decoder, labels, probes, parameters=parameters)
    held_out = words[probes.split.test]
    expected = [np.isin(held_out[held_out % LETTERS == letter], gone).mean() for letter in range(LETTERS)]
    assert [m.tolist() for m in found.main] == [[0], [1], [2]]
    assert found.full == pytest.approx(expected, abs=1e-12) and 0.05 < expected[0] < 0.09
    assert [a.tolist() for a in found.absorbers] == [[LETTERS, LETTERS + 3], [LETTERS + 1], []]
    assert found.mean_full == pytest.approx(np.mean(expected)) and not found.enough
    if parameters is CODE:
        assert found.fraction == pytest.approx(expected, abs=1e-12)  # fully absorbed rows count 1, others 0


def test_partial_absorption_is_a_fraction_and_no_full_one(text):
    x, directions, words, labels, probes = text
    codes, decoder = dictionary(directions, words, (0,), share=0.7)
    found = absorption(x, codes, decoder, labels, probes, parameters=CODE)
    assert found.full.tolist() == [0, 0, 0]
    row = np.flatnonzero(words[probes.split.test] == 0)
    share = len(row) / found.fired[0]
    unit = probes.directions[0] / np.linalg.norm(probes.directions[0])
    main, other = 0.3 * (decoder[0] @ unit), decoder[LETTERS] @ unit
    assert found.fraction[0] == pytest.approx(share * other / (other + main), rel=1e-6)
    assert found.fraction[1:].tolist() == [0, 0]


def test_a_share_below_the_least_is_no_absorption(text):
    x, directions, words, labels, probes = text
    codes, decoder = dictionary(directions, words, (0,), share=0.25)
    assert absorption(x, codes, decoder, labels, probes, parameters=CODE).fraction.max() == 0
    assert absorption(x, codes, decoder, labels, probes, parameters=PAPER).fraction[0] > 0.01


@BOTH
def test_large_parts_of_a_label_are_a_split_and_no_absorption(text, parameters):
    x, directions, words, labels, probes = text
    decoder, table = directions.copy(), np.zeros((ROWS, len(directions)))
    rows = np.arange(ROWS)
    table[rows, LETTERS + words] = 1
    half = (words // LETTERS) % 2 == 0
    first = words % LETTERS == 0
    # The first letter has two features, for half of its words each; one of them is that of another letter.
    table[rows, words % LETTERS] = 1
    table[first & ~half, 0] = 0
    table[:, 1] = first & ~half
    decoder[1] = directions[0]
    found = absorption(x, csr_array(table), decoder, labels, probes, parameters=parameters)
    assert sorted(found.main[0].tolist()) == [0, 1] and found.full[0] == 0
    assert found.main_f1[0] == 1 and found.split_share > 0


def test_only_held_out_rows_of_the_label_on_which_the_probe_fires_count(text):
    x, directions, words, labels, probes = text
    codes, decoder = dictionary(directions, words, (0,))
    # Rows that the probe misses: the letter is taken out of the activation.
    missed = np.flatnonzero(words == 0)[::2]
    y = x.copy()
    y[missed] -= 3 * directions[0]
    # Rows of another letter on which it fires, and whose word would absorb.
    wrong = np.flatnonzero(words == 1)
    y[wrong] += 5 * directions[0] - directions[1]
    codes = codes.tolil()
    codes[wrong, 1], codes[wrong, LETTERS] = 0, 5
    codes = csr_array(codes)
    found = absorption(y, codes, decoder, labels, probes, parameters=CODE)
    test = probes.split.test
    assert (y[wrong] @ probes.directions[0] + probes.biases[0] > 0).all()
    fires = y[test] @ probes.directions[0] + probes.biases[0] > 0
    kept = fires & labels[test, 0]
    assert found.fired[0] == kept.sum() < labels[test, 0].sum()
    assert found.full[0] == pytest.approx((words[test][kept] == 0).mean(), abs=1e-12)


def test_a_label_without_a_good_probe_is_left_out(text):
    x, directions, words, labels, _ = text
    noise = np.random.default_rng(3).random(ROWS) < 0.3
    mixed = np.c_[labels, noise]
    codes, decoder = dictionary(directions, words)
    found = absorption(x, codes, decoder, mixed, linear_probes(x, mixed))
    assert found.evaluated.tolist() == [True, True, True, False]
    assert np.isnan(found.full[3]) and len(found.main[3]) == 0 and found.mean_full == 0
    nothing = absorption(x, codes, decoder, noise[:, None], linear_probes(x, noise[:, None]))
    assert np.isnan(nothing.mean_full) and np.isnan(nothing.split_share)


def test_the_norm_of_decoder_rows_changes_nothing(text):
    x, directions, words, labels, probes = text
    codes, decoder = dictionary(directions, words, (0, 4), share=0.8)
    scale = 2.0 ** np.random.default_rng(0).integers(-6, 7, len(decoder))
    for parameters in (PAPER, CODE):
        one = absorption(x, codes, decoder, labels, probes, parameters=parameters)
        two = absorption(
            x, csr_array(codes / scale), decoder * scale[:, None], labels, probes, parameters=parameters
        )
        assert np.allclose(one.full, two.full) and np.allclose(one.fraction, two.fraction)
        assert [m.tolist() for m in one.main] == [m.tolist() for m in two.main]


def test_what_the_dictionary_always_adds_is_not_to_be_carried(text):
    x, directions, words, labels, _ = text
    shift = 20 * directions[:3].sum(0)
    probes = linear_probes(x + shift, labels)
    codes, decoder = dictionary(directions, words, (0,))
    without = absorption(x + shift, codes, decoder, labels, probes)
    found = absorption(x + shift, codes, decoder, labels, probes, bias=shift)
    assert without.full[0] == 0 and found.full[0] > 0.02


def test_the_largest_few_absorbers_are_added_up(text):
    # The letter goes to five features in equal parts; the code's set adds up three of them.
    x, directions, words, labels, probes = text
    _, decoder = dictionary(directions, words)
    table = np.zeros((ROWS, len(decoder) + 5))
    rows = np.arange(ROWS)
    table[rows, words % LETTERS] = 1
    table[rows, LETTERS + words] = 1
    table[words == 0, 0] = 0.1
    table[np.ix_(words == 0, np.arange(len(decoder), len(decoder) + 5))] = 0.18
    decoder = np.r_[decoder, np.repeat(directions[:1], 5, 0)]
    found = absorption(x, csr_array(table), decoder, labels, probes, parameters=CODE)
    share = (words[probes.split.test] == 0).sum() / found.fired[0]
    assert found.main[0].tolist() == [0]
    assert found.fraction[0] == pytest.approx(share * 0.54 / 0.64, rel=1e-6)


def test_fractions_by_hand():
    a, m, p = [1, 1, 1, 2, 0, 1, 3], [1, 0, -1, 8, 0, 1, 1], [2, 2, 2, 3, 2, -1, 2]
    assert absorbed_fraction(a, m, p, PAPER).tolist() == [0.5, 1, 0.5, 0.2, 0, 0, 0.75]
    assert absorbed_fraction(a, m, p, CODE).tolist() == [0.5, 1, 1, 0, 0, 0, 0.5]
    assert absorbed_fraction([0.39, 0.4], [0, 0], [1, 1], CODE).tolist() == [0, 1]


def test_the_two_sets_are_those_that_were_published():
    assert (PAPER.full_cosine, PAPER.fraction_cosine, PAPER.least_share, PAPER.most_absorbers) == (
        -1,
        -1,
        0,
        None,
    )
    assert (CODE.full_cosine, CODE.fraction_cosine, CODE.least_share, CODE.most_absorbers) == (
        0.025,
        0.1,
        0.4,
        3,
    )
    for one in (PAPER, CODE):
        assert (one.split_gain, one.most_main, one.least_probe_f1, one.least_labels) == (0.03, 10, 0.6, 20)


def test_what_does_not_belong_together_is_refused(text):
    x, directions, words, labels, probes = text
    codes, decoder = dictionary(directions, words)
    assert isinstance(probes.split, Split)
    for wrong in (
        (x, codes, decoder[:5], labels),
        (x, codes, decoder, labels[:, :2]),
        (x[:9], codes, decoder, labels),
    ):
        with pytest.raises(SpecError):
            absorption(*wrong, probes)
