"""Masks are kept to the bit, damage is found, and agreement is measured above chance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sparsescope.errors import ArtifactError, SpecError, SubjectError
from sparsescope.models import load
from sparsescope.pruning import MaskSet, PackedMask, overlap, prune
from sparsescope.pruning.masks import FACTS, MASKS, SCHEMA
from sparsescope.pruning.request import Request
from sparsescope.pruning.scope import choose
from sparsescope.pruning.workbench import Workbench

SHAPES = [(1, 1), (1, 7), (3, 3), (5, 8), (2, 4), (13, 17), (64, 1), (1, 65)]


def drawn(shape: tuple[int, int], density: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < density


def mask_set(arrays: list[np.ndarray]) -> MaskSet:
    return MaskSet({f"weight:blocks.{n}.attn.q.weight": PackedMask.of(a) for n, a in enumerate(arrays)})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_packing_gives_back_every_bit(shape: tuple[int, int], density: float) -> None:
    array = drawn(shape, density, seed=sum(shape))
    packed = PackedMask.of(array)
    assert (packed.array() == array).all() and packed.array().dtype == bool
    assert torch.equal(packed.tensor(), torch.from_numpy(array))
    assert packed.weights == array.size and packed.kept == array.sum()
    assert packed.sparsity == 1 - array.mean()
    assert packed.bits.nbytes == math.ceil(array.size / 8)
    assert PackedMask.of(torch.from_numpy(array)) == packed == PackedMask.of(torch.from_numpy(array.T).T)
    assert hash(PackedMask.of(array)) == hash(packed)


def test_masks_are_equal_where_shape_and_bits_are() -> None:
    array = drawn((4, 8), 0.5, 0)
    assert PackedMask.of(array) != PackedMask.of(~array)
    assert PackedMask.of(array) != PackedMask.of(array.reshape(8, 4))
    assert PackedMask.of(array) != "mask"


def test_a_mask_set_counts_over_its_matrices() -> None:
    arrays = [drawn(shape, 0.4, seed=n) for n, shape in enumerate(SHAPES)]
    found = mask_set(arrays)
    assert (len(found), list(found)) == (8, list(found.masks))
    assert found.weights == sum(a.size for a in arrays) and found.kept == sum(a.sum() for a in arrays)
    assert found.sparsity == pytest.approx(1 - found.kept / found.weights)
    assert found.bytes == sum(math.ceil(a.size / 8) for a in arrays)
    assert "matrices=8" in repr(found)
    with pytest.raises(SpecError, match=r"did you mean 'weight:blocks\.1\.attn\.q\.weight'"):
        found["weight:blocks.1.attn.q.wieght"]


def test_a_folder_gives_back_masks_facts_and_notes(tmp_path: Path, text: Any, subject: Any) -> None:
    _, masks = prune(subject("random-olmoe"), "wanda", 0.37, corpus=text, propagation="dense")
    kept = MaskSet(masks.masks, masks.facts, ("what a reader has to know", "möre"))
    kept.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {MASKS, FACTS}
    found = MaskSet.load(tmp_path)
    assert found.masks == kept.masks and list(found) == list(kept)
    assert found.facts == dict(kept.facts) and found.notes == kept.notes
    assert found.sparsity == kept.sparsity
    assert MaskSet.load(str(tmp_path)).masks == kept.masks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mask_set([drawn((13, 17), 0.5, 0), drawn((5, 8), 0.5, 1)]).save(tmp_path)
    return tmp_path


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / FACTS).read_text())
    content = change(content) or content
    (folder / FACTS).write_text(json.dumps(content))


def bits(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    found = {name: array.copy() for name, array in load_file(folder / MASKS).items()}
    change(found)
    save_file(found, folder / MASKS)


Q0, Q1 = "weight:blocks.0.attn.q.weight", "weight:blocks.1.attn.q.weight"


def flip(found: dict[str, np.ndarray], name: str, place: int, bit: int) -> None:
    found[name][place] ^= bit


def beyond(found: dict[str, np.ndarray]) -> None:
    """Move a bit from inside of 13 x 17 = 221 bits to the three after the last one; the count stays."""
    first = int(np.flatnonzero(found[Q0] & 0x80)[0])
    found[Q0][first] ^= 0x80
    found[Q0][-1] ^= 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / FACTS).unlink(),
        lambda f: (f / MASKS).unlink(),
        lambda f: (f / FACTS).write_bytes(b""),
        lambda f: (f / FACTS).write_bytes(b"\xff\xfe{"),
        lambda f: (f / FACTS).write_bytes((f / FACTS).read_bytes()[:-20]),
        lambda f: (f / FACTS).write_text("[" * 200 + "]" * 200),
        lambda f: (f / FACTS).write_text("[]"),
        lambda f: (f / FACTS).write_text("null"),
        lambda f: (f / MASKS).write_bytes(b""),
        lambda f: (f / MASKS).write_bytes((f / MASKS).read_bytes()[:-3]),
        lambda f: (f / MASKS).write_bytes(b"\xff" * 8 + (f / MASKS).read_bytes()[8:]),
        lambda f: rewritten(f, lambda c: c.pop("schema_version")),
        lambda f: rewritten(f, lambda c: c.update(schema_version="1")),
        lambda f: rewritten(f, lambda c: c.update(schema_version=SCHEMA + 1)),
        lambda f: rewritten(f, lambda c: c.pop("facts")),
        lambda f: rewritten(f, lambda c: c.update(facts=[1])),
        lambda f: rewritten(f, lambda c: c.update(notes="a note")),
        lambda f: rewritten(f, lambda c: c.update(notes=None)),
        lambda f: rewritten(f, lambda c: c.update(matrices={})),
        lambda f: rewritten(f, lambda c: c.update(matrices=[Q0])),
        lambda f: rewritten(f, lambda c: c["matrices"].update({Q0: 3})),
        lambda f: rewritten(
            f, lambda c: c["matrices"].update({"weight:blocks.9.attn.q.weight": c["matrices"][Q0]})
        ),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].pop("kept")),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(kept=0)),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[13])),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[13, 17, 1])),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[-13, -17])),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[0, 17])),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[13.0, 17.0])),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[13, 170])),
        lambda f: rewritten(f, lambda c: c["matrices"][Q0].update(shape=[10**12, 10**12])),
        lambda f: bits(f, lambda b: b.pop(Q1)),
        lambda f: bits(f, lambda b: b.update({Q1: b[Q1][:-1]})),
        lambda f: bits(f, lambda b: b.update({Q1: b[Q1].reshape(1, -1)})),
        lambda f: bits(f, lambda b: b.update({Q1: b[Q1].astype(np.int32)})),
        lambda f: bits(f, lambda b: flip(b, Q1, 2, 16)),
        lambda f: bits(f, beyond),
    ],
)
def test_damage_is_an_artifact_error_that_names_the_folder(
    damage: Callable[[Path], Any], folder: Path
) -> None:
    MaskSet.load(folder)
    damage(folder)
    with pytest.raises(ArtifactError) as caught:
        MaskSet.load(folder)
    assert str(folder) in (caught.value.where or "") and caught.value.next_step


def test_a_newer_version_says_so(folder: Path) -> None:
    rewritten(folder, lambda c: c.update(schema_version=SCHEMA + 1))
    with pytest.raises(ArtifactError, match="newer version"):
        MaskSet.load(folder)
    with pytest.raises(ArtifactError, match="the folder has no masks"):
        MaskSet.load(folder / "elsewhere")


@pytest.mark.parametrize("name", ["random-gpt2", "random-mixtral"])
def test_masks_are_applied_to_another_copy(name: str, text: Any) -> None:
    given = load(name)
    sparse, masks = prune(given, "wanda", 0.5, corpus=text)
    other = load(name)
    masks.apply(other)
    masks.apply(other)  # again changes nothing
    assert other.identity.weight_hash == sparse.identity.weight_hash
    for matrix in masks:
        weight = other.parameter(matrix)
        assert not torch.signbit(weight[weight == 0]).any()


def test_masks_of_another_model_are_refused_and_nothing_is_written() -> None:
    _, masks = prune(load("random-gpt2"), sparsity=0.5)
    other = load("random-llama")
    before = other.identity.weight_hash
    with pytest.raises(SpecError, match="another shape") as caught:
        masks.apply(other)
    assert caught.value.where in masks.masks
    missing = MaskSet({"weight:blocks.0.attn.q.weight": PackedMask.of(np.zeros((64, 64), bool)),
                       "weight:blocks.9.attn.q.weight": PackedMask.of(np.zeros((64, 64), bool))})  # fmt: skip
    with pytest.raises(SubjectError):
        missing.apply(other)
    pattern = MaskSet({"weight:blocks.*.attn.q.weight": PackedMask.of(np.zeros((64, 64), bool))})
    with pytest.raises(SpecError, match="the name of no matrix"):
        pattern.apply(other)
    assert other.identity.weight_hash == before


# --- agreement


def overlap_by_hand(first: list[np.ndarray], second: list[np.ndarray]) -> dict[str, float]:
    """Of arrays, matrix by matrix."""
    n = sum(a.size for a in first)
    agree = sum((a == b).sum() for a, b in zip(first, second, strict=True)) / n
    chance = sum(
        (a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())) * a.size
        for a, b in zip(first, second, strict=True)
    )
    both = sum((~a & ~b).sum() for a, b in zip(first, second, strict=True))
    either = sum((~a | ~b).sum() for a, b in zip(first, second, strict=True))
    return {
        "agreement": agree,
        "kappa": (agree - chance / n) / (1 - chance / n),
        "pruned_jaccard": both / either,
    }


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_its_definition(seed: int) -> None:
    first = [drawn(shape, 0.2 + 0.1 * n, 10 * seed + n) for n, shape in enumerate(SHAPES)]
    second = [a ^ drawn(a.shape, 0.2, 99 + n) for n, a in enumerate(first)]
    found = overlap(mask_set(first), mask_set(second))
    for name, value in overlap_by_hand(first, second).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-12), name
    same = overlap(mask_set(second), mask_set(first))
    assert (same.kappa, same.pruned_jaccard) == (found.kappa, found.pruned_jaccard)


@pytest.mark.parametrize("densities", [(0.5, 0.5), (0.9, 0.9), (0.7, 0.3)])
def test_independent_masks_agree_by_chance_and_equal_ones_fully(densities: tuple[float, float]) -> None:
    arrays = [[drawn((400, 500), d, 10 * n + seed) for seed in (0, 1)] for n, d in enumerate(densities)]
    first, second = mask_set(arrays[0]), mask_set(arrays[1])
    found = overlap(first, second)
    assert abs(found.kappa) < 0.01
    a, b = (1 - density for density in densities)
    assert found.jaccard_by_chance == pytest.approx(a * b / (a + b - a * b), abs=5e-3)
    assert found.pruned_jaccard == pytest.approx(found.jaccard_by_chance, abs=5e-3)
    assert found.agreement == pytest.approx(a * b + (1 - a) * (1 - b), abs=5e-3)
    same = overlap(first, first)
    assert (same.agreement, same.kappa, same.pruned_jaccard) == (1.0, 1.0, 1.0)
    inverse = overlap(first, mask_set([~array for array in arrays[0]]))
    assert inverse.agreement == 0 and inverse.kappa < -0.05 and inverse.pruned_jaccard == 0


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7])
def test_random_masks_of_models_agree_by_chance(sparsity: float, subject: Any) -> None:
    one, other = (prune(subject("random-llama"), "random", sparsity, seed=seed)[1] for seed in (0, 1))
    found = overlap(one, other)
    assert abs(found.kappa) < 0.012  # 138,240 weights: four standard errors
    expected = {0.1: 0.0526, 0.5: 0.3333, 0.7: 0.5385}[sparsity]  # s / (2 - s)
    assert found.jaccard_by_chance == pytest.approx(expected, abs=1e-3)
    assert found.pruned_jaccard == pytest.approx(expected, abs=0.012)


def test_chance_is_taken_matrix_by_matrix() -> None:
    """Two masks that agree only in how much each matrix loses do not agree."""
    densities = (0.05, 0.95)
    sets = [mask_set([drawn((300, 300), d, 7 * k + n) for n, d in enumerate(densities)]) for k in (0, 1)]
    assert abs(overlap(*sets).kappa) < 0.01
    pooled = [np.concatenate([sets[k][name].array() for name in sets[k]]) for k in (0, 1)]
    assert overlap(mask_set(pooled[:1]), mask_set(pooled[1:])).kappa > 0.7


def test_chance_of_the_jaccard_is_that_of_shuffled_masks() -> None:
    first = [drawn((20, 30), density, n) for n, density in enumerate((0.2, 0.6, 0.9))]
    second = [drawn((20, 30), density, 9 + n) for n, density in enumerate((0.3, 0.6, 0.7))]
    generator = np.random.default_rng(0)
    both = either = 0
    for _ in range(300):
        for a, b in zip(first, second, strict=True):
            shuffled = generator.permutation(b.reshape(-1)).reshape(b.shape)
            both += (~a & ~shuffled).sum()
            either += (~a | ~shuffled).sum()
    found = overlap(mask_set(first), mask_set(second))
    assert found.jaccard_by_chance == pytest.approx(both / either, abs=3e-3)


def test_agreement_of_masks_that_keep_all_or_nothing_has_no_kappa() -> None:
    full, empty = mask_set([np.ones((3, 3), bool)]), mask_set([np.zeros((3, 3), bool)])
    assert math.isnan(overlap(full, full).kappa) and math.isnan(overlap(full, full).pruned_jaccard)
    assert math.isnan(overlap(empty, empty).kappa) and overlap(empty, empty).pruned_jaccard == 1
    assert overlap(full, empty).kappa == 0 and overlap(full, empty).agreement == 0


def test_wanda_is_magnitude_in_rows_where_all_inputs_have_one_norm(subject: Any, text: Any) -> None:
    """Here a hook makes every input of an MLP 1 or -1."""
    given = load("random-llama")
    mlp = given.model.model.layers[1].mlp
    mlp.register_forward_pre_hook(lambda module, args: (torch.where(args[0] >= 0, 1.0, -1.0),))
    work = Workbench(
        given, choose(given, ["weight:blocks.1.mlp.gate.weight", "weight:blocks.1.mlp.in.weight"])
    )
    wanda = work.prune(Request.of("wanda", 0.5, propagation="dense"), text)
    for name in wanda:
        weight = given.parameter(name).abs()
        gone = weight.argsort(dim=1, stable=True)[:, :32]
        rows = torch.ones_like(weight, dtype=torch.bool).scatter(1, gone, False)
        assert overlap(wanda, MaskSet({name: PackedMask.of(rows)}), [name]).kappa == 1


def test_masks_that_cannot_be_compared_are_refused() -> None:
    first, second = (mask_set([drawn((4, 8), 0.5, n), drawn((3, 3), 0.5, n)]) for n in (0, 1))
    fewer = MaskSet({Q0: first[Q0]})
    with pytest.raises(SpecError, match="cover different matrices"):
        overlap(first, fewer)
    assert overlap(first, fewer, [Q0]).kappa == 1
    with pytest.raises(SpecError, match="did you mean"):
        overlap(first, fewer, [Q1])
    with pytest.raises(SpecError, match="different shapes"):
        overlap(first, MaskSet({Q0: PackedMask.of(first[Q0].array().reshape(8, 4)), Q1: second[Q1]}))
    with pytest.raises(SpecError, match="no masks to compare"):
        overlap(first, second, [])
