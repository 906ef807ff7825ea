"""Weight matrices by role: always (out, in), always views, whatever the module stores."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers

from sparsescope.errors import SubjectError
from sparsescope.models import Subject, registered_subjects, wrap

RANDOM_NAMES = tuple(name for name in registered_subjects() if name.startswith("random-"))
Get = Callable[[str], Subject]


@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_shapes_are_out_in(name: str, subject: Get) -> None:
    model = subject(name)
    sites = model.parameter_sites("weight:blocks.*.*")
    assert sites
    widths = {site.name.removesuffix("hook_post"): site.width for site in model.sites("blocks.*.*hook_post")}
    for site in sites:
        assert tuple(model.parameter(site.name).shape) == site.shape, site.name
        if site.role.endswith(("mlp.out.weight", "experts.out.weight", "shared_expert.out.weight")):
            prefix = site.name.removeprefix("weight:").removesuffix("out.weight")
            assert site.shape == (model.d_model, widths[prefix]), site.name


def test_conv1d_is_transposed_and_fused_qkv_is_cut(subject: Get) -> None:
    model = subject("random-gpt2")
    block = model.model.transformer.h[1]
    assert torch.equal(model.parameter("weight:blocks.1.mlp.out.weight"), block.mlp.c_proj.weight.T)
    assert torch.equal(model.parameter("weight:blocks.1.mlp.in.weight"), block.mlp.c_fc.weight.T)
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    thirds = block.attn.c_attn(states).split(64, dim=-1)
    biases = block.attn.c_attn.bias.split(64)
    for role, expected, bias in zip("qkv", thirds, biases, strict=True):
        weight = model.parameter(f"weight:blocks.1.attn.{role}.weight")
        assert torch.allclose(states @ weight.T + bias, expected, atol=1e-6)


def test_fused_gate_up_and_qkv_of_phi3() -> None:
    config = transformers.Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = wrap(transformers.Phi3ForCausalLM(config))
    mlp, attention = model.model.model.layers[0].mlp, model.model.model.layers[0].self_attn
    assert torch.equal(model.parameter("weight:blocks.0.mlp.gate.weight"), mlp.gate_up_proj.weight[:48])
    assert torch.equal(model.parameter("weight:blocks.0.mlp.in.weight"), mlp.gate_up_proj.weight[48:])
    qkv = attention.qkv_proj.weight
    for role, rows in (("q", slice(0, 32)), ("k", slice(32, 48)), ("v", slice(48, 64))):
        assert torch.equal(model.parameter(f"weight:blocks.0.attn.{role}.weight"), qkv[rows])


def test_rows_that_alternate_by_head_are_not_cut() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = wrap(transformers.GPTNeoXForCausalLM(config))
    roles = {site.role for site in model.parameter_sites("weight:blocks.*.attn.*")}
    assert roles == {"attn.qkv.weight", "attn.o.weight"}


def test_transposed_interleaved_experts_of_gpt_oss() -> None:
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0,
    )  # fmt: skip
    model = wrap(transformers.GptOssForCausalLM(config))
    experts = model.model.model.layers[0].mlp.experts
    at = "weight:blocks.0.mlp.experts.3."
    assert torch.equal(model.parameter(f"{at}gate.weight"), experts.gate_up_proj[3, :, ::2].T)
    assert torch.equal(model.parameter(f"{at}in.weight"), experts.gate_up_proj[3, :, 1::2].T)
    assert torch.equal(model.parameter(f"{at}out.weight"), experts.down_proj[3].T)


@pytest.mark.parametrize("key", ["gate", "in", "out"])
def test_experts_come_one_by_one_or_all_at_once(key: str, subject: Get) -> None:
    model = subject("random-mixtral")
    batch = model.parameter(f"weight:blocks.1.mlp.experts.{key}.weight")
    sites = model.parameter_sites(f"weight:blocks.1.mlp.experts.{key}.weight")
    assert [site.expert for site in sites] == [0, 1, 2, 3]
    assert batch.shape == (4, *sites[0].shape)
    for site in sites:
        assert torch.equal(batch[site.expert], model.parameter(site))
    experts = model.model.model.layers[1].mlp.experts
    stored = {
        "gate": experts.gate_up_proj[:, :96],
        "in": experts.gate_up_proj[:, 96:],
        "out": experts.down_proj,
    }
    assert torch.equal(batch, stored[key])


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-mixtral", "random-qwen2moe"])
def test_writing_to_a_parameter_writes_to_the_model(name: str, subject: Get) -> None:
    model = subject(name).copy()
    before = model.identity.weight_hash
    for site in model.parameter_sites("weight:blocks.*.*"):
        view = model.parameter(site)
        assert not view.requires_grad
        view.zero_()
    zeros = sum(int((parameter == 0).sum()) for parameter in model.model.parameters())
    assert zeros >= sum(site.shape[0] * site.shape[1] for site in model.parameter_sites("weight:blocks.*.*"))
    assert model.identity.weight_hash != before
    assert subject(name).identity.weight_hash == before


def test_unknown_parameters_list_near_matches(subject: Get) -> None:
    with pytest.raises(SubjectError) as caught:
        subject("random-llama").parameter("weight:blocks.0.mlp.out.wieght")
    assert "weight:blocks.0.mlp.out.weight" in str(caught.value)
    with pytest.raises(SubjectError, match=r"weight:blocks\.0\.mlp\.experts\.out\.weight"):
        subject("random-olmoe").parameter("weight:blocks.0.mlp.out.weight")
    with pytest.raises(SubjectError, match="no parameter matches"):
        subject("random-llama").parameter_sites("blocks.*.mlp.out.weight")


def test_packed_weights_are_refused() -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config)
    packed = torch.nn.Parameter(torch.zeros(32, 48, dtype=torch.uint8), requires_grad=False)
    model.model.layers[0].mlp.down_proj.weight = packed
    with pytest.raises(SubjectError, match="packed by a quantization library"):
        wrap(model).parameter("weight:blocks.0.mlp.out.weight")
