"""What is asked wrongly is refused before any work, each fault with its own words."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import Subject, load, wrap
from sparsescope.pruning import NM, prune
from sparsescope.pruning.request import Request, calibration_text
from sparsescope.pruning.scope import choose


@pytest.mark.parametrize(
    "sparsity",
    [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "half", "0.5", [0.5], True, False, Decimal("0.5"), 1j],
)
@pytest.mark.parametrize("pattern", [None, "2:4", "rows"])
def test_a_sparsity_is_a_share_below_one(sparsity: Any, pattern: Any, llama: Subject) -> None:
    with pytest.raises(SpecError, match="a sparsity is a share of weights that go") as caught:
        prune(llama, "magnitude", sparsity, pattern)
    assert caught.value.where == "sparsity" and repr(sparsity) in str(caught.value)


@pytest.mark.parametrize("sparsity", [0, 0.25, np.float32(0.25), np.float64(0.25), np.int64(0)])
def test_numbers_of_every_library_are_shares(sparsity: Any) -> None:
    found = Request.of("magnitude", sparsity).sparsity
    assert type(found) is float and found == float(sparsity)


def test_something_has_to_go() -> None:
    with pytest.raises(SpecError, match="how many weights go is not said"):
        Request.of("magnitude")
    assert Request.of("magnitude", pattern="1:4").sparsity == 0.75
    assert Request.of("magnitude", 0.75, NM(keep=1, group=4)).sparsity == 0.75
    assert Request.of("magnitude", 2 / 3, "1:3").sparsity == pytest.approx(2 / 3)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.0, 0.749])
def test_a_pattern_and_another_sparsity_contradict_each_other(sparsity: float) -> None:
    with pytest.raises(SpecError, match="another one was given") as caught:
        Request.of("magnitude", sparsity, "1:4")
    assert "0.75 for 1:4" in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"criterion": "wnada"}, "unknown criterion.*did you mean 'wanda'"),
        ({"allocation": "globl"}, "unknown allocation.*did you mean 'global'"),
        ({"pattern": "4:2"}, "at least one and at most all but one"),
        ({"pattern": "squares"}, "unknown pattern"),
        ({"propagation": "both"}, "unknown propagation"),
        ({"seed": 1.5}, "a seed is a whole number"),
        ({"seed": "one"}, "a seed is a whole number"),
        ({"seed": True}, "a seed is a whole number"),
        ({"criterion": "sparsegpt", "pattern": "rows"}, "single weights or N:M"),
    ],
)
def test_every_wrong_argument_has_its_own_words(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){words}") as caught:
        Request.of(**{"sparsity": None if "pattern" in wrong else 0.5, **wrong})
    assert caught.value.where or caught.value.next_step


def test_messages_differ(llama: Subject) -> None:
    said = set()
    for wrong in (
        {"sparsity": 2.0},
        {"sparsity": None},
        {"sparsity": 0.5, "pattern": "1:4"},
        {"sparsity": 0.5, "criterion": "none"},
        {"sparsity": 0.5, "allocation": "none"},
        {"sparsity": 0.5, "pattern": "no"},
        {"pattern": "2:4", "allocation": "erk"},
        {"pattern": "3:5"},
        {"sparsity": 0.5, "criterion": "wanda"},
        {"sparsity": 0.5, "scope": "heads"},
        {"sparsity": 0.5, "scope": "weight:blocks.9.*"},
        {"sparsity": 0.5, "propagation": "no"},
    ):
        with pytest.raises((SpecError, SubjectError)) as caught:
            prune(llama, **wrong)  # type: ignore[arg-type]
        said.add(caught.value.what)
    assert len(said) == 12


@pytest.mark.parametrize("criterion", ["wanda", "ria", "sparsegpt"])
def test_a_criterion_that_reads_a_text_says_so(criterion: str, llama: Subject) -> None:
    with pytest.raises(
        SpecError, match=f"{criterion} reads a calibration text, and none was given"
    ) as caught:
        prune(llama, criterion, 0.5)
    assert caught.value.where == "corpus"
    with pytest.raises(SpecError, match="this is not a corpus"):
        prune(llama, criterion, 0.5, corpus="python-docs")  # type: ignore[arg-type]


def test_an_empty_text_is_refused(llama: Subject, by_hand: Any) -> None:
    with pytest.raises(SubjectError, match="the calibration text is empty"):
        prune(llama, "wanda", 0.5, corpus=by_hand.document_text(()))
    with pytest.raises((SpecError, SubjectError)):
        prune(llama, "wanda", 0.5, corpus=ss.corpus([""], name="nothing"))
    prune(llama, "magnitude", 0.5, corpus=by_hand.document_text(()))  # read by nobody


def test_windows_beyond_the_positions_of_the_model_are_refused(llama: Subject, by_hand: Any) -> None:
    with pytest.raises(SubjectError, match="longer than the model was made for"):
        prune(llama, "wanda", 0.5, corpus=by_hand.document_text((600,), context=300))


def test_tokens_beyond_the_vocabulary_are_refused(llama: Subject, by_hand: Any) -> None:
    text = by_hand.document_text((20,))
    text.documents[0].ids[3] = 100_000
    with pytest.raises(SubjectError, match="token"):
        prune(llama, "wanda", 0.5, corpus=text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "sparsegpt"])
def test_a_weight_that_is_not_finite_is_named(value: float, criterion: str, text: Any) -> None:
    given = load("random-gpt2")
    given.parameter("weight:blocks.1.attn.k.weight")[3, 5:7] = torch.tensor([value, -value])
    with pytest.raises(SubjectError, match="a weight is not finite") as caught:
        prune(given, criterion, 0.5, corpus=text)
    assert caught.value.where == "weight:blocks.1.attn.k.weight" and "2 of 4096" in str(caught.value)
    prune(given, "magnitude", 0.5, scope="mlp")  # outside of the scope nobody looks


def test_a_text_is_read_only_where_it_is_needed(llama: Subject, text: Any) -> None:
    assert calibration_text(Request.of("magnitude", 0.5), text, llama) is None
    assert calibration_text(Request.of("wanda", 0.5), text, llama) is text
    assert "propagation" not in Request.of("magnitude", 0.5).facts
    assert Request.of("random", 0.5, seed=3).facts["seed"] == 3


# --- the scope


def test_scopes_are_parts_of_the_blocks_and_say_what_is_left_out(subject: Any) -> None:
    for name in ("random-llama", "random-gpt2", "random-qwen2moe", "random-opt"):
        given = subject(name)
        whole, mlp, attention = (choose(given, scope) for scope in ("blocks", "mlp", "attention"))
        assert whole.weights == mlp.weights + attention.weights
        assert {site.name for site in whole.matrices} == {
            site.name for part in (mlp, attention) for site in part.matrices
        }
        total = sum(parameter.numel() for parameter in given.model.parameters())
        for scope in (whole, mlp, attention):
            assert scope.weights + sum(scope.left_out.values()) == total
            assert f"{scope.weights:,} weights" in scope.text and "embeddings" in scope.text
        assert not any("router" in site.name for site in whole.matrices)
        by_pattern = choose(given, ["weight:blocks.*.mlp.*out.weight", "weight:blocks.0.attn.*"])
        assert by_pattern.weights < whole.weights and "weight:blocks.*.mlp.*out.weight" in by_pattern.text


def test_unknown_scopes_suggest_near_ones(llama: Subject) -> None:
    with pytest.raises(SubjectError, match="did you mean 'blocks'"):
        choose(llama, "block")
    with pytest.raises(SubjectError) as caught:
        choose(llama, "weight:blocks.*.mlp.otu.weight")
    assert "mlp.out.weight" in str(caught.value)
    with pytest.raises(SpecError):
        choose(llama, [])


def test_routers_are_refused(subject: Any) -> None:
    with pytest.raises(SubjectError, match="routers are not pruned"):
        choose(subject("random-olmoe"), "weight:blocks.*.mlp.*")


def tied() -> Subject:
    """A model of which two matrices are one parameter."""
    model = load("random-llama").model
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    return wrap(model)


def test_a_tied_matrix_counts_once_and_naming_it_twice_is_an_error(text: Any, llama: Subject) -> None:
    given, apart = tied(), choose(llama)
    scope = choose(given)
    assert scope.tied == ("weight:blocks.2.mlp.in.weight",)
    assert scope.weights == apart.weights - 176 * 64 and "1 more share the storage" in scope.text
    assert scope.weights + sum(scope.left_out.values()) == sum(p.numel() for p in given.model.parameters())
    for criterion in ("magnitude", "wanda"):
        sparse, masks = prune(given, criterion, 0.5, corpus=text)
        assert "weight:blocks.2.mlp.in.weight" not in masks.masks
        weights = [sparse.parameter(f"weight:blocks.{layer}.mlp.in.weight") for layer in (0, 2)]
        assert weights[0].data_ptr() == weights[1].data_ptr()
        assert int((weights[0] == 0).sum()) == 176 * 64 // 2
    for patterns in ("weight:blocks.*.mlp.in.weight", ["weight:blocks.0.mlp.*", "weight:blocks.2.mlp.*"]):
        with pytest.raises(SubjectError, match="named twice") as caught:
            choose(given, patterns)
        assert "blocks.0.mlp.in.weight and weight:blocks.2.mlp.in.weight" in (caught.value.got or "")
    assert choose(given, "weight:blocks.2.mlp.in.weight").weights == 176 * 64


# --- matrices that cannot be written to


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_quantized_modules_are_refused(dtype: torch.dtype) -> None:
    model = torch.ao.quantization.quantize_dynamic(load("random-llama").model, {torch.nn.Linear}, dtype=dtype)
    with pytest.raises(SubjectError) as caught:
        prune(wrap(model), sparsity=0.5)
    assert "weight:blocks.0.attn.k.weight" in (caught.value.where or "")
    assert caught.value.next_step


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_packed_weights_are_refused(dtype: torch.dtype) -> None:
    given = load("random-llama")
    layer = given.model.model.layers[1].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    with pytest.raises(SubjectError, match="packed by a quantization library") as caught:
        prune(given, sparsity=0.5)
    assert "weight:blocks.1.mlp.out.weight" in (caught.value.where or "")


def test_adapters_are_refused_until_they_are_merged(lora: Any) -> None:
    model = load("random-llama").model
    layers = lora.put_into(model)
    with pytest.raises(SubjectError, match="does not apply the matrix that it stores") as caught:
        prune(wrap(model), sparsity=0.5)
    assert "merge" in (caught.value.next_step or "") and "blocks.0.mlp.out.weight" in (
        caught.value.where or ""
    )
    for layer in layers:
        layer.merge()
    before = layers[0].weight.clone()
    sparse, masks = prune(wrap(model), sparsity=0.5)
    keep = masks["weight:blocks.0.mlp.out.weight"].tensor()
    assert torch.equal(sparse.parameter("weight:blocks.0.mlp.out.weight"), before * keep)
    assert torch.equal(layers[0].weight, before)
