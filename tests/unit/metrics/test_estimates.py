"""The estimate object: coverage, paired differences, what has no interval, and the note
about few documents.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result
from sparsescope.metrics.estimates import PAIRED_BOOTSTRAP, DocumentBootstrap, note_few_documents
from sparsescope.metrics.statistics import bootstrap_weights


def draws(documents=12, resamples=200, seed=0):
    return DocumentBootstrap.draw(np.zeros(documents, int), resamples, seed, 0.95)


def test_the_interval_covers_the_truth():
    generator, covered, trials = np.random.default_rng(3), 0, 200
    for trial in range(trials):
        lengths = generator.integers(10, 50, 40)
        effects = generator.normal(0.4, 0.1, 40)
        sums = np.array([generator.normal(e, 0.2, n).sum() for e, n in zip(effects, lengths, strict=True)])
        found = draws(40, 400, trial).ratio(sums, lengths)
        covered += found.low <= 0.4 <= found.high
    assert covered / trials >= 0.88  # nominal 0.95; a token bootstrap would cover about half


def test_ratios_are_those_of_the_sums_that_are_drawn():
    """By hand, from the definition, for arrays of any shape."""
    generator = np.random.default_rng(0)
    sums, counts = generator.random((6, 2, 3)), generator.integers(1, 9, (6, 1, 3))
    strata = np.array([0, 0, 0, 1, 1, 1])
    some = DocumentBootstrap.draw(strata, 100, 7, 0.9)
    np.testing.assert_array_equal(some.weights, bootstrap_weights(strata, 100, 7))
    replicates = np.array(
        [(w @ sums.reshape(6, -1)).reshape(2, 3) / (w @ counts.reshape(6, -1)) for w in some.weights]
    )
    np.testing.assert_allclose(some.replicates(sums, counts), replicates, rtol=1e-14)
    found = some.ratio(sums, counts)
    np.testing.assert_allclose(found.mean, sums.sum(0) / counts.sum(0), rtol=1e-14)
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(replicates, [0.05, 0.95], axis=0), rtol=1e-13
    )
    np.testing.assert_allclose(found.complement, [1 - found.mean, 1 - found.high, 1 - found.low], rtol=1e-14)


def test_differences_are_paired():
    """Documents differ a lot, the two measurements by a constant: their difference has no spread."""
    sums, counts = np.arange(12.0), np.full(12, 3)
    some = draws()
    low, high = some.ends(some.replicates(sums + 1.5, counts) - some.replicates(sums, counts))
    assert (low, high) == pytest.approx((0.5, 0.5))
    wide = some.ratio(sums, counts)
    assert wide.high - wide.low > 0.5


def test_some_documents_keep_their_draws():
    member = np.arange(12) < 5
    some = draws().among(member)
    np.testing.assert_array_equal(some.weights, draws().weights[:, :5])
    assert some.documents == 5


def test_fewer_than_two_documents_have_no_interval():
    found = DocumentBootstrap(np.ones((10, 1)), 0.95).ratio(np.array([[3.0]]), np.array([[6]]))
    assert found.mean[0] == 0.5 and np.isnan(found.low[0]) and np.isnan(found.high[0])
    counts = np.zeros((12, 2))
    counts[:, 0], counts[4, 1] = 1, 1  # the second number is of one document alone
    found = draws().ratio(counts * np.arange(12)[:, None], counts)
    assert np.isfinite([found.low[0], found.high[0]]).all() and np.isnan([found.low[1], found.high[1]]).all()
    assert draws().interval(np.ones(200), 1) is None


def test_resamples_without_the_number_are_left_out():
    replicates = np.random.default_rng(0).random((200, 2))
    replicates[::2, 1] = np.nan
    replicates[1::4, 1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = draws().ends(replicates)
        nothing = draws().ends(np.full((200, 1), np.nan))
    assert (low[0], high[0]) == pytest.approx(np.quantile(replicates[:, 0], [0.025, 0.975]))
    assert (low[1], high[1]) == pytest.approx(np.quantile(replicates[3::4, 1], [0.025, 0.975]))
    assert np.isnan(nothing).all()


def test_an_interval_says_how_it_was_made():
    some = DocumentBootstrap.draw(np.zeros(12, int), 200, 0, 0.9, PAIRED_BOOTSTRAP)
    found = some.interval(np.arange(200.0))
    assert (found.low, found.high) == pytest.approx(np.quantile(np.arange(200.0), [0.05, 0.95]))
    assert (found.level, found.method, found.n) == (0.9, "paired document-cluster bootstrap, percentile", 12)
    assert some.between(0.1, 0.2, 7) == Interval(0.1, 0.2, 0.9, PAIRED_BOOTSTRAP, 7)
    assert some.between(np.nan, np.nan) is None and some.between(-np.inf, 1) is None


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (1, "All text is one document: no interval can be given."),
        (2, "Only 2 documents: bootstrap intervals are likely too narrow."),
        (9, "Only 9 documents: bootstrap intervals are likely too narrow."),
        (10, None),
    ],
)
def test_few_documents_are_noted(documents, message):
    out = Result("made up")
    note_few_documents(out, documents, "per_layer")
    assert [(note.severity, note.message, note.place) for note in out.notes] == [
        ("warning", message, "per_layer")
    ] * bool(message)
