"""Sigmoid with a balancing bias: the bias chooses, the score weighs, and the load goes to even."""

from __future__ import annotations

import torch

from sparsescope.models.structure.gates.base import active


def test_the_bias_chooses_and_the_score_weighs(gate, states):
    made = gate("sigmoid_bias", k=2, renormalize=False)
    shares = (states @ made.weight.T).sigmoid()
    made.e_score_correction_bias.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0, 0.0, -5.0]))
    weights = made(states).weights
    torch.testing.assert_close(weights[:, 0], shares[:, 0], msg="chosen by all, with its own score")
    assert not weights[:, 5].any()
    second = shares[:, 1:5].max(-1).values
    torch.testing.assert_close(weights[:, 1:].sum(-1), second)
    normalized = gate("sigmoid_bias", k=2)
    normalized.e_score_correction_bias.copy_(made.e_score_correction_bias)
    torch.testing.assert_close(normalized(states).weights, weights / weights.sum(-1, keepdim=True))


def test_a_step_moves_the_bias_by_the_sign_of_the_load(gate, states):
    made = gate("sigmoid_bias", k=2, update=0.25).train()
    load = (made(states).weights != 0).sum(0)
    assert torch.equal(made.load, load.float())
    made.after_step(0.5)
    assert torch.equal(made.e_score_correction_bias, 0.25 * (64 * 2 / 6 - load).sign())
    assert not made.load.any()


def test_the_bias_brings_a_skewed_stream_to_an_even_load(gate):
    made = gate("sigmoid_bias", k=2, update=0.02, std=0.1).train()
    generator = torch.Generator().manual_seed(0)
    made.weight.data[0] += 1.0  # tokens with a mean of 1 all go to expert 0
    loads = []
    for step in range(200):
        weights = made(1 + torch.randn(256, 12, generator=generator)).weights
        loads.append((weights != 0).double().mean(0))
        made.after_step(step / 200)
    assert float(loads[0][0]) > 0.95, "nearly every token, where 1/3 would be even"
    late = torch.stack(loads[-50:]).mean(0)
    assert float((late - 1 / 3).abs().max()) < 0.05
    assert bool((active(weights) == 2).all())


def test_the_bias_stays_after_its_share_of_the_training(gate, states):
    made = gate("sigmoid_bias", update_until=0.5).train()
    made(states)
    made.after_step(0.6)
    assert not made.e_score_correction_bias.any() and not made.load.any()
