"""Every key and tensor of a GGUF file is used, harmless, or refused by name; what is used computes the same
as the model made by hand.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SubjectError
from sparsescope.models import load

_spec = importlib.util.spec_from_file_location("gguf_fixture", Path(__file__).parents[1] / "conftest.py")
assert _spec is not None and _spec.loader is not None
fixture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fixture)

More = Callable[[Any], None]
IDS = torch.arange(3, 99)[None]  # 96 positions, so that rotary scaling shows


def keys(**named: Any) -> More:
    """Add keys of the architecture; ``__`` stands for a dot."""

    def add(writer: Any) -> None:
        for name, value in named.items():
            key = f"{writer.arch}.{name.replace('__', '.')}"
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)

    return add


def tensor(name: str, values: np.ndarray) -> More:
    return lambda writer: writer.add_tensor(name, values.astype(np.float32))


def llama3_factors(factor: float = 32.0, length: int = 8192, base: float = 10000.0) -> np.ndarray:
    """The tensor that convert_hf_to_gguf.py of llama.cpp writes for the scaling of Llama 3."""
    found = []
    for frequency in 1.0 / base ** (np.arange(0, 16, 2) / 16):
        wavelength = 2 * math.pi / frequency
        if wavelength < length / 4:
            found.append(1.0)
        elif wavelength > length / 1:
            found.append(factor)
        else:
            smooth = (length / wavelength - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found)


def both(*parts: More) -> More:
    return lambda writer: [part(writer) for part in parts] and None


def by_hand(plain: Any, **rope: Any) -> Any:
    """The same weights in a model whose configuration has the scaling in the form of transformers."""
    config = copy.deepcopy(plain.model.config)
    config.rope_parameters = {**config.rope_parameters, **rope}
    model = type(plain.model)(config).eval()
    model.load_state_dict(plain.model.state_dict())
    return model


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


@pytest.mark.parametrize(
    ("more", "rope"),
    [
        (
            keys(rope__scaling__type="linear", rope__scaling__factor=4.0),
            {"rope_type": "linear", "factor": 4.0},
        ),
        (keys(rope__scaling__factor=2.5), {"rope_type": "linear", "factor": 2.5}),
        (keys(rope__scale_linear=8.0), {"rope_type": "linear", "factor": 8.0}),
        (
            keys(
                rope__scaling__type="yarn",
                rope__scaling__factor=4.0,
                rope__scaling__original_context_length=32,
                rope__scaling__finetuned=True,
            ),
            YARN,
        ),
        (
            keys(
                rope__scaling__type="yarn",
                rope__scaling__factor=4.0,
                rope__scaling__original_context_length=32,
                rope__scaling__yarn_beta_fast=16.0,
                rope__scaling__yarn_beta_slow=2.0,
                rope__scaling__yarn_ext_factor=1.0,
                rope__scaling__attn_factor=1.0,
            ),
            {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
        ),
        (
            tensor("rope_freqs.weight", llama3_factors()),
            {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
        ),
        (
            both(
                tensor("rope_freqs.weight", llama3_factors(8.0, 64)),
                keys(rope__scaling__original_context_length=64),
            ),
            {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 64},
        ),
    ],
    ids=[
        "linear",
        "factor alone",
        "older key",
        "yarn",
        "yarn with its own bounds",
        "llama 3",
        "llama 3, short",
    ],
)
def test_rotary_scaling_computes_what_the_file_says(more: More, rope: dict[str, Any], tmp_path: Path) -> None:
    fixture.write_tiny_gguf(tmp_path / "plain.gguf")
    fixture.write_tiny_gguf(tmp_path / "scaled.gguf", more=more)
    plain, scaled = load(tmp_path / "plain.gguf"), load(tmp_path / "scaled.gguf")
    reference = by_hand(plain, **rope)
    with torch.inference_mode():
        wanted = reference(input_ids=IDS).logits
    found = scaled.forward(IDS, logits=True)
    assert torch.equal(found, wanted)
    assert not torch.allclose(plain.forward(IDS, logits=True), wanted, atol=1e-3)
    assert scaled.identity.config_hash != plain.identity.config_hash
    scaled.model.save_pretrained(tmp_path / "folder")
    scaled.tokenizer.save_pretrained(tmp_path / "folder")
    assert torch.equal(load(tmp_path / "folder").forward(IDS, logits=True), wanted)


@pytest.mark.parametrize(
    "more",
    [
        keys(rope__scaling__type="none", rope__scaling__factor=4.0),
        keys(rope__scaling__type="linear", rope__scaling__factor=1.0),
        keys(rope__scaling__type="linear"),
        keys(rope__scaling__original_context_length=64, rope__scaling__finetuned=False),
        tensor("rope_freqs.weight", np.ones(8)),
        keys(attention__key_length=16, attention__value_length=16),
        keys(attention__causal=True, attention__clamp_kqv=0.0, attention__scale=0.25, logit_scale=1.0),
        keys(attention__sliding_window=128, expert_count=0, expert_used_count=0, final_logit_softcapping=0.0),
        keys(tensor_data_layout="Meta AI original pth", pooling_type=0),
        lambda writer: (
            writer.add_string("quantize.imatrix.file", "imatrix.dat"),
            writer.add_string("mradermacher.quantized_by", "somebody"),
            writer.add_chat_template("{{ messages }}"),
            writer.add_uint32("tokenizer.ggml.eot_token_id", 2),
            writer.add_uint32("split.count", 1),
            writer.add_array("general.tags", ["text"]),
        ),
    ],
)
def test_keys_that_change_nothing_give_the_same_model(more: More, tiny_gguf: Path, tmp_path: Path) -> None:
    fixture.write_tiny_gguf(tmp_path / "more.gguf", more=more)
    found, plain = load(tmp_path / "more.gguf").identity, load(tiny_gguf).identity
    assert (found.weight_hash, found.config_hash) == (plain.weight_hash, plain.config_hash)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            keys(rope__scaling__type="longrope", rope__scaling__factor=4.0),
            "llama.rope.scaling.type = longrope",
        ),
        (keys(rope__scaling__attn_factor=1.2), "llama.rope.scaling.attn_factor"),
        (keys(rope__scaling__alpha=4.0), "llama.rope.scaling.alpha"),
        (
            keys(
                rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__yarn_log_multiplier=0.1
            ),
            "llama.rope.scaling.yarn_log_multiplier",
        ),
        (
            keys(rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__yarn_ext_factor=0.5),
            "yarn_ext_factor",
        ),
        (tensor("rope_freqs.weight", np.linspace(1, 3, 8)), "rope_freqs.weight = factors"),
        (
            both(tensor("rope_freqs.weight", llama3_factors()), keys(rope__scaling__factor=2.0)),
            "rope_freqs.weight = factors",
        ),
        (keys(rope__dimension_sections=[4, 4, 0, 0]), "llama.rope.dimension_sections"),
        (keys(rope__freq_base_swa=1000.0), "llama.rope.freq_base_swa"),
        (keys(logit_scale=0.0625), "llama.logit_scale = 0.0625"),
        (keys(attention__scale=0.5), "llama.attention.scale = 0.5"),
        (keys(attention__sliding_window=16), "llama.attention.sliding_window = 16"),
        (keys(attention__clamp_kqv=8.0), "llama.attention.clamp_kqv = 8.0"),
        (keys(attention__max_alibi_bias=8.0), "llama.attention.max_alibi_bias"),
        (keys(attention__causal=False), "llama.attention.causal = False"),
        (keys(attention__temperature_scale=0.1), "llama.attention.temperature_scale"),
        (keys(attn_logit_softcapping=50.0), "llama.attn_logit_softcapping = 50.0"),
        (keys(final_logit_softcapping=30.0), "llama.final_logit_softcapping = 30.0"),
        (keys(attention__value_length=32), "llama.attention.value_length = 32"),
        (keys(expert_count=8, expert_used_count=2), "llama.expert_count = 8; llama.expert_used_count = 2"),
        (keys(expert_gating_func=2), "llama.expert_gating_func"),
        (
            keys(embedding_scale=12.0, residual_scale=0.22),
            "llama.embedding_scale = 12.0; llama.residual_scale",
        ),
        (keys(use_parallel_residual=True), "llama.use_parallel_residual = True"),
        (keys(of_tomorrow=1), "llama.of_tomorrow = 1"),
        (lambda w: w.add_bool("tokenizer.ggml.of_tomorrow", True), "tokenizer.ggml.of_tomorrow = True"),
        (lambda w: w.add_float32("adapter.lora.alpha", 16.0), "adapter.lora.alpha = 16.0"),
        (tensor("blk.0.attn_q.bias", np.ones(64)), "blk.0.attn_q.bias = shape (64,)"),
        (tensor("blk.0.attn_sinks.weight", np.ones(4)), "blk.0.attn_sinks.weight = shape (4,)"),
        (tensor("rope_factors_long.weight", np.ones(8)), "rope_factors_long.weight = shape (8,)"),
        (tensor("blk.1.ffn_norm.weight", np.ones(64)), "blk.1.ffn_norm.weight = shape (64,)"),
    ],
)
def test_what_transformers_leaves_out_is_refused_by_name(more: More, named: str, tmp_path: Path) -> None:
    fixture.write_tiny_gguf(tmp_path / "more.gguf", more=more)
    with pytest.raises(SubjectError, match=r"leaves out \d parts of this GGUF file") as caught:
        load(tmp_path / "more.gguf")
    assert named in (caught.value.got or "")
    assert caught.value.where == str(tmp_path / "more.gguf") and caught.value.next_step


def test_partial_rotary_is_refused(tmp_path: Path) -> None:
    """The reader of Llama files takes the rotary width for the width of heads."""

    def half(writer: Any) -> None:
        writer.kv_data[0]["llama.rope.dimension_count"].value = 8

    fixture.write_tiny_gguf(tmp_path / "half.gguf", more=half)
    with pytest.raises(SubjectError) as caught:
        load(tmp_path / "half.gguf")
    assert caught.value.got == "llama.rope.dimension_count = 8"


def test_an_epsilon_that_the_reader_drops_is_set(tiny_gguf: Path, tmp_path: Path) -> None:
    from transformers import FalconConfig, Gemma2Config, Qwen3Config

    from sparsescope.models.formats.gguf_keys import settle

    falcon = FalconConfig()
    settle({"general.architecture": "falcon", "falcon.attention.layer_norm_epsilon": 1e-3}, falcon, None, "-")
    assert falcon.layer_norm_epsilon == 1e-3
    gemma = Gemma2Config()
    caps = {"gemma2.attn_logit_softcapping": 20.0, "gemma2.final_logit_softcapping": 0.0}
    settle({"general.architecture": "gemma2", **caps}, gemma, None, "-")
    assert (gemma.attn_logit_softcapping, gemma.final_logit_softcapping) == (20.0, None)
    qwen = Qwen3Config(head_dim=128)
    lengths = {"qwen3.attention.key_length": 64, "qwen3.attention.value_length": 64}
    settle({"general.architecture": "qwen3", "qwen3.rope.dimension_count": 64, **lengths}, qwen, None, "-")
    assert qwen.head_dim == 64


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_part_of_a_split_model_says_how_to_join(number: int, tmp_path: Path) -> None:
    path = tmp_path / f"model-{number + 1:05d}-of-00003.gguf"

    def split(writer: Any) -> None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 3)
        writer.add_int32("split.tensors.count", 30)

    fixture.write_tiny_gguf(path, more=split)
    with pytest.raises(SubjectError, match=f"part {number + 1} of a GGUF model in 3 files") as caught:
        load(path)
    assert "gguf-split --merge NAME-00001-of-00003.gguf" in (caught.value.next_step or "")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    fixture.write_tiny_gguf(tmp_path / "lora.gguf", more=lambda w: w.add_type("adapter"))
    with pytest.raises(SubjectError, match="no model by itself"):
        load(tmp_path / "lora.gguf")


@pytest.mark.parametrize("name", ["starcoder", "command-r", "exaone"])
def test_tokenizers_like_smollm_split_digits_first(name: str, tmp_path: Path) -> None:
    fixture.write_tiny_gguf(tmp_path / "model.gguf", pre_tokenizer=name)
    assert load(tmp_path / "model.gguf").tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]


def test_a_tokenizer_that_transformers_cuts_otherwise_is_refused(tmp_path: Path) -> None:
    fixture.write_tiny_gguf(tmp_path / "model.gguf", pre_tokenizer="deepseek-llm")
    with pytest.raises(SubjectError, match="other tokens than this GGUF file says") as caught:
        load(tmp_path / "model.gguf")
    assert caught.value.got == "tokenizer.ggml.pre = deepseek-llm"


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_families_are_scaled_too(architecture: str, tmp_path: Path) -> None:
    """Their parameters are set in the configuration; the tensors of this file are not theirs."""
    from transformers import CONFIG_MAPPING

    from sparsescope.models.formats.gguf_keys import settle

    config = CONFIG_MAPPING[architecture]()
    values = {"general.architecture": architecture, f"{architecture}.rope.scaling.factor": 4.0}
    settle(values, config, None, "-")
    assert config.rope_parameters["rope_type"] == "linear" and config.rope_parameters["factor"] == 4.0


def test_scaling_of_a_family_that_is_not_known_to_take_it_is_refused() -> None:
    from transformers import CONFIG_MAPPING

    from sparsescope.models.formats.gguf_keys import settle

    config = CONFIG_MAPPING["phi3"]()
    with pytest.raises(SubjectError) as caught:
        settle({"general.architecture": "phi3", "phi3.rope.scaling.factor": 4.0}, config, None, "-")
    assert caught.value.got == "phi3.rope.scaling.factor = 4.0"
