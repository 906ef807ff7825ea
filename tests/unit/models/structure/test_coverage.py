"""No matrix of a block passes unnoticed: it has a role, or a note of every result names it."""

from __future__ import annotations

import torch
import transformers

import sparsescope as ss
from sparsescope.metrics.bounds import dense_cost
from sparsescope.models.structure.coverage import uncovered
from sparsescope.models.structure.dimensions import read_dimensions

GATE = "model.layers.{}.mlp.shared_expert_gate.weight"


def test_models_whose_every_matrix_has_a_role_say_nothing(llama):
    for subject in (llama, ss.load("random-gpt2"), ss.load("random-olmoe")):
        assert uncovered(subject.model, subject.blocks) == [] and subject.notes == ()


def test_a_matrix_without_a_role_is_named_with_its_layers(small_corpus, tmp_path):
    subject = ss.load("random-qwen2moe")
    assert uncovered(subject.model, subject.blocks) == [GATE.format(1), GATE.format(2)]
    ((severity, sentence),) = subject.notes
    assert severity == "info" and "mlp.shared_expert_gate.weight (layers 1-2)" in sentence
    result = ss.run("activation_sparsity", subject, small_corpus, store=tmp_path)
    assert sentence in [note.message for note in result.notes]


def test_numbers_of_parts_are_left_out_and_vectors_do_not_count():
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for number in (0, 2):
        model.model.layers[number].side = torch.nn.ModuleList(torch.nn.Linear(32, 2) for _ in range(3))
    subject = ss.wrap(model)
    assert len(uncovered(model, subject.blocks)) == 6
    assert subject.notes[0][1].endswith("as dense: side.*.weight (layers 0, 2).")


def test_bounds_count_what_has_no_role_as_dense():
    layer = read_dimensions(ss.load("random-qwen2moe")).layers[1]
    assert layer.other_weights == 64
    model = read_dimensions(ss.load("random-qwen2moe"))
    attention = sum(layer.attention_weights for layer in model.layers)
    assert dense_cost(model, attended=0).flops["attention projections"] == 2 * (attention + 2 * 64)
