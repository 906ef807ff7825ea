"""Distances of pathways: closed forms, metric axioms, a plain table of edits, random lists."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsescope.errors import SpecError
from sparsescope.metrics import pathway_distances as d
from sparsescope.metrics.information import jensen_shannon
from sparsescope.metrics.pathway_nulls import draw_margins, set_sizes
from sparsescope.metrics.pathways import top_k_sets, top_p_sets
from sparsescope.metrics.routing import overlap
from sparsescope.metrics.routing_locality import expert_mask

UNITS = ("expert", "character")
PROFILE_DISTANCES = (d.weighted_jaccard, d.hellinger, d.cosine_distance, jensen_shannon)


def profiles(samples: int = 12, layers: int = 3, experts: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(experts, 0.5), size=(samples, layers))


def edits(one: list, two: list) -> int:
    """The plain table of Levenshtein."""
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(two, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def written(sample: np.ndarray) -> list:
    out: list = []
    for n, layer in enumerate(sample):
        out += [("end", n)] * (n > 0) + [(n, int(i)) for i in layer if i >= 0]
    return out


@pytest.mark.parametrize("distance", PROFILE_DISTANCES)
def test_distances_of_profiles(distance):
    p = profiles(30)
    found = distance(p[:, None], p[None, :])
    assert found.shape == (30, 30, 3) and (found >= -1e-12).all() and (found <= 1 + 1e-12).all()
    np.testing.assert_allclose(found[np.arange(30), np.arange(30)], 0, atol=1e-7)
    np.testing.assert_allclose(found, found.swapaxes(0, 1))
    names = np.random.default_rng(1).permutation(12)
    np.testing.assert_allclose(distance(p[:, None][..., names], p[None, :][..., names]), found, atol=1e-7)
    assert distance(np.eye(4)[0], np.eye(4)[1]) == pytest.approx(1)


def test_weighted_jaccard_of_equal_sets_is_jaccard():
    one, two = np.array([1, 1, 1, 0, 0]), np.array([0, 1, 1, 1, 0])
    assert d.weighted_jaccard(one, two) == pytest.approx(float(d.jaccard(one > 0, two > 0))) == 0.5
    assert float(d.jaccard(np.zeros(3, bool), np.zeros(3, bool))) == 0
    assert np.isnan(d.weighted_jaccard(np.zeros(3), np.zeros(3)))


def test_jaccard_of_sets_of_equal_size_follows_their_overlap():
    chosen = np.random.default_rng(2).random((2, 50, 8)).argsort(-1)[..., :3]
    shared = overlap(*chosen)
    masks = expert_mask(chosen, 8)
    np.testing.assert_allclose(d.jaccard(*masks), 1 - shared / (2 - shared))


@pytest.mark.parametrize("normalized", [False, True])
def test_edits_are_those_of_the_plain_table(normalized):
    sets = top_p_sets(profiles())
    texts = [written(s) for s in sets]
    expected = [
        [edits(one, two) / (max(len(one), len(two)) if normalized else 1) for two in texts] for one in texts
    ]
    np.testing.assert_allclose(d.levenshtein(sets, "expert", normalized=normalized), expected)


def test_characters_are_those_of_the_written_pathway():
    sets = top_p_sets(profiles())
    texts = ["-".join(",".join(str(i) for i in layer if i >= 0) for layer in s) for s in sets]
    found = d.levenshtein(sets, "character")
    assert found.tolist() == [[edits(list(one), list(two)) for two in texts] for one in texts]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("normalized", [False, True])
def test_edits_are_a_distance(unit, normalized):
    sets = top_p_sets(profiles(10))
    found = d.levenshtein(sets, unit, normalized=normalized)
    assert (np.diag(found) == 0).all() and (found == found.T).all() and (found >= 0).all()
    assert found.max() <= 1 or not normalized
    if not normalized:  # normalized ones need not keep the triangle
        assert (found[:, None] <= found[:, :, None] + found[None] + 1e-9).all()


def test_edits_of_all_layers_are_at_most_those_of_each():
    sets = top_p_sets(profiles())
    each = sum(d.levenshtein(sets[:, [n]], "expert") for n in range(3))
    assert (d.levenshtein(sets, "expert") <= each).all()


def test_edits_of_one_expert_a_layer_are_the_layers_that_differ():
    sets = top_k_sets(profiles(20, layers=6, experts=3), 1)
    paths = sets[..., 0]
    differ = 6 * d.hamming(paths[:, None], paths[None])
    np.testing.assert_allclose(d.levenshtein(sets, "expert"), differ)


def test_many_experts_and_layers_have_symbols_of_their_own():
    """64 experts in 100 layers: code points beyond the basic plane, none of them a surrogate."""
    sets = top_k_sets(profiles(4, layers=100, experts=64), 64)
    found = d.levenshtein(sets, "expert")
    texts = [written(s) for s in sets]
    assert found[0, 1] == edits(texts[0], texts[1]) and (np.diag(found) == 0).all()


@pytest.mark.parametrize(("size", "characters"), [(8, 13.71), (16, 26.83), (28, 46.09), (38, 62.08)])
def test_random_ordered_lists_of_64(size, characters):  # characters: over 4000 pairs, apart from this code
    uniform = np.full((1, 64), 1 / 64)
    sets = draw_margins(uniform, np.full((400, 1), size), np.random.default_rng(0))
    apart = ~np.eye(400, dtype=bool)
    assert 0.95 < d.levenshtein(sets, "expert")[apart].mean() / size <= 1
    assert d.levenshtein(sets, "character")[apart].mean() == pytest.approx(characters, abs=0.35)


def test_empty_pathways_and_units():
    sets = np.full((2, 1, 2), -1)
    sets[1, 0, 0] = 3
    assert d.levenshtein(sets, "expert", normalized=True)[0].tolist() == [0, 1]
    with pytest.raises(SpecError, match="unit"):
        d.levenshtein(sets, "word")


def rbo(one: list[int], two: list[int], p: float) -> float:
    """Webber et al. 2010, eq. 32, term by term."""
    short, long = sorted((one, two), key=len)
    s, m = len(short), len(long)
    x = [len(set(short[:n]) & set(long[:n])) for n in range(m + 1)]
    head = sum(x[n] / n * p**n for n in range(1, m + 1))
    tail = sum(x[s] * (n - s) / (s * n) * p**n for n in range(s + 1, m + 1))
    return (1 - p) / p * (head + tail) + ((x[m] - x[s]) / m + x[s] / s) * p**m


@given(seed=st.integers(0, 300), persistence=st.floats(0.1, 0.99))
def test_rank_biased_overlap_is_its_sum(seed, persistence):
    generator = np.random.default_rng(seed)
    sets = draw_margins(np.full((1, 9), 1 / 9), generator.integers(1, 8, (2, 1)), generator)[:, 0]
    one, two = (row[row >= 0].tolist() for row in sets)
    found = float(d.rank_biased(sets[0], sets[1], persistence))
    assert found == pytest.approx(1 - rbo(one, two, persistence), abs=1e-9)
    assert found == pytest.approx(float(d.rank_biased(sets[1], sets[0], persistence)))
    assert d.rank_biased(sets[0], sets[0], persistence) == pytest.approx(0, abs=1e-9)


def test_rank_biased_overlap_at_its_ends():
    sets = np.array([[0, 1, -1], [2, 3, 4], [-1, -1, -1]])
    assert d.rank_biased(sets[0], sets[1]) == 1 and d.rank_biased(sets[0], sets[2]) == 1
    assert d.rank_biased(sets[2], sets[2]) == 0 and d.rank_biased(sets[:, :0], sets[:, :0]).tolist() == [
        0,
        0,
        0,
    ]
    first, last = (
        np.array([9, 1, 2]),
        np.array([0, 1, 9]),
    )  # another first expert weighs more than another last
    assert d.rank_biased(np.array([0, 1, 2]), first) > d.rank_biased(np.array([0, 1, 2]), last)
    with pytest.raises(SpecError, match="RBO"):
        d.rank_biased(sets[0], sets[1], 1.0)


def test_pair_means_of_drawn_samples():
    generator = np.random.default_rng(3)
    distances = generator.random((8, 8))
    distances += distances.T
    counted = generator.random((8, 8)) < 0.6
    counted = (counted | counted.T) & ~np.eye(8, dtype=bool)
    weights = generator.integers(0, 3, (5, 8)).astype(float)
    found = d.pair_means(distances, counted, weights)
    pairs = np.argwhere(np.triu(counted))
    for value, row in zip(found, weights, strict=True):
        times = (row[pairs[:, 0]] * row[pairs[:, 1]]).astype(int)
        assert value == pytest.approx(np.repeat(distances[tuple(pairs.T)], times).mean())
    assert d.pair_means(distances, counted, np.ones((1, 8))) == pytest.approx(distances[counted].mean())
    assert np.isnan(d.pair_means(distances, counted, np.zeros((1, 8)))).all()


def test_sizes_are_kept():
    sizes = np.random.default_rng(4).integers(0, 5, (30, 3))
    assert (set_sizes(draw_margins(np.full((3, 8), 1 / 8), sizes, np.random.default_rng(5))) == sizes).all()
