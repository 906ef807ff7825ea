"""A weight that is read is the weight that the module applies: a view where it is stored, else computed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsescope.errors import SubjectError
from sparsescope.models import Subject, load, make_variant, wrap
from sparsescope.models.doctor import count_hooks
from sparsescope.models.structure import applied

OUT = "weight:blocks.1.mlp.out.weight"
Get = Callable[[str], Subject]
NAMES = ("random-llama", "random-gpt2", "random-opt", "random-gemma2", "random-mixtral", "random-qwen2moe")


def fresh(dtype: str = "float32") -> Subject:
    return wrap(load("random-llama", dtype=dtype).model)


def down(subject: Subject, layer: int = 1) -> Any:
    return subject.model.model.layers[layer].mlp.down_proj


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_matrices_of_plain_models_are_views(name: str, dtype: str) -> None:
    subject = load(name, dtype=dtype)
    sites = subject.parameter_sites("weight:blocks.*.*")
    held = {parameter.untyped_storage().data_ptr() for parameter in subject.model.parameters()}
    for site in sites:
        found = subject.parameter(site)
        assert found.untyped_storage().data_ptr() in held and not found.is_inference(), site.name
    assert not [said for _, said in subject.notes if "without a role" not in said]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_part_of_the_matrix(dtype: str, lora: Any) -> None:
    subject = fresh(dtype)
    layers = lora.put_into(subject.model)
    stored = layers[1].weight.detach()
    tolerance = 2 * torch.finfo(stored.dtype).eps

    def off(matrix: torch.Tensor) -> float:
        right = layers[1].matrix().double()
        return float((matrix.double() - right).norm() / right.norm())

    def changes() -> Any:
        yield "as it is"
        layers[1]._active_adapter = ["other"]
        yield "active"
        layers[1].scaling["other"] = 0.5
        yield "scaled"
        layers[1].lora_B["other"].weight.data.mul_(2)
        yield "trained"

    for change in changes():
        found = subject.parameter(OUT)
        assert off(found) <= tolerance < 0.1 < off(stored), change
        assert found.dtype == stored.dtype and found.is_inference(), change
        with pytest.raises(RuntimeError, match="inference tensor"):
            found.zero_()  # nothing that is written is lost unseen
    ((severity, said),) = subject.notes
    assert severity == "info" and "3 modules, model.layers.0.mlp.down_proj first" in said
    layers[1]._disable_adapters = True
    assert subject.parameter(OUT).data_ptr() == stored.data_ptr(), "without it the stored one is applied"
    layers[1]._disable_adapters = False
    layers[1].merge()
    assert subject.parameter(OUT).data_ptr() == stored.data_ptr(), "merged, it is in the stored one"


def test_the_error_of_cett_is_that_of_the_merged_model(lora: Any) -> None:
    from sparsescope.analysis.effective_density.cett import cett_curve

    subject, merged = fresh(), fresh()
    lora.put_into(subject.model)
    for layer in lora.put_into(merged.model):
        layer.merge()
    hidden = torch.randn(64, 176, generator=torch.Generator().manual_seed(0)).relu()

    def curve(weight: torch.Tensor) -> Any:
        with torch.inference_mode():
            return cett_curve(hidden, weight.float()).values

    right = curve(merged.parameter(OUT))
    assert abs(curve(subject.parameter(OUT)) - right).max() < 1e-6
    assert abs(curve(down(subject).weight.detach()) - right).max() > 0.01, "the base alone is another matrix"


def test_checking_leaves_the_model_as_it_was(lora: Any) -> None:
    subject = fresh()
    lora.put_into(subject.model)
    subject.model.train()
    seen: list[Any] = []
    state = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    with subject.attach(subject.sites("blocks.*.mlp.hook_post"), lambda *given: seen.append(given)):
        hooks = count_hooks(subject.model)
        held = [module._forward_pre_hooks for module in subject.model.modules()]
        first, again = subject.parameter(OUT), subject.parameter(OUT)
        assert torch.equal(first, again), "dropout is off"
        assert count_hooks(subject.model) == hooks and seen == [], (
            "a pass that is going on sees nothing of it"
        )
        assert all(a is b._forward_pre_hooks for a, b in zip(held, subject.model.modules(), strict=True))
    assert all(module.training for module in subject.model.modules())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(subject.model.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_a_matrix_is_checked_once_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = fresh()
    calls: list[str] = []
    original = applied._is_stored

    def counted(model: Any, module: Any, site: Any) -> bool:
        calls.append(site.name)
        return original(model, module, site)

    monkeypatch.setattr(applied, "_is_stored", counted)
    for _ in range(3):
        subject.parameter(OUT)
    assert len(calls) == 1
    with torch.no_grad():
        down(subject).weight.mul_(2)
    subject.parameter(OUT)
    assert len(calls) == 2
    handle = down(subject).register_forward_hook(lambda module, inputs, output: output * 3)
    found = subject.parameter(OUT)
    assert len(calls) == 3
    assert torch.allclose(found, 3 * down(subject).weight.detach(), rtol=1e-5)
    handle.remove()
    assert not subject.parameter(OUT).is_inference()
    assert subject.copy()._checked == {}


def test_a_parametrized_matrix_is_the_computed_one() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    subject = fresh()
    right = 2 * down(subject).weight.detach()
    torch.nn.utils.parametrize.register_parametrization(down(subject), "weight", Doubled())
    assert torch.allclose(subject.parameter(OUT), right, rtol=1e-5)
    with pytest.raises(RuntimeError, match="inference tensor"):
        subject.parameter(OUT).zero_()


def test_a_pruned_matrix_follows_its_mask() -> None:
    from torch.nn.utils import prune

    subject = fresh()
    prune.l1_unstructured(down(subject), "weight", 0.5)
    with torch.no_grad():
        down(subject).weight_orig.mul_(2)  # the masked weight is made in the next pass
    right = (down(subject).weight_orig * down(subject).weight_mask).detach()
    assert torch.allclose(subject.parameter(OUT), right, rtol=1e-5)


def test_a_part_of_a_fused_matrix_is_cut_from_the_computed_one() -> None:
    subject = wrap(load("random-gpt2").model)
    module = subject.model.transformer.h[1].attn.c_attn
    module.register_forward_hook(lambda module, inputs, output: output * 3)
    for n, key in enumerate("qkv"):
        right = 3 * module.weight.detach().T[64 * n : 64 * (n + 1)]
        found = subject.parameter(f"weight:blocks.1.attn.{key}.weight")
        assert torch.allclose(found, right, rtol=1e-4, atol=1e-6), "its bias is three times as large too"


@pytest.mark.parametrize("what", ["threshold", "quantized"])
def test_what_applies_no_matrix_is_refused_by_name(what: str) -> None:
    subject = fresh()
    if what == "threshold":

        def cut(module: Any, inputs: Any) -> Any:
            return (torch.where(inputs[0].abs() > 0.5, inputs[0], 0.0),)

        down(subject).register_forward_pre_hook(cut)
    else:
        made = torch.ao.quantization.quantize_dynamic(subject.model, {torch.nn.Linear}, dtype=torch.qint8)
        subject = wrap(made)
    with pytest.raises(SubjectError, match="not linear in its input") as caught:
        subject.parameter(OUT)
    assert "model.layers.1.mlp.down_proj" in str(caught.value) and "of its norm" in str(caught.value)


def test_experts_that_compute_something_else_are_refused() -> None:
    subject = wrap(load("random-mixtral").model)
    name = "weight:blocks.1.mlp.experts.out.weight"
    assert not subject.parameter(name).is_inference()
    path = next(
        site.module_path for site in subject.parameter_sites("weight:blocks.1.mlp.experts.0.out.weight")
    )
    module = subject.model.get_submodule(path)
    handle = module.register_forward_hook(lambda module, inputs, output: output * 1.1)
    for asked in (name, "weight:blocks.1.mlp.experts.0.gate.weight"):
        with pytest.raises(SubjectError, match="the experts compute something else") as caught:
            subject.parameter(asked)
        assert path in str(caught.value) and "0.1 of its norm" in str(caught.value)
    handle.remove()
    assert not subject.parameter(name).is_inference()


def test_nothing_is_written_where_it_is_not_applied(lora: Any) -> None:
    subject = fresh()
    lora.put_into(subject.model, "up_proj")
    before = subject.identity
    with pytest.raises(SubjectError, match="does not apply the matrix that it stores") as caught:
        make_variant(subject, "shuffled")
    assert "up_proj" in str(caught.value) and "merge_and_unload" in str(caught.value)
    assert subject.identity == before


def test_what_cannot_be_called_by_itself_is_named() -> None:
    subject = fresh()

    def refuse(module: Any, inputs: Any) -> None:
        raise ValueError("only inside of the model")

    down(subject).register_forward_pre_hook(refuse)
    with pytest.raises(SubjectError, match="cannot be applied by itself") as caught:
        subject.parameter(OUT)
    assert "only inside of the model" in str(caught.value) and count_hooks(subject.model) == 1


def test_checking_every_matrix_takes_no_time_to_speak_of(glass: Subject) -> None:
    subject = glass.copy()
    sites = subject.parameter_sites("weight:blocks.*.*")
    begin = time.perf_counter()
    for site in sites:
        subject.parameter(site)
    assert time.perf_counter() - begin < 5 + 0.05 * len(sites)
