"""Masks of magnitude, Wanda and RIA are those by hand: plain hooks on whole passes, padding left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.pruning import Criterion, prune
from sparsescope.pruning.criteria import criteria, find_criterion
from sparsescope.pruning.criteria import magnitude as magnitude_module
from sparsescope.pruning.criteria import ria as ria_module
from sparsescope.pruning.criteria import wanda as wanda_module
from sparsescope.pruning.inputs import InputStatistics

GENERATOR = torch.Generator()
#: Dense, Conv1D, grouped heads, mixtures, one with dense layers and shared experts.
ARCHITECTURES = (
    "random-llama",
    "random-gpt2",
    "random-gemma2",
    "random-olmoe",
    "random-mixtral",
    "random-qwen2moe",
    "random-opt",
)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_masks_on_what_the_dense_model_reads_are_those_by_hand(
    name: str, subject: Any, text: Any, by_hand: Any
) -> None:
    read = by_hand.captured(subject(name), text)
    for criterion in by_hand.SCORES if name in ("random-gpt2", "random-qwen2moe") else ("wanda",):
        _, masks = prune(subject(name), criterion, 0.55, corpus=text, propagation="dense")
        assert set(read) == set(masks)  # no expert is without a token here
        assert by_hand.assert_masks(subject(name), masks, read, criterion, 0.55) == masks.weights
        if criterion != "magnitude":
            assert not masks.notes


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("random-llama", "wanda"),
        ("random-gpt2", "ria"),
        ("random-gemma2", "wanda"),
        ("random-olmoe", "wanda"),
        ("random-qwen2moe", "ria"),
    ],
)
def test_masks_block_by_block_are_those_of_whole_passes_from_the_start(
    name: str, criterion: str, subject: Any, text: Any, by_hand: Any
) -> None:
    _, masks = prune(subject(name), criterion, 0.55, corpus=text)
    assert by_hand.assert_sequential(subject(name), masks, text, criterion, 0.55) == masks.weights
    _, dense = prune(subject(name), criterion, 0.55, corpus=text, propagation="dense")
    for matrix in masks:
        same = masks[matrix] == dense[matrix]
        assert same == matrix.startswith("weight:blocks.0."), matrix  # only the first block reads the same


def test_a_scope_in_the_middle_is_pruned_block_by_block(subject: Any, text: Any, by_hand: Any) -> None:
    _, masks = prune(subject("random-opt"), "wanda", 0.5, corpus=text, scope="weight:blocks.1-2.mlp.*")
    copy = subject("random-opt").copy()
    for layer in (1, 2):
        read = by_hand.captured(copy, text, layer)
        read = {name: inputs for name, inputs in read.items() if ".mlp." in name}
        assert by_hand.assert_masks(copy, masks, read, "wanda", 0.5)
        for name in read:
            copy.parameter(name).masked_fill_(~masks[name].tensor(), 0)


def test_masks_in_n_m_groups_are_those_by_hand(subject: Any, text: Any, by_hand: Any) -> None:
    given = subject("random-gpt2")
    _, masks = prune(given, "wanda", pattern="3:8", corpus=text, propagation="dense")
    for name, inputs in by_hand.captured(given, text).items():
        scores = by_hand.wanda(given.parameter(name), inputs).reshape(-1, 8)
        keep = masks[name].array().reshape(-1, 8)
        by_hand.assert_smallest_go(keep, scores, 5 * len(scores), True, name)


def statistics(x: torch.Tensor, gram: bool = False) -> InputStatistics:
    found = InputStatistics()
    for part in x.split(7):
        found.add(part, gram)
    return found


@pytest.mark.parametrize("gram", [False, True])
def test_sums_over_batches_are_those_of_the_whole(gram: bool) -> None:
    x = torch.randn(61, 19, generator=GENERATOR.manual_seed(0)) * 50 + 30
    found = statistics(x, gram)
    assert found.tokens == 61 and found.norms is not None
    expected = x.double().square().mean(0).sqrt()
    assert torch.allclose(found.norms, expected, rtol=1e-6)
    if gram:
        assert found.gram is not None and found.gram.dtype == torch.float64
        assert torch.allclose(found.gram, x.double().T @ x.double(), rtol=1e-5)


def test_wanda_is_magnitude_in_rows_where_all_inputs_have_one_norm() -> None:
    weight = torch.randn(9, 32, generator=GENERATOR.manual_seed(1))
    x = torch.eye(32) * 3
    scores = wanda_module.score(weight, statistics(x), GENERATOR)
    assert torch.equal(scores.argsort(1), magnitude_module.score(weight, None, GENERATOR).argsort(1))
    assert torch.equal(wanda_module.score(weight, InputStatistics(), GENERATOR), weight.abs())


def test_wanda_does_not_see_a_scale_that_moves_from_weights_to_inputs() -> None:
    weight = torch.randn(9, 32, generator=GENERATOR.manual_seed(2))
    x, scale = torch.randn(50, 32, generator=GENERATOR), torch.logspace(-3, 3, 32)
    one = wanda_module.score(weight, statistics(x), GENERATOR)
    other = wanda_module.score(weight / scale, statistics(x * scale), GENERATOR)
    assert torch.allclose(one, other, rtol=1e-5)


def test_ria_is_its_equation_and_wipes_out_no_input() -> None:
    weight = torch.randn(12, 20, generator=GENERATOR.manual_seed(3))
    weight[:, 4] *= 1e-3  # an input with small weights: all of it would go by magnitude
    x = torch.randn(50, 20, generator=GENERATOR)
    found = ria_module.score(weight, statistics(x), GENERATOR).double().numpy()
    size, norm = abs(weight.double().numpy()), x.double().square().mean(0).numpy() ** 0.5
    expected = np.empty_like(size)
    for i in range(12):
        for j in range(20):
            relative = size[i, j] / size[:, j].sum() + size[i, j] / size[i].sum()
            expected[i, j] = relative * norm[j] ** 0.5
    assert np.allclose(found, expected, rtol=1e-5)
    scores = torch.from_numpy(found)
    order = scores.argsort(1)[:, :10]
    assert ((order == 4).sum() < 12).item()
    assert (weight.abs().argsort(1)[:, :10] == 4).sum() == 12


def test_rows_and_columns_of_zeros_have_finite_scores() -> None:
    weight = torch.randn(6, 8, generator=GENERATOR.manual_seed(4))
    weight[2], weight[:, 3] = 0, 0
    found = ria_module.score(weight, None, GENERATOR)
    assert found.isfinite().all() and not found[2].any() and not found[:, 3].any()


def test_random_scores_depend_on_nothing_but_the_seed(subject: Any) -> None:
    _, masks = prune(subject("random-llama"), "random", 0.5)
    kept = np.concatenate([masks[name].array().reshape(-1) for name in masks])
    rows = np.concatenate([masks[name].array().mean(1) for name in masks])
    assert kept.mean() == 0.5 and 0.2 < rows.min() < rows.max() < 0.8  # not row by row
    _, other = prune(subject("random-gpt2"), "random", 0.5)
    name = "weight:blocks.0.attn.q.weight"
    assert masks[name] == other[name]  # another model, the same name and shape


def test_every_criterion_is_found_by_its_name_and_says_what_it_is() -> None:
    assert list(criteria()) == ["magnitude", "random", "wanda", "ria", "sparsegpt"]
    for name, found in criteria().items():
        assert find_criterion(name) is found is find_criterion(found)
        assert found.title and found.summary.endswith(".") and found.equation and found.source
    with pytest.raises(SpecError, match="did you mean 'wanda'"):
        find_criterion("wnada")


def test_a_criterion_of_ones_own_is_used(subject: Any) -> None:
    large = Criterion("large", "Large", "Large go.", "-|W|", "a test", lambda w, x, g: -w.abs())
    for allocation in ("uniform", "global"):
        _, masks = prune(subject("random-llama"), large, 0.5, allocation=allocation)
        name = "weight:blocks.1.mlp.out.weight"
        weight, keep = subject("random-llama").parameter(name).abs(), masks[name].tensor()
        assert masks.sparsity == 0.5 and weight[keep].max() <= weight[~keep].min()
