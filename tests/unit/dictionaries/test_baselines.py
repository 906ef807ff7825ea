"""Dictionaries that nobody trained: each against what it claims to be best at, computed another way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sparsescope.dictionaries import baselines
from sparsescope.dictionaries.baselines import neuron_basis, principal_components, random_directions
from sparsescope.errors import SpecError


def rows(n=80, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mixed + torch.arange(d) * 3.0


def error(dictionary, x):
    return (dictionary.reconstruct(x) - x).square().sum(1).double()


def subsets(x, k):
    """Least error of each row over all choices of k neurons, the others at their means."""
    away = (x - x.mean(0)).double().square()
    chosen = torch.stack([away[:, list(c)].sum(1) for c in itertools.combinations(range(x.shape[1]), k)])
    return away.sum(1) - chosen.max(0).values


def test_first_principal_components_leave_the_smallest_singular_values():
    x = rows()
    singular = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False)
    for count in (1, 3, 6):
        found = principal_components(x, count, site="here")
        assert float(error(found, x).sum()) == pytest.approx(
            (singular[count:] ** 2).sum(), rel=1e-4, abs=1e-3
        )
        codes = found.encode(x)
        assert codes.width == found.width == count and codes.active_per_row.tolist() == [count] * len(x)
        assert torch.allclose(found.directions @ found.directions.T, torch.eye(count), atol=1e-5)
        assert found.site == "here" and found.architecture == "pca"


def test_no_other_k_components_or_neurons_of_a_row_have_a_smaller_error():
    x = rows()
    basis = principal_components(x).directions
    for k in (1, 2, 4):
        turned = (x - x.mean(0)) @ basis.T
        assert torch.allclose(error(principal_components(x, k=k), x), subsets(turned, k), atol=1e-2)
        assert torch.allclose(error(neuron_basis(x, k), x), subsets(x, k), atol=1e-2)


def test_codes_are_signed_ascending_and_as_many_as_asked_for():
    x = rows()
    for found in (principal_components(x, k=3), neuron_basis(x, 3), random_directions(x, 40, 3)):
        codes = found.encode(x.reshape(8, 10, 6))
        assert codes.active_per_row.tolist() == [3] * len(x) and (codes.values != 0).all()
        assert all((part.indices.diff() > 0).all() for part in (codes.part(r, r + 1) for r in range(5)))
        assert bool((codes.values < 0).any()) == (found.architecture != "random")
        assert torch.equal(found.reconstruct_rows(x)[1], found.reconstruct(x))
        alone = found.encode(x[7:8])
        assert torch.equal(alone.indices, codes.part(7, 8).indices), "what a row gets depends on other rows"


def test_the_factor_of_random_directions_is_that_of_least_squares():
    x = rows(400, 16)
    found = random_directions(x, 64, 4, seed=3)
    best = error(found, x).sum()
    for factor in (0.98, 1.02):
        found.scale *= factor
        assert error(found, x).sum() > best
        found.scale /= factor
    assert torch.allclose(found.directions.norm(dim=1), torch.ones(64), atol=1e-5)
    assert torch.equal(found.directions, random_directions(x, 64, 4, seed=3).directions)
    assert not torch.equal(found.directions, random_directions(x, 64, 4, seed=4).directions)
    far = x.mean(0) + 1000 * torch.ones(16)  # a row takes the mean off, so that it does not decide
    assert (
        found.encode(x.mean(0)[None]).values.abs().max() < 1e-3 < found.encode(far[None]).values.abs().max()
    )


def test_a_constant_neuron_is_not_active_and_the_mean_is_reconstructed():
    x = rows()
    x[:, 2] = 7.0
    found = neuron_basis(x, 6)
    assert 2 not in found.encode(x).indices and (found.reconstruct(x)[:, 2] == 7.0).all()
    assert torch.allclose(found.reconstruct(x.mean(0)[None]), x.mean(0)[None])


def test_components_of_wide_rows_are_nearly_the_exact_ones(monkeypatch):
    x = rows(300, 40) * torch.linspace(3, 0.1, 40)
    exact = principal_components(x, 5)
    monkeypatch.setattr(baselines, "EXACT_WIDTH", 8)
    near = principal_components(x, 5, seed=1)
    assert torch.allclose((exact.directions * near.directions).sum(1), torch.ones(5), atol=1e-3)
    monkeypatch.setattr(baselines, "MOST_COMPONENTS", 7)
    assert principal_components(x).width == 7


def test_what_cannot_be_is_refused():
    x = rows()
    for make in (
        lambda: principal_components(x, 7),
        lambda: principal_components(x, 0),
        lambda: principal_components(x[:3], 3),
        lambda: principal_components(x[:1]),
        lambda: neuron_basis(x, 7),
        lambda: neuron_basis(x, 0),
        lambda: random_directions(x, 4, 5),
    ):
        with pytest.raises(SpecError):
            make()
    bad = x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(SpecError, match="NaN"):
        neuron_basis(bad, 2)
    with pytest.raises(SpecError, match="another width"):
        neuron_basis(x, 2).encode(x[:, :5])
