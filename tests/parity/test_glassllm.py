"""glassllm: our Llama against the NumPy forward of the package, our tokenizer against its own."""

from __future__ import annotations

import random
from functools import cache
from pydoc_data.topics import topics
from typing import Any

import glassllm
import numpy as np
import pytest
import torch

from sparsescope.errors import DependencyError, SubjectError
from sparsescope.models import load
from sparsescope.models.zoo import glassllm as ours

LANGUAGES = {"glassllm": "en", "glassllm-pt": "pt"}
TEXTS = {
    "glassllm": "Alice was beginning to get very tired of sitting by her sister on the bank, and of having",
    "glassllm-pt": "Algum tempo hesitei se devia abrir estas memórias pelo princípio ou pelo fim, isto",
}


@cache
def package(name: str) -> tuple[Any, Any]:
    return glassllm.load_pretrained(LANGUAGES[name])


@pytest.mark.parametrize("name", LANGUAGES)
def test_logits_are_those_of_the_package(name: str) -> None:
    reference_model, reference_tokenizer = package(name)
    ids = np.array([reference_tokenizer.encode(TEXTS[name])])
    assert ids.shape[1] >= 20
    reference = reference_model.forward(ids).data
    subject = load(name)
    ours = subject.forward(ids, logits=True).numpy()
    assert np.abs(ours - reference).max() <= 1e-4
    assert (ours.argmax(-1) == reference.argmax(-1)).all()
    assert (subject.origin_precision, subject.revision) == ("float16", "glassllm==0.1.0")


@pytest.mark.parametrize("name", LANGUAGES)
def test_without_the_permutation_it_is_another_model(name: str) -> None:
    reference_model, reference_tokenizer = package(name)
    ids = np.array([reference_tokenizer.encode(TEXTS[name])])
    path = ours._package_files() / f"{LANGUAGES[name]}.npz"
    with torch.no_grad():
        wrong = ours.glass_model(path, permute=False)(torch.as_tensor(ids)).logits.numpy()
    assert np.abs(wrong - reference_model.forward(ids).data).max() > 1


def test_the_model_predicts_its_own_language() -> None:
    subject = load("glassllm")
    ids = subject.tokenizer(TEXTS["glassllm"], return_tensors="pt").input_ids
    logits = subject.forward(ids, logits=True)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert float(loss) < 0.75 * np.log(1024)  # nats; a model that knows nothing gives log 1024 = 6.93


@pytest.mark.parametrize("name", LANGUAGES)
def test_ids_are_those_of_the_package_on_real_text(name: str) -> None:
    _, reference = package(name)
    tokenizer = load(name).tokenizer
    text = "".join(topics.values())[:200_000] + TEXTS["glassllm"] + TEXTS["glassllm-pt"]
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert ids == reference.encode(text)
    assert len(ids) > 50_000


@pytest.mark.parametrize("name", LANGUAGES)
def test_ids_and_round_trip_on_hostile_text(name: str) -> None:
    _, reference = package(name)
    tokenizer = load(name).tokenizer
    generator = random.Random(0)
    known = [*(c for c in reference.alphabet), *" " * 20, "\n"]
    for _ in range(300):
        text = "".join(generator.choices(known, k=generator.randint(0, 60)))
        ids = tokenizer(text)["input_ids"]
        assert ids == reference.encode(text)
        assert tokenizer.decode(ids) == reference.decode(ids) == text.replace("▁", " ")
    for text in ("<bos><eos><pad><unk>", "日本 e\u0301 \t\r\n", "▁▁ ▁", "a\x00b", " \n \n  x"):
        assert tokenizer(text)["input_ids"] == reference.encode(text)


def test_the_permutation_is_the_one_of_its_definition() -> None:
    rows = torch.arange(8.0)[:, None]  # two heads of size four
    assert ours.interleaved_to_halves(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_another_version_is_refused() -> None:
    with pytest.raises(SubjectError, match="no such revision"):
        load("glassllm", revision="9.9")
    assert load("glassllm@0.1.0").revision == "glassllm==0.1.0"


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    with pytest.raises(DependencyError) as caught:
        load("glassllm")
    assert "sparsescope[demo]" in (caught.value.next_step or "")
