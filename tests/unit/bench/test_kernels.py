"""The benchmark of kernels: what its tables say, on small matrices; times are not tested."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import sparsescope as ss
from sparsescope.activations.capture import tokenized
from sparsescope.activations.context import Context
from sparsescope.bench.kernels import ANALYSIS, KernelsParams, numbers
from sparsescope.bench.kernels.compute import break_even, compute
from sparsescope.bench.kernels.inputs import consecutive, recorded_experts, recorded_inputs
from sparsescope.bench.kernels.statements import statements
from sparsescope.bench.kernels.views import several_tokens, speedups
from sparsescope.errors import KernelError, SpecError
from sparsescope.testing import check_figure

SMALL = {
    "shapes": ("96x200", "33x64"),
    "levels": (0.5, 0.9),
    "tokens": (2,),
    "block_ffn": "48x40x4",
    "repeats": 5,
    "cold_bytes": 0,
}


@pytest.fixture(scope="module")
def context():
    subject = ss.load("random-llama")
    return Context.of(subject=subject, text=tokenized(ss.corpus("python-docs", tokens=3000, seed=0), subject))


@pytest.fixture(scope="module")
def result(context):
    return compute(KernelsParams(**SMALL), context)


def test_every_table_is_there_and_each_backend_agrees_with_the_reference(result):
    assert set(result.tables) == set(ANALYSIS.tables)
    products = result.tables["products"]
    assert len(products) == 2 * 3 * 2 * 3  # shapes, types, caches, levels with 0
    assert products["error"].max() < 2e-5
    assert (result.tables["dense"]["seconds"] > 0).all()


def test_sparsity_is_what_was_dropped(context, result):
    """Counted again from the recorded inputs and the thresholds."""
    x = recorded_inputs(context, 200)
    edge = float(x.abs().flatten().quantile(0.5))
    products = result.tables["products"].query("shape == '96x200' and cache == 'warm' and target == 0.5")
    used = x[torch.arange(64) % 16, 0]
    assert np.allclose(products["sparsity"], float((used.abs() <= edge).double().mean()), atol=1e-6)
    assert (result.tables["products"].query("target == 0")["sparsity"] == 0).all()


def test_the_share_of_the_limit_is_speed_times_the_bytes_that_are_read(result):
    """Weights of 4, 2 and 1 bytes; int8 has a scale of 4 bytes for each output as well."""
    for name, outputs, inputs in (("products", 96, 200), ("several", 96, 200)):
        table = result.tables[name]
        table = table[table["shape"] == "96x200"] if "shape" in table else table
        for row in table.itertuples():
            size = {"float32": 4, "bfloat16": 2, "int8": 1}[row.stored]
            reads = (1 - row.sparsity) * outputs * inputs * size + (4 * outputs if size == 1 else 0)
            assert row.of_limit == pytest.approx(row.speedup * reads / (4 * outputs * inputs), rel=1e-9)


def test_a_wrong_kernel_is_not_timed(context, monkeypatch):
    from sparsescope.bench.kernels import compute as module

    right = module.shared_mask_gemm

    def wrong(x, weight, limits, *, rule, backend):
        made = right(x, weight, limits, rule=rule, backend=backend)
        return made if backend == "reference" else made * 1.01

    monkeypatch.setattr(module, "shared_mask_gemm", wrong)
    with pytest.raises(KernelError, match="other numbers than the reference"):
        compute(KernelsParams(**{**SMALL, "block_ffn": "", "shapes": ("33x64",)}), context)


def test_a_joint_mask_reads_no_more_than_the_union(result):
    several = result.tables["several"].set_index(["stored", "target", "rule"])["sparsity"]
    for stored in ("float32", "int8"):
        for level in (0.5, 0.9):
            assert several[stored, level, "joint"] >= several[stored, level, "own"] - 0.02


def test_the_best_dense_product_has_no_speedup_over_itself(result):
    dense = result.tables["dense"].query("cache == 'cold'")
    for _, rows in dense.groupby("shape"):
        floats = rows[rows["variant"].str.endswith("float32")]
        assert floats.loc[floats["seconds"].idxmin(), "speedup"] == pytest.approx(1)


def test_recorded_patterns_are_those_of_the_model():
    gates = recorded_experts("blockffn", 40)
    assert gates.shape == (16, 8, 40)
    zero = float((gates == 0).double().mean())
    assert 0.6 < zero < 0.95  # the model leaves out .86 of its experts on held-out text
    together = float((gates == 0).all(1).double().mean())
    assert together < zero


def test_other_experts_than_recorded_are_an_error():
    with pytest.raises(SpecError, match="another number of experts") as caught:
        recorded_experts("blockffn", 41)
    assert "WIDTHx40xUNITS" in caught.value.message()


def test_a_wider_matrix_than_the_model_has_units_is_an_error(context):
    with pytest.raises(SpecError, match="too few recorded inputs"):
        recorded_inputs(context, 4096)


def test_consecutive_rows_belong_to_one_document_and_to_one_group():
    position = np.array([*range(10), *range(20), *range(5)])
    found = consecutive(position)
    assert found == [1, 11, 19]
    assert all(position[at] > 0 and position[at + 7] == position[at] + 7 for at in found)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.0, 1.0), (0.5, 2.0)], 0.0),
        ([(0.0, 0.8), (0.5, 1.2)], 0.25),
        ([(0.0, 1.1), (0.3, 0.9), (0.5, 1.3)], 0.35),
        ([(0.0, 0.5), (0.9, 0.9)], math.nan),
    ],
)
def test_break_even(points, expected):
    assert break_even(points) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shapes": ("4096",)},
        {"shapes": ()},
        {"levels": (0.0,)},
        {"levels": (0.5, 0.5)},
        {"tokens": (9,)},
        {"tokens": (1,)},
        {"block_ffn": "1280x40"},
        {"backend": "auto"},
        {"stored": ("int4",)},
        {"repeats": 4},
    ],
)
def test_bad_parameters(wrong):
    with pytest.raises(ValidationError):
        KernelsParams(**wrong)


def test_levels_are_sorted():
    assert KernelsParams(levels=(0.9, 0.5)).levels == (0.5, 0.9)


def test_numbers():
    assert numbers("11008x4096", 2) == (11008, 4096)


def test_what_it_says_and_draws(result):
    said = statements(result)
    assert "96x200" in said[0].text and "float32" in said[0].text
    for shape in ("96x200", None):
        check_figure(speedups(result, shape))
    for tokens in (2, None):
        check_figure(several_tokens(result, tokens))
