"""The sparsity accumulator: laws of merging, exact resumption, the statistics it claims."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsescope.activations.accumulators import MAX_CLUSTERS
from sparsescope.activations.capture import ActivationBatch
from sparsescope.activations.sparsity_accumulator import SHAPE_BINS, SparsityAccumulator, position_bins
from sparsescope.errors import SpecError
from sparsescope.metrics import sparsity as m
from sparsescope.metrics.jackknife import FOLDS, fold_of
from sparsescope.models.structure.sites import Site
from sparsescope.testing import check_accumulator

SITES = (
    Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", "input", "x", 50),
    Site("blocks.1.mlp.experts.0.hook_post", 1, "mlp.experts.hook_post", "experts", "y", 20, expert=0),
)


def make():
    return SparsityAccumulator(SITES, (0.5, 0.9), 0.9, context=32, threads=1)


def stream(documents=5, pieces=2, seed=0):
    generator, batches = torch.Generator().manual_seed(seed), []
    for document in range(documents):
        for _ in range(pieces):
            n = int(torch.randint(3, 30, (1,), generator=generator))
            routed = torch.nonzero(torch.rand(n, generator=generator) < 0.4).reshape(-1)
            values = {
                SITES[0].name: torch.randn(n, 50, generator=generator).relu(),
                SITES[1].name: torch.randn(len(routed), 20, generator=generator),
            }
            rows = {SITES[1].name: routed.numpy()}
            ids, positions = np.arange(n), np.arange(n, dtype=np.int32)
            batches.append(
                ActivationBatch(len(batches), document, document % 2, ids, positions, values, rows)
            )
    return batches


def test_merging_and_resuming_follow_the_laws():
    check_accumulator(make, stream())


def test_sums_are_those_of_the_definitions():
    batches = stream()
    accumulator = make()
    for batch in batches:
        accumulator.update(batch)
    found = accumulator.finish()[SITES[0].name]
    x = torch.cat([batch.values[SITES[0].name] for batch in batches]).numpy()
    position = np.concatenate([batch.positions for batch in batches])
    later = position > 0
    tokens = found.counts[..., 0].sum(0)
    assert tokens[0] == (~later).sum() and tokens[1:].sum() == later.sum()
    sums = found.sums.sum(0)
    expected = [
        m.density(x),
        m.top_p_density(x, 0.5),
        m.top_p_density(x, 0.9),
        m.top_p_density(x, 0.5, 2),
        m.top_p_density(x, 0.9, 2),
        m.hoyer(x),
        m.gini(x),
        m.participation_ratio(x),
        m.participation_ratio(x, 4),
        m.entropy_number(x),
        m.kurtosis(x),
        m.treves_rolls(x),
    ]
    # The entropy goes through a float32 logarithm
    exact = np.where(np.arange(len(expected)) == 9, 3e-7, 1e-9)
    for got, rows in ((sums[0], ~later), (sums[1:].sum(0), later)):
        wanted = np.array([e[rows].sum() for e in expected])
        assert (np.abs(got - wanted) <= exact * wanted).all()
    np.testing.assert_array_equal(found.fired[0], np.count_nonzero(x[later], axis=0))
    np.testing.assert_allclose(found.magnitude.sum(0), np.abs(x[later]).sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.energy.sum(0), (x[later].astype(np.float64) ** 2).sum(0), rtol=1e-6)
    lifetime = m.treves_rolls_from_sums(found.magnitude.sum(0), found.energy.sum(0), found.fold_tokens.sum())
    np.testing.assert_allclose(lifetime, m.treves_rolls(x[later].T), rtol=1e-9)
    histogram = found.shape_histogram[5]  # kurtosis, over ln k / ln n
    assert histogram.sum() == later.sum()
    middle = 50 ** ((np.searchsorted(np.cumsum(histogram), later.sum() / 2) + 0.5) / SHAPE_BINS)
    assert middle == pytest.approx(np.median(m.kurtosis(x[later])), rel=0.02)
    counts = np.bincount(np.count_nonzero(x[later], axis=1), minlength=51)
    np.testing.assert_array_equal(found.set_histogram[0], counts)
    documents = np.concatenate([np.full(len(batch.positions), batch.document) for batch in batches])
    per_document = np.stack([np.count_nonzero(x[later & (documents == d)], axis=0) for d in range(5)])
    lengths = np.array([(later & (documents == d)).sum() for d in range(5)])
    np.testing.assert_array_equal(found.fired_squared[0], (per_document**2).sum(0))
    np.testing.assert_array_equal(found.fired_by_length[0], (per_document * lengths[:, None]).sum(0))
    np.testing.assert_array_equal(found.fired_documents[0], (per_document > 0).sum(0))
    assert found.lengths.tolist() == [5, lengths.sum(), (lengths**2).sum()]


def test_folds_hold_whole_documents():
    accumulator, batches = make(), stream(12)
    for batch in batches:
        accumulator.update(batch)
    found = accumulator.finish()[SITES[0].name]
    for fold in range(FOLDS):
        rows = [b.values[SITES[0].name][b.positions > 0] for b in batches if fold_of(b.document) == fold]
        assert found.fold_tokens[fold] == sum(map(len, rows))
        if rows:
            np.testing.assert_allclose(
                found.magnitude[fold], torch.cat(rows).double().sum(0).numpy(), rtol=1e-9, atol=1e-12
            )


def test_a_unit_that_fires_on_first_tokens_only_leaves_no_rounding_behind():
    accumulator = make()
    values = {SITES[0].name: torch.rand(9, 50), SITES[1].name: torch.empty(0, 20)}
    values[SITES[0].name][:, 7] = torch.tensor([0.1] + [0.0] * 8)
    rows = {SITES[1].name: np.empty(0, np.int64)}
    accumulator.update(ActivationBatch(0, 0, 0, np.arange(9), np.arange(9, dtype=np.int32), values, rows))
    found = accumulator.finish()[SITES[0].name]
    assert found.magnitude[:, 7].sum() == 0 and found.energy[:, 7].sum() == 0


def test_experts_count_only_what_was_routed_to_them():
    batches = stream()
    accumulator = make()
    for batch in batches:
        accumulator.update(batch)
    found = accumulator.finish()[SITES[1].name]
    assert found.counts[..., 0].sum() == sum(len(batch.rows[SITES[1].name]) for batch in batches)
    # A token routed from position 0 is a first token for the expert, too.
    assert found.counts[:, 0, 0].sum() == sum(0 in batch.rows[SITES[1].name] for batch in batches)


def test_a_document_in_two_places_is_refused():
    batches = stream(3)
    accumulator = make()
    with pytest.raises(SpecError, match="came twice"):
        for batch in [*batches, batches[0]]:
            accumulator.update(batch)
    a, b = make(), make()
    a.update(batches[0])
    b.update(batches[1])  # the same document
    with pytest.raises(SpecError, match="same document"):
        a.merge(b)


def test_different_measures_do_not_merge():
    with pytest.raises(SpecError, match="different measures"):
        make().merge(SparsityAccumulator(SITES, (0.5,), 0.9, context=32))


def test_memory_does_not_grow_with_documents_without_end():
    accumulator = SparsityAccumulator(SITES[:1], (0.5,), 0.9, context=4, threads=1)
    values = {SITES[0].name: torch.ones(2, 50)}
    for document in range(MAX_CLUSTERS + 50):
        accumulator.update(
            ActivationBatch(document, document, 0, np.arange(2), np.arange(2, dtype=np.int32), values)
        )
    found = accumulator.finish()[SITES[0].name]
    assert len(found.sums) == MAX_CLUSTERS
    assert found.lengths.tolist() == [MAX_CLUSTERS + 50, MAX_CLUSTERS + 50, MAX_CLUSTERS + 50]


@pytest.mark.parametrize("context", [2, 3, 6, 64, 100])
def test_position_bins_cover_every_position_once(context):
    covered = [p for first, last in position_bins(context) for p in range(first, last + 1)]
    assert covered == list(range(context))
