"""What a model computes with besides its weights: hashed where that can be, else named."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import accelerate
import pytest
import torch
import transformers

from sparsescope.errors import SpecError
from sparsescope.models import Subject, load, registered_subjects, wrap
from sparsescope.models.provenance.beyond_weights import scan

IDS = [[1, 2, 3, 4, 5]]


def fresh() -> Subject:
    return load("random-llama")


def mlp(subject: Subject, layer: int = 1) -> Any:
    return subject.model.model.layers[layer].mlp


# --- what a model of a library is


@pytest.mark.parametrize("name", [name for name in registered_subjects() if name.startswith("random-")])
def test_nothing_is_found_in_a_model_as_it_is_loaded(name: str) -> None:
    subject = load(name)
    found = scan(subject.model)
    assert (found.unhashed, found.libraries, found.facts) == ([], [], [])
    assert subject.unstorable == ()
    assert not [said for _, said in subject.notes if "without a role" not in said]


def test_passes_and_what_transformers_leaves_behind_change_no_identity() -> None:
    subject = fresh()
    before = subject.identity
    with torch.inference_mode():
        subject.model(input_ids=torch.tensor(IDS), output_hidden_states=True)
    subject.model.gradient_checkpointing_enable()
    with subject.attach(subject.sites("blocks.*.mlp.hook_post"), lambda *_: None):
        assert subject.unstorable == () and subject.identity == before
    assert subject.unstorable == () and subject.identity == before


# --- adapters


def lora_settings(layers: list[Any]) -> dict[str, Any]:
    return {
        "active": lambda: [setattr(layer, "_active_adapter", ["other"]) for layer in layers],
        "both": lambda: [setattr(layer, "_active_adapter", ["default", "other"]) for layer in layers],
        "scaled": lambda: [layer.scaling.update({"other": 5.0}) for layer in layers],
        "disabled": lambda: [setattr(layer, "_disable_adapters", True) for layer in layers],
    }


def test_every_setting_of_an_adapter_is_another_model(lora: Any) -> None:
    subject = wrap(fresh().copy().model)
    layers = lora.put_into(subject.model)
    hashes, outputs = {subject.identity.config_hash}, [subject.forward(IDS)]
    for setting in lora_settings(layers).values():
        setting()
        assert not any(torch.equal(subject.forward(IDS), before) for before in outputs)
        hashes.add(subject.identity.config_hash)
        outputs.append(subject.forward(IDS))
    assert len(hashes) == len(outputs) == 5
    assert subject.unstorable == (), "all of it can be hashed"
    again = wrap(fresh().copy().model)
    lora.put_into(again.model)
    assert again.identity.config_hash in hashes, "made again it is the same"


def test_a_merged_adapter_is_seen_in_weights_and_flag(lora: Any) -> None:
    subject = wrap(fresh().copy().model)
    layers = lora.put_into(subject.model)
    before = subject.identity
    layers[0].merge()
    after = subject.identity
    assert before.weight_hash != after.weight_hash and before.config_hash != after.config_hash


class Threshold(torch.nn.Module):
    """An activation of a user's package: its attribute decides what it computes."""

    def __init__(self, at: Any) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > self.at, x, 0.0)


def test_attributes_of_modules_that_were_put_in_are_hashed() -> None:
    hashes = []
    for at in (0.0, 0.5, torch.tensor(0.5), torch.tensor(0.25)):
        subject = fresh()
        mlp(subject).act_fn = Threshold(at)
        assert subject.unstorable == ()
        hashes.append(subject.identity.config_hash)
    assert len({*hashes, fresh().identity.config_hash}) == 5


def test_an_attribute_that_cannot_be_hashed_is_named() -> None:
    subject = fresh()
    mlp(subject).act_fn = Threshold(open)  # a function of Python itself has nothing in it
    assert subject.unstorable == ()
    mlp(subject).act_fn = Threshold(0.0)
    mlp(subject).act_fn.table = object()
    (said,) = subject.unstorable
    assert "attribute table, builtins.object at model.layers.1.mlp.act_fn" in said


def test_a_class_that_was_made_in_memory_has_no_name() -> None:
    def make(at: float) -> torch.nn.Module:
        class Cut(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.where(x > at, x, 0.0)

        return Cut()

    subject = fresh()
    mlp(subject).act_fn = make(0.1)
    assert "class that was made in memory" in subject.unstorable[0] and "act_fn" in subject.unstorable[0]


# --- hooks and patches


def hook_with(factor: float) -> Any:
    def scaled(module: Any, inputs: Any, output: Any) -> Any:
        return output * factor

    return scaled


def closure_forward(target: Any, factor: float) -> None:
    original = target.forward

    @functools.wraps(original)  # it has the name and module of what it replaces
    def forward(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) * factor

    target.forward = forward


def bound_forward(target: Any, factor: float) -> None:
    original = target.forward

    def forward(self: Any, hidden: Any) -> Any:
        return original(hidden) * factor

    target.forward = MethodType(forward, target)


def _scaled(original: Any, factor: float, hidden: Any) -> Any:
    return original(hidden) * factor


class Scaling:
    """A hook that is an object, bound by its method."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def hook(self, module: Any, inputs: Any, output: Any) -> Any:
        return output * self.factor


class Scales(accelerate.hooks.ModelHook):
    """A hook of a user in the machinery of accelerate."""

    def post_forward(self, module: Any, output: Any) -> Any:
        return output * 0.5


def replace_activation(target: Any, factor: float) -> None:
    del target._modules["act_fn"]
    target.act_fn = lambda x: torch.relu(x) * factor


PATCHES: dict[str, Any] = {
    "forward hook": lambda m: m.register_forward_hook(hook_with(0.5)),
    "pre-hook": lambda m: m.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
    "bound hook": lambda m: m.register_forward_hook(Scaling(0.5).hook),
    "partial hook": lambda m: m.register_forward_hook(functools.partial(_hook, factor=0.5)),
    "wrapped by torch": lambda m: m.register_forward_hook(torch.no_grad()(hook_with(0.5))),
    "closure": lambda m: closure_forward(m, 0.5),
    "bound method": lambda m: bound_forward(m, 0.5),
    "partial": lambda m: setattr(m, "forward", functools.partial(_scaled, m.forward, 0.5)),
    "activation": lambda m: replace_activation(m, 0.5),
    "accelerate": lambda m: accelerate.hooks.add_hook_to_module(m, Scales()),
    "below accelerate": lambda m: (
        bound_forward(m, 0.5),
        accelerate.hooks.add_hook_to_module(m, accelerate.hooks.ModelHook()),
    ),
    "hidden module": lambda m: object.__setattr__(m, "spare", torch.nn.Linear(2, 2)),
}


def _hook(module: Any, inputs: Any, output: Any, factor: float) -> Any:
    return output * factor


@pytest.mark.parametrize("patch", PATCHES)
def test_what_no_hash_covers_is_named(patch: str) -> None:
    subject = fresh()
    PATCHES[patch](mlp(subject))
    said = "; ".join(subject.unstorable)
    assert "model.layers.1.mlp" in said and "with_variant" in said and "merge_and_unload()" in said
    # What accelerate keeps of a patched method is found in both of its places
    assert len(subject.unstorable) == (2 if patch == "below accelerate" else 1), said
    if patch != "hidden module":
        assert not torch.equal(subject.forward(IDS), fresh().forward(IDS))


def test_one_function_in_many_modules_is_said_once() -> None:
    subject = fresh()
    hook = hook_with(0.5)
    for layer in range(3):
        mlp(subject, layer).register_forward_hook(hook)
    (said,) = subject.unstorable
    assert (
        said.startswith("forward hook ") and "hook_with.<locals>.scaled at model.layers.0.mlp and 2" in said
    )


def test_a_patched_class_and_hooks_of_every_module_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = fresh()
    cls = type(mlp(subject))
    original = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: original(self, x) * 0.5)
    assert "method forward of class LlamaMLP" in subject.unstorable[0]
    monkeypatch.undo()
    assert subject.unstorable == ()
    handle = torch.nn.modules.module.register_module_forward_hook(hook_with(1.0))
    try:
        assert "at every module" in subject.unstorable[0]
    finally:
        handle.remove()


def test_an_attention_that_a_user_registered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    subject = fresh()
    assert subject.unstorable == ()
    monkeypatch.setitem(registry._local_mapping, "mine", lambda *args, **kwargs: None)
    monkeypatch.setattr(subject.model.config, "_attn_implementation", "mine")
    assert "attention function 'mine'" in subject.unstorable[0]


def test_an_edit_that_is_going_on_is_found() -> None:
    subject = fresh()
    with subject.edit(subject.sites("blocks.1.mlp.hook_post"), lambda site, tensor: tensor * 0):
        assert any("edit that is going on" in one for one in subject.unstorable)
    assert subject.unstorable == ()


# --- libraries


def test_what_libraries_put_there_is_a_note() -> None:
    subject = fresh()
    before = subject.identity
    accelerate.hooks.add_hook_to_module(mlp(subject), accelerate.hooks.ModelHook())
    ((severity, said),) = subject.notes
    assert severity == "info" and "model.layers.1.mlp" in said and "accelerate" in said
    assert subject.unstorable == () and subject.identity == before


def test_a_mask_of_torch_is_hashed_by_its_weights() -> None:
    from torch.nn.utils import prune

    hashes = set()
    for amount in (0.25, 0.5):
        subject = wrap(fresh().copy().model)
        prune.l1_unstructured(mlp(subject).down_proj, "weight", amount)
        assert subject.unstorable == () and "torch.nn.utils.prune" in subject.notes[0][1]
        hashes.add(subject.identity.weight_hash)
    assert len(hashes) == 2


def test_arguments_and_owners_of_library_functions_are_hashed() -> None:
    def act(**more: Any) -> Any:
        def change(subject: Subject) -> None:
            del mlp(subject)._modules["act_fn"]
            mlp(subject).act_fn = functools.partial(torch.clamp, **more)

        return change

    changes = {
        "a": act(min=0.0),
        "b": act(min=0.1),
        "other layer": lambda subject: setattr(mlp(subject), "forward", mlp(subject, 0).forward),
        "itself": lambda subject: setattr(mlp(subject), "forward", mlp(subject).forward),
    }
    hashes = {"plain": fresh().identity.config_hash}
    for name, change in changes.items():
        subject = fresh()
        change(subject)
        assert subject.unstorable == (), name
        hashes[name] = subject.identity.config_hash
    assert hashes.pop("itself") == hashes["plain"], "it computes what it did"
    assert len(set(hashes.values())) == 4


# --- variants


def test_a_variant_declares_the_very_hooks_that_it_has() -> None:
    plain = fresh()
    changed = plain.copy()
    handle = mlp(changed).register_forward_hook(hook_with(0.5))
    assert changed.unstorable
    variant = changed.with_variant("scaled", {"factor": 0.5}, of=plain, adds="0.5")
    assert variant.unstorable == () and variant.copy().unstorable == ()
    pruned = variant.copy().with_variant("pruned", {}, of=variant)
    assert pruned.unstorable == () and pruned.copy("mine").unstorable == ()
    handle.remove()
    mlp(variant).register_forward_hook(hook_with(0.25))  # of the same name, with another factor
    assert variant.unstorable and variant.copy().unstorable
    with pytest.raises(SpecError, match="must say what it adds"):
        variant.copy().with_variant("pruned", {}, of=variant)


def test_a_copy_of_a_variant_keeps_objects_that_were_copied_with_it() -> None:
    plain = fresh()
    changed = plain.copy()
    mlp(changed).register_forward_hook(Scaling(0.5).hook)
    variant = changed.with_variant("scaled", {}, of=plain, adds="0.5")
    assert variant.copy().unstorable == () == variant.loaded_as("somewhere").unstorable
    more = variant.copy()
    mlp(more, 0).register_forward_hook(hook_with(2.0))
    assert len(more.unstorable) == 1 and "layers.0" in more.unstorable[0]


@pytest.mark.parametrize("patch", ["closure", "activation"])
def test_a_variant_with_replaced_functions_says_what_it_adds(patch: str) -> None:
    plain = fresh()
    changed = plain.copy()
    PATCHES[patch](mlp(changed))
    with pytest.raises(SpecError, match="must say what it adds") as caught:
        changed.with_variant("scaled", {}, of=plain)
    assert "model.layers.1.mlp" in str(caught.value)
    assert changed.with_variant("scaled", {}, of=plain, adds="x").unstorable == ()
