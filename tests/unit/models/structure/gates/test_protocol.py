"""What all gates have in common: a table of weights, a penalty, state that only training changes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.models.structure.gates import GATES, gate_class, make_gate
from sparsescope.models.structure.gates.base import active, entropy, importance_loss, slots_of, smooth_step

LEARNED = tuple(name for name in GATES if name != "hash")


def state_of(gate):
    return {name: tensor.clone() for name, tensor in gate.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", GATES)
def test_every_gate_gives_a_table_of_weights_and_a_penalty(gate, states, token_ids, name, training):
    made = gate(name).train(training)
    scores, weights, penalty = made(states, token_ids)
    assert scores.shape == weights.shape == (64, 6) and penalty.shape == ()
    assert weights.dtype == torch.float32 and float(penalty.detach()) >= 0
    assert int(active(weights).max()) <= made.slots
    index, chosen = slots_of(weights, made.slots)
    assert torch.equal(torch.zeros_like(weights).scatter(-1, index, chosen), weights)
    assert all(len(set(row)) == made.slots for row in index.tolist())


@pytest.mark.parametrize("name", GATES)
def test_in_evaluation_no_token_changes_the_weights_of_another(gate, states, token_ids, name):
    made = gate(name).train()
    made(states, token_ids)
    made.after_step(0.1)
    made.eval()
    changed, ids = states.clone(), token_ids.clone()
    changed[-1], ids[-1] = 50 * states[-1].flip(0), (token_ids[-1] + 1) % 40
    before, after = made(states, token_ids).weights, made(changed, ids).weights
    assert torch.equal(before[:-1], after[:-1])
    assert not torch.equal(before[-1], after[-1])
    assert torch.equal(made(states[:7], token_ids[:7]).weights, before[:7])


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_reach_every_parameter(gate, states, token_ids, name):
    made = gate(name).train()
    if name == "comet":
        made.order.data *= 0.01  # near each other, so that the permutation is not settled at once
    wanted = torch.randn(64, 6, generator=torch.Generator().manual_seed(2))
    gating = made(states, token_ids)
    ((gating.weights * wanted).sum() + gating.penalty).backward()
    for parameter_name, parameter in made.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), parameter_name
        assert bool(parameter.grad.abs().sum() > 0), parameter_name


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e12, 1e30, 3e38])
@pytest.mark.parametrize("name", GATES)
def test_weights_are_finite_for_extreme_inputs(gate, states, token_ids, name, scale):
    for training in (True, False):
        made = gate(name).train(training)
        scores, weights, penalty = made((states * scale).clamp(-3e38, 3e38), token_ids)
        for found in (scores, weights, penalty):
            assert bool(found.isfinite().all())
        if training and scale <= 1e4 and name in LEARNED:
            (weights.square().sum() + penalty + 0 * sum(p.sum() for p in made.parameters())).backward()
            assert all(bool(p.grad.isfinite().all()) for p in made.parameters())


@pytest.mark.parametrize("name", GATES)
def test_only_training_changes_a_gate(gate, states, token_ids, name):
    made = gate(name).train()
    before = state_of(made)
    made.eval()(states, token_ids)
    with torch.no_grad():
        made.train()(states, token_ids)
    made.inspect(states, token_ids)
    assert same(state_of(made), before)
    random = torch.get_rng_state()
    made(states, token_ids)
    made.after_step(0.5)
    assert torch.equal(torch.get_rng_state(), random), "the random numbers of the process are used up"


@pytest.mark.parametrize("name", GATES)
def test_a_gate_goes_on_exactly_from_what_it_stores(gate, states, token_ids, name):
    whole = gate(name).train()
    whole(states, token_ids)
    whole.after_step(0.1)
    again = gate(name, seed=8).train()
    again.load_state_dict(whole.state_dict())
    for progress in (0.2, 0.3):
        found = [made(states, token_ids).weights for made in (whole, again)]
        assert torch.equal(*found)
        for made in (whole, again):
            made.after_step(progress)
        assert same(state_of(whole), state_of(again))


@pytest.mark.parametrize("name", GATES)
def test_the_seed_alone_decides_the_initialization(gate, name):
    assert same(state_of(gate(name)), state_of(gate(name)))
    assert not same(state_of(gate(name)), state_of(gate(name, seed=4)))


@pytest.mark.parametrize("name", GATES)
def test_half_precision_computes_scores_and_float32_weights(gate, states, token_ids, name):
    made = gate(name).bfloat16()
    weights = made(states.bfloat16(), token_ids).weights
    assert weights.dtype == torch.float32 and bool(weights.isfinite().all())


@pytest.mark.parametrize("name", GATES)
def test_inspection_gives_plain_numbers(gate, states, token_ids, name):
    made = gate(name)
    numbers = made.inspect(states, token_ids)
    assert json.loads(json.dumps(numbers)) == numbers
    assert all(isinstance(value, float) and math.isfinite(value) for value in numbers.values())
    weights = made(states, token_ids).weights.detach()
    assert numbers["active_mean"] == pytest.approx(float(active(weights).double().mean()))
    assert numbers["simplex_residual"] == pytest.approx(float((weights.double().sum(-1) - 1).abs().max()))
    assert made.inspect().items() <= numbers.items()


@pytest.mark.parametrize("name", GATES)
def test_one_expert_and_two_are_enough(states, token_ids, name):
    for experts in (1, 2):
        options = {} if name == "relu" else {"k": 1}
        made = make_gate(name, 12, experts, options, vocabulary=40, std=0.5).train()
        assert made(states, token_ids).weights.shape == (64, experts)
        made.after_step(0.5)
        assert all(math.isfinite(value) for value in made.inspect(states, token_ids).values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("topk", {}, "unknown gate 'topk'"),
        ("top_k", {"K": 2}, "unknown parameter 'K'"),
        ("top_k", {"renormalise": True}, "did you mean 'renormalize'"),
        ("top_k", {"k": 0}, "'k' is not valid"),
        ("top_k", {"k": 7}, "more experts than there are"),
        ("top_k", {"k": 2.0}, "'k' is not valid"),
        ("top_k", {"balance": math.nan}, "'balance' is not valid"),
        ("sigmoid_bias", {"update": -1.0}, "'update' is not valid"),
        ("relu", {"target": 0.0}, "'target' is not valid"),
        ("relu", {"rate": 1.0}, "'rate' is not valid"),
        ("dselect_k", {"gamma": 0.0}, "'gamma' is not valid"),
        ("comet", {"search": 1.5}, "'search' is not valid"),
        ("comet", {"k": 7}, "more experts than there are"),
        ("sparse_transport", {"gamma": -1.0}, "'gamma' is not valid"),
        ("hash", {"k": 7}, "more experts than there are"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(SpecError, match=message):
        make_gate(name, 12, 6, options, vocabulary=40)


def test_gates_are_named_by_their_file():
    for name in GATES:
        assert gate_class(name).__module__.rpartition(".")[2] == GATES[name][0]
        assert gate_class(name).options_model.__doc__ == f"Options of ``{name}``."


def test_the_smooth_step_by_hand():
    for gamma in (1.0, 10.0):
        given = torch.tensor([-9.0, -0.5, -0.25, 0.0, 0.25, 0.5, 9.0]) * gamma
        # at a quarter of the width: -2/64 + 3/8 + 1/2 = 27/32
        wanted = torch.tensor([0.0, 0.0, 5 / 32, 0.5, 27 / 32, 1.0, 1.0])
        torch.testing.assert_close(smooth_step(given, gamma), wanted, rtol=1e-6, atol=1e-6)
    edge = torch.tensor([-0.5, 0.5, 3.0], requires_grad=True)
    smooth_step(edge, 1.0).sum().backward()
    assert not edge.grad.any(), "it is flat at its ends"


def test_the_importance_loss_by_hand(gate, states):
    assert float(importance_loss(torch.full((5, 6), 0.3))) == pytest.approx(0.0, abs=1e-9)
    collapsed = torch.zeros(5, 6)
    collapsed[:, 2:4] = torch.tensor([0.5, -0.5])
    assert float(importance_loss(collapsed)) == pytest.approx(6 / 2 - 1)
    assert float(importance_loss(torch.zeros(5, 6))) == 0.0
    for name in ("relu", "dselect_k", "comet"):
        plain, balanced = gate(name)(states), gate(name, balance=0.5)(states)
        added = float((balanced.penalty - plain.penalty).detach())
        assert added == pytest.approx(
            0.5 * float(importance_loss(plain.weights.detach())), rel=1e-3, abs=1e-6
        )


def test_entropy_by_hand():
    shares = torch.tensor([[0.5, 0.5], [1.0, 0.0]], requires_grad=True)
    found = entropy(shares)
    torch.testing.assert_close(found, torch.tensor([math.log(2), 0.0]))
    found.sum().backward()
    assert bool(shares.grad.isfinite().all())
