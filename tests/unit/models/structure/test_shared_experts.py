"""Shared experts and routed experts of the families that keep them in places of their own, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import linear, silu

import sparsescope as ss
from sparsescope.models.structure.dimensions import read_dimensions

SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 1,
}
GRANITE = {**SIZE, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
HYBRID = {**GRANITE, **MAMBA, "layer_types": ["linear_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "granitemoeshared": ("GraniteMoeShared", GRANITE),
    "granitemoehybrid": ("GraniteMoeHybrid", HYBRID),
    "hunyuan_v1_moe": (
        "HunYuanMoEV1",
        {**SIZE, "num_experts": 4, "moe_topk": 2, "head_dim": 8},
    ),
    "llama4_text": (
        "Llama4",
        {
            **SIZE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 8,
            "intermediate_size_mlp": 24,
        },
    ),
}
D_SHARED = {"granitemoeshared": 24, "granitemoehybrid": 24, "hunyuan_v1_moe": 48, "llama4_text": 48}
IDS = torch.arange(26).reshape(2, 13) * 7 % 90 + 3


def made(kind: str, values: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{kind}{'Text' if kind == 'Llama4' else ''}Config")(**values)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return ss.wrap(model)


def read(subject: Any, patterns: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Copies of what the sites hold, and of the rows of expert sites."""
    values: dict[str, torch.Tensor] = {}
    rows: dict[str, torch.Tensor] = {}

    def keep(site: Any, tensor: torch.Tensor, routed: torch.Tensor | None) -> None:
        values[site.name] = tensor.clone()
        if routed is not None:
            rows[site.name] = routed

    with subject.attach(subject.sites(patterns), keep):
        subject.forward(IDS)
    return values, rows


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shared_expert_is_its_equation(family: str) -> None:
    subject = made(*FAMILIES[family])
    values, _ = read(subject, "blocks.*.mlp.*")
    for layer in range(2):
        at, weight = f"blocks.{layer}.mlp", f"weight:blocks.{layer}.mlp.shared_expert"
        given = values[f"{at}.hook_in"].reshape(2, 13, 32)
        before = linear(given, subject.parameter(f"{weight}.gate.weight"))
        other = linear(given, subject.parameter(f"{weight}.in.weight"))
        for role, expected in {
            "hook_pre": before,
            "hook_pre_linear": other,
            "act.hook_out": silu(before),
            "hook_post": silu(before) * other,
        }.items():
            torch.testing.assert_close(values[f"{at}.shared_expert.{role}"], expected, rtol=1e-5, atol=1e-6)
        assert subject.parameter(f"{weight}.out.weight").shape == (32, D_SHARED[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_routed_and_shared_experts_add_up_to_the_mixture(family: str) -> None:
    subject = made(*FAMILIES[family])
    values, rows = read(subject, "blocks.1.mlp.*")
    block = subject.blocks[1].experts
    given = values["blocks.1.mlp.hook_in"].reshape(-1, 32)
    scores = linear(given, subject.parameter("weight:blocks.1.mlp.router.weight"))
    torch.testing.assert_close(
        values["blocks.1.mlp.router.hook_out"].reshape(-1, 4), scores, rtol=1e-5, atol=1e-5
    )
    top, chosen = scores.topk(2, dim=-1)
    # Llama 4 weighs what experts get, the others what they give
    weights = torch.sigmoid(top) if family == "llama4_text" else torch.softmax(top, -1)
    total = torch.zeros(26, 32)
    for expert in range(4):
        name = f"blocks.1.mlp.experts.{expert}"
        where, place = (chosen == expert).nonzero(as_tuple=True)
        order = where.argsort()
        where, share = where[order], weights[where, place][order, None]
        assert torch.equal(rows[f"{name}.hook_post"], where) and len(where)
        scaled = given[where] * share if family == "llama4_text" else given[where]
        gate, up, down = (subject.parameter(f"weight:{name}.{key}.weight") for key in ("gate", "in", "out"))
        hidden = silu(linear(scaled, gate)) * linear(scaled, up)
        torch.testing.assert_close(values[f"{name}.hook_post"], hidden, rtol=1e-4, atol=1e-5)
        total[where] += linear(hidden, down) * (1 if family == "llama4_text" else share)
    if not family.startswith("granite"):  # Granite adds the shared expert in the block
        shared = values["blocks.1.mlp.shared_expert.hook_post"].reshape(26, -1)
        total += linear(shared, subject.parameter("weight:blocks.1.mlp.shared_expert.out.weight"))
    torch.testing.assert_close(values["blocks.1.mlp.hook_out"].reshape(26, 32), total, rtol=1e-4, atol=1e-4)
    assert block is not None and block.shared is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_of_the_bounds_are_those_of_the_model(family: str) -> None:
    subject = made(*FAMILIES[family])
    for layer in read_dimensions(subject).layers:
        assert (layer.experts, layer.routed, layer.d_mlp) == (4, 2, 48)
        assert (layer.d_shared, layer.router_weights, layer.gated) == (D_SHARED[family], 4 * 32, True)
        assert layer.active_width == 2 * 48 + D_SHARED[family]
        home = subject.model.get_submodule(subject.blocks[layer.layer].path)
        counted = 3 * 32 * (4 * 48 + layer.d_shared) + layer.router_weights + layer.attention_weights
        counted += layer.norm_weights + layer.bias_weights + layer.other_weights
        assert counted == sum(parameter.numel() for parameter in home.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_expert_sites_can_be_replaced(family: str) -> None:
    subject = made(*FAMILIES[family])
    plain = subject.forward(IDS)
    sites = subject.sites("blocks.*.mlp.experts.*")
    with subject.edit(sites, lambda site, tensor, rows: tensor):
        torch.testing.assert_close(subject.forward(IDS), plain, rtol=1e-4, atol=1e-5)
    with subject.edit(sites, lambda site, tensor, rows: torch.zeros_like(tensor)):
        silent = subject.forward(IDS)
    with torch.no_grad():
        for block in subject.blocks:
            subject.model.get_submodule(block.experts.path).down_proj.zero_()
    torch.testing.assert_close(silent, subject.forward(IDS), rtol=1e-4, atol=1e-5)
    assert float((silent - plain).abs().max()) > 1e-2


def test_the_dense_mlp_of_granite_4_is_found() -> None:
    subject = made("GraniteMoeHybrid", {**HYBRID, "num_local_experts": 0, "num_experts_per_tok": 0})
    values, _ = read(subject, "blocks.*.mlp.*")
    assert "mlp_hidden" in subject.capabilities and "experts" not in subject.capabilities
    for layer in read_dimensions(subject).layers:
        assert (layer.d_mlp, layer.gated, layer.experts, layer.d_shared) == (24, True, 0, 0)
        at = f"blocks.{layer.layer}.mlp"
        names = ("gate", "in", "out")
        gate, up, down = (subject.parameter(f"weight:{at}.{key}.weight") for key in names)
        hidden = silu(linear(values[f"{at}.hook_in"], gate)) * linear(values[f"{at}.hook_in"], up)
        torch.testing.assert_close(values[f"{at}.hook_post"], hidden, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(values[f"{at}.hook_out"], linear(hidden, down), rtol=1e-5, atol=1e-5)
