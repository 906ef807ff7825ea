"""The benchmark of decoding on a small model: what it counts; times are not tested."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.activations.context import Context
from sparsescope.bench.decode import ANALYSIS, DecodeParams
from sparsescope.bench.decode.compute import compute
from sparsescope.bench.decode.statements import statements
from sparsescope.bench.decode.views import parts, speed_and_quality
from sparsescope.errors import SpecError, SubjectError
from sparsescope.testing import check_figure

SMALL = {"targets": (0.5,), "stored": ("float32", "int8"), "prompts": (8, 16), "new_tokens": 6, "windows": 3}


@pytest.fixture(scope="module")
def context():
    subject = ss.load("random-llama")
    return Context.of(subject=subject, text=tokenized(ss.corpus("python-docs", tokens=1500, seed=0), subject))


@pytest.fixture(scope="module")
def result(context):
    return compute(DecodeParams(**SMALL), context)


def test_every_variant_has_a_row_for_each_prompt(result):
    assert set(result.tables) == set(ANALYSIS.tables)
    table = result.tables["variants"]
    names = ["transformers, eager", "our loop, float32", "our loop, float32, teal 50 %", "our loop, int8"]
    for prompt in (8, 16):
        assert set(names) < set(table.query(f"prompt == {prompt}")["variant"])
    assert (table[table["variant"] != "transformers, generate"]["seconds"] > 0).all()  # a small difference


def test_perplexity_is_that_of_the_model_on_the_timed_tokens(context, result):
    documents = context.corpus.documents
    rest = documents[max(1, len(documents) // 2) :]
    ids = [int(token) for document in rest for token in document.ids]
    nll = []
    for at in np.linspace(0, len(ids) - 14, 3).astype(int):  # spread over the second half
        window = torch.tensor([ids[at : at + 14]])
        with torch.inference_mode():
            logits = context.subject.model(window).logits[0].float().log_softmax(-1)
        nll += [-float(logits[i - 1, window[0, i]]) for i in range(8, 14)]
    table = result.tables["variants"].query("prompt == 8").set_index("variant")
    expected = np.exp(np.mean(nll))
    assert table.loc["transformers, eager", "perplexity"] == pytest.approx(expected, rel=1e-5)
    assert table.loc["our loop, float32", "perplexity"] == pytest.approx(expected, rel=1e-5)


def test_our_dense_loop_is_the_model_and_masks_are_not(result):
    table = result.tables["variants"].query("prompt == 8").set_index("variant")
    assert table.loc["our loop, float32", "kl"] < 1e-7
    assert table.loc["our loop, float32, teal 50 %", "kl"] > table.loc["our loop, float32", "kl"] + 1e-6
    assert abs(table.loc["our loop, float32, teal 50 %", "sparsity"] - 0.5) < 0.15
    assert table.loc["our loop, float32", "sparsity"] == 0


def test_parts_of_a_step(result):
    table = result.tables["parts"]
    assert set(table["stored"]) == {"float32", "int8"}
    assert (table["seconds"] >= 0).all() and (table.groupby("stored").size() == 4).all()


def test_what_it_says_and_draws(result):
    said = statements(result)
    assert "times the perplexity" in said[0].text
    for prompt in (8, None):
        check_figure(speed_and_quality(result, prompt))
    check_figure(parts(result))


def test_too_little_text(context):
    with pytest.raises(SpecError, match="too short for so many windows") as caught:
        compute(DecodeParams(**{**SMALL, "new_tokens": 2000}), context)
    assert "--tokens" in caught.value.message()


@pytest.mark.parametrize("method", ["cats", "top_p", "rsparse", "wina+rotated"])
def test_methods_whose_masks_the_loop_does_not_compute(context, method):
    with pytest.raises(SpecError, match="does not compute the masks"):
        compute(DecodeParams(**{**SMALL, "method": method}), context)


def test_the_reference_is_float32():
    subject = ss.load("random-llama", dtype="bfloat16")
    text = tokenized(ss.corpus("python-docs", tokens=600, seed=0), subject)
    with pytest.raises(SubjectError, match="reference"):
        compute(DecodeParams(**SMALL), Context.of(subject=subject, text=text))


@pytest.mark.parametrize(
    "wrong",
    [{"method": "nosuch"}, {"targets": (0.0,)}, {"targets": (0.5, 0.5)}, {"prompts": (0,)}, {"stored": ()}],
)
def test_bad_parameters(wrong):
    with pytest.raises(ValidationError):
        DecodeParams(**wrong)
