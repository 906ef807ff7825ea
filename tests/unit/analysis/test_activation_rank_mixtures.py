"""Activation rank of experts on the tokens routed to them: brute force, samples, experts without tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import ActivationBatch, LiveSource, tokenized
from sparsescope.activations.context import Context
from sparsescope.activations.samples import ActivationSample, token_keys
from sparsescope.analysis.activation_rank import ANALYSIS, ActivationRankParams
from sparsescope.analysis.activation_rank import compute as module
from sparsescope.metrics import rank as r
from sparsescope.models.structure.sites import Site
from sparsescope.testing import check_accumulator, check_analysis, check_same_numbers

DENSE = Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", "input", "x", 30)
EXPERTS = tuple(
    Site(f"blocks.1.mlp.experts.{n}.hook_post", 1, "mlp.experts.hook_post", "experts", "x", 20, expert=n)
    for n in range(3)
)


def stream(documents=6, tokens=25):
    """Tokens of which number n goes to expert n % 3; the first unit of each is the number of the token."""
    generator = torch.Generator().manual_seed(0)
    for document in range(documents):
        for piece in range(2):
            positions = np.arange(tokens, dtype=np.int32)
            values = {DENSE.name: torch.randn(tokens, 30, generator=generator)}
            rows = {}
            for site in EXPERTS:
                rows[site.name] = np.arange(site.expert, tokens, 3)
                values[site.name] = torch.randn(len(rows[site.name]), 20, generator=generator)
                values[site.name][:, 0] = torch.from_numpy(rows[site.name] + 1000 * (2 * document + piece))
            yield ActivationBatch(
                2 * document + piece, document, document % 2, np.arange(tokens), positions, values, rows
            )


def routed(subject, text, site):
    """What an expert computes on its tokens after the first of each window, float64 [token, unit]."""
    with ss.capture(subject, text, site) as source:
        parts = [batch.values[site].numpy()[batch.positions[batch.rows[site]] > 0] for batch in source]
    return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral", "random-qwen2moe"])
def test_contract(name, small_corpus):
    subject = ss.load(name)
    result = check_analysis(ANALYSIS, subject, small_corpus)
    table = result.tables["ranks"].dropna(subset=["mean"])
    assert set(result.tables["ranks"]["site"]) == {site.name for site in subject.hidden_sites()}
    assert (table["mean"] >= 1).all() and (table["mean"] <= table["largest"] + 1e-9).all()
    assert any("tokens routed to it" in note.message for note in result.notes)


def test_accumulators_obey_the_laws():
    check_accumulator(lambda: ActivationSample((DENSE, *EXPERTS), 40, 0), list(stream()))


def test_each_expert_samples_its_own_tokens():
    """Those of the smallest keys among the tokens routed to it, first ones of windows left out."""
    accumulator = ActivationSample((DENSE, *EXPERTS), 40, 7)
    for batch in stream():
        accumulator.update(batch)
    dense = accumulator.finish()
    keys = {
        1000 * (2 * document + piece) + token: int(token_keys(7, document, 25 * piece + token, 1)[0])
        for document in range(6)
        for piece in range(2)
        for token in range(1, 25)
    }
    for site in EXPERTS:
        mine = sorted((key, n) for n, key in keys.items() if n % 1000 % 3 == site.expert)
        sample = accumulator.of(site)
        assert len(sample) == 40 and sample.parts[site.name][:, 0].tolist() == [n for _, n in mine[:40]]
    assert accumulator.of(DENSE) is dense and sorted(keys.values())[:40] == dense.keys.tolist()


@pytest.mark.parametrize("name", ["random-olmoe", "random-mixtral"])
def test_ranks_are_those_of_the_routed_tokens(name):
    """With room for all tokens, each expert agrees with a plain decomposition of those routed to it."""
    subject, text = ss.load(name), ss.corpus("python-docs", tokens=500, context=64)
    result = ss.run("activation_rank", subject, text, sample_tokens=16_384)
    table, whole = result.tables["ranks"], []
    for site in subject.hidden_sites():
        x = routed(subject, text, site.name)
        row = table[table["site"] == site.name].set_index("metric").loc[list(r.MEASURES)]
        assert (row["tokens"] == len(x)).all() and (row["largest"] == min(len(x) - 1, site.width)).all()
        expected = r.effective_ranks(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)
        np.testing.assert_allclose(row["mean"], expected, rtol=1e-6)
        np.testing.assert_allclose(row["reference"], r.independent_ranks(len(x) - 1, site.width))
        np.testing.assert_allclose(row["ratio"], row["mean"] / row["reference"])
        whole.append(expected)
        held = result.tables["spectrum"].query("site == @site.name")
        energies = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
        np.testing.assert_allclose(
            held["energy"], (energies.cumsum() / energies.sum())[held["components"] - 1]
        )
    means = [result.scalars[f"mean_{metric}"].value for metric in r.MEASURES]
    np.testing.assert_allclose(means, np.mean(whole, axis=0), rtol=1e-6)


def test_intervals_leave_out_the_folds_that_an_expert_has_tokens_of():
    from sparsescope.metrics.jackknife import fold_of, jackknife_interval

    subject = ss.load("random-olmoe")
    text = ss.corpus("python-docs", tokens=400, context=32, max_document_tokens=40)
    result = ss.run("activation_rank", subject, text, sample_tokens=16_384)
    site = "blocks.0.mlp.experts.1.hook_post"
    with ss.capture(subject, text, site) as source:
        documents = [
            np.full(int((batch.positions[batch.rows[site]] > 0).sum()), batch.document) for batch in source
        ]
    folds = np.array([fold_of(int(document), 5) for document in np.concatenate(documents)])
    whole, replicates, _ = r.ranks_and_folds(routed(subject, text, site).astype(np.float32), folds)
    low, high = jackknife_interval(whole, replicates, 0.95)
    row = result.tables["ranks"].query("site == @site").set_index("metric").loc[list(r.MEASURES)]
    np.testing.assert_allclose(row["low"], np.maximum(low, 1), rtol=1e-6)
    np.testing.assert_allclose(row["high"], high, rtol=1e-6)
    assert (row["documents"] == len(np.unique(np.concatenate(documents)))).all()


def test_experts_with_too_few_tokens_have_no_rank():
    subject = ss.load("random-olmoe")
    text = ss.corpus(["one two three four"] * 2, tokens=40, context=16, min_tokens=1, deduplicate=False)
    result = ss.run("activation_rank", subject, text)
    table = result.tables["ranks"]
    few, enough = table[table["tokens"] < 3], table[table["tokens"] >= 3]
    assert len(few) and len(enough), "the test shows nothing"
    assert (
        few[["mean", "low", "high", "reference", "ratio"]].isna().all().all() and (few["largest"] >= 0).all()
    )
    assert enough["mean"].notna().all()
    experts, silent = table["site"].nunique(), few["site"].nunique()
    assert any(f"{silent} of {experts} experts got fewer than 3" in note.message for note in result.notes)
    expected = enough.groupby("metric")["mean"].mean()
    for metric in r.MEASURES:
        assert result.scalars[f"mean_{metric}"].value == pytest.approx(expected[metric])
        assert f"mean over {experts - silent} sites" in result.scalars[f"mean_{metric}"].definition
    assert set(result.tables["spectrum"]["site"]) == set(enough["site"])
    for view in ANALYSIS.views:
        assert "expert" in ANALYSIS.draw(view.name, result).layout.title.text


def test_shards_and_batches_give_the_same_samples():
    subject = ss.load("random-qwen2moe")
    text = tokenized(ss.corpus("python-docs+python-source", tokens=900, context=64), subject)
    params, context = ActivationRankParams(sample_tokens=50), Context.of(subject=subject, text=text)

    def accumulate(part, **options):
        accumulator = module.accumulator(params, context)
        for batch in LiveSource(subject, part, accumulator.sites, **options):
            accumulator.update(batch)
        return accumulator

    whole = module.result(params, context, accumulate(text))
    numbers = [document.index for document in text.documents]
    half = len(numbers) // 2
    merged = accumulate(text.select(numbers[half:])).merge(accumulate(text.select(numbers[:half])))
    check_same_numbers(whole, module.result(params, context, merged), rtol=1e-9)
    for options in ({"batch_tokens": 150}, {"padding_side": "left"}):
        other = module.result(params, context, accumulate(text, **options))
        np.testing.assert_allclose(other.tables["ranks"]["mean"], whole.tables["ranks"]["mean"], rtol=1e-4)
