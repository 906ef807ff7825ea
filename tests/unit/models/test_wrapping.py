"""What wrap does not take is refused with the call that works, and errors about wrapped models fit them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from sparsescope.activations.losses import check_causal
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import load, wrap
from sparsescope.models.attention import attention_rows
from sparsescope.models.doctor import examine
from sparsescope.models.formats.wrapping import check_step, float32_step

IDS = np.arange(16).reshape(2, 8)


def llama(**more: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        **more,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


class PeftModel(torch.nn.Module):
    """A stand-in with what marks the class of peft."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.base_model = model

    def merge_and_unload(self) -> Any:
        return self.base_model


class Engine(torch.nn.Module):
    """A stand-in for wrappers that keep the model as ``module``: DDP, DeepSpeed, those of accelerate."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.module = model


class TransformerBridge(torch.nn.Module):
    """A stand-in with the name of the class of TransformerLens."""


class Pipeline:
    def __init__(self, model: Any) -> None:
        self.model, self.tokenizer = model, object()


@pytest.mark.parametrize(
    ("made", "call"),
    [
        (PeftModel, "wrap(model.merge_and_unload(), tokenizer)"),
        (torch.compile, "wrap(model._orig_mod, tokenizer)"),
        (torch.nn.DataParallel, "wrap(model.module, tokenizer)"),
        (Engine, "wrap(model.module, tokenizer)"),
        (lambda model: torch.compile(Engine(model)), "wrap(model._orig_mod.module, tokenizer)"),
        (lambda model: Engine(PeftModel(model)), "wrap(model.module.merge_and_unload(), tokenizer)"),
        (Pipeline, "wrap(model.model, model.tokenizer)"),
    ],
)
def test_a_wrapper_is_refused_with_a_call_that_works(made: Any, call: str) -> None:
    plain = llama()
    wrapper = made(plain)
    with pytest.raises(SpecError, match="wrap takes a model of transformers") as caught:
        wrap(wrapper)
    assert call in (caught.value.next_step or "")
    # The very call of the message gives the model
    assert eval(call.removeprefix("wrap(").split(",")[0], {"model": wrapper}) is plain


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("glassllm", "sparsescope.load('glassllm')"),
        (Path("folder"), "sparsescope.load('folder')"),
        (transformers.LlamaForCausalLM, "give an instance"),
        ({"weight": 1}, "state dict"),
        ((llama(), None), "give its parts"),
        (TransformerBridge(), "loaded again"),
        (torch.nn.Linear(2, 2), "no blocks whose names are known"),
        (None, "no blocks whose names are known"),
    ],
)
def test_other_things_are_refused_with_what_to_do(given: Any, step: str) -> None:
    with pytest.raises(SpecError, match="wrap takes a model of transformers") as caught:
        wrap(given)
    assert step in (caught.value.next_step or "")


def test_layers_cut_after_loading_are_said_and_then_work() -> None:
    model = llama()
    model.model.layers = model.model.layers[:2]
    with pytest.raises(SubjectError, match="another number of blocks") as caught:
        wrap(model)
    assert (caught.value.allowed, caught.value.got) == ("num_hidden_layers = 3 blocks", "2 blocks")
    assert "model.config.num_hidden_layers = 2" in (caught.value.next_step or "")
    model.config.num_hidden_layers = 2
    subject = wrap(model)
    assert subject.n_layers == 2 and examine(subject).healthy


@pytest.mark.parametrize("family", ["random-llama", "random-mixtral", "random-gpt2"])
def test_a_configuration_that_asks_for_tuples_changes_nothing(family: str) -> None:
    plain = load(family)
    model = copy.deepcopy(plain.model)
    model.config.return_dict = False
    subject = wrap(model)
    assert torch.equal(subject.forward(IDS), plain.forward(IDS))
    if "logits" in plain.capabilities:
        assert torch.equal(subject.forward(IDS, logits=True), plain.forward(IDS, logits=True))
    assert examine(subject).healthy
    assert model.config.return_dict is False


def test_the_next_step_fits_how_the_model_was_given() -> None:
    bare = wrap(llama().model)
    with pytest.raises(SubjectError) as caught:
        check_causal(bare)
    assert caught.value.next_step == "see: sparsescope.models.doctor.examine(subject)"
    assert float32_step(bare) == "convert the model before it is wrapped: model.float()"
    loaded = load("random-llama")
    assert check_step(loaded) == "sparsescope doctor --subject random-llama"
    assert "dtype='float32'" in float32_step(loaded)


def test_attention_that_computes_with_its_mask_is_refused() -> None:
    config = transformers.DogeConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    subject = wrap(transformers.DogeForCausalLM(config).eval())
    message = "attention that computes with its mask"
    with (
        pytest.raises(SubjectError, match=message) as caught,
        attention_rows(subject, lambda rows: None),
    ):
        subject.forward(IDS)
    assert "leave this analysis out" in (caught.value.next_step or "")
