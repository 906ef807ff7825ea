"""What is done with a factorization: levels, shared neurons, seeds, vocabulary, use as a dictionary."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import binom, hypergeom

from sparsescope.dictionaries.snmf import (
    SNMF,
    SNMFDictionary,
    fit_hierarchy,
    neuron_sharing,
    project_vocab,
    seed_stability,
)
from sparsescope.dictionaries.snmf.sharing import core_neurons, exclusive_neurons
from sparsescope.dictionaries.snmf.stability import match
from sparsescope.errors import SpecError

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _supports(k, d, s, seed=0, values=True):
    random = np.random.default_rng(seed)
    out = np.zeros((k, d))
    for row in out:
        row[random.choice(d, s, replace=False)] = random.normal(size=s) if values else 1
    return out


def _x(n=200, d=40, dtype=np.float64):
    random = np.random.default_rng(0)
    x = random.exponential(size=(n, 8)) @ _supports(8, d, 6)
    return (x + 0.1 * random.normal(size=x.shape)).astype(dtype)


def test_levels_keep_both_constraints_and_explain_the_activations_themselves():
    x, weights = _x(), np.random.default_rng(1).random(200)
    found = fit_hierarchy(x, [8, 4, 2], SNMF(sparsity=0.2, max_iter=30), sample_weight=weights)
    variance = weights @ ((x - weights @ x / weights.sum()) ** 2).sum(1)
    product = found.levels[0].codes
    for number, level in enumerate(found.levels):
        components = level.snmf.components_
        assert components.shape == ([8, 4, 2][number], 40)
        assert (np.count_nonzero(components, axis=1) <= 8).all()
        assert level.codes.min() >= 0
        if number:
            assert level.weights.min() >= 0
            assert level.weights.shape == ([8, 4][number - 1], [4, 2][number - 1])
            product = product @ level.weights
        np.testing.assert_allclose(level.codes, product, rtol=1e-10)
        squared = weights @ ((x - product @ components) ** 2).sum(1)
        assert level.explained == pytest.approx(1 - squared / variance, rel=1e-8)
        exact = level.snmf if not number else SNMF(len(components)).adopt(components, x)
        assert level.explained_exact == pytest.approx(exact.score(x, sample_weight=weights), rel=1e-8)
        assert level.explained_exact >= level.explained - 1e-9
    assert found.levels[0].explained > found.levels[1].explained_exact > found.levels[2].explained_exact


def test_components_weigh_as_much_as_they_are_used():
    x = _x()
    found = fit_hierarchy(x, [6, 2], SNMF(sparsity=0.2, max_iter=10))
    below = found.levels[0]
    expected = SNMF(2, sparsity=0.2, max_iter=10).fit_transform(
        below.snmf.components_, sample_weight=(below.codes**2).sum(0)
    )
    np.testing.assert_allclose(found.levels[1].weights, expected, rtol=1e-6, atol=1e-9)


def test_edges_and_trees():
    found = fit_hierarchy(_x(), [8, 4, 2], SNMF(sparsity=0.2, max_iter=10))
    edges = found.edges()
    assert set(edges["level"]) == {1, 2}
    for row in edges.itertuples():
        assert found.levels[row.level].weights[row.child, row.parent] == row.weight > 0
    assert len(edges) == sum((level.weights > 0).sum() for level in found.levels[1:])
    np.testing.assert_array_equal(found.edges_csr(1).toarray(), found.levels[1].weights.T)
    # Weights by hand: children of 15 % of the largest, at most so many, none where there is one only
    object.__setattr__(found.levels[1], "weights", np.zeros((8, 4)))
    w = found.levels[1].weights
    w[:, 0] = [1.0, 0.15, 0.149, 0.5, 0, 0.2, 0.3, 0.6]
    w[2, 1] = 1.0

    def children(node):
        return [child["component"] for child in node["children"]]

    assert children(found.tree(1, 0)) == [0, 7, 3, 6, 5]
    assert children(found.tree(1, 0, most=9)) == [0, 7, 3, 6, 5, 1]
    assert children(found.tree(1, 0, least=0.55)) == [0, 7]
    assert children(found.tree(1, 0, mass=0.5)) == [0, 7]  # 1.0 + 0.6 of 2.899
    assert children(found.tree(1, 0, mass=1.0)) == [0, 7, 3, 6, 5, 1, 2]
    assert children(found.tree(1, 1)) == children(found.tree(0, 3)) == children(found.tree(1, 3)) == []
    assert found.tree(1, 0)["children"][1] == {"level": 0, "component": 7, "weight": 0.6, "children": []}


def test_levels_that_cannot_be_are_refused():
    for ranks in ([], [4, 4], [2, 3], [3, 0]):
        with pytest.raises(SpecError, match="fewer components"):
            fit_hierarchy(_x(), ranks)
    found = fit_hierarchy(_x(), [3, 2], SNMF(max_iter=2))
    for level in (0, 2):
        with pytest.raises(SpecError, match="no level below"):
            found.edges_csr(level)
    with pytest.raises(SpecError, match="not there"):
        found.tree(1, 2)
    with pytest.raises(SpecError, match="out of range"):
        found.tree(1, 0, mass=0)


def test_shared_neurons_by_hand():
    h = np.array([[1, -1, 0, 0, 2, 0], [0, 3, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0.0]])
    found = neuron_sharing(h)
    np.testing.assert_array_equal(found.overlap, [[3, 2, 0, 0], [2, 3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert found.jaccard[0, 1] == 2 / 4
    assert found.jaccard[0, 2] == found.jaccard[3, 3] == 0
    assert found.jaccard[0, 0] == 1
    # P(2 or more of 3 drawn from 6 are among 3) = (C(3,2) C(3,1) + C(3,3)) / C(6,3)
    assert found.p_values[0, 1] == pytest.approx((9 + 1) / 20)
    assert found.p_values[0, 2] == found.p_values[2, 3] == 1
    np.testing.assert_array_equal(found.degrees, [1, 3, 2, 0, 0])
    chance = [0.5, 0.5, 1 / 6, 0]
    expected = np.zeros(5)
    for on in np.ndindex(2, 2, 2, 2):
        expected[sum(on)] += 6 * np.prod([p if o else 1 - p for o, p in zip(on, chance, strict=True)])
    np.testing.assert_allclose(found.expected_degrees, expected, atol=1e-12)
    assert {c: v.tolist() for c, v in exclusive_neurons(h, [0, 1]).items()} == {0: [0], 1: [2]}
    assert exclusive_neurons(h, [0, 2])[0].tolist() == [0, 1, 4]
    assert core_neurons(h, [0, 1]).tolist() == [1, 4]
    assert core_neurons(h, [0, 1, 2]).tolist() == []


def test_chances_of_overlaps_are_hypergeometric():
    h = _supports(7, 25, 6)
    h[0, :12] = 1
    found = neuron_sharing(h)
    for i, j in combinations(range(7), 2):
        m, a, b = found.overlap[i, j], found.overlap[i, i], found.overlap[j, j]
        expected = sum(hypergeom.pmf(v, 25, a, b) for v in range(m, 26))
        assert found.p_values[i, j] == found.p_values[j, i] == pytest.approx(expected, rel=1e-9)
    same = neuron_sharing(_supports(7, 25, 6))
    np.testing.assert_allclose(same.expected_degrees, 25 * binom.pmf(np.arange(8), 7, 6 / 25), rtol=1e-9)
    # Benjamini and Hochberg by hand: p_(i) m / i, made monotone from the top
    p = np.sort(found.p_values[np.triu_indices(7, 1)])
    rates = np.minimum.accumulate((p * 21 / np.arange(1, 22))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(found.adjusted[np.triu_indices(7, 1)]), np.minimum(rates, 1))


def test_random_supports_are_rarely_found_to_share_and_planted_ones_are():
    p, discoveries = [], 0
    for seed in range(60):
        found = neuron_sharing(_supports(12, 120, 25, seed, values=False))
        p.append(found.p_values[np.triu_indices(12, 1)])
        discoveries += len(found.pairs(0.1)) > 0
    p = np.concatenate(p)
    for level in (0.01, 0.05, 0.2):  # counts are whole numbers: chances lie at or below the level
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / len(p))
    assert (p <= 0.2).mean() > 0.08
    assert discoveries <= 0.1 * 60 + 3 * np.sqrt(60 * 0.1 * 0.9)
    h = _supports(12, 120, 25, 0, values=False)
    h[3] = 0
    h[3, np.flatnonzero(h[5])[:20]] = 1
    assert neuron_sharing(h).pairs(0.1)[0].tolist() == [3, 5]


def test_families_that_are_none_are_refused():
    h = _supports(3, 9, 2)
    for family in ([], [0, 0], [3], [-1]):
        with pytest.raises(SpecError, match="family"):
            core_neurons(h, family)
    with pytest.raises(SpecError, match="matrix"):
        neuron_sharing(np.ones(3))


def test_a_permuted_dictionary_is_found_again_and_a_flipped_one_is_not():
    h = _supports(15, 100, 8)
    order = np.random.default_rng(0).permutation(15)
    cosines, places = match(h, 3 * h[order])
    np.testing.assert_allclose(cosines, 1)
    np.testing.assert_array_equal(order[places], np.arange(15))
    assert match(h, -h)[0].max() < 0.9
    few, places = match(h, h[:4])
    np.testing.assert_array_equal(places >= 0, np.arange(15) < 4)
    assert (few[4:] == 0).all()


def test_stability_and_its_chance_level():
    h = _supports(15, 100, 8)
    half = h.copy()
    half[7:] = _supports(8, 100, 8, seed=5)
    found = seed_stability([h, h[::-1], half], draws=10)
    np.testing.assert_allclose(found.stability, found.cosines.mean(0))
    np.testing.assert_allclose(found.stability[:7], 1)
    assert found.share(0.9) == 7 / 15
    assert found.mean == found.stability.mean()
    # A dictionary of random rows is as stable as chance says
    others = [seed_stability([h, _supports(15, 100, 8, seed)], draws=1).mean for seed in range(10, 30)]
    assert found.chance_mean == pytest.approx(np.mean(others), abs=0.04)
    assert found.chance_mean < found.chance_95 < 0.9
    again = seed_stability([h, h[::-1], half], draws=10)
    assert again.chance_mean == found.chance_mean
    assert (
        seed_stability([h, h], draws=10, seed=1).chance_mean != seed_stability([h, h], draws=10).chance_mean
    )


def test_the_null_by_usage_is_stricter_where_few_neurons_are_used():
    h = np.zeros((15, 100))
    h[:, :12] = _supports(15, 12, 6)
    uniform, usage = (
        seed_stability([h, h], draws=10, null=null).chance_mean for null in ("uniform", "usage")
    )
    assert usage > uniform + 0.2


def test_dictionaries_that_cannot_be_matched_are_refused():
    h = _supports(3, 9, 2)
    for wrong in ([h], [h, h[:, :5]], [h[0], h[0]]):
        with pytest.raises(SpecError, match="cannot be matched"):
            seed_stability(wrong)
    with pytest.raises(SpecError, match="null"):
        seed_stability([h, h], null="none")


def test_tokens_of_components():
    random = torch.Generator().manual_seed(0)
    h = torch.randn(70, 8, generator=random)  # more than are projected at once
    w_out, w_u = torch.randn(8, 5, generator=random), torch.randn(5, 30, generator=random)
    bias = torch.randn(5, generator=random)

    def norm(r):
        return r / r.pow(2).mean(-1, keepdim=True).sqrt() + bias

    found = project_vocab(h.numpy(), w_out, w_u, norm=norm, top=4)
    np.testing.assert_allclose(found.directions, h @ w_out, rtol=1e-5, atol=1e-6)
    for sign, tokens, logits in (
        (1, found.raised, found.raised_logits),
        (-1, found.lowered, found.lowered_logits),
    ):
        expected = norm(sign * (h @ w_out)) @ w_u
        np.testing.assert_array_equal(tokens, expected.argsort(dim=1, descending=True)[:, :4])
        np.testing.assert_allclose(logits, expected.sort(dim=1, descending=True).values[:, :4], rtol=1e-4)
    plain = project_vocab(h, w_out, w_u, top=99)
    assert plain.raised.shape == (70, 30)
    np.testing.assert_array_equal(plain.raised, plain.lowered.flip(1))
    with pytest.raises(SpecError, match="widths"):
        project_vocab(h, w_out.T, w_u)
    with pytest.raises(SpecError, match="token"):
        project_vocab(h, w_out, w_u, top=0)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_use_as_a_dictionary(moved, dtype):
    x = torch.from_numpy(_x(dtype=np.float32))
    model = SNMF(6, sparsity=0.2, max_iter=8, center=moved, scale=moved).fit(x.numpy())
    dictionary = SNMFDictionary(model, site="blocks.0.mlp.hook_post")
    assert (dictionary.width, dictionary.d_in, dictionary.d_out) == (6, 40, 40)
    assert dictionary.site == "blocks.0.mlp.hook_post"
    assert dictionary.to_inference() is dictionary
    given = x.to(dtype)
    codes = dictionary.encode(given.reshape(10, 20, 40))
    host = given.to(torch.float64 if dtype == torch.float64 else torch.float32).numpy()
    np.testing.assert_array_equal(codes.dense(), model.transform(host))
    assert (codes.values > 0).all()
    decoded = dictionary.decode(codes)
    np.testing.assert_allclose(decoded, model.inverse_transform(model.transform(host)), rtol=1e-4, atol=1e-5)
    offset = torch.from_numpy(model.mean_) if moved else 0
    np.testing.assert_allclose(
        codes.dense().double() @ dictionary.directions.double() + offset, decoded, atol=1e-4
    )
    assert dictionary.reconstruct(given).shape == given.shape
    assert len(dictionary.encode(given[:0])) == 0
    for wrong in (given[:, :7], given * torch.nan):
        with pytest.raises(SpecError):
            dictionary.encode(wrong)


def test_methods_of_the_estimator_lead_here():
    model = SNMF(4, sparsity=0.2, max_iter=3, scale=True).fit(_x())
    np.testing.assert_array_equal(model.neuron_overlap().overlap, neuron_sharing(model.components_).overlap)
    w_out, w_u = torch.randn(40, 3, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    expected = torch.from_numpy(model.components_ * model.scale_) @ w_out
    np.testing.assert_allclose(model.project_vocab(w_out, w_u, top=2).directions, expected)


def test_the_package_imports_neither_torch_nor_scikit_learn():
    import subprocess
    import sys

    code = (
        "import sys, sparsescope.dictionaries.snmf as s\n"
        "print({'torch', 'sklearn', 'numba'} & set(sys.modules), dir(s))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set() ")
    assert "fit_hierarchy" in done.stdout
    import sparsescope.dictionaries.snmf as package

    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
