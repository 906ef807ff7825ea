"""Top-k: it is the router of OLMoE, and its balancing loss that of transformers in one layer."""

from __future__ import annotations

import pytest
import torch
from transformers import OlmoeConfig
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter, load_balancing_loss_func

from sparsescope.models.structure.gates.base import active
from sparsescope.models.structure.gates.top_k import balancing_loss


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_it_is_the_router_of_olmoe(gate, states, k, renormalize):
    ours = gate("top_k", k=k, renormalize=renormalize)
    config = OlmoeConfig(hidden_size=12, num_experts=6, num_experts_per_tok=k, norm_topk_prob=renormalize)
    theirs = OlmoeTopKRouter(config)
    theirs.weight.data.copy_(ours.weight.data)
    with torch.no_grad():
        logits, weights, index = theirs(states)
        found = ours(states)
    assert torch.equal(found.scores, logits)
    assert torch.equal(found.weights, torch.zeros(64, 6).scatter(-1, index, weights))
    assert bool((active(found.weights) == k).all())


def test_the_balancing_loss_is_that_of_transformers(gate, states):
    made = gate("top_k", k=2, balance=0.5)
    gating = made(states)
    theirs = load_balancing_loss_func((gating.scores,), 6, 2)
    torch.testing.assert_close(gating.penalty, 0.5 * theirs)


def test_the_balancing_loss_by_hand():
    even = torch.full((6, 6), 1 / 6)
    chosen = torch.eye(6) + torch.eye(6).roll(1, 0)
    assert float(balancing_loss(even, chosen)) == pytest.approx(2), "k where the load is even"
    collapsed = torch.zeros(4, 6)
    collapsed[:, :2] = 0.5
    assert float(balancing_loss(collapsed, collapsed)) == pytest.approx(6), "E where k experts get everything"


def test_the_z_loss_is_the_squared_log_sum_exp(gate, states):
    plain, with_z = gate("top_k", balance=0.0), gate("top_k", balance=0.0, z_loss=2.0)
    assert float(plain(states).penalty.detach()) == 0
    gating = with_z(states)
    torch.testing.assert_close(gating.penalty, 2 * gating.scores.exp().sum(-1).log().square().mean())
