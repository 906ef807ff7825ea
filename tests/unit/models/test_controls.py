"""Shuffled controls: the same entries in every matrix, at other places; nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import Subject, controls, load, wrap
from sparsescope.models.variants import make_variant


def state(subject: Subject) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}


def assert_permuted(matrix: torch.Tensor, of: torch.Tensor) -> None:
    assert not torch.equal(matrix, of)
    assert torch.equal(matrix.flatten().sort().values, of.flatten().sort().values)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("random-opt", {"fc1.weight", "fc1.bias"}),
        ("random-llama", {"gate_proj.weight", "up_proj.weight"}),
        ("random-gpt2", {"c_fc.weight", "c_fc.bias"}),
        ("random-mixtral", {"experts.gate_up_proj"}),
        ("random-qwen2moe", {"experts.gate_up_proj", "gate_proj.weight", "up_proj.weight"}),
    ],
)
def test_only_mlp_inputs_change_and_keep_their_entries(name: str, changed: set[str]) -> None:
    subject = load(name)
    with torch.no_grad():
        for key, parameter in subject.model.named_parameters():
            if key.endswith("bias"):
                parameter.fill_(0.25)  # so that a bias set to zero can be told
    before = state(subject)
    control = make_variant(subject, "shuffled")
    after = state(control)
    touched = {key for key in before if not torch.equal(before[key], after[key])}
    assert {next((end for end in changed if key.endswith(end)), key) for key in touched} == changed
    for key in touched:
        if key.endswith("bias"):
            assert not after[key].any()
    for site in subject.parameter_sites("weight:blocks.*.*"):
        if site.role in controls._INPUT_ROLES:  # of experts: each by itself
            assert_permuted(control.parameter(site.name), subject.parameter(site.name))
    assert all(torch.equal(tensor, state(subject)[key]) for key, tensor in before.items())  # the user's model
    assert control.identity.weight_hash != subject.identity.weight_hash
    assert control.identity.config_hash == subject.identity.config_hash


def test_fused_gate_and_up_are_permuted_apart() -> None:
    config = transformers.Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    subject = wrap(transformers.Phi3ForCausalLM(config))
    control = make_variant(subject, "shuffled")
    for role in ("gate", "in"):
        name = f"weight:blocks.1.mlp.{role}.weight"
        assert_permuted(control.parameter(name), subject.parameter(name))


def test_the_seed_decides() -> None:
    subject = load("random-opt")
    first, again, other = (make_variant(subject, "shuffled", seed=seed) for seed in (0, 0, 3))
    assert first.identity == again.identity
    assert other.identity.weight_hash != first.identity.weight_hash
    assert (first.id, other.id) == ("shuffled:random-opt", "shuffled:random-opt@3")
    name = "weight:blocks.{}.mlp.in.weight"
    ranks = [first.parameter(name.format(layer)).flatten().argsort().argsort() for layer in (0, 1)]
    original = [subject.parameter(name.format(layer)).flatten().argsort().argsort() for layer in (0, 1)]
    # Layers are drawn apart
    assert not torch.equal(original[0].argsort()[ranks[0]], original[1].argsort()[ranks[1]])


def test_by_name_it_is_the_control_of_the_loaded_subject() -> None:
    by_name = load("shuffled:random-opt@3", dtype="bfloat16")
    by_hand = make_variant(load("random-opt", dtype="bfloat16"), "shuffled", seed=3)
    assert by_name.identity == by_hand.identity
    assert by_name.source == "shuffled:random-opt@3" and by_name.unchanged
    of_seed_5 = load("shuffled:random-opt@5@0")
    assert (of_seed_5.id, of_seed_5.revision) == ("shuffled:random-opt", "seed-5")
    assert of_seed_5.identity == make_variant(load("random-opt@5"), "shuffled").identity
    assert of_seed_5.identity == load("shuffled:random-opt", revision="5").identity


@pytest.mark.parametrize("seed", [-1, 1.5, "one", None])
def test_a_seed_is_a_number(seed: Any) -> None:
    with pytest.raises(SpecError, match="seed"):
        make_variant(load("random-opt"), "shuffled", seed=seed)


def test_packed_weights_are_refused_before_anything_is_changed() -> None:
    subject = load("random-opt")
    layers = subject.model.model.decoder.layers
    packed = layers[1].fc1.weight.to(torch.int8)
    layers[1].fc1.weight = torch.nn.Parameter(packed, requires_grad=False)
    before = state(subject)
    with pytest.raises(SubjectError, match="quantization"):
        controls.shuffle_in_place(subject.model, subject.blocks, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(subject).items())


def test_a_shuffled_router_keeps_its_rows_and_loses_their_directions():
    subject = load("random-qwen2moe")
    before = subject.identity, {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    control, again, other = (make_variant(subject, "shuffled_router", seed=seed) for seed in (0, 0, 3))
    assert (control.id, other.id) == ("shuffled_router:random-qwen2moe", "shuffled_router@3:random-qwen2moe")
    assert control.identity == again.identity != other.identity
    for layer in (1, 2):
        name = f"weight:blocks.{layer}.mlp.router.weight"
        own, made = subject.parameter(name), control.parameter(name)
        assert torch.equal(own.sort(-1).values, made.sort(-1).values), "entries of every row"
        assert not torch.equal(own, made) and not torch.equal(made, other.parameter(name))
    routers = {f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2)}
    changed = {
        name
        for name, tensor in control.model.state_dict().items()
        if not torch.equal(tensor, before[1][name])
    }
    assert changed == routers, "nothing but the routers"
    assert subject.identity == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in subject.model.state_dict().items())
    with pytest.raises(SubjectError, match="no routers"):
        make_variant(load("random-llama"), "shuffled_router")
