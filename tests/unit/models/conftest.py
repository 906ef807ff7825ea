"""Small models for the tests of the models layer: random subjects, and a tiny GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsescope.models import Subject, load


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test off the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@cache
def _shared(name: str) -> Subject:
    return load(name)


@pytest.fixture
def subject() -> Any:
    """Return a function that gives a subject by name. It is shared: do not write to its weights."""
    return _shared


def write_tiny_gguf(
    path: Path,
    *,
    pre_tokenizer: str = "smollm",
    seed: int = 0,
    architecture: str = "llama",
    more: Callable[[Any], None] | None = None,
) -> dict[str, np.ndarray]:
    """Write a Llama of one layer as GGUF, matrices as Q8_0.

    Args:
        path: File to write.
        pre_tokenizer: Value of ``tokenizer.ggml.pre``.
        seed: Seed of the weights.
        architecture: Value of ``general.architecture``; of one whose tensors are those of Llama.
        more: Adds further keys and tensors to the writer.

    Returns:
        The matrices before quantization, by GGUF name.
    """
    import gguf

    from sparsescope.models.zoo.byte_tokenizer import byte_alphabet

    generator = np.random.default_rng(seed)
    width, hidden, heads, kv_heads = 64, 96, 4, 2
    tokens = ["<unk>", "<s>", "</s>", *byte_alphabet()]
    merges = ["Ġ Ġ"]
    tokens.append("ĠĠ")
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (width * kv_heads // heads, width),
        "blk.0.attn_v.weight": (width * kv_heads // heads, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_gate.weight": (hidden, width),
        "blk.0.ffn_up.weight": (hidden, width),
        "blk.0.ffn_down.weight": (width, hidden),
    }
    weights = {name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, weight in weights.items():
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, np.ones(width, dtype=np.float32))
    if more is not None:
        more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GGUF file: Llama, one layer, Q8_0."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="session")
def saved_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in the HF layout, as save_pretrained writes it. Copy it before damaging it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    subject = _shared("random-llama")
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder
