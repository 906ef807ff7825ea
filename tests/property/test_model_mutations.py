"""Damaged and hostile model files: refused with a message before anything large is allocated,
or the same weights.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsescope.models import load

spec = importlib.util.spec_from_file_location(
    "model_files", Path(__file__).parents[1] / "unit" / "models" / "conftest.py"
)
model_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_files)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, llama):
    folder = tmp_path_factory.mktemp("saved") / "model"
    llama.model.save_pretrained(folder)
    llama.tokenizer.save_pretrained(folder)
    load(folder)  # what is imported on first use is not counted below
    return folder


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model_files.write_tiny_gguf(path)
    return path, load(path).identity.weight_hash


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


def read(mutate, path, around, expected):
    """Load; what is accepted must have the same weights and still run."""
    subject, refusal = mutate.attempt(lambda: load(path), around)
    if refusal is None:
        assert subject.identity.weight_hash == expected
        with mutate.bounded():
            subject.forward(torch.tensor([[1, 2, 3]]), logits=False)
    return refusal


def edit(folder, name="config.json", **changes):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("seed", range(60))
def test_a_changed_configuration(mutate, folder, tmp_path, llama, seed):
    document = json.loads((folder / "config.json").read_text())
    changed, _ = mutate.mutate_json(document, Random(seed))
    mutate.write_json(folder / "config.json", changed)
    read(mutate, folder, tmp_path, llama.identity.weight_hash)


SIZES = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
HOSTILE = [
    (key, value)
    for key in (*SIZES, "num_hidden_layers")
    for value in (0, -1, 10**9, 10**30, 1.5, "64", None, [64])
]
# Those have defaults
HOSTILE = [pair for pair in HOSTILE if pair not in (("head_dim", None), ("num_key_value_heads", None))]
HOSTILE += [
    ("num_hidden_layers", 2),
    ("num_hidden_layers", 4),
    ("num_hidden_layers", 1000),
    ("vocab_size", 258),
    ("vocab_size", 260),
    ("max_position_embeddings", 0),
    ("max_position_embeddings", -1),
    ("rms_norm_eps", float("nan")),
    ("model_type", "../x"),
    ("model_type", ["llama"]),
    ("architectures", 7),
    ("architectures", [7]),
    ("auto_map", 7),
    ("auto_map", {"AutoModel": "x.y"}),
    ("hidden_act", "surprise"),
    ("rope_parameters", {"rope_type": "surprise"}),
]


@pytest.mark.parametrize(("key", "value"), HOSTILE)
def test_a_configuration_that_no_model_has_is_refused(mutate, folder, tmp_path, llama, key, value):
    edit(folder, **{key: value})
    assert read(mutate, folder, tmp_path, llama.identity.weight_hash) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "7",
        '"x"',
        "[" * 100_000,
        '{"model_type": "llama"' + "," * 9,
        "\ud800",
        "{" + "}" * 3,
    ],
)
def test_a_configuration_that_is_none_is_refused(mutate, folder, tmp_path, llama, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read(mutate, folder, tmp_path, llama.identity.weight_hash) is not None


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize("seed", range(40))
def test_damaged_weights(mutate, folder, tmp_path, llama, seed):
    path, random = folder / "model.safetensors", Random(seed)
    if seed % 2:
        header, data = header_of(path)
        raw = json.dumps(mutate.mutate_json(header, random)[0]).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        expected = llama.identity.weight_hash
    else:
        data = path.read_bytes()
        length = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(mutate.mutate_bytes(data, random, last=length))
        expected = llama.identity.weight_hash
    mutate.attempt(lambda: load(path.parent), tmp_path)
    refusal = read(mutate, folder, tmp_path, expected) if seed % 2 == 0 else None
    assert refusal is None or refusal.what


def test_weights_that_are_swapped_under_their_names_have_another_hash(folder, llama):
    weights = load_file(folder / "model.safetensors")
    a, b = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    weights[a], weights[b] = weights[b].clone(), weights[a].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).identity.weight_hash != llama.identity.weight_hash


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "", 7, None, ["x"], "x\0y", "x" * 9000],
)
def test_an_index_that_leaves_the_folder_is_refused(mutate, folder, tmp_path, llama, name):
    shutil.copy(folder / "model.safetensors", tmp_path / "secret.safetensors")
    keys = [key for key in header_of(folder / "model.safetensors")[0] if key != "__metadata__"]
    (folder / "model.safetensors").unlink()
    document = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(keys, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    assert read(mutate, folder, tmp_path, llama.identity.weight_hash) is not None


@pytest.mark.parametrize("seed", range(24))
def test_a_damaged_tokenizer(mutate, folder, tmp_path, llama, seed):
    name = ("tokenizer.json", "tokenizer_config.json")[seed % 4 == 0]
    path, random = folder / name, Random(seed)
    if seed % 2:
        path.write_bytes(mutate.mutate_bytes(path.read_bytes(), random))
    else:
        mutate.write_json(path, mutate.mutate_json(json.loads(path.read_text()), random)[0])
    read(mutate, folder, tmp_path, llama.identity.weight_hash)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_gguf_header(mutate, gguf, tmp_path, seed):
    path, data, random = tmp_path / "tiny.gguf", gguf[0].read_bytes(), Random(seed)
    end = data.index(b"tokenizer.ggml.tokens") + 60 if seed % 2 else data.index(b"blk.0.ffn_norm.weight") + 60
    path.write_bytes(mutate.mutate_bytes(data, random, first=4, last=end))
    mutate.attempt(lambda: load(path), tmp_path)


def put(data, key, offset, size, value):
    """Overwrite a number that follows a key of the header."""
    at = data.index(key) + len(key) + offset
    return data[:at] + value.to_bytes(size, "little") + data[at + size :]


GGUF = {
    "very many tensors": lambda data: data[:8] + (2**60).to_bytes(8, "little") + data[16:],
    "very many keys": lambda data: data[:16] + (2**60).to_bytes(8, "little") + data[24:],
    "a very long name": lambda data: data[:24] + (2**60).to_bytes(8, "little") + data[32:],
    "a very long list": lambda data: put(data, b"tokenizer.ggml.token_type", 8, 8, 2**60),
    "a list of very many words": lambda data: put(data, b"tokenizer.ggml.tokens", 8, 8, 2**60),
    "a type that is none": lambda data: put(data, b"llama.block_count", 0, 4, 99),
    "no layers": lambda data: put(data, b"llama.block_count", 4, 4, 0),
    "more layers than are stored": lambda data: put(data, b"llama.block_count", 4, 4, 2),
    "very many layers": lambda data: put(data, b"llama.block_count", 4, 4, 2**31),
    "a very wide model": lambda data: put(data, b"llama.embedding_length", 4, 4, 10**9),
    "a very wide layer": lambda data: put(data, b"llama.feed_forward_length", 4, 4, 10**9),
    "very many heads": lambda data: put(data, b"llama.attention.head_count", 4, 4, 10**9),
    "a tensor of very many dimensions": lambda data: put(data, b"blk.0.ffn_up.weight", 0, 4, 2**31),
    "a very large tensor": lambda data: put(data, b"blk.0.ffn_up.weight", 4, 8, 2**60),
    "a tensor behind the end": lambda data: put(data, b"blk.0.ffn_up.weight", 24, 8, 2**40),
    "version 9": lambda data: data[:4] + (9).to_bytes(4, "little") + data[8:],
    "the magic alone": lambda data: data[:4],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("name", GGUF)
def test_a_gguf_header_that_lies_is_refused(mutate, gguf, tmp_path, name):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(GGUF[name](gguf[0].read_bytes()))
    assert read(mutate, path, tmp_path, gguf[1]) is not None
