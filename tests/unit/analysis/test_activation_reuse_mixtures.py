"""Activation reuse of mixtures: hidden units of all experts of a layer on the tokens sent to them, and
experts as units; by brute force, and against nulls and planted routings.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import ActivationBatch, LiveSource, tokenized
from sparsescope.activations.context import Context
from sparsescope.analysis.activation_reuse import ANALYSIS, ActivationReuseParams
from sparsescope.analysis.activation_reuse import compute as module
from sparsescope.analysis.activation_reuse.accumulate import MixtureReuse
from sparsescope.analysis.activation_reuse.statements import statements
from sparsescope.errors import SubjectError
from sparsescope.kernels.active_sets import active_bits_reference
from sparsescope.metrics.bounds import dense_cost
from sparsescope.models.structure.dimensions import read_dimensions
from sparsescope.models.structure.sites import Site
from sparsescope.testing import check_accumulator, check_analysis, check_same_numbers

EXPERTS, WIDTH, CONTEXT = 6, 70, 20
SITES = tuple(
    Site(
        f"blocks.{layer}.mlp.experts.{n}.hook_post",
        layer,
        "mlp.experts.hook_post",
        "experts",
        "x",
        WIDTH,
        expert=n,
    )
    for layer in range(2)
    for n in range(EXPERTS)
)


def make(sites=SITES):
    return MixtureReuse(sites, 0.9, CONTEXT, 0, threads=1)


def batch_of(index, document, positions, values, chosen, sites=SITES):
    """A batch in which each token has units ``values`` [layer, token, expert, unit] of the experts ``chosen``
    for it, bool [layer, token, expert].
    """
    held, rows = {}, {}
    for site in sites:
        rows[site.name] = np.flatnonzero(chosen[site.layer][:, site.expert])
        held[site.name] = torch.as_tensor(values[site.layer, rows[site.name], site.expert]).float()
    return ActivationBatch(index, document, document % 2, np.arange(len(positions)), positions, held, rows)


def random_stream(documents=5, pieces=2):
    generator = np.random.default_rng(0)
    batches = []
    for document in range(documents):
        for _ in range(pieces):
            lengths = generator.integers(1, CONTEXT, 3)
            positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
            shape = (2, len(positions), EXPERTS)
            values = np.maximum(generator.standard_normal((*shape, WIDTH)), 0)
            chosen = generator.random(shape).argsort(-1) < 2
            batches.append(batch_of(len(batches), document, positions, values, chosen))
    return batches


def layer_sets(subject, text, sites, layer):
    """For each window bool [rule, token, E f] of a layer, and bool [token, E], after its first token."""
    windows, experts = [], []
    mine = [site for site in sites if site.layer == layer and site.expert is not None]
    with ss.capture(subject, text, [site.name for site in mine]) as source:
        for batch in source:
            n = len(batch.positions)
            both, sent = np.zeros((2, n, len(mine), mine[0].width), bool), np.zeros((n, len(mine)), bool)
            for e, site in enumerate(mine):
                at = batch.rows[site.name]
                both[:, at, e] = active_bits_reference(batch.values[site.name].numpy(), 0.9)
                sent[at, e] = True
            starts = np.append(np.flatnonzero(batch.positions == 0), n)
            windows += [both[:, a + 1 : b].reshape(2, b - a - 1, -1) for a, b in pairwise(starts)]
            experts += [sent[a + 1 : b][None] for a, b in pairwise(starts)]
    return windows, experts


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral", "random-qwen2moe"])
def test_contract(name, small_corpus):
    subject = ss.load(name)
    result = check_analysis(ANALYSIS, subject, small_corpus)
    unions = result.tables["union_density"]
    roles = set(unions["site"].str.replace(r"^blocks\.\d+\.", "", regex=True))
    expected = {"mlp.experts.hook_post", "mlp.hook_expert_indices"}
    shared = {"mlp.hook_post", "mlp.shared_expert.hook_post"} if name == "random-qwen2moe" else set()
    assert roles == expected | shared
    assert (unions["marginal"] <= unions["independent"] + 1e-12).all()
    single = unions[unions["chunk"] == 1]
    np.testing.assert_allclose(single["mean"], single["marginal"], rtol=1e-12)
    assert any("hidden units of all its experts" in note.message for note in result.notes)
    said = [statement.text for statement in statements(result)]
    assert any("times as many experts as independent tokens" in text for text in said)


def test_accumulators_obey_the_laws():
    check_accumulator(make, random_stream())


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral"])
def test_sums_are_those_of_the_definitions(name):
    """Brute force over windows: units of experts that a token was not sent to are not active."""
    subject, text = ss.load(name), ss.corpus("python-docs", tokens=500, context=48)
    result = ss.run("activation_reuse", subject, text)
    sites = subject.hidden_sites()
    for layer in range(subject.n_layers):
        units, experts = layer_sets(subject, text, sites, layer)
        for rule, index, windows, role in (
            ("nonzero", 0, units, "mlp.experts.hook_post"),
            ("in use", 1, units, "mlp.experts.hook_post"),
            ("routed", 0, experts, "mlp.hook_expert_indices"),
        ):
            site = f"blocks.{layer}.{role}"
            tables = {
                table: frame[(frame["rule"] == rule) & (frame["site"] == site)]
                for table, frame in result.tables.items()
                if {"rule", "site"} <= set(frame.columns)
            }
            rates = np.concatenate([w[index] for w in windows]).mean(0)
            for k in (1, 2, 8, 32):
                sizes = [
                    w[index, i : i + k].any(0).mean()
                    for w in windows
                    for i in range(0, w.shape[1] - k + 1, k)
                ]
                row = tables["union_density"].query("chunk == @k").iloc[0]
                assert row["mean"] == pytest.approx(np.mean(sizes), abs=1e-12) and row["chunks"] == len(sizes)
                assert row["marginal"] == pytest.approx(np.mean(1 - (1 - rates) ** k))
                assert row["independent"] == pytest.approx(1 - (1 - rates.mean()) ** k)
                heads = [w[index, :k].any(0).mean() for w in windows if w.shape[1] >= k]
                row = tables["aggregated"].query("tokens == @k").iloc[0]
                assert row["mean"] == pytest.approx(1 - np.mean(heads), abs=1e-12)
            pairs = [(w[index, i], w[index, i + 1]) for w in windows for i in range(w.shape[1] - 1)]
            row = tables["neighbors"].iloc[0]
            assert row["mean"] == pytest.approx(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
            row = tables["concentration"].iloc[0]
            assert row["units"] == len(rates) and row["tokens"] == sum(w.shape[1] for w in windows)
            ordered = np.sort(rates)
            n = len(rates)
            gini = ((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum())
            assert row["gini"] == pytest.approx(gini)
        load = result.tables["load"].query("layer == @layer")
        sent = np.concatenate([w[0] for w in experts])
        np.testing.assert_array_equal(load["routed"], sent.sum(0))
        np.testing.assert_allclose(load["share"], sent.mean(0))
        assert load["share"].sum() == pytest.approx(read_dimensions(subject).layers[layer].routed)


def test_the_density_of_a_token_is_that_of_its_experts(small_corpus):
    """Of SwiGLU experts all units are nonzero; the rest is the density of experts, weighted by their load."""
    subject = ss.load("random-olmoe")
    reuse = ss.run("activation_reuse", subject, small_corpus).tables
    sparsity = ss.run("activation_sparsity", subject, small_corpus, shares=[0.9]).tables
    single = reuse["union_density"].query("chunk == 1").set_index(["layer", "rule"])["mean"]
    dense = sparsity["per_layer"].query("metric == 'density_energy_90'")
    for layer in range(2):
        rows = dense[dense["layer"] == layer].fillna(0)
        tokens = int(reuse["load"]["tokens"].max())
        expected = (rows["mean"] * rows["tokens"]).sum() / (8 * tokens)
        assert single[layer, "in use"] == pytest.approx(expected, rel=1e-9)
        assert single[layer, "nonzero"] == pytest.approx(2 / 8) == single[layer, "routed"]
    both = reuse["neighbors"].set_index(["rule", "layer"])
    columns = ["mean", "within", "across", "pairs"]
    np.testing.assert_allclose(both.loc["nonzero", columns], both.loc["routed", columns], rtol=1e-12)


def test_bounds_are_of_the_experts_that_a_chunk_reaches(small_corpus):
    subject = ss.load("random-mixtral")
    result = ss.run("activation_reuse", subject, small_corpus, resamples=100)
    found = result.tables["upper_bounds"].query("rule == 'energy 90 %' and scheme == 'ideal predictor'")
    found = found.set_index("together")
    other = ss.run("activation_sparsity", subject, small_corpus, shares=[0.9], resamples=100)
    same = other.tables["upper_bounds"].query(
        "rule == 'energy 90 %' and scheme == 'ideal predictor' and quantity == 'weight bytes'"
    )
    for column in ("density", "dense", "saved_mlp", "saved_model", "low", "high"):
        assert found.loc[1, column] == pytest.approx(same[column].iloc[0], rel=1e-9)
    densities = []
    for layer in range(subject.n_layers):
        units, experts = layer_sets(subject, small_corpus, subject.hidden_sites(), layer)
        chunks = [(w, e, i) for w, e in zip(units, experts, strict=True) for i in range(0, w.shape[1] - 7, 8)]
        active = sum(w[1, i : i + 8].any(0).sum() for w, _, i in chunks)
        reached = sum(e[0, i : i + 8].any(0).sum() * 96 for _, e, i in chunks)
        densities.append(active / reached)
    assert found.loc[8, "density"] == pytest.approx(np.mean(densities))
    dense = dense_cost(read_dimensions(subject), attended=found.loc[8, "attended"], together=8)
    assert found.loc[8, "dense"] == pytest.approx(dense.total_bytes)
    assert found.loc[8, "saved_mlp"] == pytest.approx(1 - np.mean(densities))


def test_independent_routing_meets_the_nulls():
    """Tokens that choose experts independently: unions and overlaps of units and of experts are those of
    chance, though units of one expert go together.
    """
    generator, experts, unit_rate = np.random.default_rng(0), 2, 0.3
    accumulator = make()
    skew = np.array([3.0, 1, 1, 1, 0.5, 0.2])
    positions = np.tile(np.arange(CONTEXT, dtype=np.int32), 8)
    for document in range(24):
        shape = (2, len(positions), EXPERTS)
        chosen = (-np.log(generator.random(shape)) / skew).argsort(-1).argsort(-1) < experts
        values = (generator.random((*shape, WIDTH)) < unit_rate) * 1.0
        accumulator.update(batch_of(document, document, positions, values, chosen))
    found = accumulator.finish()
    for part in (found.units, found.experts):
        rates = part.fired[0].sum(0)[0] / part.fold_tokens.sum()
        chunks = part.sums["chunks"].sum(0)
        observed = part.sums["union"].sum(0)[0, 0] / chunks / len(rates)
        expected = [np.mean(1 - (1 - rates) ** (1 << level)) for level in range(part.levels)]
        np.testing.assert_allclose(observed, expected, atol=0.01)
        pairs = part.sums["pairs"].sum(0)[0, 0]
        neighbors, within = (part.sums[name].sum(0)[0, 0] / pairs for name in ("overlap", "within"))
        assert neighbors == pytest.approx(within, abs=0.015)
    load = found.experts.fired[0].sum(0)[0] / found.experts.fold_tokens.sum()
    assert load.sum() == pytest.approx(experts) and load[0] > 2 * load[-2]


def test_windows_that_keep_to_their_experts_are_seen():
    """Each window goes to two experts, whose units fire at random: experts are reused entirely, units only as
    far as they share an expert.
    """
    generator = np.random.default_rng(1)
    accumulator = make()
    positions = np.tile(np.arange(CONTEXT, dtype=np.int32), 4)
    for document in range(6):
        of_window = generator.random((2, 4, 1, EXPERTS)).argsort(-1) < 2
        chosen = np.broadcast_to(of_window, (2, 4, CONTEXT, EXPERTS)).reshape(2, -1, EXPERTS)
        values = (generator.random((2, len(positions), EXPERTS, WIDTH)) < 0.5) * 1.0
        accumulator.update(batch_of(document, document, positions, values, chosen))
    found = accumulator.finish()
    experts, units = found.experts, found.units
    pairs = experts.sums["pairs"].sum(0)[:, 0]
    np.testing.assert_allclose(experts.sums["overlap"].sum(0)[:, 0] / pairs, 1)
    union = experts.sums["union"].sum(0)[:, 0] / experts.sums["chunks"].sum(0)
    np.testing.assert_array_equal(union, 2)
    overlap = units.sums["overlap"].sum(0)[:, 0] / units.sums["pairs"].sum(0)[:, 0]
    np.testing.assert_allclose(overlap, 1 / 3, atol=0.02)  # of two coins: both / either
    sixteen = units.sums["union"].sum(0)[:, 0, 4] / units.sums["chunks"].sum(0)[4]
    np.testing.assert_allclose(sixteen, 2 * WIDTH, atol=0.1)
    assert (experts.sums["within"].sum(0)[:, 0] / pairs < 0.9).all()


@pytest.mark.parametrize("name", ["random-olmoe", "random-qwen2moe"])
def test_batches_padding_and_order_of_shards_change_nothing(name):
    subject = ss.load(name)
    text = tokenized(ss.corpus("python-docs+python-source", tokens=900, context=64), subject)
    params, context = ActivationReuseParams(resamples=100), Context.of(subject=subject, text=text)

    def accumulate(part, batch_tokens=2048, side="right"):
        accumulator = module.accumulator(params, context)
        source = LiveSource(subject, part, accumulator.sites, batch_tokens=batch_tokens, padding_side=side)
        for batch in source:
            accumulator.update(batch)
        return accumulator

    whole = module.result(params, context, accumulate(text))
    numbers = [document.index for document in text.documents]
    half = len(numbers) // 2
    first, second = accumulate(text.select(numbers[:half])), accumulate(text.select(numbers[half:]))
    check_same_numbers(whole, module.result(params, context, second.merge(first)), rtol=1e-9)
    for other in (accumulate(text, 150), accumulate(text, 2048, "left")):
        found = module.result(params, context, other).tables["union_density"]
        np.testing.assert_allclose(found["mean"], whole.tables["union_density"]["mean"], atol=5e-4)


def test_all_experts_of_a_layer_or_none(small_corpus):
    subject = ss.load("random-olmoe")
    with pytest.raises(SubjectError, match="all experts of a layer"):
        ss.run("activation_reuse", subject, small_corpus, sites="blocks.0.mlp.experts.3.hook_post")
    result = ss.run("activation_reuse", subject, small_corpus, sites="blocks.1.mlp.experts.hook_post")
    assert set(result.tables["union_density"]["layer"]) == {1} == set(result.tables["load"]["layer"])
    assert set(result.tables["upper_bounds"]["layers"]) == {1}
    result = ss.run(
        "activation_reuse", ss.load("random-qwen2moe"), small_corpus, sites="blocks.0.mlp.hook_post"
    )
    assert "load" not in result.tables and set(result.tables["union_density"]["rule"]) == {
        "nonzero",
        "in use",
    }
