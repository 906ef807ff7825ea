"""Pruning makes a new subject with exactly the zeros that it says; the given one stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.models import Subject, load, wrap
from sparsescope.models.doctor import count_hooks
from sparsescope.pruning import NM, MaskSet, prune
from sparsescope.pruning.scope import choose
from sparsescope.pruning.workbench import Workbench

CRITERIA = ("magnitude", "random", "wanda", "ria", "sparsegpt")
ARCHITECTURES = ("random-llama", "random-gpt2", "random-gemma2", "random-qwen2moe", "random-olmoe")
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(subject: Subject) -> dict[str, torch.Tensor]:
    """Every tensor as integers, so that -0.0 and 0.0 are two numbers."""
    state = subject.model.state_dict().items()
    return {
        name: t.clone().view(_BITS[t.element_size()]) if t.is_floating_point() else t.clone()
        for name, t in state
    }


def assert_as_said(sparse: Subject, masks: MaskSet, by_hand: Any, sparsity: float) -> None:
    """Zeros stand exactly where the masks say, with the counts that were asked for, and none is negative."""
    for name, mask in masks.masks.items():
        weight = sparse.parameter(name)
        assert torch.equal(weight != 0, mask.tensor()), name
        assert not torch.signbit(weight[weight == 0]).any(), name
        assert mask.weights - mask.kept == by_hand.count(sparsity, mask.weights), name


@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        ("magnitude", "random-gpt2"),
        ("magnitude", "random-qwen2moe"),
        ("random", "random-gemma2"),
        *(("wanda", name) for name in ARCHITECTURES),
        ("ria", "random-llama"),
        ("sparsegpt", "random-llama"),
        ("sparsegpt", "random-gpt2"),
        ("sparsegpt", "random-olmoe"),
    ],
)
def test_the_given_subject_stays_as_it_is_and_the_new_one_has_the_stated_zeros(
    criterion: str, name: str, text: Any, by_hand: Any
) -> None:
    given = load(name)
    given.model.train()
    next(given.model.modules()).eval()
    before, training = bits(given), [module.training for module in given.model.modules()]
    hooks, identity = count_hooks(given.model), given.identity
    sparse, masks = prune(given, criterion, 0.37, corpus=text)
    after = bits(given)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [module.training for module in given.model.modules()] == training
    assert count_hooks(given.model) == hooks == 0 and given.identity == identity
    assert given.variant is None and not any("forward" in vars(module) for module in given.model.modules())

    assert count_hooks(sparse.model) == 0
    assert not any("forward" in vars(module) for module in sparse.model.modules())
    held = {t.data_ptr() for t in given.model.parameters()} & {
        t.data_ptr() for t in sparse.model.parameters()
    }
    assert not held
    assert_as_said(sparse, masks, by_hand, 0.37)
    scope = choose(given)
    assert tuple(masks) == tuple(site.name for site in scope.matrices)
    inside = {(site.module_path, site.parameter) for site in scope.matrices}
    for key, tensor in bits(sparse).items():
        if tuple(key.rsplit(".", 1)) not in inside:
            assert torch.equal(tensor, before[key]), key
    if criterion != "sparsegpt":
        for name in masks:  # what stays stays as it was
            weight, mask = given.parameter(name), masks[name].tensor()
            assert torch.equal(sparse.parameter(name)[mask], weight[mask])


@pytest.mark.parametrize(
    ("name", "criterion"),
    [("random-mixtral", "wanda"), *(("random-llama", criterion) for criterion in CRITERIA)],
)
def test_bfloat16_subjects_get_the_stated_zeros(name: str, criterion: str, text: Any, by_hand: Any) -> None:
    given = load(name, dtype="bfloat16")
    before = bits(given)
    sparse, masks = prune(given, criterion, 0.5, corpus=text)
    assert all(torch.equal(tensor, before[key]) for key, tensor in bits(given).items())
    assert sparse.dtype == "bfloat16"
    assert_as_said(sparse, masks, by_hand, 0.5)


def test_negative_weights_do_not_become_negative_zeros() -> None:
    given = load("random-llama")
    with torch.no_grad():
        for site in choose(given).matrices:
            given.parameter(site).neg_().abs_().neg_()  # all are negative
    sparse, masks = prune(given, sparsity=0.5)
    for name in masks:
        weight = sparse.parameter(name)
        assert (weight[weight != 0] < 0).all() and not torch.signbit(weight[weight == 0]).any()


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.999])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_extreme_sparsities_are_exact(criterion: str, sparsity: float, text: Any, by_hand: Any) -> None:
    given = load("random-llama")
    sparse, masks = prune(given, criterion, sparsity, corpus=text, scope="weight:blocks.1.*")
    assert_as_said(sparse, masks, by_hand, sparsity)
    if not sparsity:
        assert all(torch.equal(tensor, bits(given)[key]) for key, tensor in bits(sparse).items())


def test_the_variant_says_what_was_pruned_and_chains(text: Any) -> None:
    given = load("random-llama")
    once, first = prune(given, sparsity=0.3)
    twice, second = prune(once, "wanda", pattern="2:4", corpus=text, propagation="dense")
    assert once.variant is not None and twice.variant is not None
    assert once.variant.parent == given.identity.as_parent()
    assert twice.variant.parent == once.identity.as_parent()
    assert once.id == "pruned@criterion=magnitude,sparsity=0.3:random-llama"
    assert twice.variant.parameters == {
        "criterion": "wanda",
        "sparsity": 0.5,
        "pattern": "2:4",
        "propagation": "dense",
        "corpus": text.digest[:12],
    }
    hashes = {given.identity.weight_hash, once.identity.weight_hash, twice.identity.weight_hash}
    assert len(hashes) == 3
    assert first.facts["parent"]["weight_hash"] == given.identity.weight_hash
    assert second.facts["calibration"]["digest"] == text.digest
    for name in first:  # what was zero before is zero still
        assert not twice.parameter(name)[~first[name].tensor()].any()


def test_pruning_again_is_the_same_and_the_seed_decides_only_what_is_drawn(text: Any) -> None:
    given = load("random-llama")
    for criterion in ("random", "wanda", "sparsegpt"):
        one, other, third = (
            prune(given, criterion, 0.5, corpus=text, seed=seed)[1].masks for seed in (0, 0, 1)
        )
        assert one == other, criterion
        assert (one == third) == (criterion != "random")
    drawn = prune(given, "random", 0.5)[1]
    q, o = (drawn[f"weight:blocks.{layer}.attn.q.weight"].bits for layer in (0, 1))
    assert (q != o).any()  # matrices are drawn apart
    alone = prune(given, "random", 0.5, scope="weight:blocks.1.attn.q.weight")[1]
    assert (alone["weight:blocks.1.attn.q.weight"].bits == o).all()  # whatever else is in scope


def test_a_workbench_can_be_set_back(text: Any) -> None:
    from sparsescope.pruning.request import Request

    given = load("random-mixtral")
    work = Workbench(given, choose(given))
    one = work.prune(Request.of("sparsegpt", 0.5), text)
    work.reset()
    assert all(
        torch.equal(a, b) for a, b in zip(bits(given).values(), bits(work.subject).values(), strict=True)
    )
    assert work.prune(Request.of("sparsegpt", 0.5), text).masks == one.masks


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:4", NM(keep=3, group=16)])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_group_of_an_n_m_pattern_holds_exactly_n(
    criterion: str, pattern: Any, text: Any, subject: Any
) -> None:
    from sparsescope.pruning.patterns import read_pattern
    from sparsescope.pruning.selection import compliance

    name = "random-olmoe" if pattern == "1:4" else "random-gpt2"
    sparse, masks = prune(subject(name), criterion, pattern=pattern, corpus=text, propagation="dense")
    wanted = read_pattern(pattern)
    assert isinstance(wanted, NM)
    for matrix in masks:
        weight = sparse.parameter(matrix)
        assert compliance(weight, wanted) == 1.0
        out, into = weight.shape
        kept = (weight != 0).reshape(out, into // wanted.group, wanted.group).sum(-1)
        assert (kept == wanted.keep).all(), matrix


@pytest.mark.parametrize("criterion", ["magnitude", "random", "wanda", "ria"])
def test_rows_and_blocks_go_as_a_whole(criterion: str, text: Any, subject: Any) -> None:
    _, rows = prune(subject("random-gpt2"), criterion, 0.3, pattern="rows", corpus=text)
    for name in rows:
        kept = rows[name].array()
        whole = kept.all(1)
        assert (whole == kept.any(1)).all()
        assert (~whole).sum() == int(0.3 * len(kept)), name
    _, tiles = prune(subject("random-gpt2"), criterion, 0.3, pattern="blocks:16x8", corpus=text)
    for name in tiles:
        kept = tiles[name].array()
        out, into = kept.shape
        cut = kept.reshape(out // 16, 16, into // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 128)
        assert (cut.all(1) == cut.any(1)).all()
        assert (~cut.all(1)).sum() == int(0.3 * len(cut)), name


def test_the_weakest_rows_and_blocks_go(subject: Any) -> None:
    given = subject("random-llama")
    _, rows = prune(given, sparsity=0.25, pattern="rows")
    _, tiles = prune(given, sparsity=0.25, pattern="blocks:8x16")
    for name in rows:
        size = given.parameter(name).double().abs()
        sums, gone = size.sum(1), ~rows[name].tensor()[:, 0]
        assert sums[gone].max() < sums[~gone].min()
        out, into = size.shape
        sums = size.reshape(out // 8, 8, into // 16, 16).sum((1, 3))
        gone = ~tiles[name].tensor()[::8, ::16]
        assert sums[gone].max() < sums[~gone].min()


def test_hooks_of_a_user_are_refused_before_the_work(text: Any) -> None:
    subject = load("random-llama")
    subject.model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 2)
    told: list[str] = []
    with pytest.raises(SpecError, match="hooks"):
        prune(subject, "wanda", 0.5, corpus=text, progress=lambda phase, done, total: told.append(phase))
    assert not told


def test_a_wrapped_model_without_a_tokenizer_is_pruned_on_tokens(by_hand: Any, text: Any) -> None:
    given = wrap(load("random-llama").model)
    tokens = by_hand.document_text((26, 31))
    masks = prune(given, "wanda", 0.5, corpus=tokens)[1]
    assert (
        masks.facts["calibration"]["tokens"] == 57
        and masks.masks != prune(given, "wanda", 0.5, corpus=text)[1].masks
    )


def test_the_experts_of_a_mixture_are_checked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsescope.models.structure import applied

    asked: list[str] = []
    plain = applied._check_experts

    def check(module: Any, site: Any) -> None:
        asked.append(site.module_path)
        plain(module, site)

    monkeypatch.setattr(applied, "_check_experts", check)
    _, masks = prune(load("random-olmoe"), sparsity=0.5)
    assert len(asked) == 2 * 2  # of two layers, in the model and in its copy
    other = load("random-olmoe")
    masks.apply(other)
    assert len(asked) == 3 * 2
