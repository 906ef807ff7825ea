"""Shapes read from real modules: they must account for every parameter of a model that is all
matrices and norms.
"""

from __future__ import annotations

import pytest

import sparsescope as ss
from sparsescope.metrics.bounds import attention_weights, dense_cost
from sparsescope.models.structure.dimensions import read_dimensions

DENSE = ["random-llama", "random-gpt2", "random-opt", "random-gemma2", "glassllm"]


@pytest.mark.parametrize("name", DENSE)
def test_what_is_read_for_a_token_is_the_model_without_its_embeddings(name):
    subject = ss.load(name)
    found = read_dimensions(subject)
    model = subject.model
    apart = {id(p) for m in model.modules() if type(m).__name__.endswith("Embedding") for p in m.parameters()}
    head = model.get_output_embeddings().weight
    expected = sum(p.numel() for p in model.parameters() if id(p) not in apart or p is head)
    assert dense_cost(found, attended=10, bytes_per_weight=1).total_bytes == expected
    assert found.tied == (id(head) in apart)


@pytest.mark.parametrize("name", DENSE)
def test_attention_matrices_follow_the_formula(name):
    for layer in read_dimensions(ss.load(name)).layers:
        assert layer.attention_weights == attention_weights(layer.d_model, layer.d_attention, layer.d_kv)
    grouped = {"random-llama": 2, "random-gemma2": 2, "glassllm": 2}.get(name, 1)
    assert layer.d_attention == grouped * layer.d_kv


def test_a_mixture_gives_the_shape_of_one_expert():
    subject = ss.load("random-olmoe")
    layer = read_dimensions(subject).layers[0]
    config = subject.model.config
    assert (layer.experts, layer.routed) == (config.num_experts, config.num_experts_per_tok)
    assert (
        layer.d_mlp == config.intermediate_size
        and layer.gated
        and layer.router_weights == config.num_experts * 64
    )
    every = layer.experts * layer.matrices * layer.d_mlp * layer.d_model
    rest = layer.attention_weights + layer.router_weights + layer.norm_weights + layer.bias_weights
    assert every + rest == sum(p.numel() for p in subject.model.model.layers[0].parameters())


def test_dense_and_sparse_layers_of_one_model():
    subject = ss.load("random-qwen2moe")
    layers = read_dimensions(subject).layers
    assert {layer.experts > 0 for layer in layers} == {True, False}
    assert all(layer.d_shared > 0 for layer in layers if layer.experts)


def test_an_encoder_without_head_has_no_vocabulary():
    from transformers import BertConfig, BertModel

    model = BertModel(
        BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=99
        )
    )
    found = read_dimensions(ss.wrap(model, None))
    assert found.vocabulary == 0 and not found.tied and not found.causal
    assert [(layer.d_mlp, layer.gated) for layer in found.layers] == [(64, False)] * 2
    assert found.layers[0].attention_weights == 4 * 32 * 32
