"""Random subjects: seeded, reproducible, without a trace on the random state; ReLU density 1/2."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.models import load, registered_subjects
from sparsescope.models.zoo.byte_tokenizer import VOCABULARY_SIZE, byte_alphabet, byte_tokenizer

RANDOM_NAMES = tuple(name for name in registered_subjects() if name.startswith("random-"))


@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    torch.manual_seed(1)
    first = load(name).identity.weight_hash
    torch.manual_seed(2)
    assert load(name, revision="seed-0").identity.weight_hash == first
    other = load(f"{name}@1")
    assert other.identity.weight_hash != first
    assert other.identity.revision == "seed-1"


@pytest.mark.parametrize("name", [*RANDOM_NAMES, "glassllm"])
def test_loading_leaves_the_random_state_alone(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    load(name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("revision", ["x", "seed-", "seed--1", "-1", "1.5"])
def test_a_seed_that_is_no_number_is_refused(revision: str) -> None:
    with pytest.raises(SpecError, match="seed"):
        load("random-opt", revision=revision)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_the_rounded_float32_weights(dtype: str) -> None:
    exact, rounded = load("random-llama"), load("random-llama", dtype=dtype)
    assert rounded.dtype == dtype
    name = "weight:blocks.1.mlp.out.weight"
    assert torch.equal(exact.parameter(name).to(rounded.torch_dtype), rounded.parameter(name))


def test_random_relu_density_is_one_half() -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(3, VOCABULARY_SIZE, size=(8, 64))
    densities: list[list[float]] = []
    for seed in range(5):
        subject = load(f"random-opt@{seed}")
        found: dict[int, float] = {}

        def measure(site: Any, tensor: torch.Tensor, rows: Any, found: dict[int, float] = found) -> None:
            found[site.layer] = float((tensor > 0).double().mean())

        with subject.attach(subject.sites("blocks.*.mlp.hook_post"), measure):
            subject.forward(ids)
        densities.append([found[layer] for layer in range(subject.n_layers)])
    by_seed_and_layer = np.array(densities)
    assert by_seed_and_layer.shape == (5, 4)
    assert abs(by_seed_and_layer.mean() - 0.5) < 0.02
    assert ((by_seed_and_layer > 0.45) & (by_seed_and_layer < 0.55)).all()


@pytest.mark.parametrize("text", ["plain", "héllo ⟨wörld⟩\n\t 日本", "<bos> <eos><pad>", "", "\x00\x7f"])
def test_the_byte_tokenizer_is_exact(text: str) -> None:
    tokenizer = byte_tokenizer(256)
    ids = tokenizer(text)["input_ids"]
    assert ids == [3 + byte for byte in text.encode("utf-8")]
    assert tokenizer.decode(ids) == text


def test_the_byte_alphabet_has_256_distinct_characters() -> None:
    assert len(set(byte_alphabet())) == 256
    assert len(byte_tokenizer(8)) == VOCABULARY_SIZE


@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_model_and_tokenizer_have_the_same_vocabulary(name: str, subject: Any) -> None:
    assert subject(name).model.config.vocab_size == len(subject(name).tokenizer)
