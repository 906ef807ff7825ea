"""Intervals, effective sample sizes and bounds."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.metrics import statistics as s


def test_zero_events_bound_is_the_rule_of_three():
    assert s.zero_events_bound(1000) == pytest.approx(0.002991, abs=1e-6)
    assert (1 - s.zero_events_bound(50)) ** 50 == pytest.approx(0.05)
    assert s.zero_events_bound(0) == 1.0


def test_full_correlation_leaves_one_token_per_document():
    lengths = np.full(20, 50)
    assert s.effective_tokens(1000, float((lengths**2).sum()), 1.0) == pytest.approx(20)
    assert s.effective_tokens(1000, float((lengths**2).sum()), 0.0) == pytest.approx(1000)


@pytest.mark.parametrize(("documents", "units"), [(400, 200), (10, 8000), (3, 20_000)])
@pytest.mark.parametrize("truth", [0.0, 0.1, 0.4])
def test_pooled_correlation_recovers_the_planted_one(truth, documents, units):
    generator = np.random.default_rng(0)
    lengths, p = generator.integers(20, 60, documents), 0.3
    spread, variance = 0.0, 0.0
    for _ in range(units):
        # Beta-binomial: rates vary between documents so that the intraclass correlation is ``truth``.
        rates = (
            np.full(documents, p)
            if truth == 0
            else generator.beta(p * (1 - truth) / truth, (1 - p) * (1 - truth) / truth, documents)
        )
        k = generator.binomial(lengths, rates)
        mean = k.sum() / lengths.sum()
        spread += ((k - mean * lengths) ** 2).sum()
        variance += mean * (1 - mean)
    found = s.pooled_intraclass_correlation(spread, variance, lengths.sum(), (lengths**2).sum(), documents)
    assert found == pytest.approx(truth, abs=0.02 if documents > 3 else 0.08)


def test_correlation_without_events_is_the_cautious_one():
    assert s.pooled_intraclass_correlation(0.0, 0.0, 100, 1000, 5) == 1.0
    assert s.pooled_intraclass_correlation(1.0, 1.0, 100, 100, 5) == 1.0
    assert s.pooled_intraclass_correlation(1.0, 1.0, 100, 1000, 1) == 1.0


def test_resamples_keep_the_share_of_each_domain():
    strata = np.array([0, 0, 0, 1, 1])
    weights = s.bootstrap_weights(strata, 50, 0)
    assert (weights[:, :3].sum(1) == 3).all() and (weights[:, 3:].sum(1) == 2).all()
    np.testing.assert_array_equal(weights, s.bootstrap_weights(strata, 50, 0))
    assert (weights != s.bootstrap_weights(strata, 50, 1)).any()


@pytest.mark.parametrize("strata", [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 1, 1, 2], [5, 7]])
def test_a_domain_of_one_document_never_looks_certain(strata):
    weights = s.bootstrap_weights(np.array(strata), 200, 0)
    assert (weights.std(axis=0) > 0).all()
    assert (weights.sum(axis=1) == len(strata)).all()


def test_the_global_generator_is_untouched():
    state = np.random.get_state()[1].copy()
    s.bootstrap_weights(np.zeros(4, int), 10, 0)
    np.testing.assert_array_equal(state, np.random.get_state()[1])


def test_histogram_quantiles_are_within_a_bin():
    values = np.random.default_rng(0).beta(2, 5, 10_000)
    edges = np.linspace(0, 1, 201)
    counts, _ = np.histogram(values, edges)
    found = s.histogram_quantiles(counts, edges, (0.05, 0.5, 0.95))
    np.testing.assert_allclose(found, np.quantile(values, (0.05, 0.5, 0.95)), atol=1 / 200)
    assert np.isnan(s.histogram_quantiles(np.zeros(200, int), edges, (0.5,)))[0]


def test_a_resample_counts_even_when_a_rare_site_is_absent_from_it():
    values = np.array([[1.0, np.nan, 3.0], [np.nan, np.nan, np.nan], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(s.mean_over_present(values, axis=1), [2.0, np.nan, 5.0])
