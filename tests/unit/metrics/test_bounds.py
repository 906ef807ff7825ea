"""Costs and savings against closed forms; identities that every bound must obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import bounds as b
from sparsescope.metrics import matrix_costs as c

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


def gated_mlp(expert=None, read=1.0):
    head = "mlp" if expert is None else "mlp.experts"
    home = head if expert is None else f"{head}.{expert}"
    shapes = {"gate": (F, D), "in": (F, D), "out": (D, F)}
    return [
        c.MatrixShape(
            f"weight:blocks.0.{home}.{key}.weight", f"{head}.{key}.weight", 0, shape, 4.0, expert, read
        )
        for key, shape in shapes.items()
    ]


def square_attention():
    return [
        c.MatrixShape(f"weight:blocks.0.attn.{k}.weight", f"attn.{k}.weight", 0, (D, D), 4.0) for k in "qkvo"
    ]


@given(density=SHARES, rows=SHARES, attended=st.floats(0, 1e4))
def test_columns_and_rows_that_are_read(density, rows, attended):
    matrices = [*square_attention(), *gated_mlp()]
    down, up = matrices[-1].name, matrices[-2].name
    found = c.account_token(
        model(layer()), matrices, {down: density, up: density}, row_density={up: rows}, attended=attended
    )
    block, head = 4 * D * D + 3 * D * F, D * VOCABULARY
    saved = D * F * (1 - density) + D * F * (1 - density * rows)
    norms = D
    assert found.bytes.block == pytest.approx(saved / block, abs=1e-12)
    assert found.bytes.mlp == pytest.approx(saved / (3 * D * F), abs=1e-12)
    assert found.bytes.model == pytest.approx(saved / (block + head + norms), abs=1e-12)
    assert found.flops.block == pytest.approx(saved / block, abs=1e-12)
    every = 2 * (block + head) + b.NORM_FLOPS * norms + 4 * attended * D
    assert found.flops.model == pytest.approx(2 * saved / every, abs=1e-12)
    assert found.published_cut() == pytest.approx(saved / (block + head), abs=1e-12)
    assert found.dense.total_flops == pytest.approx(
        b.dense_cost(model(layer()), attended=attended).total_flops
    )


def test_matrices_without_a_role_stay_dense_and_belong_to_the_block():
    found = c.account_token(model(layer(other_weights=100)), [*square_attention()[:3], *gated_mlp()], 0.0)
    assert found.dense.weight_bytes["other matrices"] == 4 * (D * D + 100)  # o is not in the list
    assert found.bytes.block == pytest.approx(1 - (D * D + 100) / (4 * D * D + 3 * D * F + 100))


@pytest.mark.parametrize(
    ("scheme", "share"), [("down only", 1), ("first matrix computed", 2), ("ideal predictor", 3)]
)
def test_what_may_be_skipped_as_a_whole(scheme, share):
    matrices = [*square_attention(), *gated_mlp()]
    most = c.ceiling(model(layer()), matrices, c.skippable(matrices, scheme))
    assert most.mlp == pytest.approx(share / 3) == pytest.approx(b.mlp_saving(True, 0.0, scheme))
    assert most.block == pytest.approx(share * D * F / (4 * D * D + 3 * D * F))
    with pytest.raises(SpecError, match="scheme is out of range"):
        c.skippable(matrices, "magic")


def test_experts_by_number_and_together():
    mixture = model(layer(experts=4, routed=1, router_weights=4 * D))
    matrices = [m for e in range(4) for m in gated_mlp(e, read=1 / 4)]
    every, one = "weight:blocks.0.mlp.experts.out.weight", "weight:blocks.0.mlp.experts.2.out.weight"
    assert c.account_token(mixture, matrices).dense.weight_bytes["mlp matrices"] == 4 * 3 * D * F
    assert c.account_token(mixture, matrices, {every: 0.0}).bytes.mlp == pytest.approx(1 / 3)
    assert c.account_token(mixture, matrices, {every: 0.0, one: 1.0}).bytes.mlp == pytest.approx(3 / 4 / 3)
    assert c.account_token(mixture, matrices).dense.weight_bytes["router"] == 4 * 4 * D


def test_adapters_count_against_their_part():
    matrices = gated_mlp()
    factors = c.Adapter("UV", "mlp", matrices=((D, 2), (2, F)), vectors=(F,), bytes_per_weight=2.0)
    assert factors.bytes == 2 * (2 * D + 2 * F + F) and factors.flops == 2 * (2 * D + 2 * F) + F
    turned = c.Adapter("Q", "residual", matrices=((D, D),), bytes_per_weight=4.0)
    found = c.account_token(model(layer()), matrices, 0.5, adapters=[factors, turned])
    whole = 4 * 3 * D * F
    assert found.bytes.mlp == pytest.approx(0.5 - factors.bytes / whole)
    assert found.shares("bytes", net=False).mlp == 0.5
    assert found.total_bytes == found.read.total_bytes + factors.bytes + 4 * D * D
    useless = c.Adapter("Q", "mlp", matrices=((F, F),), bytes_per_weight=4.0)
    assert c.account_token(model(layer()), matrices, adapters=[useless]).bytes.mlp < 0  # more than is saved


@pytest.mark.parametrize(
    "wrong",
    [{"part": "head"}, {"matrices": ((0, 4),)}, {"vectors": (-1,)}, {"bytes_per_weight": 0}, {"read": 2}],
)
def test_impossible_adapters_are_refused(wrong):
    with pytest.raises(SpecError, match="out of range"):
        c.Adapter(**({"name": "Q", "part": "mlp"} | wrong))


def test_densities_name_what_is_wrong():
    for wrong, at in (({"weight:blocks.0.mlp.in.weight": 2.0}, "mlp.in"), (-1, "mlp.gate")):
        with pytest.raises(SpecError, match="density is out of range") as caught:
            c.account_token(model(layer()), gated_mlp(), wrong)
        assert at in caught.value.where and caught.value.allowed == "0 to 1" and caught.value.next_step
    with pytest.raises(SpecError, match="unknown matrix in row_density") as caught:
        c.account_token(model(layer()), gated_mlp(), row_density={"weight:blocks.0.mlp.inn.weight": 0.5})
    assert "did you mean 'weight:blocks.0.mlp.in.weight'" in caught.value.next_step
    with pytest.raises(SpecError, match="attended"):
        c.account_token(model(layer()), gated_mlp(), attended=-1)


def test_roofline_in_closed_form():
    bound = b.roofline(3e9, 6e9, b.Bandwidth("this machine, measured", 2e10))
    assert (bound.milliseconds, bound.dense_milliseconds, bound.ratio) == (150.0, 300.0, 2.0)
    assert b.roofline(0, 1, "H100").ratio == float("inf")
    assert b.roofline(3.35e9, 3.35e9, "H100").milliseconds == pytest.approx(1)
    with pytest.raises(SpecError, match="unknown bandwidth"):
        b.roofline(1, 1, "H101")
    with pytest.raises(SpecError, match="out of range"):
        b.Bandwidth("nothing", 0)
    found = c.account_token(model(layer()), gated_mlp(), 0.5, attended=10)
    read = found.total_bytes + 2 * 10 * D * 4
    assert found.roofline("L4").milliseconds == pytest.approx(read / 0.3e9)
    assert "10 attended" in c.as_row(found)["assumptions"]
