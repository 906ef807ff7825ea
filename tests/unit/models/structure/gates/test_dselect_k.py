"""DSelect-k: codes by hand, one-hot selectors where all bits are saturated, codes of no expert penalized."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sparsescope.models.structure.gates.base import active


def test_selectors_spell_numbers_of_experts_by_hand(gate, states):
    made = gate("dselect_k", experts=8, k=2, gamma=40.0)
    selected, shares, steps = made.selectors(states)
    assert selected.shape == (64, 2, 8) and steps.shape == (64, 2, 3)
    inside = states @ made.code_weight.T + made.code_bias
    by_hand = (-2 * inside**3 / 40**3 + 3 * inside / 80 + 0.5).reshape(64, 2, 3)
    torch.testing.assert_close(steps, by_hand, rtol=1e-4, atol=1e-5)
    for expert, code in enumerate(itertools.product((0, 1), repeat=3)):
        part = math.prod(by_hand[..., b] if bit else 1 - by_hand[..., b] for b, bit in enumerate(code))
        torch.testing.assert_close(selected[..., expert], part, rtol=1e-4, atol=1e-5)
    weights = made(states).weights
    torch.testing.assert_close(weights, (shares[..., None] * selected).sum(1))
    torch.testing.assert_close(weights.sum(-1), torch.ones(64))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_saturated_codes_are_one_hot_with_at_most_k_experts(gate, states, k):
    made = gate("dselect_k", experts=8, k=k, gamma=1.0)
    made.code_weight.data *= 1e6
    selected, _, _ = made.selectors(states)
    assert bool(((selected == 0) | (selected == 1)).all()) and torch.equal(
        selected.sum(-1), torch.ones(64, k)
    )
    used = active(made(states).weights)
    assert int(used.max()) <= k and int(used.min()) >= 1
    assert k == 1 or int(used.max()) > 1
    numbers = made.inspect(states)
    assert numbers["hard_bits"] == numbers["hard_selectors"] == 1.0
    assert float(made.train()(states).penalty.detach()) == pytest.approx(0.0, abs=1e-9), "no entropy"


def test_the_entropy_is_largest_where_nothing_is_chosen(gate, states):
    made = gate("dselect_k", experts=8, k=2, strength=0.5)
    made.code_weight.data *= 0
    made.code_bias.data *= 0
    assert float(made(states).penalty.detach()) == pytest.approx(0.5 * 2 * math.log(8), rel=1e-5)


def test_codes_of_no_expert_are_penalized(gate, states):
    made = gate("dselect_k", experts=6, k=1, strength=1e-8, reach=0.5)
    made.code_weight.data *= 0
    made.code_bias.data = torch.zeros(3)  # each of 8 codes has 1/8, six of them are experts
    assert float(made(states).penalty.detach()) == pytest.approx(0.5 * 8 / 6, rel=1e-5)
    assert float(made(states).weights.detach().sum(-1).mean()) == pytest.approx(6 / 8)
    assert made.inspect(states)["unreached_mass"] == pytest.approx(2 / 8)
    made.code_bias.data = torch.tensor([0.3, 0.3, 0.0], requires_grad=False)
    gating = made.train()(states)
    gating.penalty.backward()
    assert bool((made.code_bias.grad[:2] > 0).all()), "descent leads away from codes 6 and 7"
    made.code_bias.data = torch.tensor([9.0, 9.0, 0.0])  # nowhere but there
    assert float(made(states).penalty.detach()) == pytest.approx(0.5 / 1e-6, rel=1e-3)
    assert not made(states).weights.any()


def test_the_gate_of_a_task_is_the_same_for_all_tokens(gate, states):
    made = gate("dselect_k", conditioned=False)
    assert set(dict(made.named_parameters())) == {"code_bias", "share_bias"}
    weights = made(states).weights
    assert torch.equal(weights, weights[:1].expand(64, -1)) and torch.equal(made(9 * states).weights, weights)


def test_equal_selectors_overlap(gate, states):
    made = gate("dselect_k", experts=8, k=2)
    made.code_weight.data[3:] = made.code_weight.data[:3]
    made.code_bias.data[3:] = made.code_bias.data[:3]
    assert made.inspect(states)["selector_overlap"] == 1.0
