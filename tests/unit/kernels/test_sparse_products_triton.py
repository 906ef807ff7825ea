"""The Triton programs of sparse products: interpreted against float64, and compiled for a GPU without one."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparsescope.errors import KernelError
from sparsescope.kernels.sparse_gemv import sparse_gemv
from sparsescope.kernels.weight_rows import rows_by_channel

TESTS = Path(__file__).resolve().parents[2]
KERNELS = TESTS.parent / "sparsescope" / "kernels"
FILES = [KERNELS / f"sparse_products_{name}.py" for name in ("programs", "triton")]
PARITY = (
    "gemv_grid",
    "token_grid",
    "segments",
    "stacked_with_bias",
    "gpu_blocks",
    "experts",
)


def answer(file, cache, interpreted):
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpreted)), "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, TESTS / "fixtures" / file],
        capture_output=True,
        text=True,
        timeout=250,
        env=environment,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """What the checks found, in a process of its own: a wrong address would end it."""
    return answer("triton_parity.py", tmp_path_factory.mktemp("cache"), interpreted=True)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The programs compiled for compute capability 9.0; no GPU is needed for it."""
    return answer("triton_compiled.py", tmp_path_factory.mktemp("cache"), interpreted=False)


@pytest.mark.parametrize("check", PARITY)
def test_products_equal_float64(checks, check):
    wrong = [record for record in checks[check] if not record["error"] <= 1e-5]
    assert not wrong, f"{len(wrong)} of {len(checks[check])}: {wrong[:5]}"
    assert all(record.get("apart", 1) > 1e-6 for record in checks[check])  # no mask is a matter of rounding


def test_grids_cover_what_they_are_to_cover(checks):
    assert len(checks["gemv_grid"]) == 96 and len(checks["token_grid"]) == 48
    for record in checks["gemv_grid"]:
        inputs, share = record["case"][1], record["case"][3]
        if inputs > 1:
            assert record["dropped"] == pytest.approx(share or 0, abs=1 / inputs), record
    for check, shares in (("gemv_grid", 15), ("token_grid", 15)):
        assert len({(record["case"][0], record["case"][-1]) for record in checks[check]}) == shares, check
    assert {record["used"] for record in checks["experts"]} >= {0} and max(
        record["used"] for record in checks["experts"]
    ) > 80


def test_parts_share_the_steps_equally(checks):
    for record in checks["parts_are_equal"]:
        lows, highs = zip(*record["taken"], strict=True)
        sizes = [high - low for low, high in record["taken"]]
        assert lows[0] == 0 and highs[-1] == record["steps"] and lows[1:] == highs[:-1], record
        assert max(sizes) - min(sizes) <= 1, record


def test_a_nan_is_not_hidden(checks):
    found = {record["case"]: record for record in checks["not_a_number"]}
    for case in ("one token", "infinite limit"):
        assert found.pop(case)["nan"] == [True], case
    for case, record in found.items():
        assert record["nan"] == [False, True, False] and record["finite"] == [True, False, True], case


def test_dropped_rows_are_not_used(checks):
    for record in checks["dropped_rows_are_not_used"]:
        assert record["same"] and record["dropped"] > 40, record


def test_results_and_workspaces_do_not_depend_on_the_run(checks):
    for record in checks["again"]:
        assert record["same"], f"{record['case']}: two runs differ, or one read what none wrote"
        assert not record["other"], record["case"]  # it is the products that are compared
        spaces = record["spaces"]
        assert spaces[0] and all(space == spaces[0] for space in spaces), record["case"]


def test_what_no_program_writes_is_seen(checks):
    for record in checks["unwritten"]:
        assert not record["finite"], record["case"]


def test_programs_compile_for_a_gpu(compiled):
    assert {record["program"] for record in compiled["programs"]} == {
        "select_segment",
        "join_segments",
        "add_kept_rows",
        "add_parts",
        "weigh_kept_rows",
    }
    for record in compiled["programs"]:
        assert record["spilled"] == 0 and record["registers"] > 0, record
        assert not record["atomics"] and record["bfloat16_sums"] == 0, record
    for record in compiled["programs"]:
        if record["program"] in ("add_kept_rows", "weigh_kept_rows"):
            assert record["wide_loads"] > 0, f"weights are not loaded 16 bytes at once: {record}"
            assert record["offsets"] == 64, "rows times length passes 2^31 in a vocabulary of 262144"


def test_programs_that_were_loaded_for_a_gpu_say_so(compiled):
    assert compiled["refused"][0] == "KernelError" and "before the process starts" in compiled["refused"][1]


def test_without_the_interpreter_a_cpu_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(KernelError, match="TRITON_INTERPRET=1"):
        sparse_gemv(torch.ones(3), rows_by_channel([torch.ones(2, 3)]), 0.5, backend="triton")


def calls(tree, *names):
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"tl.{name}" for name in names}
    ]


def test_weights_become_float32_as_they_are_loaded():
    """The interpreter keeps bfloat16 as integers: arithmetic before a cast is wrong without a word."""
    tree = ast.parse(FILES[0].read_text())
    cast = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".to") and node.args
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.args[0]) == "tl.float32"
    }
    weights = [call for call in calls(tree, "load") if "data" in ast.unparse(call.args[0])]
    assert weights and all(id(call) in cast for call in weights)


def test_every_load_and_store_is_masked():
    """Only the numbers of what is kept are single: there is one for each program, or one for all."""
    for call in calls(ast.parse(FILES[0].read_text()), "load", "store"):
        masked = any(keyword.arg == "mask" for keyword in call.keywords)
        assert masked or ast.unparse(call.args[0]) in ("count", "counts + segment"), ast.unparse(call)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_waits_for_the_device(file):
    """A CUDA graph cannot record what reads a number back; atomics would make sums depend on the order."""
    used = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
    used |= {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
    waiting = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize", "any", "all", "equal"}
    unordered = {name for name in used if name.startswith("atomic")} | {"autotune", "sort", "argsort", "topk"}
    assert not used & (waiting | unordered)
