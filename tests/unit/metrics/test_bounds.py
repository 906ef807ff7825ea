"""Costs and savings against closed forms; identities that every bound must obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import bounds as b

D, F, VOCABULARY, ATTENDED = 64, 256, 1000, 128.0
SHARES = st.floats(0, 1)


def layer(gated=True, d_kv=D, **more):
    weights = b.attention_weights(D, D, d_kv)
    return b.LayerDimensions(0, D, F, gated, weights, D, d_kv, **more)


def model(*layers):
    return b.ModelDimensions(layers, D, VOCABULARY, True, 0, 4.0, D, True)


def assume(scheme="ideal predictor", **more):
    return b.Assumptions(scheme, ATTENDED, 4.0, **more)


@pytest.mark.parametrize(("gated", "matrices"), [(False, 2), (True, 3)])
def test_dense_cost_in_closed_form(gated, matrices):
    cost = b.dense_cost(model(layer(gated)), attended=ATTENDED)
    assert cost.flops["mlp"] == 2 * matrices * D * F
    assert cost.flops["attention projections"] == 8 * D * D  # no grouped queries
    assert cost.flops["attention scores"] == 4 * ATTENDED * D
    assert cost.flops["output head"] == 2 * D * VOCABULARY
    assert cost.weight_bytes["mlp"] == 4 * matrices * D * F
    assert cost.total_bytes == 4 * (matrices * D * F + 4 * D * D + D * VOCABULARY + D)
    assert cost.cache_bytes == 2 * ATTENDED * D * 4


def test_grouped_queries_shrink_two_of_four_matrices():
    few = b.dense_cost(model(layer(d_kv=D // 4)), attended=ATTENDED)
    assert few.flops["attention projections"] == 4 * D * D + 4 * D * (D // 4)
    assert few.flops["attention scores"] == 4 * ATTENDED * D
    assert few.cache_bytes == 2 * ATTENDED * (D // 4) * 4
    assert b.attention_weights(D, D, D) == 4 * D * D


@pytest.mark.parametrize(
    ("gated", "scheme", "share"),
    [
        (False, "down only", 1 / 2), (False, "first matrix computed", 1 / 2), (False, "ideal predictor", 1),
        (True, "down only", 1 / 3), (True, "first matrix computed", 2 / 3), (True, "ideal predictor", 1),
    ],
)  # fmt: skip
@given(density=SHARES)
def test_savings_are_a_fixed_share_of_what_is_inactive(gated, scheme, share, density):
    assert b.mlp_saving(gated, density, scheme) == pytest.approx(share * (1 - density), abs=1e-12)


@given(density=SHARES, inputs=SHARES)
def test_gated_combination_of_input_and_hidden_sparsity(density, inputs):
    dense, left = 6 * D * F, 4 * D * F * inputs + 2 * D * F * density
    found = b.mlp_saving(True, density, "down only", input_density=inputs)
    assert found == pytest.approx(1 - left / dense, abs=1e-12)


def test_a_predictor_costs_its_own_flops():
    free = b.mlp_saving(True, 0.2, "ideal predictor")
    paid = b.mlp_saving(True, 0.2, "ideal predictor", predictor_rank=8, d_model=D, d_mlp=F)
    assert free - paid == pytest.approx(2 * 8 * (D + F) / (6 * D * F))
    assert b.mlp_saving(True, 1.0, "ideal predictor", predictor_rank=8, d_model=D, d_mlp=F) < 0


@pytest.mark.parametrize("scheme", b.SCHEMES)
@pytest.mark.parametrize("gated", [True, False])
def test_a_dense_model_saves_nothing(gated, scheme):
    for bound in b.upper_bounds(model(layer(gated)), {0: 1.0}, assume(scheme)):
        assert bound.saved == pytest.approx(0, abs=1e-9) and bound.amdahl == pytest.approx(1)
    for bound in b.upper_bounds(model(layer(gated)), {}, assume(scheme)):
        assert bound.saved == 0


@given(density=SHARES, more=SHARES)
def test_bounds_add_up_and_fall_with_density(density, more):
    low, high = sorted((density, more))
    for sparse, dense in zip(
        b.upper_bounds(model(layer()), {0: low}, assume()),
        b.upper_bounds(model(layer()), {0: high}, assume()),
        strict=True,
    ):
        assert sparse.saved >= dense.saved - 1e-9
        assert sparse.saved_model == pytest.approx(sparse.mlp_share * sparse.saved_mlp)
        assert sparse.saved == pytest.approx(sparse.saved_model * sparse.dense)
        assert sparse.amdahl == pytest.approx(sparse.dense / (sparse.dense - sparse.saved))
        assert sparse.amdahl <= 1 / (1 - sparse.mlp_share) + 1e-9


def test_nothing_left_has_no_finite_bound():
    assert b.amdahl_bound(1.0, 1.0) == float("inf")
    assert b.amdahl_bound(0.5, 0.5) == pytest.approx(4 / 3)


def test_a_mixture_runs_its_routed_experts():
    mixture = layer(experts=8, routed=2, d_shared=32, router_weights=8 * D)
    cost = b.dense_cost(model(mixture), attended=0)
    assert cost.flops["mlp"] == 6 * D * (2 * F + 32) + 2 * 8 * D
    assert cost.weight_bytes["mlp"] == 4 * (3 * D * (2 * F + 32) + 8 * D)
    every = layer(experts=2, routed=2, router_weights=0)
    assert b.dense_cost(model(every), attended=0).flops["mlp"] == 6 * D * 2 * F


def test_experts_reached_by_several_tokens():
    mixture = model(layer(experts=4, routed=1))
    one = b.dense_cost(mixture, attended=0, together=1).weight_bytes["mlp"]
    two = b.dense_cost(mixture, attended=0, together=2).weight_bytes["mlp"]
    assert one == 4 * 3 * D * F
    assert two == pytest.approx(4 * 3 * D * F * 4 * (1 - (3 / 4) ** 2) / 2)


def test_reading_weights_for_several_tokens_uses_the_union():
    dimensions = model(layer())
    flops, weights = b.upper_bounds(dimensions, {0: 0.1}, assume(together=8), {0: 0.4})
    assert flops.saved_mlp == pytest.approx(0.9) and weights.saved_mlp == pytest.approx(0.6)
    assert weights.dense == pytest.approx(b.dense_cost(dimensions, attended=ATTENDED).total_bytes / 8)
    with pytest.raises(SpecError, match="union"):
        b.upper_bounds(dimensions, {0: 0.1}, assume(together=8))


def test_every_assumption_is_shown():
    a = assume("down only", predictor_rank=3, input_density=0.25, together=4)
    for part in ("second matrix", "128 attended", "4 bytes", "rank 3", "0.25", "4 tokens"):
        assert part in a.text
    row = b.as_row(b.upper_bounds(model(layer()), {0: 0.5}, assume())[0])
    assert row["scheme"] == "ideal predictor" and row["attended"] == ATTENDED and row["together"] == 1


@pytest.mark.parametrize(
    "wrong",
    [{"scheme": "magic"}, {"attended": -1}, {"bytes_per_weight": 0}, {"input_density": 1.1}, {"together": 0}],
)
def test_impossible_assumptions_are_refused(wrong):
    with pytest.raises(SpecError, match="out of range"):
        b.Assumptions(**({"scheme": "down only", "attended": 1.0, "bytes_per_weight": 2.0} | wrong))
    with pytest.raises(SpecError, match="density is out of range"):
        b.mlp_saving(True, 1.5, "down only")
    with pytest.raises(SpecError, match="layer is out of range"):
        b.upper_bounds(model(layer()), {7: 0.5}, assume())
