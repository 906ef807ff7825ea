"""Routing of a mixture: tables agree with plain counts and with each other, and say what they cannot know."""

from __future__ import annotations

import numpy as np
import pytest
import transformers

import sparsescope as ss
from sparsescope.activations.corpus import Document
from sparsescope.activations.losses import token_losses
from sparsescope.activations.routing import trace_routing
from sparsescope.analysis.moe_routing.statements import statements
from sparsescope.errors import SubjectError
from sparsescope.models import load, make_variant, wrap
from sparsescope.models.structure.routing import routers, without_experts
from sparsescope.models.zoo.byte_tokenizer import byte_tokenizer

NAME = "moe_routing"
SMALL = {
    "permutations": 99, "resamples": 100, "controls": 1, "alike": 64, "ablation_tokens": 700, "matched": 2,
    "removed": (0.25, 0.5), "random_orders": 1, "least_documents": 3, "segment": 8, "lags": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def subject():
    return load("bytes-moe")


@pytest.fixture(scope="module")
def corpus(subject):
    text = ss.corpus("python-docs+python-source", tokens=2048, context=64, max_document_tokens=256)
    return text.read_by(subject)


@pytest.fixture(scope="module")
def result(subject, corpus):
    return ss.run(NAME, subject, corpus, **SMALL)


@pytest.fixture(scope="module")
def trace(subject, corpus):
    return trace_routing(subject, corpus, routers(subject), outputs=True)


def test_shares_loads_and_saliency_count_the_same_choices(result, trace):
    counts = trace.chosen().sum(0)
    tokens = trace.tokens.sum()
    saliency = result.tables["saliency"]
    assert np.array_equal(saliency["tokens"].to_numpy().reshape(4, 8), counts)
    assert saliency.groupby("layer")["frequency"].sum().tolist() == pytest.approx([2.0] * 4)
    shares = result.tables["domain_shares"]
    assert shares.groupby(["layer", "domain"])["share"].sum().tolist() == pytest.approx([2.0] * 8)
    assert (shares["low"] <= shares["share"]).all() and (shares["share"] <= shares["high"]).all()
    load = result.tables["load"].query("domain == 'all'")
    assert load["cv"].tolist() == pytest.approx((counts.std(1) / counts.mean(1)).tolist())
    assert load["max_violation"].tolist() == pytest.approx((counts.max(1) / counts.mean(1) - 1).tolist())
    assert load["max_token_share"].tolist() == pytest.approx((counts.max(1) / tokens).tolist())
    assert load["tokens"].eq(tokens).all()
    by_domain = result.tables["load"].query("domain != 'all'").groupby("layer")["tokens"].sum()
    assert (by_domain == tokens).all()


def test_saliency_is_that_of_outputs_and_weights(result, trace):
    saliency, counts = result.tables["saliency"], trace.chosen().sum(0).reshape(-1)
    with np.errstate(invalid="ignore"):
        reap = trace.weighted_norm.sum(0).reshape(-1) / counts
    assert saliency["reap"].tolist() == pytest.approx(reap.tolist(), nan_ok=True)
    assert saliency["ean"].tolist() == pytest.approx(
        (trace.norm.sum((0,)).reshape(-1) / trace.tokens.sum()).tolist()
    )
    never = saliency["tokens"] == 0
    assert saliency.loc[never, ["reap", "peak", "mean_weight"]].isna().all(axis=None)


def test_coactivation_counts_all_pairs(result, trace):
    table = result.tables["coactivation"]
    for layer, rows in table.groupby("layer"):
        sums = rows.groupby("expert")["share"].sum(min_count=1).dropna()
        assert sums.tolist() == pytest.approx([1.0] * len(sums)), "row sums are k - 1"
        together = np.zeros((8, 8))
        for one, other in trace.index[:, int(layer)].tolist():
            together[one, other] += 1
            together[other, one] += 1
        found = rows.pivot(index="expert", columns="other", values="together").fillna(0).to_numpy()
        assert np.array_equal(found, together)
    assert table["chance"].unique().tolist() == [1 / 7]
    known = table[table["lift"].notna()]
    assert (known["lift"] * known["expected"]).tolist() == pytest.approx(known["together"].tolist())
    assert table.loc[table["together"] == 0, "low"].isna().all()


def test_neighbors_are_compared_within_windows_only(result, trace):
    rows = result.tables["repetition"].query("lag == 1")
    after = np.flatnonzero(
        (trace.document[1:] == trace.document[:-1]) & (trace.positions[1:] == trace.positions[:-1] + 1)
    )
    for layer in range(4):
        index = trace.index[:, layer]
        first = (index[after, 0] == index[after + 1, 0]).mean()
        shared = np.mean([len(set(index[i]) & set(index[i + 1])) / 2 for i in after])
        own = rows[rows["layer"] == layer].set_index("measure")["mean"]
        assert own["first choice"] == pytest.approx(first) and own["shared"] == pytest.approx(shared)
    chunks = result.tables["chunk_sparsity"].query("chunk == 1")
    assert chunks["sparsity"].tolist() == [0.75] * 4 and chunks["alike"].tolist() == [0.75] * 4
    cache = result.tables["cache"]
    assert cache["hits"].between(0, 1).all()
    best = cache.pivot_table(index=["layer", "size"], columns="rule", values="hits")
    assert (best["Belady"] >= best["LRU"] - 1e-12).all(), "no cache beats one that knows the future"


def test_specialization_stands_beside_the_shuffled_model(subject, corpus, result):
    from sparsescope.activations.routing_information import domain_information

    table = result.tables["specialization"].set_index(["layer", "measure"])
    made = make_variant(subject, "shuffled_router", seed=0)
    own, other = (
        domain_information(trace_routing(found, corpus, routers(found)), 99, 0) for found in (subject, made)
    )
    assert table["excess"].tolist() == pytest.approx(own.excess.reshape(-1).tolist())
    assert table["shuffled"].tolist() == pytest.approx(other.excess.reshape(-1).tolist())
    difference, low, _ = own.against(other, 0.95)
    assert table["beyond_shuffled"].tolist() == pytest.approx(difference.reshape(-1).tolist())
    assert table["beyond_low"].tolist() == pytest.approx(low.reshape(-1).tolist())
    assert (table["q"] >= table["p"]).all()
    scalar = result.scalars["against_shuffled"]
    assert scalar.value == pytest.approx(difference[:, 1].mean()) and scalar.interval is not None


def test_an_ablation_is_the_loss_without_the_expert(subject, corpus, result):
    table = result.tables["ablation"]
    row = table.query("role == 'specialist' and domain == chosen_for").iloc[0]
    from sparsescope.activations.edited_passes import held_out

    _, text = held_out(corpus, SMALL["ablation_tokens"])
    plain = token_losses(subject, text)
    with without_experts(subject, routers(subject), {int(row["layer"]): [int(row["expert"])]}, "zero"):
        changed = token_losses(subject, text)
    chosen = plain.domain == corpus.domains.index(row["domain"])
    assert row["change"] == pytest.approx((changed.nll - plain.nll)[chosen].mean())
    specialists = table[table["role"] == "specialist"]
    assert (specialists.groupby(["layer", "chosen_for"])["expert"].nunique() == 1).all()
    matched = table[table["role"] == "matched"].groupby(["layer", "chosen_for"])["expert"].nunique()
    assert (matched == 2).all()


def test_effects_of_specialists_are_those_of_the_single_passes(result):
    table, matrix = result.tables["ablation"], result.tables["ablation_matrix"]
    by_role = table.groupby(["chosen_for", "domain", "layer", "role"])["change"].mean().unstack()
    effect = (by_role["specialist"] - by_role["matched"]).groupby(["chosen_for", "domain"]).mean()
    found = matrix.set_index(["chosen_for", "domain"])["effect"]
    assert found.sort_index().tolist() == pytest.approx(effect.sort_index().tolist())
    wide = found.unstack()
    own = np.trace(wide) / 2 - (wide.to_numpy().sum() - np.trace(wide)) / 2
    assert result.scalars["specialist_effect"].value == pytest.approx(own)


def test_pruning_takes_the_least_salient_of_every_layer(subject, corpus, result):
    from sparsescope.activations.edited_passes import held_out

    _, text = held_out(corpus, SMALL["ablation_tokens"])
    saliency = result.tables["saliency"]
    gone = {
        int(layer): rows.sort_values(["frequency", "expert"])["expert"].tolist()[:4]
        for layer, rows in saliency.groupby("layer")
    }
    with without_experts(subject, routers(subject), gone, "mask_reselect"):
        changed = token_losses(subject, text)
    row = result.tables["pruning"].query("criterion == 'frequency' and removed == 0.5").iloc[0]
    assert row["change"] == pytest.approx(changed.mean - token_losses(subject, text).mean)
    assert result.tables["pruning"]["removed"].unique().tolist() == [0.25, 0.5]


def test_a_copy_of_an_expert_is_its_twin(subject, corpus):
    """Hidden units in another order: outputs and matched weights are equal, raw weights are not."""
    import torch

    twin = subject.copy()
    with torch.no_grad():
        experts = twin.model.model.layers[1].mlp.experts
        order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
        experts.gate_up_proj[5] = torch.cat([part[order] for part in experts.gate_up_proj[2].chunk(2)])
        experts.down_proj[5] = experts.down_proj[2][:, order]
    twin = wrap(twin.model, subject.tokenizer)
    from sparsescope.analysis.moe_routing.alike import alike

    found = alike(twin, corpus, routers(twin), tokens=64, seed=0)
    pair = (found["layer"] == 1) & (found["expert"] == 2) & (found["other"] == 5)
    assert found["cka"][pair] == pytest.approx(1, abs=1e-6) and found["weights"][pair] == pytest.approx(
        1, abs=1e-6
    )
    assert found["weights_raw"][pair] < 0.5 and found["weights_random"][pair] < 0.5
    assert found["cka"][~pair].max() < 0.99


def test_few_documents_give_no_intervals(subject, corpus):
    result = ss.run(
        NAME, subject, corpus, **{**SMALL, "least_documents": 100, "ablation_tokens": 0, "alike": 0}
    )
    table = result.tables["specialization"]
    assert table[["low", "high", "beyond_low", "beyond_high"]].isna().all(axis=None)
    assert result.scalars["excess_given_token"].interval is None
    assert any("fewer than 100" in note.message for note in result.notes)
    assert "ablation" not in result.tables and "similarity" not in result.tables
    assert "no interval" in statements(result)[0].text


def test_one_domain_has_no_specialization(subject):
    text = ss.corpus("python-docs", tokens=600, context=64, max_document_tokens=128)
    result = ss.run(NAME, subject, text, **{**SMALL, "ablation_tokens": 300, "alike": 0})
    assert result.tables["specialization"].empty and "ablation_matrix" not in result.tables
    assert not result.tables["pruning"].empty
    assert any("one domain" in note.message for note in result.notes)
    assert [statement.view for statement in statements(result)] == ["repetition"]


def small_mixture(**changes):
    """A random Mixtral on bytes."""
    config = transformers.MixtralConfig(
        **{
            "vocab_size": 259,
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_local_experts": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 1,
            "pad_token_id": None, "eos_token_id": None, "bos_token_id": None, **changes,
        }
    )  # fmt: skip
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.MixtralForCausalLM(config).eval()
    return wrap(model, byte_tokenizer(64))


def test_a_single_expert_per_token_has_no_pairs():
    texts = [Document(str(n), "ab"[n % 2], f"text {n} of two kinds " * 5) for n in range(6)]
    text = ss.corpus(texts, tokens=None, context=64)
    result = ss.run(NAME, small_mixture(), text, **{**SMALL, "alike": 0})
    assert "coactivation" not in result.tables
    assert any("one expert" in note.message for note in result.notes)
    assert result.tables["load"].query("domain == 'all'")["cv"].notna().all()
    assert result.tables["load"]["dead"].isna().any() == (result.tables["load"]["tokens"] < 200).any()
    assert result.tables["pruning"]["change"].notna().all()


def test_a_dense_model_and_an_encoder_are_told_apart():
    with pytest.raises(SubjectError, match="experts"):
        ss.run(NAME, load("glassllm"), ss.corpus("python-docs", tokens=256))
    with pytest.raises(SubjectError, match="dense: it has no experts"):
        routers(load("random-llama"))


def test_an_expert_without_a_token_is_known_by_nothing():
    """Every token scores alike: two experts get everything, and two get nothing."""
    import torch

    subject = small_mixture(num_experts_per_tok=2)
    with torch.no_grad():
        for layer in subject.model.model.layers:
            layer.mlp.gate.weight.zero_()
    subject = wrap(subject.model, byte_tokenizer(64))
    texts = [Document(str(n), "ab"[n % 2], f"text {n} of two kinds " * 8) for n in range(6)]
    result = ss.run(NAME, subject, ss.corpus(texts, tokens=None, context=64), **{**SMALL, "alike": 0})
    saliency = result.tables["saliency"]
    unused = saliency["tokens"] == 0
    assert unused.sum() == 4, "two of four experts in two layers"
    assert saliency.loc[unused, ["reap", "peak"]].isna().all(axis=None)
    assert saliency.loc[~unused, ["reap", "peak"]].notna().all(axis=None)
    assert result.scalars["normalized_entropy"].value == pytest.approx(0.5)
    assert result.scalars["dead_experts"].value == pytest.approx(0.5)
    assert any("4 of 8 experts were chosen by no token" in note.message for note in result.notes)


def test_a_router_that_leaves_nothing_out_is_refused():
    with pytest.raises(SubjectError, match="nothing is chosen"):
        ss.run(NAME, small_mixture(num_experts_per_tok=4), ss.corpus("python-docs", tokens=256, context=64))
