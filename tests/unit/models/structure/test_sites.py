"""Sites: each role holds what its name says; patterns that match nothing are errors; hooks leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import Site, Subject, attach, registered_subjects
from sparsescope.models.doctor import count_hooks
from sparsescope.models.structure.sites import ROLES

RANDOM_NAMES = tuple(name for name in registered_subjects() if name.startswith("random-"))
IDS = np.random.default_rng(0).integers(3, 259, size=(3, 11))
Get = Callable[[str], Subject]


def capture(subject: Subject, patterns: Any, ids: Any = IDS) -> dict[str, tuple[torch.Tensor, Any]]:
    """Run one pass and return a copy of what every site saw."""
    found: dict[str, tuple[torch.Tensor, Any]] = {}

    def keep(site: Site, tensor: torch.Tensor, rows: Any) -> None:
        assert site.name not in found
        found[site.name] = tensor.clone(), rows

    with subject.attach(subject.sites(patterns), keep):
        subject.forward(ids)
    return found


@pytest.mark.parametrize("name", RANDOM_NAMES)
def test_every_site_is_seen_once_with_its_shape(name: str, subject: Get) -> None:
    model = subject(name)
    sites = model.sites("blocks.*.*")
    found = capture(model, "blocks.*.*")
    for site in sites:
        if site.kind == "experts":
            continue
        tensor, rows = found[site.name]
        assert tensor.shape == (*IDS.shape, site.width), site.name
        assert rows is None
    assert {site.role for site in sites} <= set(ROLES)
    assert set(found) <= {site.name for site in sites}


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-opt", "random-gemma2"])
def test_dense_roles_hold_what_their_names_say(name: str, subject: Get) -> None:
    model = subject(name)
    found = {key: value for key, (value, _) in capture(model, "blocks.*.*").items()}
    for layer, block in enumerate(model.blocks):
        at = f"blocks.{layer}."
        activation = model.model.get_submodule(block.mlp.activation_path)
        hidden = activation(found[f"{at}mlp.hook_pre"])
        if block.mlp.gate is not None:
            assert torch.allclose(found[f"{at}mlp.act.hook_out"], hidden, atol=1e-6)
            hidden = hidden * found[f"{at}mlp.hook_pre_linear"]
        assert torch.allclose(found[f"{at}mlp.hook_post"], hidden, atol=1e-6)
        second = model.model.get_submodule(block.mlp.out.path)
        weight = model.parameter(f"weight:{at}mlp.out.weight")
        out = linear(found[f"{at}mlp.hook_post"], weight, second.bias)
        assert torch.allclose(found[f"{at}mlp.hook_out"], out, atol=1e-5)
        first = "gate" if block.mlp.gate is not None else "in"
        module = model.model.get_submodule((block.mlp.gate or block.mlp.into).path)
        pre = linear(
            found[f"{at}mlp.hook_in"], model.parameter(f"weight:{at}mlp.{first}.weight"), module.bias
        )
        assert torch.allclose(found[f"{at}mlp.hook_pre"], pre, atol=1e-5)
        o = model.model.get_submodule(block.attention.out.path)
        attention = linear(found[f"{at}attn.hook_z"], model.parameter(f"weight:{at}attn.o.weight"), o.bias)
        assert torch.allclose(found[f"{at}attn.hook_out"], attention, atol=1e-5)
        if layer:
            assert torch.equal(found[f"{at}hook_in"], found[f"blocks.{layer - 1}.hook_out"])


def test_the_residual_stream_adds_up(subject: Get) -> None:
    found = {key: value for key, (value, _) in capture(subject("random-llama"), "blocks.*.*").items()}
    for layer in range(3):
        at = f"blocks.{layer}."
        total = found[f"{at}hook_in"] + found[f"{at}attn.hook_out"] + found[f"{at}mlp.hook_out"]
        assert torch.allclose(found[f"{at}hook_out"], total, atol=1e-5)


@pytest.mark.parametrize("name", ["random-qwen2moe", "random-olmoe", "random-mixtral"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_the_hidden_layers_of_experts_add_up_to_the_block(
    name: str, implementation: str, subject: Get
) -> None:
    model = subject(name).copy()
    model.model.set_experts_implementation(implementation)
    outputs: dict[int, torch.Tensor] = {}
    handles = [
        model.model.get_submodule(block.experts.path).register_forward_hook(
            lambda module, args, output, layer=block.layer: outputs.__setitem__(layer, output.clone())
        )
        for block in model.blocks
        if block.experts is not None
    ]
    sparse = [block.layer for block in model.blocks if block.experts is not None]
    found = capture(model, [f"blocks.{layer}.mlp.*" for layer in sparse])
    for handle in handles:
        handle.remove()
    tokens = IDS.size
    for layer in sparse:
        index = found[f"blocks.{layer}.mlp.hook_expert_indices"][0].reshape(tokens, -1)
        weight = found[f"blocks.{layer}.mlp.hook_expert_weights"][0].reshape(tokens, -1)
        total = torch.zeros(tokens, model.d_model)
        routed = 0
        for site in model.sites(f"blocks.{layer}.mlp.experts.hook_post"):
            if site.name not in found:
                assert not (index == site.expert).any()
                continue
            hidden, rows = found[site.name]
            assert rows.dtype == torch.int64
            assert torch.equal(rows, (index == site.expert).any(-1).nonzero().squeeze(-1))
            share = (weight * (index == site.expert)).sum(-1)[rows, None]
            down = model.parameter(f"weight:blocks.{layer}.mlp.experts.{site.expert}.out.weight")
            total[rows] += share * linear(hidden, down)
            routed += len(rows)
        assert routed == tokens * index.shape[1]
        assert torch.allclose(total, outputs[layer].reshape(tokens, -1), atol=1e-6)


def test_a_shared_expert_has_its_own_sites(subject: Get) -> None:
    model = subject("random-qwen2moe")
    found = capture(model, "blocks.1-2.mlp.shared_expert.*")
    for layer in (1, 2):
        at = f"blocks.{layer}.mlp.shared_expert."
        hidden = torch.nn.functional.silu(found[f"{at}hook_pre"][0]) * found[f"{at}hook_pre_linear"][0]
        assert torch.allclose(found[f"{at}hook_post"][0], hidden, atol=1e-6)


def test_only_the_wanted_experts_are_recomputed(subject: Get) -> None:
    found = capture(subject("random-mixtral"), ["blocks.1.mlp.experts.2.hook_post"])
    assert list(found) == ["blocks.1.mlp.experts.2.hook_post"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("blocks.*.mlp.hook_post", [f"blocks.{i}.mlp.hook_post" for i in range(4)]),
        ("blocks.2.mlp.hook_post", ["blocks.2.mlp.hook_post"]),
        ("blocks.1-2.mlp.hook_post", ["blocks.1.mlp.hook_post", "blocks.2.mlp.hook_post"]),
        ("blocks.0.mlp.hook_p*", ["blocks.0.mlp.hook_post", "blocks.0.mlp.hook_pre"]),
        ("blocks.0.hook_*", ["blocks.0.hook_in", "blocks.0.hook_out"]),
        ("blocks.0.hook_resid_pre", ["blocks.0.hook_resid_pre"]),
        (
            ["blocks.1.hook_in", "blocks.0.hook_in", "blocks.*.hook_in"],
            [f"blocks.{i}.hook_in" for i in range(4)],
        ),
    ],
)
def test_patterns_select_by_layer_then_role(pattern: Any, names: list[str], subject: Get) -> None:
    assert [site.name for site in subject("random-opt").sites(pattern)] == names


def test_experts_are_ordered_by_number(subject: Get) -> None:
    sites = subject("random-olmoe").sites("blocks.*.mlp.experts.hook_post")
    assert [(site.layer, site.expert) for site in sites] == [(i, e) for i in range(2) for e in range(8)]
    assert {site.role for site in sites} == {"mlp.experts.hook_post"}
    assert sites == subject("random-olmoe").sites("blocks.*.mlp.experts.*.hook_post")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("blocks.*.mlp.hook_pots", "blocks.*.mlp.hook_post"),
        ("mlp.hook_post", "blocks.*.mlp.hook_post"),
        ("blocks.9.mlp.hook_post", "0..3"),
        ("blocks.2-1.mlp.hook_post", "0..3"),
        ("blocks.-1.mlp.hook_post", "0..3"),
        ("weight:blocks.*.mlp.out.weight", "parameter_sites"),
        ("blocks.*.mlp.experts.hook_post", "blocks.*.mlp.hook_post"),
        ("", "blocks.*.mlp.hook_post"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, text: str, subject: Get) -> None:
    with pytest.raises(SubjectError) as caught:
        subject("random-opt").sites(pattern)
    assert text in str(caught.value)


@pytest.mark.parametrize("patterns", [[], None, 3, [3]])
def test_patterns_that_are_no_text_are_a_spec_error(patterns: Any, subject: Get) -> None:
    with pytest.raises(SpecError, match="one pattern or a list"):
        subject("random-opt").sites(patterns)


@pytest.mark.parametrize("role", ["mlp.hook_post", "mlp.hook_pre", "mlp.hook_pre_linear"])
def test_dense_roles_on_sparse_layers_offer_the_right_ones(role: str, subject: Get) -> None:
    with pytest.raises(SubjectError) as caught:
        subject("random-olmoe").sites(f"blocks.*.{role}")
    message = str(caught.value)
    assert "blocks.*.mlp.experts.hook_post" in message and "blocks.*.mlp.hook_out" in message
    assert "all layers are mixtures" in message


def test_a_model_with_dense_and_sparse_layers_names_both(subject: Get) -> None:
    model = subject("random-qwen2moe")
    with pytest.raises(SubjectError) as caught:
        model.sites("blocks.*.mlp.hook_post")
    message = str(caught.value)
    assert "blocks.0.mlp.hook_post" in message and "layers 1, 2" in message
    assert "blocks.*.mlp.shared_expert.hook_post" in message
    both = model.sites(["blocks.0.mlp.hook_post", "blocks.*.mlp.experts.hook_post"])
    assert len(both) == 1 + 2 * 6


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_leave_after_an_error_in_the_callback(error: type[BaseException], subject: Get) -> None:
    model = subject("random-mixtral")
    reference = model.forward(IDS, logits=True)

    def fail(site: Site, tensor: torch.Tensor, rows: Any) -> None:
        if site.layer == 1:
            raise error("stop")

    with pytest.raises(error), model.attach(model.sites("blocks.*.*"), fail):
        model.forward(IDS)
    assert count_hooks(model.model) == 0
    assert torch.equal(model.forward(IDS, logits=True), reference)


def test_a_failure_to_attach_leaves_no_hook(subject: Get) -> None:
    foreign = subject("random-llama").sites("blocks.*.mlp.hook_post")
    model = subject("random-gpt2")
    mixed = [*model.sites("blocks.*.*"), *foreign]
    with pytest.raises(SubjectError, match="no such module"), attach(model.model, mixed, lambda *_: None):
        raise AssertionError("the block must not run")
    assert count_hooks(model.model) == 0


def test_a_width_that_contradicts_the_site_is_an_error(subject: Get) -> None:
    from dataclasses import replace

    model = subject("random-gpt2")
    wrong = replace(model.sites("blocks.0.mlp.hook_post")[0], width=17)
    with pytest.raises(SubjectError, match="another width"), model.attach([wrong], lambda *_: None):
        model.forward(IDS)
    assert count_hooks(model.model) == 0


def test_the_callback_gets_the_very_tensor(subject: Get) -> None:
    model = subject("random-opt")  # OPT flattens its tokens, so the view must share memory
    block = model.blocks[0]
    seen: dict[str, int] = {}
    handle = model.model.get_submodule(block.mlp.out.path).register_forward_pre_hook(
        lambda module, args: seen.__setitem__("module", args[0].data_ptr())
    )
    with model.attach(
        model.sites("blocks.0.mlp.hook_post"),
        lambda s, tensor, r: seen.__setitem__("site", tensor.data_ptr()),
    ):
        model.forward(IDS)
    handle.remove()
    assert seen["module"] == seen["site"]


def test_attaching_twice_calls_both(subject: Get) -> None:
    model = subject("random-gpt2")
    site = model.sites("blocks.1.hook_out")
    counts = [0, 0]

    def count(which: int) -> Callable[..., None]:
        return lambda *_: counts.__setitem__(which, counts[which] + 1)

    with model.attach(site, count(0)), model.attach(site, count(1)):
        model.forward(IDS)
    model.forward(IDS)
    assert counts == [1, 1]
