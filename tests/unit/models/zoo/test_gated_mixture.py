"""The mixture with a gate by name: OLMoE where the gate is top-k, the same beginning for all gates, sites
that say what it computes with, and a training that goes on exactly.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear, silu

import sparsescope as ss
from sparsescope.activations.text.documents import CorpusEntry, Document
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.checkpoints import open_series
from sparsescope.models.formats.series_file import SeriesFolder
from sparsescope.models.structure.architectures import build_model, check_config
from sparsescope.models.structure.experts import expert_output
from sparsescope.models.structure.gates import GATES
from sparsescope.models.structure.gates.base import active
from sparsescope.models.structure.routing import routers, without_experts
from sparsescope.models.zoo.gated_mixture import GatedMixtureConfig, GatedMixtureForCausalLM
from sparsescope.testing import check_subject
from sparsescope.training import byte_text
from sparsescope.training.measure import measure, training_loss
from sparsescope.training.recipe import Recipe
from sparsescope.training.trainer import train

NAME = "GatedMixtureForCausalLM"
SMALL = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "eos_token_id": None,
}
ROUTED = ("top_k", "sigmoid_bias", "hash")
# Gates with settings that choose, which all but ReLU come to in a training
SHARP = {"dselect_k": {"gamma": 0.05}, "comet": {"gamma": 0.5}, "sparse_transport": {"gamma": 0.3}}


def build(gate, seed=1, **options):
    options = {**SHARP.get(gate, {}), **options}
    return build_model(NAME, {**SMALL, "gate": gate, "gate_options": options}, seed=seed)


def tokens(rows=4, width=16, seed=0):
    return torch.randint(3, 259, (rows, width), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("renormalize", [False, True])
def test_with_top_k_it_is_olmoe(renormalize):
    ours = build("top_k", k=2, renormalize=renormalize, balance=0.5)
    sizes = {**SMALL, "num_experts_per_tok": 2, "norm_topk_prob": renormalize}
    theirs = build_model("OlmoeForCausalLM", sizes)
    theirs.load_state_dict(ours.state_dict())
    ids = tokens()
    with torch.no_grad():
        found, wanted = ours(ids), theirs(ids, output_router_logits=True)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
        router_logits = ours(ids, output_router_logits=True).router_logits
    for first, second in zip(router_logits, wanted.router_logits, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_what_is_no_gate_begins_alike_for_all_gates(gate):
    first, second = build("top_k").state_dict(), build(gate).state_dict()
    names = [name for name in first if ".gate." not in name]
    assert len(names) == len([name for name in second if ".gate." not in name]) > 10
    assert all(torch.equal(first[name], second[name]) for name in names)
    other = build(gate, seed=2).state_dict()
    assert not torch.equal(other["model.embed_tokens.weight"], second["model.embed_tokens.weight"])
    gates = build(gate).gates
    assert any(
        not torch.equal(*pair)
        for pair in zip(gates[0].state_dict().values(), gates[1].state_dict().values(), strict=True)
    ), "layers have gates of their own"


@pytest.mark.parametrize("gate", GATES)
def test_it_is_stored_and_read_again(gate, tmp_path):
    model = build(gate).train()
    training_loss(model, tokens(), tokens()).backward()
    model.after_step(0.3)
    model.eval().save_pretrained(tmp_path)
    again = GatedMixtureForCausalLM.from_pretrained(tmp_path)
    assert again.config.gate == gate and again.config.gate_options == model.config.gate_options
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, again(tokens()).logits)


@pytest.mark.parametrize("gate", GATES)
def test_the_mixture_by_hand(gate):
    block = build(gate).model.layers[1].mlp
    states = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    ids = tokens(3, 5)
    with torch.no_grad():
        found, _ = block(states, ids)
        flat = states.reshape(15, 16)
        weights = block.gate(flat, ids.reshape(15)).weights
        wanted = torch.zeros_like(flat)
        for expert in range(6):
            inner, up = linear(flat, block.experts.gate_up_proj[expert]).chunk(2, -1)
            wanted += weights[:, expert, None] * linear(silu(inner) * up, block.experts.down_proj[expert])
        torch.testing.assert_close(found, wanted.reshape(3, 5, 16), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_in_evaluation_it_is_causal(gate):
    model, ids = build(gate), tokens()
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 7) % 259
    with torch.no_grad():
        first, second = model(ids).logits, model(changed).logits
        torch.testing.assert_close(first[:, :-1], second[:, :-1], rtol=0, atol=0)
        assert not torch.equal(first[:, -1], second[:, -1])
        torch.testing.assert_close(model(ids[:1]).logits, first[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(ids, logits_to_keep=1).logits, first[:, -1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_generation_with_a_cache_is_that_without(gate):
    model, ids = build(gate), tokens(1, 8)
    with torch.no_grad():
        made = [
            model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
        ]
    assert torch.equal(*made)


@pytest.mark.parametrize("gate", GATES)
def test_it_is_a_subject_whose_sites_say_what_it_computes_with(gate):
    model = build(gate)
    subject = ss.wrap(model, id=f"gated-{gate}")
    check_subject(subject)
    assert {"experts", "hidden_units", "causal", "logits"} <= subject.capabilities
    found = routers(subject)
    slots = model.gates[0].slots
    assert [(router.experts, router.k) for router in found] == [(6, slots)] * 2
    assert slots == (2 if gate in (*ROUTED, "sparse_transport") else 6)
    if gate in ROUTED:
        assert found[0].rule is not None, "its rule is found from its scores"
    held = {}
    module = model.model.layers[0].mlp.experts
    handle = module.register_forward_hook(lambda module, given, out: held.update(given=given, out=out))
    subject.forward(subject.sample_ids(32))
    handle.remove()
    same = expert_output(module, *held["given"], replace=lambda expert, hidden, rows: hidden)
    torch.testing.assert_close(same, held["out"], rtol=1e-4, atol=1e-6)


def test_experts_can_be_taken_away(gate="relu"):
    subject = ss.wrap(build(gate), id="gated")
    ids = subject.sample_ids(32)
    before = subject.forward(ids).clone()
    with without_experts(subject, routers(subject), {0: range(5), 1: range(5)}, "zero"):
        assert not torch.equal(subject.forward(ids), before)
    assert torch.equal(subject.forward(ids), before)


def test_penalties_are_the_mean_over_layers_and_join_the_loss():
    model = build("top_k", balance=0.5).train()
    ids = tokens()
    with torch.no_grad():
        flat = [layer.mlp for layer in model.model.layers]
        told = []
        handles = [mixture.register_forward_hook(lambda _, __, out: told.append(out[1])) for mixture in flat]
        output = model(ids)
        for handle in handles:
            handle.remove()
        assert float(output.aux_loss) == pytest.approx(float(sum(told)) / 2) and float(output.aux_loss) >= 0.9
        plain = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].reshape(-1, 259), ids[:, 1:].reshape(-1)
        )
        assert float(training_loss(model, ids, ids)) == pytest.approx(
            float(plain + output.aux_loss), rel=1e-5
        )


def test_token_ids_are_needed_by_a_hash_gate():
    model = build("hash")
    with pytest.raises(SubjectError, match="chooses by token ids"):
        model(inputs_embeds=model.get_input_embeddings()(tokens()))
    assert build("top_k")(inputs_embeds=model.get_input_embeddings()(tokens())).logits.shape == (4, 16, 259)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gate": "softmax"}, "unknown gate 'softmax'"),
        ({"gate_options": {"kk": 2}}, "unknown parameter 'kk'"),
        ({"gate_options": {"k": 9}}, "more experts than there are"),
        ({"num_experts_per_tok": 4}, "the gate decides how many experts"),
        ({"gate": "relu", "num_experts_per_tok": 2}, "the gate decides how many experts"),
    ],
)
def test_bad_configurations_are_named(values, message):
    with pytest.raises(SpecError, match=message):
        build_model(NAME, {**SMALL, **values})


def test_the_configuration_says_all_options():
    check_config(NAME, ["gate", "gate_options", *SMALL])
    config = GatedMixtureConfig(**SMALL, gate="dselect_k", gate_options={"k": 3})
    assert config.num_experts_per_tok == 6 and config.gate_options["gamma"] == 1.0
    again = GatedMixtureConfig.from_dict(config.to_dict())
    assert again.gate_options == config.gate_options and again.num_experts_per_tok == 6


RECIPE = {
    "name": "tiny-gates",
    "title": "A tiny run with a gate",
    "license": "Apache-2.0",
    "steps": 6,
    "checkpoints": [0, 3, 6],
    "log_every": 3,
    "model": {"architecture": NAME},
    "data": {
        "kind": "byte_text",
        "corpora": ["up", "down"],
        "context": 16,
        "windows_per_domain": 3,
        "probe_windows": 5,
    },
    "optimizer": {"learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0},
}


@pytest.fixture
def recipe(monkeypatch):
    def entry(name, order):
        texts = [" ".join(f"w{order * i * j % 97}" for j in range(40)) for i in range(1, 13)]
        documents = [Document(f"{name}{i}", name, text) for i, text in enumerate(texts)]
        return CorpusEntry(name, "toy", "CC0-1.0", name, lambda: documents)

    monkeypatch.setattr(byte_text, "registered_entries", lambda name: [entry("up", 1), entry("down", -1)])

    def make(gate, **optimizer):
        config = {name: value for name, value in SMALL.items() if value is not None}
        config |= {"gate": gate, "gate_options": SHARP.get(gate, {})}
        model = {**RECIPE["model"], "config": config}
        return Recipe.model_validate(
            {**RECIPE, "model": model, "optimizer": {**RECIPE["optimizer"], **optimizer}}
        )

    return make


@pytest.mark.parametrize("gate", GATES)
def test_a_training_goes_on_exactly_and_is_read_as_it_was_measured(recipe, gate, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(gate), whole)
    assert (
        train(recipe(gate), parts, stop_after=2) is None and train(recipe(gate), parts, stop_after=2) is None
    )
    train(recipe(gate), parts)
    first, second = (SeriesFolder.open(folder) for folder in (whole, parts))
    assert first.content.checkpoints == second.content.checkpoints and first.curves().equals(second.curves())
    series = open_series(whole)
    model = series.subject(6).model
    examples = byte_text.ByteTextData(recipe(gate).data).examples(whole=True)
    found = measure(model, examples)["validation"]["loss"]
    assert found == pytest.approx(series.checkpoints[-1].stored["validation"]["loss"], rel=1e-6)
    begun = series.checkpoints[0].stored["validation"]["loss"]
    assert found < begun


def test_measuring_is_done_in_evaluation_mode_and_gives_the_mode_back(recipe):
    model = build("sparse_transport")
    examples = byte_text.ByteTextData(recipe("sparse_transport").data).examples(whole=True)
    wanted = measure(model, examples)
    assert measure(model.train(), examples) == wanted and model.training


def test_a_balancing_loss_of_the_recipe_is_refused(recipe, tmp_path):
    with pytest.raises(SpecError, match="weigh their own penalties"):
        train(recipe("top_k", balance=0.01), tmp_path / "run")


def test_active_experts_of_a_layer_are_counted():
    model = build("sparse_transport", k=3)
    with torch.no_grad():
        weights = model.gates[0](torch.randn(50, 16, generator=torch.Generator().manual_seed(0))).weights
    assert int(active(weights).min()) >= 1 and int(active(weights).max()) <= 3
