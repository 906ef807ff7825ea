"""Sparse transport: the projection by hand, marginals of the plan, and a rule by token in evaluation."""

from __future__ import annotations

import itertools

import pytest
import torch

from sparsescope.models.structure.gates.base import active
from sparsescope.models.structure.gates.sparse_transport import solve_potentials, token_rule


def projected(values, k):
    """The best of all simplex points with at most k nonzeros, support by support."""
    best, distance = None, float("inf")
    for size in range(1, k + 1):
        for support in itertools.combinations(range(len(values)), size):
            point = torch.zeros(len(values), dtype=torch.float64)
            chosen = list(support)
            point[chosen] = values[chosen] - (values[chosen].sum() - 1) / size
            if bool((point >= 0).all()) and float((point - values).square().sum()) < distance:
                best, distance = point, float((point - values).square().sum())
    return best


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_rule_is_the_projection_onto_the_sparse_simplex(k):
    generator = torch.Generator().manual_seed(k)
    scores = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    potentials = torch.randn(5, generator=generator, dtype=torch.float64)
    found = token_rule(scores, potentials, 0.7, k)
    for row, given in zip(found, (scores + potentials) / 0.7, strict=True):
        torch.testing.assert_close(row, projected(given, k))
    assert int(active(found).max()) <= k
    torch.testing.assert_close(found.sum(-1), torch.ones(40, dtype=torch.float64))


def test_the_rule_of_two_by_hand():
    scores = torch.tensor([[0.0, 0.4, -3.0], [0.0, 2.0, -3.0], [1.0, 1.0, 1.0]])
    found = token_rule(scores, torch.zeros(3), 1.0, 2)
    torch.testing.assert_close(found[:2], torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]))
    assert sorted(found[2].tolist()) == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(("k", "gamma"), [(1, 1.0), (2, 0.3), (2, 3.0), (4, 1.0)])
def test_marginals_of_the_plan_are_even(k, gamma):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3000, 6, generator=generator) + torch.tensor([2.0, 0.0, 0.0, 0.0, -1.0, 1.0])
    before = token_rule(scores, torch.zeros(6), gamma, k)
    potentials = solve_potentials(scores, torch.zeros(6), gamma, k, iterations=200)
    plan = token_rule(scores, potentials, gamma, k)
    assert int(active(plan).max()) <= k
    torch.testing.assert_close(plan.sum(-1), torch.ones(3000))
    assert float((before.sum(0) / 500 - 1).abs().max()) > 0.5
    assert float((plan.sum(0) / 500 - 1).abs().max()) < 0.02
    assert float(potentials.sum()) == pytest.approx(0.0, abs=1e-5)


def test_potentials_of_an_even_problem_are_zero():
    scores = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    circled = torch.cat([scores.roll(step, -1) for step in range(6)])  # symmetric under turns of the experts
    found = solve_potentials(circled, torch.linspace(-1, 1, 6), 1.0, 2)
    assert float(found.abs().max()) < 1e-3


def test_training_uses_the_plan_and_evaluation_the_averaged_potentials(gate, states):
    made = gate("sparse_transport", average=0.5, tolerance=1e-6).train()
    gating = made(states)
    plan = token_rule(gating.scores, made.solve(gating.scores), 1.0, 2)
    torch.testing.assert_close(gating.weights, plan)
    solved = made.solve(gating.scores)
    made.after_step(0.1)
    torch.testing.assert_close(made.potentials, 0.5 * solved)
    made.eval()
    found = made(states)
    assert torch.equal(found.weights, token_rule(found.scores, made.potentials, 1.0, 2))
    rule = made.by_token()
    for number in (0, 17, 63):
        assert torch.equal(rule(found.scores[number : number + 1])[0], found.weights[number])


def test_in_training_another_token_changes_the_plan(gate, states):
    made = gate("sparse_transport").train()
    changed = states.clone()
    changed[32:] *= -20
    assert not torch.equal(made(states).weights[:32], made(changed).weights[:32])


def test_the_rule_by_token_balances_a_stream(gate):
    made = gate("sparse_transport", std=0.3).train()
    made.weight.data[0] += 0.3
    generator = torch.Generator().manual_seed(3)
    for step in range(40):
        made(1 + torch.randn(256, 12, generator=generator))
        made.after_step(step / 40)
    made.eval()
    fresh = 1 + torch.randn(4000, 12, generator=generator)
    numbers = made.inspect(fresh)
    assert numbers["by_token_marginal_residual"] < 0.2
    made.potentials.zero_()
    assert made.inspect(fresh)["by_token_marginal_residual"] > 1.0


@pytest.mark.parametrize("gamma", [0.05, 0.5, 2.0, 20.0])
def test_gamma_moves_the_active_experts_up_to_k(gate, states, gamma):
    used = gate("sparse_transport", k=2, gamma=gamma).inspect(states)
    assert used["active_most"] <= 2 and used["simplex_residual"] < 1e-5
    if gamma == 0.05:
        assert used["active_mean"] < 1.2
    if gamma == 20.0:
        assert used["active_mean"] > 1.9
