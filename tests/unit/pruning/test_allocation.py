"""How much each matrix loses: budgets are exact, definitions are those of the papers, everything composes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SpecError
from sparsescope.pruning import ATP, ERK, OWL, Allocation, Global, Uniform, prune
from sparsescope.pruning.allocation import (
    MatrixFacts,
    allocations,
    erk_densities,
    exact,
    global_counts,
    read_allocation,
)
from sparsescope.pruning.patterns import pruned_count

SPARSITIES = (0.0, 0.05, 0.3, 0.5, 0.77, 0.95, 0.999)


def facts(shapes: list[tuple[int, int]], layers: list[int] | None = None, seed: int = 0) -> list[MatrixFacts]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(shape, generator=generator) ** 3 for shape in shapes]
    return [
        MatrixFacts(f"m{n}", n if layers is None else layers[n], shape, lambda t=t: t, lambda t=t: t)
        for n, (shape, t) in enumerate(zip(shapes, drawn, strict=True))
    ]


def test_erk_is_the_case_of_the_specification() -> None:
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (10, 256)]
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    raw = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    found = erk_densities(raw, sizes, 0.2)
    assert np.allclose(found, [1, 0.321, 0.158, 1], atol=5e-4)
    assert (found * sizes).sum() == pytest.approx(0.2 * sizes.sum(), rel=1e-12)
    assert found[1] / found[2] == pytest.approx(raw[1] / raw[2])  # in proportion where nothing is clipped


def test_erk_is_exact_at_every_density_grows_with_it_and_is_never_above_dense() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        shapes = generator.integers(1, 200, (9, 2))
        sizes, raw = shapes.prod(1).astype(float), shapes.sum(1) / shapes.prod(1)
        before = np.zeros(9)
        for density in (0.01, 0.1, 0.3, 0.5, 0.8, 0.99, 1.0):
            found = erk_densities(raw, sizes, density)
            assert (found * sizes).sum() == pytest.approx(density * sizes.sum(), rel=1e-9)
            assert (found <= 1).all() and (found >= before - 1e-12).all()
            free = found < 1
            if free.sum() > 1:
                assert np.ptp(found[free] / raw[free]) < 1e-9
            if free.any():  # what is dense would be above 1 by the same factor
                assert (raw[~free] * (found[free] / raw[free])[0] >= 1 - 1e-9).all()
            before = found


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_erk_counts_are_exact_to_one_weight(sparsity: float) -> None:
    matrices = facts([(4, 300), (64, 64), (200, 3), (1, 9), (50, 70)])
    sizes = np.array([m.weights for m in matrices])
    counts = ERK().counts(matrices, sparsity)
    assert counts.sum() == pruned_count(sparsity, sizes.sum())
    wanted = (
        1 - erk_densities(np.array([sum(m.shape) / m.weights for m in matrices]), sizes, 1 - sparsity)
    ) * sizes
    assert (abs(counts - wanted) <= 1 + 1e-6).all()


def test_rounding_sums_to_the_budget_and_clips() -> None:
    generator = np.random.default_rng(1)
    for _ in range(400):
        n = int(generator.integers(1, 12))
        sizes = generator.integers(1, 40, n)
        shares = generator.normal(0.5, generator.choice([0.1, 1.0, 5.0]), n)
        budget = int(generator.integers(0, sizes.sum() + 1))
        counts = exact(shares, sizes, budget)
        assert counts.sum() == budget and (counts >= 0).all() and (counts <= sizes).all()


def test_rounding_gives_the_largest_remainders_one_more() -> None:
    assert exact(np.array([0.25, 0.29, 0.26]), np.array([10, 10, 10]), 8).tolist() == [2, 3, 3]
    assert exact(np.array([0.5, 0.5]), np.array([5, 5]), 5).tolist() == [3, 2]  # of equal ones the first
    assert exact(np.array([2.0, 0.0]), np.array([10, 30]), 13).tolist() == [10, 3]  # what is clipped goes on
    assert exact(np.array([0.5, -1.0]), np.array([10, 10]), 0).tolist() == [0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_shares_that_are_no_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(SpecError, match="no number"):
        exact(np.array([0.5, bad]), np.array([4, 4]), 4)
    with pytest.raises(SpecError, match="no number"):
        ATP(spread=float("nan")).counts(facts([(4, 4), (4, 4)]), 0.5)


@pytest.mark.parametrize("kind", ["drawn", "tied", "rounded", "signed", "one value"])
def test_a_global_threshold_is_that_of_one_sorted_list(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(shape, generator=generator) for shape in [(9, 30), (1, 1), (17, 5), (40, 8)]]
    if kind == "drawn":
        scores = [s.abs() * scale for s, scale in zip(scores, (1e-30, 1, 1e30, 1e-3), strict=True)]
    elif kind == "tied":
        scores = [(s.abs() * 2).round() for s in scores]
    elif kind == "rounded":
        scores = [s.abs().bfloat16() for s in scores]
    elif kind == "one value":
        scores = [torch.full_like(s, 0.25) for s in scores]
    else:
        scores = [torch.where(s.abs() < 0.5, -0.0, (s * 3).round()) for s in scores]
    scores[0] = scores[0].T.contiguous().T  # not in the order of memory
    joined = np.concatenate([s.float().numpy().reshape(-1) for s in scores])
    owner = np.repeat(np.arange(4), [s.numel() for s in scores])
    for sparsity in (*SPARSITIES, 0.5001, 0.1234):
        gone = owner[np.argsort(joined, kind="stable")[: pruned_count(sparsity, len(joined))]]
        expected = np.bincount(gone, minlength=4)
        assert (global_counts([lambda s=s: s for s in scores], sparsity) == expected).all()


def test_a_global_mask_of_a_model_is_that_of_one_sorted_list(subject: Any) -> None:
    given = subject("random-gpt2")
    _, masks = prune(given, sparsity=0.61, allocation="global")
    weights = np.concatenate([given.parameter(name).abs().numpy().reshape(-1) for name in masks])
    kept = np.concatenate([masks[name].array().reshape(-1) for name in masks])
    assert (~kept).sum() == pruned_count(0.61, len(kept)) and weights[~kept].max() <= weights[kept].min()
    shares = [masks[name].sparsity for name in masks]
    assert max(shares) - min(shares) > 0.001
    assert np.allclose(Global().shares(facts([(8, 8), (4, 4)]), 0.5), [0.5, 0.5], atol=0.2)


def owl_by_hand(
    scores: list[list[np.ndarray]], sparsity: float, outlier: float, spread: float
) -> list[float]:
    """Sparsity of each block, from the definition."""
    shares = []
    for block in scores:
        joined = np.concatenate([s.reshape(-1) for s in block]).astype(np.float64)
        shares.append(float((joined > outlier * joined.mean()).mean()))
    low, high = min(shares), max(shares)
    scaled = [(s - low) / (high - low) * 2 * spread for s in shares]
    return [1 - (s - sum(scaled) / len(scaled) + 1 - sparsity) for s in scaled]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_owl_is_its_definition(sparsity: float) -> None:
    matrices = facts([(20, 30), (9, 20), (20, 30), (9, 20), (20, 30), (9, 20)], [0, 0, 1, 1, 4, 4])
    scores = [m.outliers().numpy() for m in matrices]
    for outlier, spread in ((3.0, 0.08), (2.0, 0.2)):
        expected = owl_by_hand([scores[:2], scores[2:4], scores[4:]], sparsity, outlier, spread)
        found = OWL(outlier=outlier, spread=spread).shares(matrices, sparsity)
        assert np.allclose(found, np.repeat(expected, 2), atol=1e-12)
        assert np.ptp(found) == pytest.approx(2 * spread)
        counts = OWL(outlier=outlier, spread=spread).counts(matrices, sparsity)
        assert counts.sum() == pruned_count(sparsity, sum(m.weights for m in matrices))


def test_owl_without_outliers_is_uniform() -> None:
    flat = MatrixFacts("m", 0, (4, 4), lambda: torch.ones(4, 4), lambda: torch.ones(4, 4))
    assert OWL().shares([flat, flat], 0.4).tolist() == pytest.approx([0.4, 0.4])


def test_owl_of_a_model_counts_the_outliers_of_what_it_reads(subject: Any, text: Any, by_hand: Any) -> None:
    given = subject("random-llama")
    _, masks = prune(given, sparsity=0.6, allocation="owl@outlier=2.5,spread=0.1", corpus=text)
    read, blocks = by_hand.captured(given, text), []
    for layer in range(given.n_layers):
        names = [name for name in masks if name.startswith(f"weight:blocks.{layer}.")]
        norms = {name: read[name].square().mean(0).sqrt() for name in names}
        blocks.append([(given.parameter(name).abs() * norms[name]).numpy() for name in names])
    expected = owl_by_hand(blocks, 0.6, 2.5, 0.1)
    for name in masks:
        assert masks[name].sparsity == pytest.approx(expected[int(name.split(".")[1])], abs=2e-3), name
    assert masks.kept == masks.weights - pruned_count(0.6, masks.weights)


def test_atp_rises_in_equal_steps() -> None:
    matrices = facts([(20, 30)] * 5, [0, 1, 2, 3, 4])
    assert np.allclose(ATP(spread=0.2).shares(matrices, 0.5), [0.4, 0.45, 0.5, 0.55, 0.6])
    assert np.allclose(ATP(spread=0.9).shares(matrices, 0.2), [0, 0.1, 0.2, 0.3, 0.4])  # not below 0
    assert np.allclose(ATP(spread=0.9).shares(matrices, 0.9), [0.8, 0.85, 0.9, 0.95, 1.0])
    assert np.allclose(ATP().shares(facts([(20, 30)] * 2, [3, 3]), 0.5), [0.5, 0.5])


@pytest.mark.parametrize("name", ["global", "erk", "owl", "atp"])
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_mean_sparsity_is_exact(name: str, sparsity: float) -> None:
    matrices = facts([(20, 31), (3, 17), (44, 9), (1, 5), (33, 33)], [0, 0, 1, 2, 2], seed=5)
    counts = read_allocation(name).counts(matrices, sparsity)
    assert counts.dtype == np.int64
    assert counts.sum() == pruned_count(sparsity, sum(m.weights for m in matrices))
    assert all(0 <= count <= m.weights for count, m in zip(counts, matrices, strict=True))


def test_uniform_rounds_each_matrix_for_itself() -> None:
    assert Uniform().counts(facts([(1, 5), (1, 5), (2, 5)]), 0.5).tolist() == [2, 2, 5]


@pytest.mark.parametrize("criterion", ["magnitude", "random", "wanda", "ria", "sparsegpt"])
@pytest.mark.parametrize("name", ["random-llama", "random-olmoe"])
def test_every_allocation_composes_with_every_criterion(
    name: str, criterion: str, subject: Any, text: Any
) -> None:
    parts = {"random-llama": "mlp.out.weight", "random-olmoe": "mlp.experts.2.*"}
    scope = ["weight:blocks.*.attn.*", f"weight:blocks.*.{parts[name]}"]
    for allocation in allocations():
        sparse, masks = prune(
            subject(name),
            criterion,
            0.6,
            allocation=allocation,
            corpus=text,
            scope=scope,
            propagation="dense",
        )
        if allocation != "uniform":
            assert masks.weights - masks.kept == pruned_count(0.6, masks.weights)
            assert len({round(mask.sparsity, 3) for mask in masks.masks.values()}) > 1
        zeros = sum(int((sparse.parameter(matrix) == 0).sum()) for matrix in masks)
        assert zeros == masks.weights - masks.kept
        assert masks.facts["allocation"] == read_allocation(allocation).text


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_an_allocation_takes_what_the_dense_model_reads_and_masks_go_block_by_block(
    criterion: str, subject: Any, text: Any
) -> None:
    given = subject("random-llama")
    made = {
        propagation: prune(
            given, criterion, 0.6, allocation="owl@outlier=2", corpus=text, propagation=propagation
        )[1]
        for propagation in ("sequential", "dense")
    }
    one, other = made["sequential"], made["dense"]
    assert all(one[name].kept == other[name].kept for name in one)
    assert any(one[name] != other[name] for name in one)


def test_a_text_is_needed_where_only_the_allocation_reads_it(subject: Any) -> None:
    with pytest.raises(SpecError, match="allocation owl reads a calibration text"):
        prune(subject("random-llama"), "magnitude", 0.5, allocation="owl")
    prune(subject("random-llama"), "magnitude", 0.5, allocation="global")  # weights alone


@pytest.mark.parametrize("allocation", ["global", "erk", "owl", "atp", ERK()])
def test_n_m_leaves_nothing_to_allocate(allocation: Any, subject: Any, text: Any) -> None:
    with pytest.raises(SpecError, match="nothing can be allocated") as caught:
        prune(subject("random-llama"), pattern="2:4", allocation=allocation, corpus=text)
    assert caught.value.where == "allocation"


@pytest.mark.parametrize("text", ["uniform", "global", "erk", "owl@outlier=5,spread=0.08", "atp@spread=0.2"])
def test_allocations_are_written_as_they_are_read(text: str) -> None:
    found = read_allocation(text)
    assert isinstance(found, Allocation) and found.text == text
    assert read_allocation(text.partition("@")[0]) == found == read_allocation(found)
    assert found.summary and found.source


@pytest.mark.parametrize(
    "text",
    [
        "atp@spread=wide",
        "atp@spred=0.1",
        "owl@outlier",
        "owl@outlier=nan",
        "owl@outlier=-1",
        "owl@outlier=inf",
        "erk@a=1",
    ],
)
def test_parameters_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(SpecError, match="cannot be read") as caught:
        read_allocation(text)
    assert caught.value.where == f"allocation {text.partition('@')[0]}"
    assert text.partition("@")[2] in (caught.value.got or "")


def test_unknown_allocations_suggest_near_ones() -> None:
    with pytest.raises(SpecError, match="did you mean 'owl'"):
        read_allocation("owll")
