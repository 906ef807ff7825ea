"""The transformer without LayerNorm: its initialization, its sites, and the logits by tables."""

from __future__ import annotations

import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models.structure.architectures import ARCHITECTURES, architecture, build_model
from sparsescope.testing import check_subject

NAME = "ModularTransformerForCausalLM"
SMALL = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def model():
    return build_model(NAME, SMALL, seed=1)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_logits_by_tables_are_those_of_the_forward_pass(model, n):
    ids = torch.randint(30, (40, n), generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        expected = model(ids).logits[:, -1]
        torch.testing.assert_close(model.last_logits(ids), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(ids, logits_to_keep=1).logits[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_gradients_by_tables_are_those_of_the_forward_pass(model):
    ids = torch.randint(30, (40, 3), generator=torch.Generator().manual_seed(0))
    wanted = torch.randint(30, (40,), generator=torch.Generator().manual_seed(1))
    found = []
    for logits in (model.last_logits(ids), model(ids).logits[:, -1]):
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_the_forward_pass_by_hand(model):
    ids = torch.tensor([[3, 9, 4]])
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    with torch.no_grad():
        x = model.model.embed_tokens.weight[ids[0]] + model.model.embed_positions.weight[:3]
        heads = []
        for h in range(4):
            rows = slice(8 * h, 8 * h + 8)
            q, k, v = (
                x @ matrix.weight[rows].T for matrix in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            scores = (q @ k.T / 8**0.5).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
            heads.append(scores.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ attention.o_proj.weight.T
        x = x + torch.relu(x @ mlp.fc1.weight.T + mlp.fc1.bias) @ mlp.fc2.weight.T + mlp.fc2.bias
        torch.testing.assert_close(model(ids).logits[0], x @ model.lm_head.weight.T, rtol=1e-4, atol=1e-5)


def test_attention_implementations_agree_and_masks_are_kept():
    ids = torch.randint(30, (2, 6), generator=torch.Generator().manual_seed(2))
    eager, sdpa = (build_model(NAME, SMALL, seed=1, attn_implementation=name) for name in ("eager", "sdpa"))
    with torch.no_grad():
        torch.testing.assert_close(eager(ids).logits, sdpa(ids).logits, rtol=1e-4, atol=1e-5)
        mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
        padded = eager(ids, attention_mask=mask).logits
        torch.testing.assert_close(padded[0, :4], eager(ids[:1, :4]).logits[0], rtol=1e-4, atol=1e-5)


def test_initialization_is_that_of_the_paper_and_depends_on_the_seed_alone():
    state = torch.random.get_rng_state()
    first, again, other = (build_model(NAME, {"vocab_size": 114}, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, tensor), (_, same), (_, different) in zip(
        first.named_parameters(), again.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(tensor, same)
        if name.endswith("bias"):
            assert not tensor.any()
            continue
        assert not torch.equal(tensor, different)
        expected = (114 if name == "lm_head.weight" else 128) ** -0.5
        assert float(tensor.detach().std()) == pytest.approx(
            expected, rel=0.15 if "positions" in name else 0.03
        )


def test_it_is_a_subject_with_the_sites_of_a_relu_transformer(model):
    subject = ss.wrap(model, id="modular")
    check_subject(subject)
    assert {"exact_zeros", "causal", "logits", "mlp_hidden"} <= subject.capabilities
    site = subject.sites("blocks.0.mlp.hook_post")[0]
    assert (site.width, site.activation, site.gated) == (48, "relu", False)
    assert subject.parameter("weight:blocks.0.mlp.out.weight").shape == (32, 48)


def test_a_sequence_beyond_the_positions_is_refused(model):
    with pytest.raises(SubjectError, match="longer than this model can read"):
        model(torch.zeros((1, 65), dtype=torch.int64))


def test_tables_need_one_layer():
    deep = build_model(NAME, {**SMALL, "num_hidden_layers": 2})
    with pytest.raises(SubjectError, match="one layer"):
        deep.last_logits(torch.zeros((1, 3), dtype=torch.int64))
    assert deep(torch.zeros((1, 3), dtype=torch.int64)).logits.shape == (1, 3, 30)


def test_architectures_are_named():
    assert all(architecture(name).__name__ == name for name in ARCHITECTURES)
    with pytest.raises(SpecError, match="unknown architecture"):
        build_model("GPT5ForCausalLM", {})
    with pytest.raises(SpecError, match="no model can be built"):
        build_model("OPTForCausalLM", {"hidden_size": 10, "num_attention_heads": 3})
