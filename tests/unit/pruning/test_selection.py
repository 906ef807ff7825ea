"""Exactly so many of the smallest, ties by their place; N:M, rows, blocks; energies that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.pruning import NM, Blocks, Rows, prune
from sparsescope.pruning.patterns import pruned_count, read_pattern
from sparsescope.pruning.selection import compliance, keep_mask, retained_energy, smallest


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smallest_by_hand(scores: torch.Tensor, count: int) -> np.ndarray:
    order = np.argsort(scores.double().numpy(), axis=1, kind="stable")
    gone = np.zeros(scores.shape, bool)
    np.put_along_axis(gone, order[:, :count], True, axis=1)
    return gone


@pytest.mark.parametrize("values", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_smallest_are_exact_under_heavy_ties_and_stable_by_index(values: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(values)
    scores = torch.randint(0, values, (9, 41), generator=generator).to(dtype)
    for count in range(42):
        gone = smallest(scores, count)
        assert (gone.sum(1) == count).all()
        assert (gone.numpy() == smallest_by_hand(scores, count)).all()


def test_none_and_all_and_numbers_beyond_are_no_error() -> None:
    scores = drawn(3, 5)
    assert not smallest(scores, 0).any() and not smallest(scores, -1).any()
    assert smallest(scores, 5).all() and smallest(scores, 6).all()


def test_zero_and_negative_zero_tie_and_infinity_goes_last() -> None:
    scores = torch.tensor([[0.0, -0.0, torch.inf, 0.0, 1.0, torch.inf]])
    assert smallest(scores, 2).tolist() == [[True, True, False, False, False, False]]
    assert smallest(scores, 5).tolist() == [[True, True, True, True, True, False]]


@pytest.mark.parametrize("groups", ["matrix", "row"])
def test_masks_of_fixed_scores_are_nested_and_exact(groups: Any) -> None:
    tied = (drawn(13, 24) * 2).round()
    before = torch.ones(13, 24, dtype=torch.bool)
    for count in range(0, 13 * 24 + 1, 5):
        keep = keep_mask(tied, count, None, groups)
        assert int((~keep).sum()) == count
        assert not (keep & ~before).any()  # what went at a lower level is gone here too
        before = keep
        if groups == "row":
            lost = (~keep).sum(1)
            assert lost.max() - lost.min() <= 1 and (lost.diff() <= 0).all()


@pytest.mark.parametrize("pattern", [Rows(), Blocks(4, 3)])
def test_whole_rows_and_blocks_are_nested_and_never_more_than_asked_for(pattern: Any) -> None:
    scores, size = drawn(16, 24).abs(), 24 if isinstance(pattern, Rows) else 12
    before = torch.ones(16, 24, dtype=torch.bool)
    for count in range(0, 16 * 24 + 1, 7):
        keep = keep_mask(scores, count, pattern, "matrix")
        assert int((~keep).sum()) == count // size * size
        assert not (keep & ~before).any()
        before = keep


@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        ("magnitude", "random-gpt2"),
        ("random", "random-llama"),
        ("wanda", "random-mixtral"),
        ("ria", "random-gpt2"),
    ],
)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_masks_of_a_model_are_nested_over_levels(
    criterion: str, name: str, allocation: str, subject: Any, text: Any
) -> None:
    before = None
    for sparsity in (0.1, 0.11, 0.77):
        _, masks = prune(
            subject(name), criterion, sparsity, allocation=allocation, corpus=text, propagation="dense"
        )
        if before is not None:
            for matrix in masks:
                assert not (masks[matrix].array() & ~before[matrix].array()).any(), matrix
        before = masks


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 1000, 4096 * 11008])
def test_counts_round_half_down(n: int, by_hand: Any) -> None:
    for sparsity in (0.0, 0.1, 0.15, 0.25, 0.3, 0.5, 0.51, 0.7, 0.75, 0.9, 0.999):
        assert pruned_count(sparsity, n) == by_hand.count(sparsity, n), (sparsity, n)
    assert pruned_count(0.5, 7) == 3 and pruned_count(0.25, 6) == 1 and pruned_count(0.25, 2) == 0


@pytest.mark.parametrize(
    ("keep", "group", "energy"),
    [(2, 4, 0.8678), (4, 8, 0.8968), (8, 16, 0.9125), (16, 32, 0.9206), (1, 4, 0.6178), (1, 2, 0.8185)],
)
def test_n_m_keeps_the_known_energy_of_normal_weights(keep: int, group: int, energy: float) -> None:
    weight, pattern = drawn(2000, 1024), NM(keep=keep, group=group)
    mask = keep_mask(weight.abs(), 0, pattern, "matrix")
    assert retained_energy(weight, mask) == pytest.approx(energy, abs=1e-3)
    assert compliance(mask, pattern) == 1.0 and (mask.sum(1) == 1024 * keep // group).all()
    grouped = weight.abs().reshape(-1, group)  # every kept weight is at least as large as any that went
    chosen = mask.reshape(-1, group)
    lost, stayed = grouped.masked_fill(chosen, 0).amax(1), grouped.masked_fill(~chosen, torch.inf).amin(1)
    assert (lost <= stayed).all()


@pytest.mark.parametrize(
    ("sparsity", "energy"), [(0.5, 0.9287), (0.6, 0.8713), (0.7, 0.7835), (0.8, 0.6502), (0.9, 0.4398)]
)
def test_magnitude_keeps_the_known_energy_of_normal_weights(sparsity: float, energy: float) -> None:
    weight = drawn(2000, 1000)
    mask = keep_mask(weight.abs(), pruned_count(sparsity, weight.numel()), None, "matrix")
    assert retained_energy(weight, mask) == pytest.approx(energy, abs=1e-3)


def test_compliance_is_the_share_of_groups_that_hold() -> None:
    half = torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    assert compliance(half, NM(keep=2, group=4)) == pytest.approx(0.6875, abs=5e-3)  # specification 3.1
    grouped = half.numpy().reshape(-1, 4).sum(1)
    assert compliance(half, NM(keep=2, group=4)) == pytest.approx(float((grouped <= 2).mean()), abs=1e-12)
    assert compliance(torch.zeros(3, 8), NM(keep=1, group=8)) == 1.0
    assert retained_energy(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == 1.0


def test_ties_in_a_group_go_by_their_place() -> None:
    mask = keep_mask(torch.ones(2, 8), 0, NM(keep=3, group=4), "matrix")
    assert mask.tolist() == [[False, True, True, True] * 2] * 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2:4", NM(keep=2, group=4)),
        (" 4:8 ", NM(keep=4, group=8)),
        ("rows", Rows()),
        ("blocks:16x8", Blocks(16, 8)),
        ("block@2x3", Blocks(2, 3)),
        ("none", None),
        (None, None),
        (NM(keep=1, group=2), NM(keep=1, group=2)),
    ],
)
def test_patterns_are_read(text: Any, found: Any) -> None:
    assert read_pattern(text) == found
    if found is not None:
        assert read_pattern(found.text) == found


@pytest.mark.parametrize(
    "text",
    [
        "4:2",
        "4:4",
        "0:4",
        "2:4:8",
        "2/4",
        "row",
        "blocks:0x4",
        "blocks:4",
        "-2:4",
        2,
        2.4,
        "",
        "9" * 9 + ":4",
    ],
)
def test_what_is_no_pattern_is_refused(text: Any) -> None:
    with pytest.raises(SpecError) as caught:
        read_pattern(text)
    assert caught.value.where in ("pattern", "NM(keep, group)", "Blocks(out, into)")


@pytest.mark.parametrize("given", [(4, 2), (4, 4), (0, 4), (-1, 4), (2.0, 4), (True, 4), ("2", 4)])
def test_an_n_m_pattern_keeps_some_and_not_all(given: tuple[Any, Any]) -> None:
    with pytest.raises(SpecError, match="keeps at least one"):
        NM(keep=given[0], group=given[1])


def test_bits_of_a_mask_are_those_of_the_specification() -> None:
    found = {
        (n, m): round(NM(keep=n, group=m).bits, 4) for n, m in [(2, 4), (4, 8), (8, 16), (16, 32), (1, 4)]
    }
    assert found == {(2, 4): 0.6462, (4, 8): 0.7662, (8, 16): 0.8532, (16, 32): 0.9113, (1, 4): 0.5}


def test_a_pattern_that_does_not_divide_names_the_matrix(subject: Any) -> None:
    with pytest.raises(SpecError, match=r"groups .* do not divide") as caught:
        prune(subject("random-llama"), pattern="3:5")
    assert "weight:blocks.0.attn.k.weight" in (caught.value.where or "") and "64 inputs" in str(caught.value)
    with pytest.raises(SpecError, match=r"blocks .* do not divide") as caught:
        prune(subject("random-llama"), "magnitude", 0.5, pattern="blocks:16x12")
    assert "weight:blocks.0.attn.k.weight" in (caught.value.where or "")
    _, masks = prune(
        subject("random-llama"), pattern="5:11", scope="weight:blocks.*.mlp.out.weight"
    )  # 176 inputs
    assert all(compliance(masks[name].tensor(), NM(keep=5, group=11)) == 1 for name in masks)
