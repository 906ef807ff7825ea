"""Nulls of pathways: draws follow the profile, layers are exchanged apart, links are seen."""

from __future__ import annotations

import numpy as np
import pytest

from sparsescope.errors import SpecError
from sparsescope.metrics import pathway_nulls as n
from sparsescope.metrics.null_comparison import against_null
from sparsescope.metrics.pathway_distances import levenshtein, weighted_jaccard
from sparsescope.metrics.pathways import top_k_sets


def test_draws_follow_the_profile_and_never_repeat():
    profile = np.array([[0.5, 0.3, 0.2, 0.0]])
    sets = n.draw_margins(profile, np.full((20_000, 1), 3), np.random.default_rng(0))[:, 0]
    assert (np.sort(sets, axis=1) == [0, 1, 2]).all()
    first = np.bincount(sets[:, 0], minlength=4) / len(sets)
    assert first == pytest.approx(profile[0], abs=0.01)
    after = np.bincount(sets[sets[:, 0] == 0, 1], minlength=4)
    assert after / after.sum() == pytest.approx([0, 0.6, 0.4, 0], abs=0.015)


def test_more_experts_than_there_are_cannot_be_drawn():
    with pytest.raises(SpecError, match="more experts"):
        n.draw_margins(np.array([[1.0, 0.0]]), np.array([[2]]), np.random.default_rng(0))


def test_layers_are_exchanged_apart():
    values = np.random.default_rng(1).random((50, 4, 3))
    moved = n.shuffle_layers(values, np.random.default_rng(2))
    for layer in range(4):
        order = values[:, layer, 0].argsort()
        np.testing.assert_array_equal(values[order, layer], moved[moved[:, layer, 0].argsort(), layer])
    assert (moved[:, 0] != values[:, 0]).any() and not np.array_equal(
        moved[:, 0].argsort(0), moved[:, 1].argsort(0)
    )


def test_samples_drawn_at_the_margins_have_no_excess_and_groups_within_have():
    generator = np.random.default_rng(3)
    profile, sizes = generator.dirichlet(np.ones(16), size=4), np.full((40, 4), 5)
    pairs = np.arange(40).reshape(20, 2)

    def distance(sets: np.ndarray) -> float:
        return float(levenshtein(sets, "expert")[tuple(pairs.T)].mean())

    null = [distance(n.draw_margins(profile, sizes, generator)) for _ in range(99)]
    alone = against_null(distance(n.draw_margins(profile, sizes, generator)), null)
    assert abs(alone.z) < 3.5 and abs(alone.reduction) < 0.1
    alike = np.repeat(n.draw_margins(profile, sizes[:20], generator), 2, axis=0)  # pairs of equal samples
    found = against_null(distance(alike), null)
    assert found.reduction == 1 and found.p_below == 0.01 and found.z < -10


def test_layers_that_are_linked_are_seen_by_the_layer_null_only():
    generator = np.random.default_rng(4)
    topic = np.repeat(np.arange(2), 50)
    links = np.stack([np.eye(2)[topic]] * 6, axis=1) * 0.8 + 0.1  # both topics use one expert in all layers
    pairs = generator.integers(0, 100, (500, 2))

    def same_path(profiles: np.ndarray) -> float:
        paths = top_k_sets(profiles, 1)[..., 0]
        return float((paths[pairs[:, 0]] == paths[pairs[:, 1]]).all(-1).mean())

    def mean_distance(profiles: np.ndarray) -> float:
        return float(weighted_jaccard(profiles[pairs[:, 0]], profiles[pairs[:, 1]]).mean())

    draws = [n.shuffle_layers(links, generator) for _ in range(60)]
    assert against_null(same_path(links), [same_path(v) for v in draws]).z > 10
    assert mean_distance(links) == pytest.approx(np.mean([mean_distance(v) for v in draws]), abs=0.03)
