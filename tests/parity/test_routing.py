"""Routers of transformers' own mixtures: what they choose comes out of their scores again, and experts that
are taken away change what the model says, under three meanings.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from einops import rearrange
from torch import nn

from sparsescope.errors import SpecError, SubjectError
from sparsescope.models import Subject, wrap
from sparsescope.models.structure.routing import (
    INDEX,
    SEMANTICS,
    Choice,
    Rule,
    _gives,
    routers,
    without_experts,
)

_SIZE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "eos_token_id": None,
    "bos_token_id": None,
}
_LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 3}
_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
# name -> (configuration, its parameters, what its rule must be)
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, bool]]] = {
    "olmoe": (
        "OlmoeConfig",
        {**_SIZE, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": False},
        ("softmax", False),
    ),
    "mixtral": ("MixtralConfig", {**_SIZE, **_LOCAL}, ("softmax", True)),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_SIZE, **_EXPERTS, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
        ("softmax", False),
    ),
    "qwen3_moe": ("Qwen3MoeConfig", {**_SIZE, **_EXPERTS, "norm_topk_prob": True}, ("softmax", True)),
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **_SIZE, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
            "topk_group": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "q_lora_rank": 16,
            "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        },
        ("sigmoid", True),
    ),
    "gpt_oss": ("GptOssConfig", {**_SIZE, **_LOCAL, "head_dim": 8}, ("softmax", True)),
    "granitemoe": ("GraniteMoeConfig", {**_SIZE, **_LOCAL}, ("softmax", True)),
}  # fmt: skip
IDS = torch.arange(26).reshape(2, 13) * 7 % 90 + 3


@cache
def build(family: str) -> Subject:
    """A random model with every parameter drawn, and biases of the choice where there are some."""
    class_name, parameters, _ = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, class_name)(**parameters)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            for name, buffer in model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.add_(torch.randn_like(buffer) * 0.3)
    return wrap(model)


def read(subject: Subject, ids: torch.Tensor = IDS) -> dict[str, torch.Tensor]:
    """What the routing sites of a pass hold, [token, width]."""
    held: dict[str, torch.Tensor] = {}

    def keep(site: Any, tensor: torch.Tensor, rows: Any) -> None:
        held[site.name] = rearrange(tensor, "batch pos width -> (batch pos) width").clone()

    sites = [site for router in routers(subject) for site in router.sites]
    with subject.attach(sites, keep):
        subject.forward(ids)
    return held


@pytest.mark.parametrize("family", FAMILIES)
def test_selections_come_out_of_the_scores_again(family: str) -> None:
    """On other tokens than those that the rule was found on."""
    subject = build(family)
    held, found = read(subject), routers(subject)
    sparse = [1] if family in {"qwen2_moe", "deepseek_v3"} else [0, 1]
    assert [router.layer for router in found] == sparse, "the layer comes from the name, not from the count"
    for router in found:
        assert router.rule is not None and (router.experts, router.k) == (8, 3)
        assert (router.rule.scoring, router.rule.normalised) == FAMILIES[family][2]
        assert not router.gives_probabilities
        ours = router.rule.choose(router.scores(held[router.logits.name]), router.k)
        index, weights = held[router.index.name], held[router.weights.name]
        assert torch.equal(ours.experts.sort(-1).values, index.sort(-1).values)
        by_expert = [torch.zeros(len(index), 8).scatter_(1, i, w) for i, w in (ours, (index, weights))]
        torch.testing.assert_close(*by_expert)
        probabilities = router.probabilities(held[router.logits.name])
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(index)))


def test_groups_and_biases_decide_in_deepseek() -> None:
    """A rule without them gives other choices: they are not decoration."""
    subject = build("deepseek_v3")
    (router,), held = routers(subject), read(subject)
    rule, scores = router.rule, router.scores(held[router.logits.name])
    assert rule is not None and rule.bias is not None and rule.scale == 2.5
    assert (rule.groups, rule.kept_groups, rule.group_top) == (4, 2, 2)
    index = held[router.index.name].sort(-1).values
    for other in (
        Rule("sigmoid", True, 2.5, None, 4, 2, 2),
        Rule("sigmoid", True, 2.5, rule.bias),
    ):
        assert not torch.equal(other.choose(scores, 3).experts.sort(-1).values, index)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_that_is_taken_away(family: str, semantics: str) -> None:
    subject = build(family)
    found = routers(subject)
    last, before = found[-1], read(subject)
    index, weights = before[last.index.name], before[last.weights.name]
    gone = int((index.flatten().bincount(minlength=8) - len(index) / 2).abs().argmin())
    plain = subject.forward(IDS, logits=True).clone()
    with without_experts(subject, found, {last.layer: [gone]}, semantics):
        after = read(subject)
        changed = subject.forward(IDS, logits=True)
        assert (changed - plain).abs().max() > 1e-3, "the edit does not reach the output"
        unchosen = ~(index == gone).any(-1)
        rows = rearrange(changed - plain, "batch pos v -> (batch pos) v")
        assert rows[unchosen].abs().max() < 1e-5, "a token of other experts changed"
    assert torch.equal(subject.forward(IDS, logits=True), plain), "something of the edit stayed"
    # What the router itself says is that of the model: the edit is behind it
    assert torch.equal(after[last.logits.name], before[last.logits.name])
    hit = (index == gone).any(-1)
    new_index, new_weights = _edited(subject, found, last, gone, semantics)
    if semantics == "mask_reselect":
        assert not (new_index == gone).any(), "the expert was chosen all the same"
        assert torch.equal(new_index[~hit], index[~hit]) and torch.equal(new_weights[~hit], weights[~hit])
    else:
        assert torch.equal(new_index, index)
        assert not new_weights[index == gone].any()
        sums = new_weights.sum(-1) / weights.sum(-1)
        if semantics == "zero_renormalise":
            torch.testing.assert_close(sums, torch.ones_like(sums))
        else:
            assert (sums[hit] < 1).all()
            assert torch.equal(new_weights[index != gone], weights[index != gone])


def _edited(
    subject: Subject, found: Any, router: Any, gone: int, semantics: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights that the module of experts is called with inside the edit."""
    seen: list[Any] = []
    module = subject.model.get_submodule(router.index.module_path)
    with without_experts(subject, found, {router.layer: [gone]}, semantics):
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        try:
            subject.forward(IDS)
        finally:
            handle.remove()
    args, kwargs = seen[0]
    values = [*args, *kwargs.values()]
    return values[1], values[2]


def test_a_mask_that_no_token_meets_changes_no_bit() -> None:
    subject = build("olmoe")
    found = routers(subject)
    plain = subject.forward(IDS[:, :2], logits=True).clone()
    index = read(subject, IDS[:, :2])
    for router in found:
        unused = sorted(set(range(8)) - set(index[router.index.name].flatten().tolist()))
        with without_experts(subject, found, {router.layer: unused[:1]}, "mask_reselect"):
            assert torch.equal(subject.forward(IDS[:, :2], logits=True), plain)


def test_what_cannot_be_taken_away() -> None:
    subject = build("olmoe")
    found = routers(subject)
    for removed, semantics, message in (
        ({0: [0]}, "drop", "unknown semantics"),
        ({5: [0]}, "zero", "no mixture here"),
        ({0: [8]}, "zero", "no such expert"),
        ({0: list(range(8))}, "zero", "no expert would be left"),
    ):
        with pytest.raises(SpecError, match=message), without_experts(subject, found, removed, semantics):
            pass
    with pytest.raises(SubjectError, match="dense"):
        routers(wrap(transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZE)).eval()))


class _Probabilities(nn.Module):
    """A router whose scores are softmaxed already, as some releases of transformers 5 returned them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.weight = inner, inner.weight

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, weights, index = self.inner(states)
        return logits.softmax(-1), weights, index


class _Swapped(_Probabilities):
    """A router that returns indices where scores belong."""

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        _, weights, index = self.inner(states)
        return index.repeat(1, 4)[:, :8], weights, index


def _with_gate(kind: type[nn.Module]) -> Subject:
    class_name, parameters, _ = FAMILIES["olmoe"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, class_name)(**parameters)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for layer in model.model.layers:
        layer.mlp.gate = kind(layer.mlp.gate)
    return wrap(model)


def test_probabilities_are_not_taken_for_scores() -> None:
    """Softmax of probabilities is nearly uniform: it would hide every preference."""
    subject = _with_gate(_Probabilities)
    found, held = routers(subject), read(subject)
    for router in found:
        assert router.gives_probabilities and router.rule is not None
        given = held[router.logits.name]
        torch.testing.assert_close(router.probabilities(given), given)
        with without_experts(subject, found, {router.layer: [0]}, "mask_reselect"):
            subject.forward(IDS)


def test_indices_are_not_taken_for_scores() -> None:
    with pytest.raises(SubjectError, match="indices, most likely"):
        routers(_with_gate(_Swapped))


def test_an_unknown_rule_can_be_read_and_is_not_asked_again() -> None:
    class Odd(_Probabilities):
        def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
            logits, weights, index = self.inner(states)
            return logits, weights * 0.3 + 0.01, (index + 1) % 8

    subject = _with_gate(Odd)
    found = routers(subject)
    assert [router.rule for router in found] == [None, None]
    with without_experts(subject, found, {0: [1]}, "zero"):
        subject.forward(IDS)
    with (
        pytest.raises(SubjectError, match="how this router chooses is not known"),
        without_experts(subject, found, {0: [1]}, "mask_reselect"),
    ):
        pass


def test_too_few_experts_left_weigh_nothing() -> None:
    """Two experts are left for three places: the third weighs nothing, and the two share the scale."""
    rule = Rule("softmax", True)
    gone = torch.tensor([True] * 6 + [False] * 2)
    found = rule.choose(torch.randn(5, 8), 3, gone)
    kept = ~gone[found.experts]
    assert (kept.sum(-1) == 2).all() and not found.weights[~kept].any()
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(5))


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_are_found_in_bfloat16(family: str) -> None:
    """Weights of eight significant bits: the rule is still the right one, not the first that is near."""
    subject = build(family)
    half = wrap(subject.copy().model.to(torch.bfloat16))
    for router, same in zip(routers(half), routers(subject), strict=True):
        assert router.rule is not None and same.rule is not None
        assert (router.rule.scoring, router.rule.normalised) == (same.rule.scoring, same.rule.normalised)
        assert (router.rule.groups, router.rule.group_top) == (same.rule.groups, same.rule.group_top)


def test_a_rule_with_other_weights_is_not_taken_for_that_of_the_model() -> None:
    """Of 64 experts weights are small: unnormalised ones are within an absolute rounding of bfloat16."""
    logits = 0.1 * torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    found = Rule("softmax", True).choose(logits, 32)
    choice = Choice(found.experts, found.weights.bfloat16())
    assert _gives(Rule("softmax", True), logits, choice)
    assert not _gives(Rule("softmax", False), logits, choice)
    moved = Choice((found.experts + 1) % 64, choice.weights)
    assert not _gives(Rule("softmax", True), logits, moved)


def test_margins_are_not_known_where_a_bias_decides_too() -> None:
    assert not any(router.by_score for router in routers(build("deepseek_v3")))
    assert all(router.by_score for router in routers(build("olmoe")))


def test_sites_of_the_routing_are_named_by_role() -> None:
    assert all(router.index.role == INDEX for router in routers(build("granitemoe")))
