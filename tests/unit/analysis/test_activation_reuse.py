"""Activation reuse end to end: contract, brute force on captured activations, nulls that
order as they must.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import ActivationBatch, LiveSource, tokenized
from sparsescope.activations.context import Context
from sparsescope.analysis.activation_reuse import ANALYSIS, ActivationReuseParams
from sparsescope.analysis.activation_reuse import compute as module
from sparsescope.analysis.activation_reuse.accumulate import ReuseAccumulator
from sparsescope.errors import SpecError, SubjectError
from sparsescope.kernels.active_sets import RULES, active_bits_reference
from sparsescope.metrics.bounds import dense_cost
from sparsescope.models.structure.dimensions import read_dimensions
from sparsescope.models.structure.sites import Site
from sparsescope.testing import check_accumulator, check_analysis, check_same_numbers

SITES = tuple(
    Site(f"blocks.{n}.mlp.hook_post", n, "mlp.hook_post", "input", "x", width)
    for n, width in enumerate((50, 70))
)
CONTEXT = 20


def make(sites=SITES, seed=0):
    return ReuseAccumulator(sites, 0.9, CONTEXT, seed, threads=1)


def stream(values, windows, documents=1, sites=SITES[:1]):
    """Batches of whole windows, one for each document: ``values`` [document, window, position, unit]."""
    for document in range(documents):
        flat = torch.as_tensor(values[document]).reshape(windows * CONTEXT, -1).float()
        positions = np.tile(np.arange(CONTEXT, dtype=np.int32), windows)
        yield ActivationBatch(
            document,
            document,
            document % 2,
            np.arange(len(flat)),
            positions,
            {site.name: flat for site in sites},
        )


def random_stream(documents=5, pieces=2):
    generator, batches = torch.Generator().manual_seed(0), []
    for document in range(documents):
        for _ in range(pieces):
            lengths = torch.randint(1, CONTEXT, (3,), generator=generator).tolist()
            positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
            values = {s.name: torch.randn(len(positions), s.width, generator=generator).relu() for s in SITES}
            batches.append(
                ActivationBatch(
                    len(batches), document, document % 2, np.arange(len(positions)), positions, values
                )
            )
    return batches


@pytest.mark.parametrize("name", ["random-llama", "random-opt"])
def test_contract(name, small_corpus):
    result = check_analysis(ANALYSIS, ss.load(name), small_corpus)
    unions = result.tables["union_density"]
    for _, rows in unions.groupby(["site", "rule"]):
        assert rows["marginal"].is_monotonic_increasing
        assert (rows["marginal"] <= rows["independent"] + 1e-12).all()
        single = rows[rows["chunk"] == 1].iloc[0]
        assert single["mean"] == pytest.approx(single["marginal"]) and single["mean"] == pytest.approx(
            single["independent"]
        )
        assert single["ratio"] == pytest.approx(1) and single["ratio_low"] == pytest.approx(1)
    shares = unions[["mean", "low", "high", "independent", "marginal"]].to_numpy()
    assert np.nanmin(shares) >= 0 and np.nanmax(shares) <= 1 + 1e-12


def test_accumulators_obey_the_laws():
    check_accumulator(make, random_stream())


def test_sums_are_those_of_the_definitions(glass):
    """Brute force over windows of real activations."""
    text = ss.corpus("python-docs", tokens=700, context=48)
    site = "blocks.1.mlp.hook_post"
    result = ss.run("activation_reuse", glass, text, sites=site)
    members, windows = [], []
    with ss.capture(glass, text, site) as source:
        for batch in source:
            starts = np.append(np.flatnonzero(batch.positions == 0), len(batch.positions))
            both = active_bits_reference(batch.values[site].numpy(), 0.9)
            windows += [both[:, a + 1 : b] for a, b in pairwise(starts)]
            members.append(both[:, batch.positions > 0])
    rates = np.concatenate(members, axis=1).mean(1)
    for index, rule in enumerate(RULES):
        tables = {
            name: frame[frame["rule"] == rule] for name, frame in result.tables.items() if "rule" in frame
        }
        for k in (1, 2, 8, 32):
            sizes = [
                w[index, i : i + k].any(0).mean() for w in windows for i in range(0, w.shape[1] - k + 1, k)
            ]
            row = tables["union_density"].query("chunk == @k").iloc[0]
            assert row["mean"] == pytest.approx(np.mean(sizes), abs=1e-12) and row["chunks"] == len(sizes)
            assert row["marginal"] == pytest.approx(np.mean(1 - (1 - rates[index]) ** k))
            assert row["independent"] == pytest.approx(1 - (1 - rates[index].mean()) ** k)
            heads = [w[index, :k].any(0).mean() for w in windows if w.shape[1] >= k]
            row = tables["aggregated"].query("tokens == @k").iloc[0]
            assert row["mean"] == pytest.approx(1 - np.mean(heads), abs=1e-12) and row["windows"] == len(
                heads
            )
        pairs = [(w[index, i], w[index, i + 1]) for w in windows for i in range(w.shape[1] - 1)]
        row = tables["neighbors"].iloc[0]
        assert row["mean"] == pytest.approx(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
        assert row["pairs"] == len(pairs)
        sparsity = tables["chunk_sparsity"].iloc[0]
        assert sparsity["token_sparsity"] == pytest.approx(1 - rates[index].mean())


def test_independent_tokens_meet_the_nulls():
    """Units that fire independently at their own rates: union, overlap and both orders agree."""
    generator = np.random.default_rng(0)
    rates = np.linspace(0.02, 0.6, 50)
    values = (generator.random((24, 8, CONTEXT, 50)) < rates) * 1.0
    accumulator = make(SITES[:1])
    for batch in stream(values, windows=8, documents=24):
        accumulator.update(batch)
    found = accumulator.finish()
    chunks = found.sums["chunks"].sum(0)
    observed = found.sums["union"].sum(0)[0, 0] / chunks / 50
    expected = [np.mean(1 - (1 - rates) ** (1 << level)) for level in range(found.levels)]
    np.testing.assert_allclose(observed, expected, atol=0.01)
    pairs = found.sums["pairs"].sum(0)[0, 0]
    neighbors, within = (found.sums[name].sum(0)[0, 0] / pairs for name in ("overlap", "within"))
    assert neighbors == pytest.approx(within, abs=0.01)


def test_tokens_that_repeat_need_no_more_units_than_one():
    """Every window repeats one token: no union grows, neighbours agree entirely, and the nulls
    see the difference.
    """
    generator = np.random.default_rng(1)
    one = (generator.random((6, 4, 1, 50)) < 0.2) * generator.random((6, 4, 1, 50))
    values = np.repeat(one, CONTEXT, axis=2)
    accumulator = make(SITES[:1])
    for batch in stream(values, windows=4, documents=6):
        accumulator.update(batch)
    found = accumulator.finish()
    union = found.sums["union"].sum(0)[0] / found.sums["chunks"].sum(0)
    np.testing.assert_allclose(union, union[:, :1] * np.ones(found.levels))
    pairs = found.sums["pairs"].sum(0)[0]
    assert pairs[0] == 6 * 4 * (CONTEXT - 2)
    np.testing.assert_allclose(found.sums["overlap"].sum(0)[0] / pairs, 1)
    within = found.sums["within"].sum(0)[0, 0] / pairs[0]
    assert 0.2 < within < 0.6  # a random pair of a document is of the same window about once in four


def test_first_tokens_and_windows_are_kept_apart():
    """A unit that fires on first tokens only is never counted; a union never reaches into the next window."""
    values = np.zeros((1, 3, CONTEXT, 50))
    values[:, :, 0, 7] = 1.0
    values[:, 0, 1:, 1] = values[:, 1, 1:, 2] = values[:, 2, 1:, 3] = 1.0
    accumulator = make(SITES[:1])
    for batch in stream(values, windows=3):
        accumulator.update(batch)
    found = accumulator.finish()
    assert found.fired[0].sum(0)[0, 7] == 0
    assert (found.sums["union"][0, 0, 0] == found.sums["chunks"][0]).all()  # one unit in every chunk


@pytest.mark.parametrize("name", ["glassllm", "random-opt"])
def test_batches_padding_and_order_of_shards_change_nothing(name):
    subject = ss.load(name)
    text = tokenized(ss.corpus("python-docs+python-source", tokens=1500, context=64), subject)
    params, context = ActivationReuseParams(resamples=100), Context.of(subject=subject, text=text)

    def accumulate(part, batch_tokens=2048, side="right"):
        accumulator = module.accumulator(params, context)
        for batch in LiveSource(
            subject, part, accumulator.sites, batch_tokens=batch_tokens, padding_side=side
        ):
            accumulator.update(batch)
        return accumulator

    whole = module.result(params, context, accumulate(text))
    numbers = [document.index for document in text.documents]
    first, second = accumulate(text.select(numbers[:5])), accumulate(text.select(numbers[5:]))
    check_same_numbers(whole, module.result(params, context, second.merge(first)), rtol=1e-9)
    # Other batches round the activations differently: a unit at the edge of a set may change sides.
    for other in (accumulate(text, 150), accumulate(text, 2048, "left")):
        found = module.result(params, context, other).tables["union_density"]
        expected = whole.tables["union_density"]
        np.testing.assert_allclose(found["mean"], expected["mean"], atol=2e-5)
        pd.testing.assert_series_equal(found["chunks"], expected["chunks"])


def test_trained_text_is_reused_more_than_independent_tokens_would(glass):
    result = ss.run("activation_reuse", glass, ss.corpus("python-docs", tokens=2000, context=64))
    rows = result.tables["union_density"].query("rule == 'in use' and chunk == 8")
    assert (rows["mean"] < rows["marginal"]).all() and (rows["marginal"] < rows["independent"]).all()
    overlap = result.tables["neighbors"].query("rule == 'in use'")
    assert (overlap["mean"] > overlap["within"]).all() and (
        overlap["within"] > overlap["across"]
    ).mean() >= 0.5
    assert (overlap["excess_low"] > 0).all()


def test_bounds_on_bytes_use_the_union(small_corpus):
    subject = ss.load("random-opt")
    result = ss.run("activation_reuse", subject, small_corpus)
    table = (
        result.tables["upper_bounds"]
        .query("rule == 'nonzero' and scheme == 'ideal predictor'")
        .set_index("together")
    )
    assert set(table["quantity"]) == {"weight bytes"} and {1, 8} <= set(table.index)
    for k, row in table.iterrows():
        unions = result.tables["union_density"].query("rule == 'nonzero' and chunk == @k")["mean"]
        assert row["density"] == pytest.approx(unions.mean()) and row["saved_mlp"] == pytest.approx(
            1 - unions.mean()
        )
        dense = dense_cost(read_dimensions(subject), attended=row["attended"], together=int(k)).total_bytes
        assert row["dense"] == pytest.approx(dense)
    assert table["saved_model"].is_monotonic_decreasing


def test_the_seed_changes_the_permuted_orders_alone(glass):
    text = ss.corpus("python-docs", tokens=900, context=64)
    a, b = (
        ss.run("activation_reuse", glass, text, seed=seed, resamples=100).tables["neighbors"]
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(a["mean"], b["mean"])
    assert not np.array_equal(a.query("rule == 'in use'")["within"], b.query("rule == 'in use'")["within"])


def test_one_document_gives_no_interval(llama):
    result = ss.run("activation_reuse", llama, ss.corpus(["some words " * 40], context=64))
    assert (
        result.tables["union_density"]["low"].isna().all()
        and result.tables["union_density"]["ratio_low"].isna().all()
    )
    assert result.scalars["token_sparsity_in_use"].interval is None
    assert any("one document" in note.message for note in result.notes)


def test_short_windows_have_no_long_chunks(llama):
    result = ss.run(
        "activation_reuse",
        llama,
        ss.corpus(["a b c d", "e f g h"], context=6, min_tokens=1, deduplicate=False),
    )
    assert result.tables["union_density"]["chunk"].max() <= 4
    assert (
        result.tables["chunk_sparsity"]["chunk_sparsity"].isna().all()
        and "chunk_sparsity_in_use" not in result.scalars
    )
    for view in ANALYSIS.views:
        assert ANALYSIS.draw(view.name, result).layout.title.text


def test_what_cannot_be_measured_is_refused(llama):
    with pytest.raises(SubjectError, match="no token after the first"):
        ss.run("activation_reuse", llama, ss.corpus("python-docs", tokens=1, context=8, min_tokens=1))
    batches = random_stream(3)
    accumulator, other = make(), make()
    accumulator.update(batches[0])
    other.update(batches[1])
    with pytest.raises(SpecError, match="same document"):
        accumulator.merge(other)
    with pytest.raises(SpecError, match="different measures"):
        accumulator.merge(make(seed=1))
    with pytest.raises(SpecError, match="came twice"):
        for batch in (batches[2], batches[0]):
            accumulator.update(batch)
