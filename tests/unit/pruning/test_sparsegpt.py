"""SparseGPT is the optimal brain surgeon, column by column, and never fails silently."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sparsescope.errors import SpecError, SubjectError
from sparsescope.pruning import NM, Blocks, Rows, prune
from sparsescope.pruning.criteria.sparsegpt import (
    BLOCK,
    inverse_factor,
    least_squares_floor,
    reconstruction_error,
    score,
    solve,
)
from sparsescope.pruning.inputs import InputStatistics
from sparsescope.pruning.selection import compliance


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(x: torch.Tensor) -> InputStatistics:
    """The statistics of inputs [tokens, in], in float64."""
    return InputStatistics(len(x), None, x.T @ x)


def inputs(columns: int, tokens: int = 400, seed: int = 0, dead: tuple[int, ...] = ()) -> torch.Tensor:
    """Correlated inputs of very different sizes, [tokens, columns]."""
    mixed = drawn(tokens, columns, seed=seed) @ (drawn(columns, columns, seed=seed + 1) / columns**0.5)
    x = (mixed + 0.5 * drawn(tokens, 1, seed=seed + 2)) * torch.logspace(-1, 1, columns, dtype=torch.float64)
    x[:, list(dead)] = 0
    return x


def reference(
    weight: torch.Tensor, x: torch.Tensor, count: int, pattern: NM | None, damping: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """The same by inverting what is left of the Hessian densely, at every column."""
    w = weight.numpy().copy()
    columns = w.shape[1]
    hessian = (x.T @ x).numpy() / len(x)
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    w[:, dead] = 0
    hessian += damping * np.diag(hessian).mean() * np.eye(columns)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(columns)]
    gone, done = np.zeros(w.shape, bool), 0
    for j in range(columns):
        if pattern is None and j % 128 == 0:
            end = min(j + 128, columns)
            scores = w[:, j:end] ** 2 / np.array([inverses[k][0, 0] for k in range(j, end)])
            until = count if end == columns else math.ceil(count * end / columns)
            order = np.argsort(scores.reshape(-1), kind="stable")[: until - done]
            chosen = np.zeros(scores.size, bool)
            chosen[order] = True
            gone[:, j:end], done = chosen.reshape(scores.shape), until
        if pattern is not None and j % pattern.group == 0:
            end = j + pattern.group
            scores = w[:, j:end] ** 2 / np.array([inverses[k][0, 0] for k in range(j, end)])
            order = np.argsort(scores, axis=1, kind="stable")[:, : pattern.group - pattern.keep]
            np.put_along_axis(gone[:, j:end], order, True, axis=1)
        error = np.where(gone[:, j], w[:, j], 0) / inverses[j][0, 0]
        w[:, j:] -= error[:, None] * inverses[j][0]
        w[gone[:, j], j] = 0
    return ~gone, w


@pytest.mark.parametrize(
    ("rows", "columns", "sparsity", "pattern"),
    [
        (7, 1, 0.5, None),
        (5, 6, 0.5, None),
        (9, 64, 0.5, None),
        (9, 127, 0.3, None),
        (6, 128, 0.7, None),
        (6, 129, 0.5, None),
        (5, 270, 0.5, None),
        (5, 200, 0.01, None),
        (5, 200, 0.99, None),
        (9, 64, 0.5, NM(keep=2, group=4)),
        (5, 192, 0.5, NM(keep=4, group=8)),
        (5, 160, 0.4, NM(keep=3, group=5)),  # 5 does not divide 128
        (5, 192, 0.5, NM(keep=24, group=48)),
        (4, 260, 0.5, NM(keep=65, group=130)),  # a group is more than 128
        (4, 150, 0.2, NM(keep=120, group=150)),
    ],
)
def test_it_is_the_brain_surgeon_with_densely_inverted_hessians(
    rows: int, columns: int, sparsity: float, pattern: NM | None
) -> None:
    dead = (0, 3, 5) if columns in (6, 64, 160, 200) else ()
    weight, x = drawn(rows, columns, seed=3), inputs(columns, dead=dead)
    before = weight.clone()
    count = round(sparsity * weight.numel())
    found = solve(weight, read(x), count, pattern)
    keep, expected = reference(weight, x, count, pattern)
    assert (found.keep.numpy() == keep).all()
    assert np.abs(found.weight.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert found.damping == 0.01 and torch.equal(weight, before)
    assert not found.weight[~found.keep].any() and not found.weight[:, list(dead)].any()
    if pattern is None:
        assert int((~found.keep).sum()) == count
    else:
        assert compliance(found.keep, pattern) == 1.0
        grouped = found.keep.reshape(rows, -1, pattern.group)
        assert (grouped.sum(-1) == pattern.keep).all()


def test_float32_sweeps_agree_with_float64() -> None:
    weight, x = drawn(16, 200, seed=5), inputs(200)
    single = solve(weight.float(), read(x), 1600, None)
    double = solve(weight, read(x), 1600, None)
    assert single.weight.dtype == torch.float32
    assert (single.keep == double.keep).float().mean() > 0.999
    error = [reconstruction_error(weight, found.weight, read(x).gram).sum() for found in (single, double)]
    assert float(error[0]) == pytest.approx(float(error[1]), rel=1e-3)


def test_the_first_diagonal_elements_are_those_of_the_trailing_inverses() -> None:
    hessian = read(inputs(12)).gram
    assert hessian is not None
    hessian /= 400
    upper, dead, damping = inverse_factor(hessian, "m")
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert torch.allclose(upper.T @ upper, torch.linalg.inv(damped), rtol=1e-9)
    assert torch.equal(upper, upper.triu()) and not dead.any()
    for j in range(12):
        assert float(upper[j, j] ** 2) == pytest.approx(
            float(torch.linalg.inv(damped[j:, j:])[0, 0]), rel=1e-9
        )


def test_nothing_goes_at_zero_and_everything_at_one() -> None:
    weight, x = drawn(6, 140, seed=6), inputs(140)
    none, every = solve(weight, read(x), 0, None), solve(weight, read(x), weight.numel(), None)
    assert torch.equal(none.weight, weight) and none.keep.all()
    assert not every.weight.any() and not every.keep.any()


def test_under_uncorrelated_inputs_of_one_size_it_is_magnitude_in_blocks() -> None:
    weight = drawn(8, 2 * BLOCK, seed=7)
    found = solve(weight, InputStatistics(1, None, torch.eye(2 * BLOCK, dtype=torch.float64)), 1024, None)
    for part in (slice(0, BLOCK), slice(BLOCK, None)):
        size = weight[:, part].abs()
        assert size[found.keep[:, part]].min() > size[~found.keep[:, part]].max()
        assert int((~found.keep[:, part]).sum()) == 512
    assert torch.equal(found.weight[found.keep], weight[found.keep])  # nothing can make up for anything


def with_eigenvalue(share: float) -> InputStatistics:
    """A matrix with one eigenvalue that is negative by a share of its mean diagonal."""
    basis = torch.linalg.qr(drawn(16, 16, seed=8)).Q
    values = torch.ones(16, dtype=torch.float64)
    values[0] = 0
    values[0] = -share * 15 / (16 + share)
    hessian = basis @ values.diag() @ basis.T
    assert float(values[0] / hessian.diagonal().mean()) == pytest.approx(-share)
    return InputStatistics(3, None, 3 * (hessian + hessian.T) / 2)


@pytest.mark.parametrize(("share", "damping"), [(0.005, 0.01), (0.05, 0.1), (0.5, 1.0), (5.0, 10.0)])
def test_damping_grows_until_the_hessian_can_be_inverted(share: float, damping: float) -> None:
    weight, found = drawn(4, 16, seed=9), with_eigenvalue(share)
    solved = solve(weight, found, 32, None)
    assert solved.damping == pytest.approx(damping)
    assert solved.weight.isfinite().all() and int((~solved.keep).sum()) == 32


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "negative"])
def test_a_hessian_that_cannot_be_inverted_is_an_error_with_the_name_of_the_matrix(value: Any) -> None:
    found = with_eigenvalue(12.0 if value == "negative" else 0.0)
    assert found.gram is not None
    if value != "negative":
        found.gram[3, 3] = value
    with pytest.raises(SubjectError, match="cannot be inverted") as caught:
        solve(drawn(4, 16, seed=9), found, 32, None, "weight:blocks.7.attn.q.weight")
    assert caught.value.where == "weight:blocks.7.attn.q.weight" and "damping up to 10" in str(caught.value)
    assert caught.value.next_step is not None and "wanda" in caught.value.next_step


def test_equal_inputs_need_no_more_damping() -> None:
    x = inputs(20, tokens=6)  # fewer tokens than inputs, and twins
    x[:, 10:] = x[:, :10]
    solved = solve(drawn(4, 20, seed=10), read(x), 40, None)
    assert solved.damping == 0.01 and solved.weight.isfinite().all()


def test_the_damping_that_was_needed_is_a_note(
    subject: Any, monkeypatch: pytest.MonkeyPatch, text: Any
) -> None:
    import sparsescope.pruning.criteria.sparsegpt as module

    _, masks = prune(subject("random-llama"), "sparsegpt", 0.5, corpus=text, scope="attention")
    assert masks.facts["damping"] == 0.01 and not masks.notes
    monkeypatch.setattr(module, "DAMPING", 0.1)
    _, masks = prune(subject("random-llama"), "sparsegpt", 0.5, corpus=text, scope="attention")
    assert masks.facts["damping"] == 0.1
    assert len(masks.notes) == 1 and "damping of 0.1" in masks.notes[0]


def lstsq_errors(weight: torch.Tensor, keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Least ||x w' - x w||^2 of each row over weights with this mask, from the inputs themselves."""
    found = []
    for row, mask in zip(weight, keep, strict=True):
        target = x @ row
        fitted = np.linalg.lstsq(x[:, mask].numpy(), target.numpy(), rcond=None)[0] if mask.any() else None
        rest = target.numpy() - (0 if fitted is None else x[:, mask].numpy() @ fitted)
        found.append(float((rest**2).sum()))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["full", "dead", "twins", "few tokens"])
def test_the_floor_is_least_squares_and_below_every_solution(kind: str, seed: int) -> None:
    x = inputs(40, tokens=15 if kind == "few tokens" else 300, seed=20 * seed)
    if kind == "dead":
        x[:, [0, 7, 8, 30]] = 0
    if kind == "twins":
        x[:, 20:30] = x[:, :10]
    weight = drawn(12, 40, seed=seed + 100)
    found = solve(weight, read(x), weight.numel() // 2, None)
    gram = read(x).gram
    assert gram is not None
    floor = least_squares_floor(weight, found.keep, gram)
    scale = float(((x @ weight.T) ** 2).sum(0).max())
    assert torch.allclose(floor, lstsq_errors(weight, found.keep, x), rtol=1e-6, atol=1e-9 * scale)
    solved = reconstruction_error(weight, found.weight, gram)
    direct = ((x @ (found.weight - weight).T) ** 2).sum(0)
    assert torch.allclose(solved, direct, rtol=1e-6, atol=1e-9 * scale)
    assert (floor <= solved + 1e-9 * scale).all()
    # Row by row the sweep need not gain (specification 12.4), over a matrix it does on such inputs
    masked = reconstruction_error(weight, weight * found.keep, gram)
    assert float(solved.sum()) < float(masked.sum())


def test_the_floor_of_empty_and_of_full_rows() -> None:
    weight, x = drawn(3, 10, seed=1), inputs(10)
    keep = torch.ones(3, 10, dtype=torch.bool)
    keep[0] = False
    keep[2, 4] = False
    gram = read(x).gram
    assert gram is not None
    floor = least_squares_floor(weight, keep, gram)
    assert float(floor[0]) == pytest.approx(float(((x @ weight[0]) ** 2).sum()), rel=1e-9)
    assert float(floor[1]) == 0 and float(floor[2]) > 0


def test_saliencies_for_an_allocation_are_those_of_single_weights() -> None:
    weight, x = drawn(5, 24, seed=2), inputs(24)
    found = score(weight, read(x), torch.Generator())
    hessian = (x.T @ x) / len(x)
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    assert torch.allclose(found, weight.square() / torch.linalg.inv(hessian).diagonal(), rtol=1e-9)
    assert torch.equal(score(weight, InputStatistics(), torch.Generator()), weight.square())


@pytest.mark.parametrize("pattern", [Rows(), Blocks(2, 2)])
def test_whole_rows_and_blocks_are_refused_before_any_pass(pattern: Any, subject: Any, text: Any) -> None:
    with pytest.raises(SpecError, match="single weights or N:M") as caught:
        solve(drawn(4, 8, seed=1), read(inputs(8)), 16, pattern)
    assert caught.value.where == "pattern"
    told: list[str] = []
    with pytest.raises(SpecError, match="single weights or N:M"):
        prune(
            subject("random-llama"),
            "sparsegpt",
            0.5,
            pattern,
            corpus=text,
            progress=lambda phase, done, total: told.append(phase),
        )
    assert not told


@pytest.mark.parametrize("name", ["random-llama", "random-gpt2", "random-olmoe"])
def test_in_a_model_it_solves_what_each_block_reads_after_those_before_it(
    name: str, subject: Any, text: Any, by_hand: Any
) -> None:
    given = subject(name)
    sparse, masks = prune(given, "sparsegpt", 0.5, corpus=text)
    copy, better, compared = given.copy(), 0, 0
    for layer in range(given.n_layers):
        inputs_here = by_hand.captured(copy, text, layer)
        for matrix, x in inputs_here.items():
            weight, made = given.parameter(matrix).double(), sparse.parameter(matrix).double()
            gram = x.T @ x
            if matrix.endswith(("attn.q.weight", "attn.o.weight", "3.out.weight")):
                keep, expected = reference(weight, x, weight.numel() // 2, None)
                agree = (masks[matrix].array() == keep).all(1)  # a flipped tie changes the rest of its row
                assert agree.mean() > 0.97, matrix
                assert np.abs(made.numpy() - expected)[agree].max() < 1e-3 * np.abs(expected).max(), matrix
                compared += 1
            masked = reconstruction_error(weight, weight * masks[matrix].tensor(), gram).sum()
            better += bool(reconstruction_error(weight, made, gram).sum() < masked)
        for matrix in inputs_here:
            copy.parameter(matrix).copy_(sparse.parameter(matrix))
    assert better == len(masks) and compared >= given.n_layers


def test_kept_weights_of_dead_inputs_are_zero_and_nothing_else(text: Any, subject: Any, by_hand: Any) -> None:
    given = subject("random-opt")  # ReLU: some hidden units are never active on a short text
    short = by_hand.document_text((4,), stride=11)
    sparse, masks = prune(given, "sparsegpt", 0.1, corpus=short, propagation="dense")
    read_there = by_hand.captured(given, short)
    seen = 0
    for name, x in read_there.items():
        dead = ~x.any(0)
        weight, keep = sparse.parameter(name), masks[name].tensor()
        assert not weight[~keep].any() and not weight[:, dead].any()
        assert (weight != 0)[:, ~dead].equal(keep[:, ~dead]), name
        seen += int(keep[:, dead].sum())
    assert seen > 0
