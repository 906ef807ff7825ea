"""Cost curves against plain autograd and what masks really cost; the cheapest shares against a grid."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.activations.losses import Reference, token_losses
from sparsescope.inference.calibration import calibrate
from sparsescope.inference.calibrator import Calibrator
from sparsescope.inference.curves import Curve, cheapest, cost_curves, input_sensitivity
from sparsescope.inference.groups import input_groups
from sparsescope.inference.install import install
from sparsescope.inference.masks import Mask
from sparsescope.inference.methods import recipe_of
from sparsescope.inference.methods.auto import Auto, Choice
from sparsescope.inference.prefix import PrefixPolicy

ALL = PrefixPolicy("all_sparse")


@pytest.fixture(scope="module")
def mixture():
    return ss.load("bytes-moe")


@pytest.fixture(scope="module")
def text(mixture):
    return tokenized(ss.corpus("python-docs", tokens=3072, context=64), mixture)


@pytest.fixture(scope="module")
def bench(mixture, text):
    documents = [document.index for document in text.documents]
    return Calibrator(mixture, text.select(documents[:-2]), text.select(documents[-2:]))


class Sums(torch.autograd.Function):
    """A product with W^T whose backward pass notes what the gradient at x is, [tokens, K]."""

    @staticmethod
    def forward(ctx, x, weight, notes):
        ctx.save_for_backward(weight)
        ctx.notes = notes
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        (weight,) = ctx.saved_tensors
        ctx.notes.append((gradient @ weight).reshape(-1, weight.shape[1]))
        return gradient @ weight, None, None


def test_a_cost_is_half_the_mean_square_of_what_the_dropped_inputs_move(llama):
    """q, k and v together, and the last matrix of an MLP, with products that are written again."""
    text = tokenized(ss.corpus("python-docs", tokens=512, context=64), llama)
    text = text.select([text.documents[0].index])
    groups = [
        group for group in input_groups(llama) if group.name in ("blocks.0.attn.in", "blocks.1.mlp.out")
    ]
    scale = torch.rand(groups[0].width, generator=torch.Generator().manual_seed(0)) + 0.5
    centre = torch.randn(groups[0].width, generator=torch.Generator().manual_seed(1)) / 10
    masks = {
        "attn": Mask(groups[0].name, groups[0].parts, 0.0, scale=scale, centre=centre),
        "mlp": Mask(groups[1].name, groups[1].parts, 0.0),
    }
    edges = {"attn": np.array([0.1, 0.5, 2.0]), "mlp": np.array([1e-4, 1e-3])}
    found = cost_curves(llama, groups, masks, edges, text, tokens=10**6, seed=4)
    squares = input_sensitivity(llama, groups, text, tokens=10**6, seed=4)

    model = llama.copy().model.eval()
    read, notes = {}, {"attn": [], "mlp": []}
    layers = model.model.layers
    for key, module in (
        *(("attn", getattr(layers[0].self_attn, f"{name}_proj")) for name in "qkv"),
        ("mlp", layers[1].mlp.down_proj),
    ):

        def forward(x, module=module, key=key):
            read[key] = x.detach().reshape(-1, x.shape[-1])
            return Sums.apply(x, module.weight, notes[key])

        module.forward = forward
    generator = torch.Generator().manual_seed(4)
    (batch,) = list(text.batches(1024, "right"))
    mask = torch.from_numpy(batch.attention_mask.astype(np.int64))
    logits = model(input_ids=torch.from_numpy(batch.input_ids), attention_mask=mask).logits[mask.bool()]
    labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    functional.cross_entropy(logits, labels, reduction="sum").backward()
    wanted = torch.from_numpy(batch.text_mask & (batch.position > 0)).reshape(-1)
    for key, mask_ in masks.items():
        gradient = sum(notes[key])[wanted].double()
        values = read[key][wanted] - (0 if mask_.centre is None else mask_.centre)
        scores = values.abs() * (1 if mask_.scale is None else mask_.scale)
        for edge, cost in zip(edges[key], found[key], strict=True):
            moved = (values * gradient * (scores <= edge)).sum(-1)
            assert cost == pytest.approx(float(moved.square().mean()) / 2, rel=1e-3)
        assert found[key][0] < found[key][-1]
        expected = gradient.square().mean(0).float()
        torch.testing.assert_close(
            squares[mask_.group], expected, rtol=1e-3, atol=float(expected.max()) * 1e-6
        )


def test_a_cost_predicts_the_divergence_that_a_mask_alone_makes(mixture, bench):
    """Half of each input of the last block; before a router, flips would cost more than gradients tell."""
    recipe = Auto(bench, refine=False)
    reference = Reference()
    token_losses(mixture, bench.text, record=reference)
    ratios = []
    for mask in recipe.placed(recipe.counts, 0.5, Choice({}, ())):
        if mask.layer == 3:
            own = {"x": mask}
            edges = {"x": np.array([mask.threshold])}
            cost = cost_curves(mixture, bench.groups, own, edges, bench.text, tokens=10**6)["x"][0]
            kl = token_losses(install(mixture, [mask], ALL), bench.text, reference=reference).kl.mean()
            ratios.append(float(kl) / cost)
    assert len(ratios) == 4
    assert min(ratios) > 0.5 and max(ratios) < 2


def test_a_token_pays_for_both_of_its_experts(mixture, bench):
    """Errors of the experts of one token add up before they are squared."""
    group = next(group for group in bench.groups if group.role == "mlp.experts.out")
    whole = {"x": Mask(group.name, group.parts, 0.0)}
    edges = {"x": np.array([1e9])}
    text = bench.text.select([bench.text.documents[0].index])
    both = cost_curves(mixture, bench.groups, whole, edges, text, tokens=10**6)["x"][0]
    apart = 0.0
    for expert in range(group.experts):  # all inputs of the others are kept
        scale = torch.full((group.experts, group.width), 1e20)
        scale[expert] = 0
        one = {"x": replace(whole["x"], scale=scale)}
        apart += cost_curves(mixture, bench.groups, one, {"x": np.array([1.0])}, text, tokens=10**6)["x"][0]
    assert apart > 0 and abs(both / apart - 1) > 0.05


def test_the_cheapest_shares_are_those_of_an_exhaustive_grid():
    """Three convex curves, weights of unlike size, and a bound that one of them reaches."""
    measured = np.arange(0.05, 0.96, 0.05)
    weights = np.array([30.0, 50.0, 20.0])
    heights = np.array([9.0, 1.0, 0.05])
    curves = [
        Curve.of(measured, height * measured**2, weight, 0.9)
        for height, weight in zip(heights, weights, strict=True)
    ]
    for target in (0.2, 0.5, 0.7):
        found = cheapest(curves, weights, target, 100.0)
        assert float(weights @ found) == pytest.approx(100 * target, abs=1e-6)
        assert (found >= 0).all() and (found <= 0.9 + 1e-12).all()
        grid = np.arange(0, 0.901, 0.01)
        best = min(
            float(heights @ np.square([a, b, c]))
            for a, b in itertools.product(grid, grid)
            if 0 <= (c := (100 * target - 30 * a - 50 * b) / 20) <= 0.9
        )
        assert float(heights @ found**2) <= best * 1.01
        assert float(heights @ found**2) < 0.7 * float(heights.sum()) * target**2  # equal shares
    assert cheapest(curves, weights, 0.7, 100.0)[2] == pytest.approx(0.9)


def test_a_curve_is_convex_and_equal_edges_count_once():
    """Costs that were measured may fall with the share; thresholds may be the same where inputs are zero."""
    shares = np.array([0.3, 0.3, 0.5, 0.7, 0.95])
    curve = Curve.of(shares, np.array([0.0, 0.0, 2.0, 1.5, 9.0]), 10.0, 0.98)
    assert (np.diff(curve.slopes) >= 0).all() and (np.diff(curve.shares) > 0).all()
    places = [curve.at(slope) for slope in np.geomspace(1e-25, 10, 50)]
    assert (np.diff(places) >= 0).all() and places[0] < 0.5 and places[-1] == pytest.approx(0.98)
    assert cheapest([curve], np.array([10.0]), 0.99, 10.0)[0] == pytest.approx(0.98)  # out of reach


def test_auto_on_a_mixture_is_closer_to_the_dense_model_than_teal(mixture, bench):
    held = tokenized(ss.corpus("python-source", tokens=2048, context=64), mixture)
    reference = Reference()
    token_losses(mixture, held, record=reference)
    kl = {}
    for method in ("teal", "auto"):
        sparse = calibrate(bench, method, 0.4).apply(mixture)
        kl[method] = float(token_losses(sparse, held, reference=reference).kl.mean())
    assert kl["auto"] < 0.95 * kl["teal"]
    recipe = recipe_of("auto", bench)
    (first, *_) = recipe.choices.values()
    assert first.kl <= first.start and first.even in (0.0, 0.25, 0.5, 1.0)
    # Drawn all the way to equal shares, every input drops the target
    masks = recipe.templates(Choice({}, ()))
    assert recipe.shares(masks, 0.4, Choice({}, (), even=1.0)) == pytest.approx(0.4)
    assert np.ptp(recipe.shares(masks, 0.4, Choice({}, ()))) > 0.1
