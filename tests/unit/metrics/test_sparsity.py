"""Sparsity measures against closed forms and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsescope.errors import SpecError
from sparsescope.metrics import sparsity as m

MEASURES = {
    "hoyer": m.hoyer,
    "gini": m.gini,
    "pr2": m.participation_ratio,
    "pr4": lambda v: m.participation_ratio(v, 4),
    "entropy_number": m.entropy_number,
    "kurtosis": m.kurtosis,
    "treves_rolls": m.treves_rolls,
    "l1_90": lambda v: m.top_p_density(v, 0.9),
    "energy_90": lambda v: m.top_p_density(v, 0.9, 2),
}
VECTORS = hnp.arrays(
    np.float32, st.integers(2, 40), elements=st.floats(-100, 100, width=32).map(lambda x: round(x, 3))
)


@pytest.mark.parametrize("n", [2, 7, 1536])
def test_one_hot_and_flat_vectors(n):
    one_hot, flat = np.eye(n)[n // 2] * -3.0, np.full(n, 0.5)
    assert m.density(one_hot) == 1 / n and m.density(flat) == 1
    assert m.hoyer(one_hot) == pytest.approx(1) and m.hoyer(flat) == pytest.approx(0, abs=1e-9)
    assert m.gini(one_hot) == pytest.approx(1 - 1 / n) and m.gini(flat) == pytest.approx(0, abs=1e-9)
    for order in (2, 4):
        assert m.participation_ratio(one_hot, order) == pytest.approx(1 / n)
        assert m.participation_ratio(flat, order) == pytest.approx(1)
    assert m.entropy_number(one_hot) == pytest.approx(1 / n) and m.entropy_number(flat) == pytest.approx(1)
    assert m.kurtosis(one_hot) == pytest.approx(n) and m.kurtosis(flat) == pytest.approx(1)
    assert m.treves_rolls(one_hot) == pytest.approx(1) and m.treves_rolls(flat) == pytest.approx(0, abs=1e-12)
    assert m.top_p_count(one_hot, 0.99) == 1
    assert m.top_p_count(flat, 0.5) == -(-n // 2)


def test_zero_vectors_have_density_zero_and_no_shape():
    zero = np.zeros(5)
    assert m.density(zero) == 0 and m.top_p_count(zero, 0.9) == 0
    assert all(np.isnan(MEASURES[name](zero)) for name in MEASURES if "_90" not in name)


def test_half_normal_references_hold_on_a_large_sample():
    sample = np.random.default_rng(0).standard_normal(2_000_000)
    for name in MEASURES:
        if "_90" not in name:
            tolerance = 0.02 if name == "kurtosis" else 1e-3  # its standard error is sqrt(24 / n) and more
            assert MEASURES[name](sample) == pytest.approx(m.half_normal_reference(name), abs=tolerance)
    for power, norm in ((1, "l1"), (2, "energy")):
        for share in (0.5, 0.9, 0.95, 0.99):
            reference = m.half_normal_reference(f"density_{norm}_{100 * share:g}")
            assert m.top_p_density(sample, share, power) == pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("gini", 0.414214),
        ("pr2", 0.636620),
        ("pr4", 0.333333),
        ("hoyer", 0.202115),
        ("density_l1_90", 0.6462),
        ("density_l1_95", 0.7487),
        ("density_l1_99", 0.8873),
        ("density_energy_90", 0.4445),
        ("density_energy_95", 0.5529),
        ("density_energy_99", 0.7346),
        ("entropy_number", 0.7529),
        ("kurtosis", 3.0),
        ("treves_rolls", 0.363380),
    ],
)
def test_reference_values(metric, value):
    assert m.half_normal_reference(metric) == pytest.approx(value, abs=2e-4)


def test_relu_of_a_normal_vector():
    sample = np.maximum(np.random.default_rng(1).standard_normal(2_000_000), 0)
    assert m.density(sample) == pytest.approx(0.5, abs=2e-3)
    assert m.gini(sample) == pytest.approx(0.7071, abs=2e-3)
    assert m.participation_ratio(sample) == pytest.approx(0.3183, abs=2e-3)
    assert m.hoyer(sample) == pytest.approx(0.4358, abs=2e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_zero_inflated_vectors(share):
    """With a share d of entries left, Gini is 1 - d (1 - G); the effective shares are multiplied by d,
    Hoyer follows PR2.
    """
    generator = np.random.default_rng(3)
    sample = generator.standard_normal(2_000_000)
    sample[generator.permutation(len(sample))[round(share * len(sample)) :]] = 0.0
    half = m.half_normal_reference
    assert m.gini(sample) == pytest.approx(1 - share * (1 - half("gini")), abs=1e-3)
    for name in ("pr2", "pr4", "entropy_number"):
        assert MEASURES[name](sample) == pytest.approx(share * half(name), abs=1e-3)
    assert m.hoyer(sample) == pytest.approx(1 - np.sqrt(share * half("pr2")), abs=1e-3)
    assert m.kurtosis(sample) == pytest.approx(3 / share, rel=0.02)
    assert m.treves_rolls(sample) == pytest.approx(1 - share * half("pr2"), abs=1e-3)
    for power, norm in ((1, "l1"), (2, "energy")):
        assert m.top_p_density(sample, 0.9, power) == pytest.approx(
            share * half(f"density_{norm}_90"), abs=1e-3
        )


def test_lifetime_sparseness_from_sums_is_the_measure():
    units = np.abs(np.random.default_rng(4).standard_normal((7, 50)))
    units[3] = 0.0
    found = m.treves_rolls_from_sums(units.sum(1), (units**2).sum(1), 50)
    np.testing.assert_allclose(found, m.treves_rolls(units), rtol=1e-12)
    assert np.isnan(found[3]) and np.isnan(m.treves_rolls_from_sums(np.ones(2), np.ones(2), 1)).all()


def test_brute_force_definitions():
    generator = np.random.default_rng(2)
    for _ in range(50):
        x = np.abs(generator.standard_normal(generator.integers(2, 30)))
        n = len(x)
        pairs = np.abs(x[:, None] - x[None, :]).sum()
        assert m.gini(x) == pytest.approx(pairs / (2 * n * x.sum()), rel=1e-12)
        for power in (1, 2):
            mass = np.sort(x**power)[::-1]
            smallest = next(k for k in range(1, n + 1) if mass[:k].sum() >= 0.9 * mass.sum())
            assert m.top_p_count(x, 0.9, power) == smallest


@pytest.mark.parametrize("name", MEASURES)
@given(vector=VECTORS, seed=st.integers(0, 99), exponent=st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_permutation_sign_and_scale_do_not_matter(name, vector, seed, exponent):
    generator = np.random.default_rng(seed)
    turned = generator.permutation(vector) * generator.choice([-1.0, 1.0], len(vector))
    np.testing.assert_allclose(
        MEASURES[name](turned * 2.0**exponent), MEASURES[name](vector), rtol=1e-9, atol=1e-12
    )


@given(vector=VECTORS)
@settings(max_examples=100, deadline=None)
def test_measures_stay_in_range_and_sets_grow_with_their_share(vector):
    sizes = [m.top_p_count(vector, share) for share in (0.3, 0.6, 0.9, 0.99)]
    assert sizes == sorted(sizes) and sizes[-1] <= np.count_nonzero(vector)
    if np.any(vector):
        assert -1e-9 <= m.hoyer(vector) <= 1 + 1e-9
        assert -1e-9 <= m.gini(vector) <= 1 - 1 / len(vector) + 1e-9
        assert 1 / len(vector) - 1e-9 <= m.entropy_number(vector) <= 1 + 1e-9
        assert 1 - 1e-9 <= m.kurtosis(vector) <= len(vector) * (1 + 1e-9)
        assert -1e-9 <= m.treves_rolls(vector) <= 1 + 1e-9
        # The entropy number lies between the effective share of second order and the share that is not zero.
        assert m.participation_ratio(vector) - 1e-9 <= m.entropy_number(vector) <= m.density(vector) + 1e-9
        for order in (2, 4):
            assert 1 / len(vector) - 1e-9 <= m.participation_ratio(vector, order) <= 1 + 1e-9


def test_cloning_leaves_gini_and_changes_hoyer():
    vector = np.array([1.0, 2.0, 7.0])
    assert m.gini(np.tile(vector, 5)) == pytest.approx(m.gini(vector))
    assert m.hoyer(np.tile(vector, 5)) != pytest.approx(m.hoyer(vector), abs=0.01)


@pytest.mark.parametrize(("share", "power"), [(0, 1), (1, 1), (0.5, 3)])
def test_undefined_sets_are_refused(share, power):
    with pytest.raises(SpecError, match="top-p"):
        m.top_p_count(np.ones(3), share, power)
