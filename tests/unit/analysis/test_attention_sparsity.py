"""Attention sparsity end to end: contract, closed forms, brute force over T x T
weights, invariances, dose-response.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import sparsescope as ss
from sparsescope.analysis.attention_sparsity import ANALYSIS, AttentionSparsityParams
from sparsescope.analysis.attention_sparsity.rows import length_bins
from sparsescope.analysis.attention_sparsity.windows import choose
from sparsescope.core.run_store import Store
from sparsescope.errors import SubjectError
from sparsescope.metrics import attention as m
from sparsescope.testing import check_analysis, check_figure, check_same_numbers

SMALL = {"t_min": 8, "windows": 4, "dose_windows": 0, "resamples": 100, "every": 1, "blocks": (16,)}


def run(subject, corpus, **params):
    return ss.run("attention_sparsity", subject, corpus, **{**SMALL, **params})


def per_head(result, metric, column="mean"):
    return (
        result.tables["per_head"]
        .query("metric == @metric")
        .pivot(index="layer", columns="head", values=column)
        .to_numpy()
    )


@pytest.mark.parametrize("name", ["random-llama", "random-gemma2"])
def test_contract(name, small_corpus):
    result = check_analysis(ANALYSIS, ss.load(name), small_corpus)
    table = result.tables["per_head"]
    values = table[["mean", "low", "high", "uniform", "null"]].to_numpy()
    assert np.nanmin(values) >= 0 and np.nanmax(values) <= 1 + 1e-6
    assert (table["low"] <= table["mean"] + 1e-12).all() and (table["mean"] <= table["high"] + 1e-12).all()
    assert len(result.tables["critical"]) == 3 and (result.tables["dose_response"]["documents"] == 6).all()


@pytest.fixture(scope="module")
def toy():
    """GPT-2 of one layer: head 0 looks at the previous token, head 1 at every key alike."""
    donor = ss.load("random-gpt2")
    config = transformers.GPT2Config(
        vocab_size=donor.model.config.vocab_size,
        n_positions=32,
        n_embd=64,
        n_head=2,
        n_layer=1,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(32, 64))
        attention = model.transformer.h[0].attn.c_attn
        attention.weight.zero_()
        attention.bias.zero_()
        for place in range(32):
            attention.weight[place, place] = 5.0  # query: where am I
        for place in range(31):
            attention.weight[place, 64 + place + 1] = 1.0  # key: whom do I precede
        attention.weight[:, 128:] = torch.eye(64)
    return ss.wrap(model, donor.tokenizer)


def test_a_previous_token_head_and_a_uniform_head(toy, texts):
    corpus = ss.corpus(texts, tokens=600, context=32, deduplicate=False)
    result = run(toy, corpus)
    heads = result.tables["heads"]
    assert heads.loc[0, "class"] == "previous token" and heads.loc[0, "previous"] == pytest.approx(
        1, abs=1e-4
    )
    assert per_head(result, "entropy_normalized")[0] == pytest.approx([0, 1], abs=1e-4)
    assert per_head(result, "share_diagonals")[0, 0] == pytest.approx(1, abs=1e-4)
    t = np.arange(8, 33)
    assert per_head(result, "density_top_90")[0] == pytest.approx(
        [(1 / t).mean(), (np.ceil(9 * t / 10) / t).mean()], abs=1e-6
    )
    assert per_head(result, "density_support")[0, 1] == pytest.approx(1, abs=1e-5)
    assert per_head(result, "share_sink_window")[0, 1] == pytest.approx(m.sink_of_uniform(32), abs=1e-6)
    # The second head is its own reference, and what is dealt anew to a uniform row is uniform.
    for metric in (
        "gini",
        "density_top_95",
        "share_local_16",
        "share_columns",
        "share_diagonals",
        "gini_received",
        "density_blocks_16",
    ):
        for column in ("uniform", "null"):
            tight = {"rel": 1e-5, "abs": 1e-6}
            assert per_head(result, metric)[0, 1] == pytest.approx(
                per_head(result, metric, column)[0, 1], **tight
            ), metric
    by_length = result.tables["by_length"].query("metric == 'entropy'")
    assert (by_length["uniform"] > by_length["mean"]).all()


@pytest.fixture(scope="module")
def sharp():
    """A random Llama whose heads differ: scores of some size."""
    subject = ss.load("random-llama@1").copy()
    with torch.no_grad():
        for layer in subject.model.model.layers:
            layer.self_attn.q_proj.weight *= 60
    return ss.wrap(subject.model, subject.tokenizer)


def brute_force(subject, ids, t_min):
    """Measures of every head of one window from its T x T weights, in plain NumPy, {metric:
    [layer, head, row or 1]}.
    """
    copy = subject.copy()
    copy.model.set_attn_implementation("eager")
    with torch.inference_mode():
        found = copy.model(input_ids=torch.tensor(ids)[None], output_attentions=True, use_cache=False)
    weights = np.stack([a[0].numpy() for a in found.attentions])
    layers, heads, length, _ = weights.shape
    out: dict[str, np.ndarray] = {}

    def put(name, layer, head, values):
        out.setdefault(name, np.zeros((layers, heads), object))[layer, head] = np.atleast_1d(values)

    rows = range(t_min - 1, length)
    query, key = np.mgrid[:length, :length]
    for layer, head in np.ndindex(layers, heads):
        full = weights[layer, head]
        seen = [full[r, : r + 1] for r in rows]
        put("entropy_normalized", layer, head, [m.entropy(w) / np.log(len(w)) for w in seen])
        put("gini", layer, head, [m.gini(w) for w in seen])
        put("density_top_95", layer, head, [m.top_share_count(w, 0.95) / len(w) for w in seen])
        put("share_first_4", layer, head, [w[:4].sum() for w in seen])
        put("share_previous", layer, head, [w[-2] for w in seen])
        put("share_local_16", layer, head, [w[-16:].sum() for w in seen])
        put("share_sink_window", layer, head, full[:, 0].mean())
        main = full[t_min - 1 :]
        columns = main.sum(0)
        distances = np.bincount((query - key)[t_min - 1 :].clip(0).ravel(), main.ravel(), length)
        put("share_columns", layer, head, m.concentration(columns))
        put("share_diagonals", layer, head, m.concentration(distances))
        put("gini_received", layer, head, m.gini(columns))
        blocks = -(-length // 16)
        mass = [
            [full[16 * q : 16 * q + 16, 16 * k : 16 * k + 16].sum() for k in range(q + 1)]
            for q in range(blocks)
        ]
        needed = sum(int(m.blocks_needed(np.array(row))) for row in mass)
        put("density_blocks_16", layer, head, needed / (blocks * (blocks + 1) / 2))
    return out


@pytest.mark.parametrize("chunk", [128, 256])
def test_brute_force_over_the_whole_matrix(sharp, texts, chunk):
    corpus = ss.corpus(texts, tokens=900, context=150, deduplicate=False)
    result = run(sharp, corpus, chunk=chunk)
    chosen = choose(corpus.tokenize(sharp.tokenizer), 4, 16, 0)
    assert {len(d) for d in chosen.documents} == {150}, "the second chunk of 128 rows is not used"
    windows = [brute_force(sharp, document.ids, 8) for document in chosen.documents]
    for metric in windows[0]:
        for layer, head in np.ndindex(windows[0][metric].shape):
            wanted = np.concatenate([window[metric][layer, head] for window in windows]).mean()
            assert per_head(result, metric)[layer, head] == pytest.approx(wanted, rel=1e-4, abs=1e-6), (
                metric,
                layer,
                head,
            )


def test_chunks_change_nothing_but_the_deals(sharp, texts):
    corpus = ss.corpus(texts, tokens=900, context=150, deduplicate=False)
    one, other = (run(sharp, corpus, chunk=chunk).tables["per_head"] for chunk in (128, 512))
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one["uniform"], other["uniform"], rtol=1e-6)


def test_heads_in_another_order(sharp, small_corpus):
    """Query heads swapped within a group, with their output columns: the same numbers in the other order."""
    swapped = sharp.copy()
    width = swapped.model.config.hidden_size // 4
    order = torch.cat(
        [torch.arange(width, 2 * width), torch.arange(width), torch.arange(2 * width, 4 * width)]
    )
    with torch.no_grad():
        for layer in swapped.model.model.layers:
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.q_proj.weight[order].clone())
            layer.self_attn.o_proj.weight.copy_(layer.self_attn.o_proj.weight[:, order].clone())
    before, after = run(sharp, small_corpus), run(ss.wrap(swapped.model, swapped.tokenizer), small_corpus)
    for metric in (
        "entropy_normalized",
        "density_top_90",
        "error_top_90",
        "density_output_10",
        "share_columns",
    ):
        assert not np.allclose(per_head(before, metric)[:, 0], per_head(before, metric)[:, 1], rtol=1e-3)
        np.testing.assert_allclose(
            per_head(after, metric)[:, [1, 0, 2, 3]], per_head(before, metric), rtol=1e-3
        )


def test_an_encoder_is_measured_on_both_sides_without_a_dose(small_corpus, tmp_path):
    tokenizer = ss.load("random-llama").tokenizer
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(transformers.BertConfig(**sizes, num_attention_heads=4)).eval()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.self.query.weight.zero_()
            layer.attention.self.query.bias.zero_()
    result = run(ss.wrap(model, tokenizer), small_corpus, dose_windows=4)
    assert result.tables["dose_response"].empty and result.tables["critical"].empty
    assert (
        np.isnan(per_head(result, "share_sink_64")).all()
        and result.tables["heads"]["sink_rate_64"].isna().all()
    )
    lengths = result.tables["by_length"]["position_end"].unique()
    # Every key alike, on both sides
    np.testing.assert_allclose(per_head(result, "entropy_normalized"), 1, rtol=1e-6)
    assert lengths.max() >= 64 and len(lengths) <= 2
    windows = choose(small_corpus.tokenize(tokenizer), 4, 16, 0)
    sizes = [len(d) + windows.context - windows.window for d in windows.documents]
    if len(set(sizes)) == 1:
        np.testing.assert_allclose(per_head(result, "share_sink_window"), 1 / sizes[0], rtol=1e-5)
    for view in ANALYSIS.views:
        check_figure(ANALYSIS.draw(view.name, result), view.name)
    stored = run(ss.wrap(model, tokenizer), small_corpus, dose_windows=4, store=tmp_path)
    check_same_numbers(Store(tmp_path).open(str(stored.run_id)), stored)


def test_dose_response(glass):
    corpus = ss.corpus("python-docs", tokens=3000, context=96)
    shape = {
        "windows": 6,
        "dose_windows": 6,
        "dose_shares": (0.3, 0.9, 0.999),
        "dose_widths": (4, 95),
        "dose_random": (0.9,),
    }
    result = run(glass, corpus, **shape)
    table = result.tables["dose_response"].set_index(["rule", "setting"])
    np.testing.assert_allclose(table["density"] + table["sparsity"], 1)
    assert (table["documents"] == 6).all()
    # Nearly everything kept costs nearly nothing; few keys cost much; as many random keys cost more.
    assert abs(table.loc[("top-p", 0.999), "rise"]) < 0.005 and abs(table.loc[("local", 95), "rise"]) < 0.005
    assert table.loc[("top-p", 0.3), "rise"] > 5 * abs(table.loc[("top-p", 0.999), "rise"])
    assert table.loc[("random", 0.9), "rise"] > 3 * table.loc[("top-p", 0.9), "rise"] > 0
    q, k = np.mgrid[:96, :96]
    kept = ((k <= q) & ((k < 4) | (q - k < 4))).sum() / (96 * 97 / 2)
    assert table.loc[("local", 4), "density"] == pytest.approx(kept)
    points = result.tables["critical"].set_index("rule")
    assert points.loc["random", "left_censored"] == "yes" and np.isnan(points.loc["random", "sparsity"])
    inside = points.loc["top-p"]
    assert (
        inside["smallest"] < inside["sparsity"] < inside["largest"]
        and inside["low"] <= inside["sparsity"] <= inside["high"]
    )
    assert any("left-censored" in note.message for note in result.notes)
    generous = run(glass, corpus, **shape, tolerance=0.9).tables["critical"].set_index("rule")
    assert generous.loc["local", "right_censored"] == "yes"
    assert generous.loc["local", "non_inferior"] == generous.loc["local", "largest"]


def test_same_seed_same_numbers_other_seed_other_windows(llama, small_corpus):
    first, again = run(llama, small_corpus), run(llama, small_corpus)
    check_same_numbers(first, again)
    text = small_corpus.tokenize(llama.tokenizer)
    chosen = [tuple(tuple(d.ids) for d in choose(text, 3, 16, seed).documents) for seed in (0, 1, 2)]
    assert len(set(chosen)) > 1


def test_windows_are_spread(small_corpus, llama):
    text = small_corpus.tokenize(llama.tokenizer)
    chosen = choose(text, 6, 16, 0).documents
    assert sorted(d.index for d in chosen) == sorted(d.index for d in text.documents), (
        "a second window before every first"
    )
    assert [d.domain for d in chosen[:4]] == list(text.domains) * 2
    every = choose(text, 10_000, 16, 0).documents
    assert len(every) > 6 and min(len(d) for d in every) >= 16 and len({tuple(d.ids) for d in every}) > 6
    with pytest.raises(SubjectError, match="long enough"):
        choose(text, 3, 500, 0)


def test_length_bins_and_parameters():
    assert length_bins(256, 32) == (
        (2, 3),
        (4, 7),
        (8, 15),
        (16, 31),
        (32, 63),
        (64, 127),
        (128, 255),
        (256, 256),
    )
    assert length_bins(20, 10) == ((2, 3), (4, 7), (8, 9), (10, 15), (16, 20))
    with pytest.raises(ValueError, match="distinct"):
        AttentionSparsityParams(shares=(0.9, 0.9001))


def test_an_architecture_with_attention_of_its_own_is_refused(small_corpus, llama):
    config = transformers.BloomConfig(vocab_size=len(llama.tokenizer), hidden_size=32, n_layer=2, n_head=4)
    bloom = ss.wrap(transformers.BloomForCausalLM(config).eval(), llama.tokenizer)
    with pytest.raises(SubjectError, match="in its own code"):
        run(bloom, small_corpus)
