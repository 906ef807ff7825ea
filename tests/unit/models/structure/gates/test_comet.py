"""COMET: trees by hand, hard trees use at most k experts, permutations are searched, then fixed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sparsescope.models.structure.gates.base import active
from sparsescope.models.structure.gates.permutations import assignment, gumbel, permutation_entropy, sinkhorn


@pytest.mark.parametrize("experts", [1, 2, 3, 5, 6, 8, 13])
def test_leaves_of_a_tree_share_a_probability_of_1(gate, states, experts):
    made = gate("comet", experts=experts, k=min(2, experts))
    made.split.data *= 10
    reached, left = made.reached(states)
    assert reached.shape[-1] == experts and left.shape[-1] == experts - 1
    assert bool((reached >= 0).all())
    torch.testing.assert_close(reached.sum(-1), torch.ones_like(reached[..., 0]))


def test_a_tree_of_three_leaves_by_hand(gate, states):
    made = gate("comet", experts=3, k=1, search=0.0)
    made.split.data *= 10
    made.leaf_bias.data = torch.tensor([0.3, -0.2, 0.1])
    reached, left = made.reached(states)
    root, second = left[:, 0].unbind(-1)
    by_hand = torch.stack([1 - root, root * second, root * (1 - second)], -1)  # nodes 2, 3, 4
    torch.testing.assert_close(reached[:, 0], by_hand)
    scores = states @ made.leaf.T + made.leaf_bias + by_hand.log()
    torch.testing.assert_close(made(states).weights, scores.softmax(-1))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_hard_trees_use_at_most_k_experts(gate, states, k):
    made = gate("comet", experts=8, k=k)
    made.split.data *= 1e6
    weights = made(states).weights
    used = active(weights)
    assert int(used.max()) <= k and int(used.min()) >= 1 and (k == 1 or int(used.max()) > 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(64))
    numbers = made.inspect(states)
    assert numbers["hard_splits"] == numbers["hard_trees"] == numbers["hard_splits_depth_2"] == 1.0
    assert float(made(states).penalty.detach()) == pytest.approx(0.0, abs=1e-9)


def test_one_softmax_over_all_trees(gate, states):
    made = gate("comet", experts=8, k=2, search=0.0)
    made.split.data *= 1e6
    reached, _ = made.reached(states)
    said = (states @ made.leaf.T + made.leaf_bias).reshape(64, 2, 8)
    of_leaf = (said * reached).sum(-1).softmax(-1)  # the two leaves that a token reaches
    torch.testing.assert_close(made(states).weights, (of_leaf[..., None] * reached).sum(1))


def test_permutations_move_the_leaves_of_a_tree(gate, states):
    made = gate("comet", experts=8, k=1, search=0.0)
    plain = made(states).weights
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    made.permutation.copy_(torch.eye(8)[order][None])
    torch.testing.assert_close(made(states).weights[:, order], plain)


def test_the_search_ends_and_leaves_a_permutation(gate, states):
    made = gate("comet", search=0.5).train()
    soft = made.permutations()
    assert soft.requires_grad and not torch.equal(soft, made.permutations().round())
    made.order.data.copy_(torch.randn(made.order.shape, generator=torch.Generator().manual_seed(5)))
    made(states)
    made.after_step(0.5)
    wanted = assignment(sinkhorn(made.order, 1e-7, 150))
    assert bool((wanted.sum(-1) == 1).all() and (wanted.sum(-2) == 1).all())
    assert torch.equal(made.permutation, wanted) and torch.equal(made.permutations(), wanted)
    made.order.data.neg_()
    made(states)
    made.after_step(0.6)
    assert torch.equal(made.permutation, wanted), "after the search it stays"
    made.eval()
    assert torch.equal(made.permutations(), wanted)


def test_the_noise_of_a_step_is_the_same_again_and_another_later(gate):
    made = gate("comet", noise=1.0, search=0.9).train()
    first = made.permutations()
    assert torch.equal(first, made.permutations())
    made.after_step(1e-6)
    assert not torch.allclose(first, made.permutations(), atol=1e-3)
    quiet = gate("comet", noise=0.0).train()
    torch.testing.assert_close(quiet.permutations(), sinkhorn(quiet.order, 1e-3, 20))


def test_sinkhorn_is_doubly_stochastic_and_tends_to_the_assignment():
    weights = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1))
    soft = sinkhorn(weights, 1.0, 200)
    for axis in (-1, -2):
        torch.testing.assert_close(soft.sum(axis), torch.ones(2, 5), rtol=1e-5, atol=1e-5)
    best = assignment(weights)
    torch.testing.assert_close(sinkhorn(weights, 1e-2, 500), best, rtol=0, atol=1e-2)
    for matrix, found in zip(weights, best, strict=True):
        sums = (sum(matrix[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5)))
        assert float((matrix * found).sum()) == pytest.approx(float(max(sums)))


def test_entropy_of_permutations_and_gumbel_noise():
    assert float(permutation_entropy(torch.eye(4)[None])) == 0.0
    assert float(permutation_entropy(torch.full((2, 4, 4), 0.25))) == pytest.approx(math.log(4))
    drawn = gumbel(torch.Size([20000]), torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(drawn.var()) == pytest.approx(math.pi**2 / 6, rel=0.05)
