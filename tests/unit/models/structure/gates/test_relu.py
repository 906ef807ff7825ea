"""The ReLU router: zero scores use no expert, RMSNorm by hand, and a strength that is steered to a target."""

from __future__ import annotations

import pytest
import torch

from sparsescope.models.structure.gates.base import active


def test_scores_of_zero_use_no_expert(gate, states):
    made = gate("relu")
    found = made(states)
    assert torch.equal(found.weights != 0, found.scores > 0)
    negative = gate("relu")
    negative.weight.data = -torch.ones_like(negative.weight)
    assert not negative(states.abs()).weights.any(), "a token may use no expert at all"
    assert not made(torch.zeros_like(states)).weights.any()


def test_the_norm_by_hand(gate, states):
    made = gate("relu")
    made.norm.data = torch.arange(1.0, 7.0)
    scores = (states @ made.weight.T).relu()
    by_hand = scores / (scores.square().mean(-1, keepdim=True) + 1e-6).sqrt() * torch.arange(1.0, 7.0)
    torch.testing.assert_close(made(states).weights, by_hand)


def test_the_penalty_does_not_shrink_with_the_scores(gate, states):
    made = gate("relu", strength=0.1)
    first = float(made(states).penalty.detach())
    assert first == pytest.approx(float(made(100 * states).penalty.detach()), rel=1e-3)
    one = torch.zeros(6, 12)
    one[0] = 1.0
    made.weight.data = one
    # one of six experts: RMS is a / sqrt(6), hence sqrt(6) / 6 in the mean
    assert float(made(states.abs()).penalty.detach()) == pytest.approx(0.1 / 6**0.5, rel=1e-4)


def test_the_strength_grows_above_the_target_and_falls_below(gate, states):
    for target, factor in ((1.0, 2.0), (6.0, 0.5)):
        made = gate("relu", strength=0.1, target=target, rate=2.0).train()
        made(states)
        made.after_step(0.1)
        assert float(made.strength) == pytest.approx(0.1 * factor)
        made.after_step(0.2)
        assert float(made.strength) == pytest.approx(0.1 * factor), "no tokens, no change"
    fixed = gate("relu", strength=0.1, target=None).train()
    fixed(states)
    fixed.after_step(0.1)
    assert float(fixed.strength) == pytest.approx(0.1)


def test_the_target_is_reached(gate):
    made = gate("relu", target=2.0, rate=1.1, std=0.3).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(12, 6, generator=generator)
    used = []
    for step in range(300):
        states = 1 + torch.randn(128, 12, generator=generator)  # about 0, half of all scores are positive
        gating = made(states)
        loss = (gating.weights - (states @ wanted).softmax(-1)).square().mean() + gating.penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.after_step((step + 1) / 300)
        used.append(float(active(gating.weights).double().mean()))
    assert used[0] > 2.5
    assert sum(used[-100:]) / 100 == pytest.approx(2.0, rel=0.1)
