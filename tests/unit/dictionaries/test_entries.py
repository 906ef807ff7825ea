"""Encoder and decoder on chosen entries, and the auxiliary loss, against autograd of the dense formulas."""

from __future__ import annotations

import pytest
import torch

from sparsescope.dictionaries.dead_features import reviving_loss
from sparsescope.dictionaries.entries import Entries, choose, decode_entries, encode_entries, scores_of
from sparsescope.kernels import sparse_codes as kernels

ROWS, D, WIDTH, OUT = 23, 9, 31, 7
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["compiled", "torch"])


def made(dtype, seed=0):
    """Leaves: rows, encoder, bias, shift, decoder."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(ROWS, D), (WIDTH, D), (WIDTH,), (D,), (WIDTH, OUT)]
    return [
        torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() if shape else None
        for shape in shapes
    ]


def chosen(rows, encoder, bias, k=5):
    return choose(rows.detach(), encoder, bias, lambda scores: kernels.top_entries(scores, k))


def masked(entries):
    mask = torch.zeros(len(entries.offsets) - 1, entries.width, dtype=torch.bool)
    number = torch.repeat_interleave(torch.arange(len(mask)), entries.offsets.diff())
    mask[number, entries.indices.long()] = True
    return mask


def close(found, wanted, tolerance=1e-6):
    """Equal up to ``tolerance`` of the largest entry."""
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max()) + 1e-12


@BOTH
def test_gradients_equal_autograd_of_the_dense_formula(dtype):
    rows, encoder, bias, shift, decoder = made(dtype)
    shifted = (rows - shift).detach().requires_grad_()
    entries = chosen(shifted, encoder, bias)
    assert 0 < len(entries.scores) < ROWS * 5 + 1
    weights = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(9), dtype=dtype)

    values = encode_entries(shifted, encoder, bias, entries, shift)
    loss = (decode_entries(values.tanh(), decoder, entries) * weights).sum() + values.square().sum()
    sparse = torch.autograd.grad(loss, [shifted, encoder, bias, shift, decoder])

    mask = masked(entries)
    scores = (rows - shift) @ encoder.T + bias
    torch.testing.assert_close(values, scores[mask], rtol=1e-5, atol=1e-6)
    kept = torch.where(mask, scores, 0)
    dense_loss = (kept.tanh() @ decoder * weights).sum() + kept.square().sum()
    dense = torch.autograd.grad(dense_loss, [rows, encoder, bias, shift, decoder])
    torch.testing.assert_close(loss, dense_loss, rtol=1e-5, atol=1e-5)
    for mine, wanted in zip(sparse, dense, strict=True):
        close(mine, wanted)


@BOTH
def test_what_is_not_trained_gets_no_gradient(dtype):
    rows, encoder, bias, shift, decoder = made(dtype)
    entries = chosen(rows, encoder, bias)
    values = encode_entries(rows.detach(), encoder, bias, entries)
    decode_entries(values, decoder, entries).sum().backward()
    assert rows.grad is None and shift.grad is None and encoder.grad is not None
    assert not entries.scores.requires_grad


def test_gradcheck():
    """In float64, against finite differences: the entries stay, their scores move with the parameters."""
    rows, encoder, bias, shift, decoder = made(torch.float64)
    entries = chosen(rows - shift, encoder, bias, k=3)
    mask = masked(entries)

    def loss(encoder, bias, shift, decoder, rows):
        shifted = rows - shift.detach()
        scores = torch.addmm(bias, shifted, encoder.T).detach()[mask]
        mine = Entries(entries.indices, scores, entries.offsets, WIDTH)
        return decode_entries(encode_entries(shifted, encoder, bias, mine, shift), decoder, mine)

    # Finite differences move the shift in the rows themselves, its gradient is that of the operation
    assert torch.autograd.gradcheck(loss, (encoder, bias, shift, decoder, rows), fast_mode=False)


@BOTH
@pytest.mark.parametrize("rows", [0, 1, 16, 17, 600, 1100])
def test_choose_gives_every_row_its_entries(rows, dtype):
    """Blocks of rows are put together again, whatever their number."""
    _, encoder, bias, *_ = made(dtype)
    x = torch.randn(rows, D, generator=torch.Generator().manual_seed(4), dtype=dtype)
    entries = chosen(x, encoder, bias, k=4)
    assert len(entries.offsets) == rows + 1 and entries.offsets.dtype == torch.int64
    scores = scores_of(x, encoder, bias)
    mask = masked(entries)
    assert int(mask.sum()) == len(entries.indices) == int(entries.offsets[-1])
    torch.testing.assert_close(entries.scores, scores[mask], rtol=1e-5, atol=1e-6)
    if rows:
        torch.testing.assert_close(
            torch.where(mask, scores, 0).sum(1), scores.clamp(min=0).topk(4).values.sum(1)
        )


def test_choose_does_not_depend_on_the_size_of_the_blocks(monkeypatch):
    from sparsescope.dictionaries import entries as module

    _, encoder, bias, *_ = made(torch.float32)
    x = torch.randn(130, D, generator=torch.Generator().manual_seed(4))
    first = chosen(x, encoder, bias)
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)  # 16 rows
    second = chosen(x, encoder, bias)
    assert torch.equal(first.indices, second.indices) and torch.equal(first.offsets, second.offsets)
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-6, atol=1e-6)


def test_a_part_of_the_entries_and_codes_without_zeros():
    entries = Entries(
        torch.tensor([1, 4, 0, 2, 4], dtype=torch.int32), torch.arange(5.0), torch.tensor([0, 2, 2, 5]), 6
    )
    part = entries.where(torch.tensor([False, True, True, False, True]))
    assert (part.indices.tolist(), part.scores.tolist(), part.offsets.tolist()) == (
        [4, 0, 4],
        [1.0, 2.0, 4.0],
        [0, 1, 1, 3],
    )
    codes = entries.codes(torch.tensor([0.0, 2.0, 3.0, 0.0, -1.0], requires_grad=True))
    assert codes.dense().tolist() == [[0, 0, 0, 0, 2, 0], [0] * 6, [3, 0, 0, 0, -1, 0]]
    assert codes.offsets.tolist() == [0, 1, 1, 3] and not codes.values.requires_grad
    assert entries.codes(torch.ones(5)).indices is entries.indices
    assert entries.order is entries.order


def dense_auxiliary(encoder, bias, decoder, shift, rows, residual, unused, k):
    """The definition, without any short cut: rows are not shifted yet."""
    which = unused.nonzero().flatten()
    scores = ((rows - shift) @ encoder.T + bias)[:, which]
    best = scores.topk(min(k, len(which)), dim=1).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
    found = torch.where(kept, scores, 0) @ decoder[which]
    return (residual - found).square().sum() / residual.square().sum() * min(len(which) / k, 1.0)


@BOTH
@pytest.mark.parametrize("k", [1, 4, 11, 12, 40])
def test_the_auxiliary_loss_and_its_gradients_equal_the_definition(k, dtype):
    """k = 11 and more take all unused features of each row, by dense algebra; fewer go by entries."""
    rows, encoder, bias, shift, decoder = made(dtype, 1)
    residual = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(3), dtype=dtype)
    unused = torch.zeros(WIDTH, dtype=torch.bool)
    unused[::3] = True
    assert int(unused.sum()) == 11
    leaves = [encoder, bias, shift, decoder]
    found = reviving_loss(encoder, bias, decoder, shift, (rows - shift).detach(), residual, unused, k)
    wanted = dense_auxiliary(encoder, bias, decoder, shift, rows.detach(), residual, unused, k)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for mine, dense in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        close(mine, dense, 1e-6 if dtype == torch.float64 else 3e-6)
    # Without a shift to train its gradient is not there, and nothing else changes
    again = reviving_loss(encoder, bias, decoder, None, (rows - shift).detach(), residual, unused, k)
    torch.testing.assert_close(again, found)
    with pytest.raises(RuntimeError, match="to not have been used"):
        torch.autograd.grad(again, [shift])


@pytest.mark.parametrize("k", [2, 8])
def test_dead_features_that_point_away_from_all_rows_get_a_gradient(k):
    rows, encoder, bias, _, decoder = made(torch.float32, 2)
    with torch.no_grad():
        rows.abs_().add_(1)
        encoder[:6] = -encoder[:6].abs() - 0.1
        bias.zero_()
    assert float((rows @ encoder[:6].T).detach().max()) < 0, "they are not anti-aligned"
    residual = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(3))
    unused = torch.arange(WIDTH) < 6
    reviving_loss(encoder, bias, decoder, None, rows.detach(), residual, unused, k).backward()
    reached = encoder.grad.norm(dim=1) > 0
    assert int(reached[:6].sum()) >= min(k, 6) and not reached[6:].any()
    assert (decoder.grad.norm(dim=1) > 0).sum() == reached.sum() == (bias.grad != 0).sum()


def test_the_auxiliary_loss_is_not_there_without_dead_features_or_without_a_residual():
    rows, encoder, bias, _, decoder = made(torch.float32)
    rest = (encoder, bias, decoder, None, rows.detach())
    none, all_ = torch.zeros(WIDTH, dtype=torch.bool), torch.ones(WIDTH, dtype=torch.bool)
    assert reviving_loss(*rest, torch.ones(ROWS, OUT), none, 4) is None
    assert reviving_loss(*rest, torch.zeros(ROWS, OUT), all_, 4) is None


def test_few_dead_features_count_in_proportion_and_one_means_nothing_is_explained():
    rows, encoder, bias, _, decoder = made(torch.float64)
    residual = torch.randn(ROWS, OUT, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        decoder.zero_()
    for dead, k, wanted in ((5, 10, 0.5), (10, 10, 1.0), (31, 10, 1.0), (1, 4, 0.25)):
        unused = torch.arange(WIDTH) < dead
        found = reviving_loss(encoder, bias, decoder, None, rows.detach(), residual, unused, k)
        assert float(found) == pytest.approx(wanted, rel=1e-12)
