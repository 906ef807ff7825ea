"""Parity with plain transformers, and of our role map with TransformerLens, by architecture.

For every family: the passes of a subject under hooks on all sites give the logits of plain
transformers, ``act(hook_pre) [* hook_pre_linear]`` is ``hook_post``, and the second matrix maps it
to ``mlp.hook_out``. The last two would fail on any module that our map names wrongly.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import linear

from sparsescope.errors import SubjectError
from sparsescope.models import Subject, bridge, load, wrap
from sparsescope.models.doctor import count_hooks, examine

_SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
_BLOOM = {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4}
_GPT = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
_FALCON = {key: value for key, value in _SIZE.items() if key != "intermediate_size"}
_NEO = {"vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
_PAD = {"pad_token_id": 0}
_ROUTED = {"num_local_experts": 4, "num_experts_per_tok": 2}
_HEAD = {"head_dim": 8}
_DEEPSEEK = {
    **_SIZE, "moe_intermediate_size": 16, "num_hidden_layers": 3, "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip

# name -> (configuration class, its parameters)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "mistral": ("MistralConfig", _GROUPED),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, **_HEAD}),
    "gemma2": ("Gemma2Config", {**_GROUPED, **_HEAD}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, **_HEAD}),
    "phi": ("PhiConfig", _SIZE),
    "phi3": ("Phi3Config", {**_GROUPED, **_PAD}),
    "olmo2": ("Olmo2Config", _SIZE),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "nemotron": ("NemotronConfig", {**_SIZE, "num_key_value_heads": 4}),
    "gpt2": ("GPT2Config", _GPT),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "gpt_neo": ("GPTNeoConfig", {**_NEO, "attention_types": [[["global", "local"], 1]]}),
    "gpt_neox": ("GPTNeoXConfig", _SIZE),
    "codegen": ("CodeGenConfig", {**_GPT, "rotary_dim": 4}),
    "bloom": ("BloomConfig", _BLOOM),
    "falcon": ("FalconConfig", _FALCON),
    "mpt": ("MptConfig", {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "opt": (
        "OPTConfig",
        {
            **_FALCON,
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
            "activation_function": "relu",
            "pad_token_id": 0,
        },
    ),
    "mixtral": ("MixtralConfig", {**_GROUPED, **_ROUTED}),
    "olmoe": ("OlmoeConfig", {**_SIZE, "num_experts": 4, "num_experts_per_tok": 2, **_PAD}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_GROUPED,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
        },
    ),
    "gpt_oss": ("GptOssConfig", {**_GROUPED, **_HEAD, **_ROUTED, **_PAD}),
    "granitemoe": ("GraniteMoeConfig", {**_GROUPED, **_ROUTED}),
    "deepseek_v3": ("DeepseekV3Config", _DEEPSEEK),
    "bert": ("BertConfig", _SIZE),
    "roberta": ("RobertaConfig", {**_SIZE, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertConfig",
        {"vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    ),
}
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "gpt_oss", "granitemoe", "deepseek_v3")
ENCODERS = ("bert", "roberta", "distilbert")
IDS = torch.arange(26).reshape(2, 13) * 7 % 90 + 3


@cache
def build(family: str) -> Subject:
    """Build a random model with every parameter drawn, so that no bias is trivially zero."""
    class_name, parameters = FAMILIES[family]
    config = getattr(transformers, class_name)(**parameters)
    auto = transformers.AutoModelForMaskedLM if family in ENCODERS else transformers.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return wrap(model)


def capture(subject: Subject) -> dict[str, torch.Tensor]:
    """Return a copy of what the dense sites of one pass hold."""
    found: dict[str, torch.Tensor] = {}

    def keep(site: Any, tensor: torch.Tensor, rows: Any) -> None:
        found[site.name] = tensor.clone()

    with subject.attach(subject.sites("blocks.*.*"), keep):
        subject.forward(IDS)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_plain_transformers(family: str) -> None:
    subject = build(family)
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        reference = subject.model(input_ids=IDS, attention_mask=mask).logits
    with subject.attach(subject.sites("blocks.*.*"), lambda *_: None):
        ours = subject.forward(IDS, mask, logits=True)
    assert float((reference - ours).abs().max()) <= 1e-4
    assert float(reference.abs().max()) > 0.01
    assert examine(subject).healthy
    assert count_hooks(subject.model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_mlp_sites_satisfy_the_equations_of_an_mlp(family: str) -> None:
    subject = build(family)
    found = capture(subject)
    checked = 0
    for block in subject.blocks:
        prefixes = {f"blocks.{block.layer}.mlp.": block.mlp}
        if block.experts is not None:
            prefixes = {f"blocks.{block.layer}.mlp.shared_expert.": block.experts.shared}
        for at, mlp in prefixes.items():
            if mlp is None:
                continue
            checked += 1
            hidden = _activate(subject, mlp, found[f"{at}hook_pre"])
            if mlp.gate is not None:
                hidden = hidden * found[f"{at}hook_pre_linear"]
            assert torch.allclose(found[f"{at}hook_post"], hidden, atol=1e-6)
            second = subject.model.get_submodule(mlp.out.path)
            out = linear(found[f"{at}hook_post"], subject.parameter(f"weight:{at}out.weight"), second.bias)
            if block.mlp is not None and family not in {"bloom", "mpt"}:  # these two add the residual inside
                assert torch.allclose(found[f"{at}hook_out"], out, atol=1e-5)
    assert checked or family in MIXTURES


def _activate(subject: Subject, mlp: Any, before: torch.Tensor) -> torch.Tensor:
    """Apply the activation of an MLP: its module, or the function that the configuration names."""
    if mlp.activation_path is not None:
        return subject.model.get_submodule(mlp.activation_path)(before)
    return transformers.activations.ACT2FN[subject.model.config.activation](before)


@pytest.mark.parametrize("family", MIXTURES)
def test_hidden_layers_of_experts_add_up(family: str) -> None:
    subject = build(family)
    sparse = [block for block in subject.blocks if block.experts is not None]
    outputs: dict[int, torch.Tensor] = {}
    totals = {block.layer: torch.zeros(IDS.numel(), 32) for block in sparse}
    routing: dict[tuple[int, str], torch.Tensor] = {}
    handles = [
        subject.model.get_submodule(block.experts.path).register_forward_hook(
            lambda module, args, output, layer=block.layer: outputs.__setitem__(layer, output.clone())
        )
        for block in sparse
        if block.experts is not None
    ]

    def add(site: Any, tensor: torch.Tensor, rows: Any) -> None:
        if site.kind != "experts":
            routing[site.layer, site.role] = tensor.reshape(IDS.numel(), -1)
            return
        module = subject.model.get_submodule(site.module_path)
        out = linear(tensor, subject.parameter(f"weight:{site.name.removesuffix('hook_post')}out.weight"))
        if getattr(module, "has_bias", False):
            out = out + module.down_proj_bias[site.expert]
        chosen = routing[site.layer, "mlp.hook_expert_indices"] == site.expert
        weight = (routing[site.layer, "mlp.hook_expert_weights"] * chosen).sum(-1)[rows, None]
        totals[site.layer][rows] += weight * out

    patterns = [
        f"blocks.{block.layer}.mlp.{role}" for block in sparse for role in ("hook_expert_*", "experts.*")
    ]
    with subject.attach(subject.sites(patterns), add):
        subject.forward(IDS)
    for handle in handles:
        handle.remove()
    for layer, total in totals.items():
        assert torch.allclose(total, outputs[layer].reshape(IDS.numel(), -1), atol=1e-5)
        assert float(total.abs().max()) > 0


@pytest.mark.parametrize(
    "name", ["random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-olmoe", "random-mixtral"]
)
def test_our_role_map_is_that_of_transformer_lens(name: str) -> None:
    subject = load(name)
    paths = bridge.component_paths(subject.model)
    block = subject.blocks[0]
    assert paths["blocks"] == block.path.removesuffix(".0")
    assert paths["attn"] == block.attention.container
    assert paths["attn.o"] == block.attention.out.path
    if "attn.q" in paths:
        ours = (block.attention.q.path, block.attention.k.path, block.attention.v.path)
        assert (paths["attn.q"], paths["attn.k"], paths["attn.v"]) == ours
    else:
        assert paths["attn.qkv"] == block.attention.q.path
    if block.experts is not None:
        assert (paths["mlp"], paths["mlp.gate"]) == (block.experts.container, block.experts.router)
        return
    assert (paths["mlp.in"], paths["mlp.out"]) == (block.mlp.into.path, block.mlp.out.path)
    assert paths.get("mlp.gate") == (block.mlp.gate.path if block.mlp.gate else None)
    assert paths["mlp"] == (block.mlp.container or block.path)


def test_the_map_of_transformer_lens_for_shared_experts() -> None:
    subject = load("random-qwen2moe")
    dense, sparse = subject.blocks[0], subject.blocks[1]
    paths = bridge.component_paths(subject.model)  # layer 0 is dense
    assert paths["mlp.dense_in"] == dense.mlp.into.path and paths["mlp.dense_out"] == dense.mlp.out.path
    assert paths["mlp.dense_gate"] == dense.mlp.gate.path
    moved = paths["mlp"].replace(".0.", ".1.")
    assert sparse.experts.container == moved and sparse.experts.path == f"{moved}.experts"
    assert sparse.experts.shared.out.path == f"{moved}.shared_expert.down_proj"


@pytest.mark.parametrize("name", ["random-llama", "random-opt", "random-gemma2"])
def test_the_map_of_transformer_lens_can_stand_in_for_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = load(name)
    assert bridge.block_modules(subject.model) == subject.blocks
    monkeypatch.setattr("sparsescope.models.structure.roles._MLP_CONTAINERS", ())
    assert wrap(subject.model).blocks == subject.blocks


def test_an_architecture_that_nobody_knows_is_refused() -> None:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(SubjectError, match="MambaForCausalLM is not supported"):
        wrap(transformers.MambaForCausalLM(config))


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-opt", "random-mixtral", "glassllm"])
def test_a_bridge_is_built_on_a_copy(name: str) -> None:
    subject = load(name)
    state = {key: value.numpy().tobytes() for key, value in subject.model.state_dict().items()}
    modules = [(path, type(module)) for path, module in subject.model.named_modules()]
    ids = IDS[:1]
    reference = subject.forward(ids, logits=True)
    config = subject.model.config.to_json_string()
    bridged = subject.bridge()
    assert type(bridged).__name__ == "TransformerBridge"
    with torch.no_grad():
        assert float((bridged(ids) - reference).abs().max()) <= 1e-4
    assert {key: value.numpy().tobytes() for key, value in subject.model.state_dict().items()} == state
    assert [(path, type(module)) for path, module in subject.model.named_modules()] == modules
    assert subject.model.config.to_json_string() == config
    assert torch.equal(subject.forward(ids, logits=True), reference)
    assert count_hooks(subject.model) == 0


def test_a_bridge_that_transformer_lens_refuses_is_explained() -> None:
    config = transformers.BertConfig(**_SIZE)
    with pytest.raises(SubjectError, match="no adapter for BertModel"):
        wrap(transformers.BertModel(config)).bridge()


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-opt", "random-gemma2"])
def test_captured_values_are_those_of_a_bridge(name: str) -> None:
    subject = load(name)
    found: dict[str, torch.Tensor] = {}
    roles = ["mlp.hook_post", "mlp.hook_pre", "mlp.hook_out", "attn.hook_out", "hook_in", "hook_out"]
    roles += ["hook_resid_pre", "hook_resid_post"]
    with subject.attach(
        subject.sites([f"blocks.*.{role}" for role in roles]),
        lambda s, t, _: found.__setitem__(s.name, t.clone()),
    ):
        subject.forward(IDS)
    with torch.no_grad():
        _, theirs = subject.bridge().run_with_cache(IDS)
    assert len(found) == len(roles) * subject.n_layers
    for key, value in found.items():
        assert torch.allclose(theirs[key].reshape(value.shape), value, atol=1e-4), key
