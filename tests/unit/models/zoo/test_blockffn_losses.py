"""The losses of BlockFFN by hand, their gradients and signs, what documents and padding leave out, and the
schedule of the weight.
"""

from __future__ import annotations

import math

import pytest
import torch

from sparsescope.models.zoo.blockffn_losses import (
    LEAST_REST,
    AdaptiveFactor,
    activation_locality,
    chunk_sparsification,
)


def scores(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_locality_by_hand():
    z, w = 0.3, -0.7  # of one expert at two tokens
    share = 1 / (1 + math.exp(-2 * w))
    wanted = -share * math.log(1 / (1 + math.exp(-2 * z))) - (1 - share) * math.log(1 / (1 + math.exp(2 * z)))
    found = activation_locality(torch.tensor([[[z], [w]]], dtype=torch.float64), sharpness=2.0)
    assert float(found) == pytest.approx(wanted, rel=1e-12)


def test_a_chunk_by_hand():
    given = torch.tensor([[[1.0, 3.0, -5.0], [2.0, -1.0, 0.0]]], dtype=torch.float64)
    # Shares (1/4, 3/4, 0) and (1, 0, 0): unused by both tokens 3/4 * rest, 1/4 and 1
    unused = (0.75 * LEAST_REST + 0.25 + 1) / 3
    assert float(chunk_sparsification(given, 2)) == pytest.approx(1 - unused, rel=1e-12)
    # With chunks of one token, the mean over chunks of what each uses: a third each, up to the rest
    assert float(chunk_sparsification(given, 1)) == pytest.approx(1 / 3 - LEAST_REST / 6, rel=1e-12)
    assert float(chunk_sparsification(-given.abs(), 2)) == 0, "where no expert is used the loss is zero"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_chunk_loss_is_never_negative_and_never_above_one(scale, dtype):
    for seed in range(20):
        given = scale * scores(2, 16, 5, seed=seed, dtype=dtype) - (seed % 3) * scale
        assert 0 <= float(chunk_sparsification(given, 4)) <= 1
    sole = torch.full((1, 8, 6), -1.0, dtype=dtype)
    sole[..., 2] = scale  # one expert for all tokens: the least that a used layer can have
    assert float(chunk_sparsification(sole, 8)) == pytest.approx(1 / 6, abs=1e-5)


def test_gradients_are_those_of_the_definition_and_reach_both_tokens():
    given = scores(2, 9, 4).requires_grad_()  # the last column is in no chunk
    documents = torch.tensor([[0] * 5 + [1] * 4, [0] * 7 + [-1] * 2])
    assert torch.autograd.gradcheck(lambda x: chunk_sparsification(x, 4), given)
    assert torch.autograd.gradcheck(lambda x: chunk_sparsification(x, 2, documents), given)
    assert torch.autograd.gradcheck(lambda x: activation_locality(x, documents, 3.0), given)
    pair = scores(1, 2, 3, seed=1).requires_grad_()
    activation_locality(pair, sharpness=2.0).backward()
    assert (pair.grad != 0).all(), "the target learns as well"


def test_the_losses_write_to_no_tensor():
    given = scores(2, 8, 4)
    before = given.clone()
    documents = torch.tensor([[0] * 4 + [1] * 4, [0] * 6 + [-1] * 2])
    chunk_sparsification(given, 2, documents)
    activation_locality(given, documents)
    assert torch.equal(given, before)


def test_what_crosses_documents_or_is_padding_is_left_out():
    row = scores(1, 12, 5)
    documents = torch.tensor([[7] * 3 + [2] * 5 + [-1] * 4])
    parts = row[:, :3], row[:, 3:8]
    counts = [part.shape[1] - 1 for part in parts]
    apart = [float(activation_locality(part, sharpness=5.0)) for part in parts]
    wanted = sum(n * one for n, one in zip(counts, apart, strict=True)) / sum(counts)
    assert float(activation_locality(row, documents, 5.0)) == pytest.approx(wanted, rel=1e-12)
    # Chunks of two: columns 0-1, (2-3 is of two documents), 4-5, 6-7, and padding
    kept = torch.cat([row[:, :2], row[:, 4:8]], 1)
    wanted = float(chunk_sparsification(kept, 2))
    assert float(chunk_sparsification(row, 2, documents)) == pytest.approx(wanted, rel=1e-12)
    padded = row.clone()
    padded[:, 8:] = 1e3
    assert float(chunk_sparsification(padded, 2, documents)) == pytest.approx(wanted, rel=1e-12)


def test_without_a_pair_or_a_whole_chunk_the_losses_are_zero_with_a_gradient():
    for given in (scores(1, 1, 3).requires_grad_(), scores(2, 1, 3).requires_grad_()):
        for documents in (None, torch.full(given.shape[:2], -1)):
            loss = activation_locality(given, documents) + chunk_sparsification(given, 4, documents)
            assert float(loss.detach()) == 0
            loss.backward()
            assert not given.grad.isnan().any()


def run(factor, losses):
    values = []
    for loss in losses:
        values.append(factor.ramp * factor.value)
        factor.after_step(loss)
    return values


def test_the_weight_is_steered_by_the_ratio_of_periods():
    factor = AdaptiveFactor(0.1, hold=4, period=2)
    values = run(factor, [0.5, 0.5, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.601, 0.601, 0.3, 0.3, 0.3])
    assert values[:6] == pytest.approx([0.1] * 6), "constant for four steps, then the loss fell"
    assert values[6:8] == pytest.approx([0.1, 0.125]), "0.6 / 0.4 = 1.5: half way after a step"
    assert values[8:10] == pytest.approx([0.15, 0.15]), "the same loss changes nothing"
    grown = 0.15 * 1.025  # the ratio is 1.0017: the least growth
    assert values[10:12] == pytest.approx([0.15, (0.15 + grown) / 2])
    assert values[12] == pytest.approx(grown), "a loss that fell leaves the weight as it is"


def test_the_weight_has_a_largest_value_and_a_warm_up():
    factor = AdaptiveFactor(0.1, warmup=4, hold=0, period=1)
    values = run(factor, [2.0**step for step in range(10)])
    assert values[:2] == pytest.approx([0.025, 0.05]), "a quarter more each step"
    assert values[-1] == pytest.approx(0.4) and max(values) <= 0.4 + 1e-8
    assert run(AdaptiveFactor(0.0, hold=0, period=1), [1, 2, 3]) == [0, 0, 0]


def test_the_state_is_stored_and_goes_on():
    losses = [0.5, 0.4, 0.6, 0.7, 0.2, 0.9, 0.8, 0.95, 0.3, 0.99]
    whole, part = (AdaptiveFactor(0.1, warmup=3, hold=2, period=2) for _ in range(2))
    wanted = run(whole, losses)
    first = run(part, losses[:5])
    other = AdaptiveFactor(0.1, warmup=3, hold=2, period=2)
    other.load_state_dict(part.state_dict())
    assert first + run(other, losses[5:]) == wanted
    other.reset()
    assert run(other, losses) == wanted
    for _ in range(70_000):
        whole.after_step(0.5)
    assert whole.numbers.half().isfinite().all(), "checkpoints are stored in float16"
