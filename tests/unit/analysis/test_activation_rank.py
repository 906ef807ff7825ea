"""Activation rank end to end: contract, brute force, planted ranks, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.activations.capture import ActivationBatch, LiveSource, tokenized
from sparsescope.activations.context import Context
from sparsescope.activations.samples import ActivationSample
from sparsescope.analysis.activation_rank import ANALYSIS, ActivationRankParams
from sparsescope.analysis.activation_rank import compute as module
from sparsescope.errors import SpecError, SubjectError
from sparsescope.metrics import rank as r
from sparsescope.models.structure.sites import Site
from sparsescope.testing import check_accumulator, check_analysis, check_same_numbers

SITE = Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", "input", "x", 30)


def stream(documents=6, tokens=25):
    generator = torch.Generator().manual_seed(0)
    for document in range(documents):
        for piece in range(2):
            positions = np.arange(tokens, dtype=np.int32)
            values = {SITE.name: torch.randn(tokens, 30, generator=generator)}
            yield ActivationBatch(
                2 * document + piece, document, document % 2, positions.astype(np.int64), positions, values
            )


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2"])
def test_contract(name, small_corpus):
    result = check_analysis(ANALYSIS, ss.load(name), small_corpus)
    table = result.tables["ranks"]
    assert (table["mean"] >= 1).all() and (table["mean"] <= table["largest"] + 1e-9).all()
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    wide = table.pivot(index="site", columns="metric", values="mean")
    assert (wide["stable_rank"] <= wide["participation"] + 1e-9).all()
    assert (wide["participation"] <= wide["entropy_rank"] + 1e-9).all()
    for _, rows in result.tables["spectrum"].groupby("site"):
        assert rows["energy"].is_monotonic_increasing and rows["energy"].iloc[-1] == pytest.approx(1)


def test_accumulators_obey_the_laws():
    check_accumulator(lambda: ActivationSample((SITE,), 60, 0), list(stream()))


@pytest.mark.parametrize("sample", [64, 16_384])
def test_ranks_are_those_of_the_captured_tokens(glass, sample):
    """With a sample of all tokens, both orders of the matrix (more tokens, more units) agree with
    a plain decomposition.
    """
    text, site = ss.corpus("python-docs", tokens=500, context=64), "blocks.1.mlp.hook_post"
    result = ss.run("activation_rank", glass, text, sites=site, sample_tokens=sample)
    with ss.capture(glass, text, site) as source:
        x = np.concatenate([batch.values[site].numpy()[batch.positions > 0] for batch in source]).astype(
            np.float64
        )
    row = result.tables["ranks"].set_index("metric")
    if sample > len(x):
        expected = r.effective_ranks(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)
        np.testing.assert_allclose(row.loc[list(r.MEASURES), "mean"], expected, rtol=1e-6)
    assert (row["tokens"] == min(sample, len(x))).all() and (
        row["largest"] == min(sample - 1, 341, len(x) - 1)
    ).all()
    np.testing.assert_allclose(
        row.loc[list(r.MEASURES), "reference"], r.independent_ranks(min(sample, len(x)) - 1, 341)
    )


def test_planted_directions_are_found():
    """Tokens in a plane of three directions, far from the origin, and independent entries, which
    meet the reference.
    """
    generator = np.random.default_rng(0)
    plane = 50 + generator.standard_normal((400, 3)) @ np.linalg.qr(generator.standard_normal((200, 3)))[0].T
    folds = np.arange(400) % 5
    whole, replicates, _ = r.ranks_and_folds(plane.astype(np.float32), folds)
    np.testing.assert_allclose(whole[1:], 3, rtol=0.2)
    assert replicates.shape == (5, 3)
    for shape in ((400, 200), (200, 400)):
        noise = generator.standard_normal(shape).astype(np.float32)
        whole, replicates, _ = r.ranks_and_folds(noise, np.arange(shape[0]) % 5)
        np.testing.assert_allclose(whole, r.independent_ranks(shape[0] - 1, shape[1]), rtol=0.05)
        # Brought to the size of the whole
        np.testing.assert_allclose(replicates, np.tile(whole, (5, 1)), rtol=0.08)


def test_folds_of_unequal_size_are_not_taken_for_uncertainty():
    """A rank grows with the number of tokens; leaving out a large fold must not look like a smaller rank."""
    noise = np.random.default_rng(1).standard_normal((300, 500)).astype(np.float32)
    folds = np.repeat(np.arange(5), [20, 30, 50, 80, 120])
    whole, replicates, _ = r.ranks_and_folds(noise, folds)
    assert np.ptp(replicates[:, 0]) < 0.02 * whole[0]


def test_shards_and_batches_give_the_same_sample(glass):
    text = tokenized(ss.corpus("python-docs+python-source", tokens=1500, context=64), glass)
    params, context = ActivationRankParams(sample_tokens=100), Context.of(subject=glass, text=text)

    def accumulate(part, **options):
        accumulator = module.accumulator(params, context)
        for batch in LiveSource(glass, part, accumulator.sites, **options):
            accumulator.update(batch)
        return accumulator

    whole = module.result(params, context, accumulate(text))
    numbers = [document.index for document in text.documents]
    merged = accumulate(text.select(numbers[4:])).merge(accumulate(text.select(numbers[:4])))
    check_same_numbers(whole, module.result(params, context, merged), rtol=1e-9)
    for options in ({"batch_tokens": 150}, {"padding_side": "left"}):
        other = module.result(params, context, accumulate(text, **options))
        np.testing.assert_allclose(other.tables["ranks"]["mean"], whole.tables["ranks"]["mean"], rtol=1e-4)


def test_the_seed_draws_another_sample(glass):
    text = ss.corpus("python-docs", tokens=900, context=64)
    a, b = (
        ss.run("activation_rank", glass, text, sample_tokens=100, seed=seed).tables["ranks"]
        for seed in (0, 1)
    )
    assert not np.allclose(a["mean"], b["mean"])


def test_sites_are_thinned_to_the_memory_and_a_note_says_so(small_corpus):
    subject = ss.load("random-opt")  # 4 sites x 512 units
    result = ss.run("activation_rank", subject, small_corpus, sample_tokens=256, memory=1)
    assert sorted(result.tables["ranks"]["layer"].unique()) == [0, 3]
    assert any("2 of 4 sites" in note.message for note in result.notes)
    with pytest.raises(SubjectError, match="larger than the memory"):
        ss.run("activation_rank", subject, small_corpus, sample_tokens=1024, memory=1)


def test_what_cannot_be_measured_is_refused(llama, small_corpus):
    with pytest.raises(SubjectError, match="three tokens"):
        ss.run("activation_rank", llama, ss.corpus("python-docs", tokens=2, context=8, min_tokens=1))
    first, second = ActivationSample((SITE,), 60, 0), ActivationSample((SITE,), 60, 0)
    batches = list(stream(2))
    first.update(batches[0])
    second.update(batches[1])
    with pytest.raises(SpecError, match="same document"):
        first.merge(second)
    with pytest.raises(SpecError, match="different measures"):
        first.merge(ActivationSample((SITE,), 61, 0))
    with pytest.raises(SpecError, match="came twice"):
        for batch in (batches[2], batches[1]):
            first.update(batch)
    one = ss.run("activation_rank", llama, ss.corpus(["some words " * 40], context=64))
    assert one.tables["ranks"]["low"].isna().all() and any(
        "one document" in note.message for note in one.notes
    )


def test_a_layer_that_never_varies_has_no_rank(small_corpus):
    subject = ss.load("random-opt")
    with torch.no_grad():
        subject.model.model.decoder.layers[1].fc1.bias[:] = -1e4
    result = ss.run("activation_rank", ss.wrap(subject.model, subject.tokenizer), small_corpus)
    assert result.tables["ranks"].query("layer == 1")["mean"].isna().all()
    assert result.tables["ranks"].query("layer == 0")["mean"].notna().all()
    for view in ANALYSIS.views:
        assert ANALYSIS.draw(view.name, result).layout.meta["alt"]
