"""Zeros are counted by hand on small matrices; lost ones are told matrix by matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sparsescope as ss
from sparsescope.errors import SpecError, SubjectError
from sparsescope.pruning import NM, Blocks, MaskSet, PackedMask, Rows, compare, describe, prune, save_pruned
from sparsescope.pruning.proof import lost_by_role, prove, total_text
from sparsescope.pruning.zeros import breaks, by_chance, role_of, slack

Q, OUT = "weight:blocks.0.attn.q.weight", "weight:blocks.0.mlp.out.weight"


@pytest.fixture
def subject():
    """One whose matrices a test may write to."""
    return ss.load("random-llama").copy()


def write(subject, name, change):
    with torch.no_grad():
        change(subject.parameter(name))


def row_of(found, name):
    return next(row for row in found.matrices if row.name == name)


def test_zeros_are_counted_and_negative_ones_too(subject):
    assert (
        describe(subject).zeros == 0 and describe(subject).notable == () and describe(subject).pattern == ""
    )

    def change(matrix):
        matrix[:2] = 0.0
        matrix[2, :4] = -0.0

    write(subject, Q, change)
    found = describe(subject)
    row = row_of(found, Q)
    assert (row.weights, row.zeros, row.role) == (64 * 64, 132, "attn.q")
    assert found.zeros == 132 and found.weights == 138_240 and found.share == 132 / 138_240
    assert [row.name for row in found.notable] == [Q], "3.2 % of this matrix, none of the others"
    # two rows of 16 groups hold nothing, one group of the third row too: of 64 x 16 groups
    assert row.compliance["2:4"] == row.compliance["1:4"] == 33 / 1024
    assert row.compliance["4:8"] == 17 / 512, "four of eight are zero in the first group of the third row"
    assert row.compliance["8:16"] == 8 / 256
    assert found.as_dict()["matrices"][0].keys() == {"name", "weights", "zeros", "share", "compliance"}


def test_few_zeros_are_not_worth_a_word(subject):
    write(subject, Q, lambda matrix: matrix.view(-1)[:40].zero_())
    assert describe(subject).zeros == 40 and describe(subject).notable == ()


def test_the_strictest_pattern_is_named(subject):
    for pattern in (NM(keep=2, group=4), NM(keep=4, group=8), NM(keep=1, group=4)):
        assert describe(prune(subject, pattern=pattern)[0]).pattern == pattern.text
    assert describe(prune(subject, sparsity=0.5)[0]).pattern == ""
    part = prune(subject, pattern="2:4", scope="weight:blocks.1.attn.*")[0]
    assert describe(part).pattern == "2:4", "matrices without zeros do not count"


def test_groups_that_do_not_divide_the_inputs_are_left_out():
    mask = MaskSet({"weight:blocks.0.mlp.in.weight": PackedMask.of(np.eye(12, dtype=bool))})
    found = describe(mask)
    assert (
        set(found.matrices[0].compliance) == {"1:4", "2:4"} and found.compliance(NM(keep=8, group=16)) is None
    )
    assert (found.zeros, found.weights, found.pattern) == (132, 144, "1:4")


def test_chance_is_that_of_independent_zeros():
    assert by_chance(NM(keep=2, group=4), 0.5) == 11 / 16
    assert by_chance(NM(keep=1, group=4), 0.0) == 0 and by_chance(NM(keep=4, group=8), 1.0) == 1
    drawn = torch.rand(4096, 64, generator=torch.Generator().manual_seed(0)) > 0.3
    found = describe(MaskSet({Q: PackedMask.of(drawn)}))
    for pattern in (NM(keep=2, group=4), NM(keep=4, group=8)):
        share, chance = found.compliance(pattern)
        assert share == pytest.approx(chance, abs=0.01) and chance == pytest.approx(
            by_chance(pattern, 0.3), abs=0.01
        )


def test_a_model_without_such_matrices_is_refused(subject, monkeypatch):
    monkeypatch.setattr(type(subject), "parameter_sites", lambda self, patterns: ())
    with pytest.raises(SubjectError, match="no matrices in scope"):
        describe(subject)


# -- lost zeros ------------------------------------------------------------------------------------


def test_zeros_that_were_lost_are_told_matrix_by_matrix(subject):
    """An adapter that is merged into q and v of every layer fills their zeros: 40 % becomes 34.7 %."""
    sparse, masks = prune(subject, sparsity=0.4)
    assert not any(change.lost for change in compare(sparse, masks))
    generator = torch.Generator().manual_seed(0)
    adapted = [f"weight:blocks.{layer}.attn.{key}.weight" for layer in range(3) for key in "qv"]
    for name in adapted:
        out, into = masks[name].shape
        low = torch.randn(out, 2, generator=generator) @ torch.randn(2, into, generator=generator)
        write(sparse, name, lambda matrix, low=low: matrix.add_(0.01 * low))
    changes = {change.name: change for change in compare(sparse, masks)}
    assert list(changes) == list(masks)
    assert {name for name, change in changes.items() if change.lost} == set(adapted)
    first = changes[Q]
    assert (first.weights, first.pruned, first.lost, first.kept_zeros) == (4096, 1638, 1638, 0)
    assert first.text == "40.0 % -> 0.0 %" and changes[OUT].text == "40.0 % -> 40.0 %"
    rows = tuple(changes.values())
    assert total_text(rows) == "40.0 % -> 34.7 %" and lost_by_role(rows) == "attn.q 3 of 3, attn.v 3 of 3"
    proof = {proof.what: proof for proof in prove(masks, rows)}["zeros"]
    assert (
        not proof.ok and "7,371 of 55,296 removed weights are not zero, in 6 of 21 matrices" in proof.detail
    )


def test_a_kept_weight_that_is_zero_is_no_loss(subject):
    sparse, masks = prune(subject, sparsity=0.4)
    place = masks[Q].tensor().nonzero()[0]
    write(sparse, Q, lambda matrix: matrix[place[0], place[1]].zero_())
    (change,) = [change for change in compare(sparse, masks) if change.kept_zeros]
    assert (change.name, change.lost, change.kept_zeros) == (Q, 0, 1)
    assert change.now == (1638 + 1) / 4096 and change.then == 1638 / 4096


def test_a_folder_is_compared_too(subject, tmp_path):
    sparse, masks = prune(subject, sparsity=0.5)
    save_pruned(sparse, masks, tmp_path / "model")
    assert (
        compare(tmp_path / "model", masks)
        == compare(str(tmp_path / "model"), masks)
        == compare(sparse, masks)
    )
    denser = prune(subject, sparsity=0.6)[1]
    assert sum(change.lost for change in compare(tmp_path / "model", denser)) > 0


def test_masks_of_another_model_are_refused(subject):
    with pytest.raises(SpecError, match="no matrix of this name"):
        compare(subject, MaskSet({"weight:blocks.0.attn.p.weight": PackedMask.of(torch.ones(64, 64))}))
    with pytest.raises(SpecError, match="another shape than its matrix"):
        compare(subject, MaskSet({Q: PackedMask.of(torch.ones(64, 32))}))


# -- patterns of masks -----------------------------------------------------------------------------


def test_what_breaks_a_pattern():
    keep = np.ones((4, 8), bool)
    keep[:2, :] = False
    mask = PackedMask.of(keep)
    assert breaks(mask, Rows()) == 0 and breaks(mask, Blocks(2, 4)) == 0
    assert breaks(mask, NM(keep=2, group=4)) == 4, "two full rows of two groups"
    assert breaks(mask, NM(keep=4, group=8)) == 2
    keep[0, 0] = True
    mask = PackedMask.of(keep)
    assert breaks(mask, Rows()) == 1 and breaks(mask, Blocks(2, 4)) == 1 and breaks(mask, Blocks(2, 8)) == 1
    assert breaks(mask, NM(keep=2, group=3)) > 0 and breaks(mask, Blocks(3, 8)) > 0, "they do not divide it"


def test_how_far_a_count_may_be_off():
    masks = MaskSet({name: PackedMask.of(np.ones((4, 8), bool)) for name in (Q, OUT)})
    assert (slack(masks, None), slack(masks, Rows()), slack(masks, Blocks(2, 4))) == (2, 16, 16)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        (OUT, "mlp.out"),
        ("weight:blocks.11.mlp.experts.63.gate.weight", "mlp.experts.gate"),
        ("model.layers.3.mlp.down_proj.weight", "model.layers.mlp.down_proj"),
    ],
)
def test_the_role_in_a_name(name, role):
    assert role_of(name) == role
