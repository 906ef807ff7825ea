"""Damaged and hostile runs: refused with a message, or read as they were. Seeded; each bounded
in time and memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsescope.cli import listing
from sparsescope.core.columns import Column
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result, Tensor
from sparsescope.core.run_store import Store
from sparsescope.core.sealed import seal_of
from sparsescope.core.spec import Spec
from sparsescope.errors import SparsescopeError
from sparsescope.reporting.compare import compare
from sparsescope.reporting.sections import section
from sparsescope.testing import check_same_numbers

LAYER, LABEL, VALUE = (
    Column("layer", "layer", "Layer."),
    Column("label", "label", "Name."),
    Column("value", "fraction", "Share."),
)


def small_result():
    made = Result("borrowed")
    made.add_scalar("density", 0.25, "fraction", "Share.", interval=Interval(0.2, 0.3, 0.95, "bootstrap", 7))
    made.add_scalar("count", 12, "count", "Number.")
    made.add_scalar("none", float("nan"), "", "Not defined.")
    frame = pd.DataFrame({"layer": [0, 1, 2], "label": ["a", "b", "a"], "value": [0.5, 0.25, float("nan")]})
    made.add_table("first", frame, (LAYER, LABEL, VALUE))
    made.add_table("second", frame.assign(value=[0.1, 0.2, 0.3]), (LAYER, LABEL, VALUE))
    made.tensors["weights"] = Tensor(("layer", "neuron"), np.arange(6, dtype=np.float32).reshape(2, 3))
    made.note("warning", "Mind this.", "density")
    return made


@pytest.fixture(scope="module")
def sound(tmp_path_factory, synthetic):
    """The folder of a sound run."""
    spec = Spec(
        analysis="borrowed", version="1", params={"seed": 0, "sites": ["a"]},
        subject=synthetic.subject_identity(), corpus=synthetic.corpus_description(),
    )  # fmt: skip
    environment = {"packages": {"torch": "2"}, "cores": 2}
    return Store(tmp_path_factory.mktemp("sound")).write(
        small_result(), spec, seconds=1.5, environment=environment, command="run"
    )


@pytest.fixture
def run(sound, tmp_path):
    """A copy of the run to be damaged, with a neighbor that must not be touched."""
    (tmp_path / "neighbor.txt").write_text("precious")
    return shutil.copytree(sound, tmp_path / "runs" / sound.name)


def manifest_of(run):
    return json.loads((run / "manifest.json").read_bytes())


def reseal(run, document):
    """Write a manifest as a forger would: with a seal that fits."""
    if isinstance(document, dict):
        with contextlib.suppress(ValueError, RecursionError):
            document = document | {"seal": seal_of(document)}
    (run / "manifest.json").write_text(json.dumps(document))


def recount(run, name):
    """Give a changed file the size and checksum that the manifest states."""
    document, data = manifest_of(run), (run / name).read_bytes()
    for entry in (*document["tables"].values(), *document["files"]):
        if entry["file"] == name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(run, document)


def opened(run):
    """The run with its tensors, which are read and checked when they are first used."""
    found = Store(run.parent).open(run.name)
    for tensor in found.tensors.values():
        assert tensor.array is tensor.array
    return found


def read(mutate, run, tmp_path):
    """Open the run; what is accepted must also be shown without an error."""
    found, refusal = mutate.attempt(lambda: opened(run), tmp_path)
    verdict, _ = mutate.attempt(Store(run.parent).verify, tmp_path)
    if refusal is None:
        with mutate.bounded():
            section(found, "s")
            json.dumps(listing._describe_run(found), default=str)
            listing.text(listing._describe_run(found))
            listing.comparison_text(compare(found, found))
            found._repr_html_()
    else:
        assert "internal" not in refusal.what
    assert len(verdict) <= 1
    return found, refusal


@pytest.mark.parametrize("seed", range(120))
def test_a_changed_manifest(mutate, run, tmp_path, seed):
    document = manifest_of(run)
    changed, what = mutate.mutate_json(document, Random(seed))
    mutate.write_json(run / "manifest.json", changed)
    found, refusal = read(mutate, run, tmp_path)
    if refusal is None:
        assert changed == document or what.startswith(("remove seal", "set seal")), what
        check_same_numbers(small_result(), found)
    reseal(run, changed)  # now the seal says nothing
    read(mutate, run, tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_of_a_manifest(mutate, run, tmp_path, seed):
    before = (run / "manifest.json").read_bytes()
    after = mutate.mutate_bytes(before, Random(seed))
    (run / "manifest.json").write_bytes(after)
    found, refusal = read(mutate, run, tmp_path)
    if refusal is None:
        assert json.loads(after) == json.loads(before)
        check_same_numbers(small_result(), found)


@pytest.mark.parametrize("name", ["tables/first.parquet", "tensors/weights.safetensors", "events.jsonl"])
@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_of_a_run(mutate, run, tmp_path, seed, name):
    before = (run / name).read_bytes()
    after = mutate.mutate_bytes(before or b"\0", Random(f"{seed}{name}"))
    (run / name).write_bytes(after)
    _, refusal = read(mutate, run, tmp_path)
    assert (refusal is None) == (after == before)
    recount(run, name)  # a forger would; then the contents have to stand for themselves
    read(mutate, run, tmp_path)


HARMLESS = {
    "order of the keys": lambda text: json.dumps(dict(reversed(json.loads(text).items()))),
    "spaces": lambda text: json.dumps(json.loads(text), indent=7, separators=(" ,", " : ")),
    "escapes": lambda text: json.dumps(json.loads(text), ensure_ascii=True),
    "byte order mark": lambda text: "\ufeff" + text,
    "no seal": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "seal"}),
}
HOSTILE = {
    "a key twice": lambda text: text.replace('"seconds"', '"seconds": 1, "seconds"', 1),
    "an inner key twice": lambda text: text.replace('"value": 0.25', '"value": 0.75, "value": 0.25', 1),
    "NaN": lambda text: text.replace("0.25", "NaN", 1),
    "infinity": lambda text: text.replace("0.25", "-Infinity", 1),
    "a number of many digits": lambda text: text.replace("0.25", "1" * 5000, 1),
    "deep lists": lambda text: text.replace(
        '"params": {', '"params": {"a": ' + "[" * 5000 + "]" * 5000 + ",", 1
    ),
    "rather deep lists": lambda text: text.replace(
        '"params": {', '"params": {"a": ' + "[" * 400 + "]" * 400 + ",", 1
    ),
    "deep objects": lambda text: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "too large": lambda text: text + " " * (6 * 1024 * 1024),
    "two documents": lambda text: text + text,
    "a comment": lambda text: "// hello\n" + text,
    "a trailing comma": lambda text: text.rstrip().removesuffix("}") + ",}",
    "a list": lambda text: f"[{text}]",
    "nothing": lambda text: "",
    "true for a number": lambda text: text.replace('"value": 0.25', '"value": true', 1),
    "text for a number": lambda text: text.replace('"value": 0.25', '"value": "0.25"', 1),
    "another number": lambda text: text.replace('"value": 0.25', '"value": 0.26', 1),
    "another note": lambda text: text.replace("Mind this.", "Never mind", 1),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_another_spelling_of_the_same_manifest_is_accepted(mutate, run, tmp_path, name):
    path = run / "manifest.json"
    path.write_text(HARMLESS[name](path.read_text()))
    found, refusal = read(mutate, run, tmp_path)
    assert refusal is None
    check_same_numbers(small_result(), found)
    assert found.notes == small_result().notes and found.columns == small_result().columns


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_that_can_be_read_in_two_ways_is_refused(mutate, run, tmp_path, name):
    path = run / "manifest.json"
    changed = HOSTILE[name](path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    assert read(mutate, run, tmp_path)[1] is not None


def edits(document):
    """Changes that a forger seals, by name."""
    table, tensor, spec = document["tables"]["first"], document["tensors"]["weights"], document["spec"]
    return {
        "newer schema": lambda: document.update(schema_version=3),
        "unknown field": lambda: document.update(surprise=1),
        "unknown field of a number": lambda: document["scalars"][0].update(surprise=1),
        "unknown field of a column": lambda: table["columns"][0].update(surprise=1),
        "unknown kind of column": lambda: table["columns"][0].update(kind="surprise"),
        "unknown severity": lambda: document["notes"][0].update(severity="fatal"),
        "parent folder": lambda: table.update(file="../neighbor.txt"),
        "hidden parent folder": lambda: table.update(file="tables/../../neighbor.txt"),
        "absolute path": lambda: table.update(file="/etc/passwd"),
        "backslashes": lambda: table.update(file="..\\..\\neighbor.txt"),
        "NUL in a path": lambda: table.update(file="tables/first.parquet\0"),
        "long path": lambda: table.update(file="x" * 5000),
        "name of a table": lambda: document["tables"].update({"../x": document["tables"].pop("first")}),
        "name of a tensor": lambda: document["tensors"].update({"a\0b": document["tensors"].pop("weights")}),
        "tensor without checksum": lambda: document.update(
            files=[f for f in document["files"] if "tensors" not in f["file"]]
        ),
        "tensor that is no tensor": lambda: tensor.update(file="events.jsonl"),
        "shape": lambda: tensor.update(shape=[3, 2]),
        "dimensions": lambda: tensor.update(dims=["layer"]),
        "dtype": lambda: tensor.update(dtype="float64"),
        "negative rows": lambda: table.update(rows=-3),
        "swapped columns": lambda: table["columns"].reverse(),
        "column twice": lambda: table["columns"].append(table["columns"][0]),
        "number twice": lambda: document["scalars"].append(document["scalars"][0]),
        "true for a number": lambda: document["scalars"][0].update(value=True),
        "no digest": lambda: spec["corpus"].pop("digest"),
        "weights hash": lambda: spec["subject"].update(weight_hash=7),
        "parameters": lambda: spec["subject"].update(n_parameters="many"),
        "seed": lambda: spec["params"].update(seed=1),
        "run": lambda: document.update(run_id="borrowed-000000000000"),
        "analysis": lambda: spec.update(analysis="../x"),
    }


NAMES = list(edits({"tables": {"first": {}}, "tensors": {"weights": {}}, "spec": {}}))


@pytest.mark.parametrize("name", NAMES)
def test_a_forged_manifest_is_refused(mutate, run, tmp_path, name):
    document = manifest_of(run)
    edits(document)[name]()
    reseal(run, document)
    assert read(mutate, run, tmp_path)[1] is not None


def swap_tables(run):
    first, second = (run / "tables" / f"{name}.parquet" for name in ("first", "second"))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def relink(run, name, target):
    (run / name).unlink()
    (run / name).symlink_to(target)


def outside(run, name):
    """Replace a file by a link to a copy of it outside the run."""
    copy = run.parent.parent / "outside"
    copy.write_bytes((run / name).read_bytes())
    relink(run, name, copy)


def pipe(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)


def folder(run, name):
    (run / name).unlink()
    (run / name).mkdir()


ENTRIES = {
    "swapped tables": swap_tables,
    "linked table": lambda run: outside(run, "tables/first.parquet"),
    "linked manifest": lambda run: outside(run, "manifest.json"),
    "table that is its own link": lambda run: relink(run, "tables/first.parquet", "first.parquet"),
    "endless table": lambda run: relink(run, "tables/first.parquet", "/dev/zero"),
    "endless manifest": lambda run: relink(run, "manifest.json", "/dev/zero"),
    "pipe for a table": lambda run: pipe(run, "tables/first.parquet"),
    "pipe for a manifest": lambda run: pipe(run, "manifest.json"),
    "folder for a table": lambda run: folder(run, "tables/first.parquet"),
    "folder for a manifest": lambda run: folder(run, "manifest.json"),
    "linked folder": lambda run: (
        (run / "tables").rename(run.parent.parent / "t") and (run / "tables").symlink_to("../../t")
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_files_that_are_not_what_they_seem_are_refused(mutate, run, tmp_path, name):
    ENTRIES[name](run)
    assert read_refused(mutate, run, tmp_path)


def read_refused(mutate, run, tmp_path):
    return mutate.attempt(lambda: opened(run), tmp_path)[1] is not None


TABLES = {
    "other columns": pa.table({"layer": [0], "label": ["a"], "other": [1.0]}),
    "fewer rows": pa.table({"layer": [0], "label": ["a"], "value": [1.0]}),
    "lists": pa.table({"layer": [[0], [1], [2]], "label": ["a"] * 3, "value": [1.0] * 3}),
    "records": pa.table({"layer": [{"a": 1}] * 3, "label": ["a"] * 3, "value": [1.0] * 3}),
    "bytes": pa.table({"layer": [0, 1, 2], "label": [b"\xff"] * 3, "value": [1.0] * 3}),
    "an index that hides a column": pa.table(
        {"layer": [0, 1, 2], "label": ["a"] * 3, "value": [1.0] * 3}
    ).replace_schema_metadata(
        {"pandas": json.dumps({"index_columns": ["layer"], "columns": [], "column_indexes": []})}
    ),
    "broken notes for pandas": pa.table(
        {"layer": [0, 1, 2], "label": ["a"] * 3, "value": [1.0] * 3}
    ).replace_schema_metadata({"pandas": "{"}),
}


@pytest.mark.parametrize("name", TABLES)
def test_other_tables_with_checksums_that_fit_are_refused(mutate, run, tmp_path, name):
    pq.write_table(TABLES[name], run / "tables" / "first.parquet")
    recount(run, "tables/first.parquet")
    assert read_refused(mutate, run, tmp_path)


def test_a_small_file_with_very_many_rows_is_refused_before_it_is_read(mutate, run, tmp_path):
    part = pa.table(
        {
            "layer": np.zeros(2_000_000, np.int64),
            "label": pa.array(["a"] * 2_000_000),
            "value": np.zeros(2_000_000),
        }
    )
    with pq.ParquetWriter(run / "tables" / "first.parquet", part.schema) as writer:
        for _ in range(10):
            writer.write_table(part)
    assert (run / "tables" / "first.parquet").stat().st_size < 1_000_000
    document = manifest_of(run)
    document["tables"]["first"]["rows"] = 20_000_000
    reseal(run, document)
    recount(run, "tables/first.parquet")
    assert read_refused(mutate, run, tmp_path)


NUMBERS = {
    "mixed": pa.table({"layer": ["x", None, "2"], "label": [1, 2, 3], "value": ["a", "b", None]}),
    "empty cells": pa.table({"layer": pa.nulls(3), "label": pa.nulls(3), "value": pa.nulls(3)}),
    "extreme": pa.table(
        {"layer": [-(2**63), 2**63 - 1, 0], "label": ["a"] * 3, "value": [1.7e308, -1.7e308, float("inf")]}
    ),
    "dates": pa.table(
        {"layer": pa.array([0, 1, 2], pa.timestamp("ns")), "label": ["a"] * 3, "value": [1.0] * 3}
    ),
    "truth values": pa.table(
        {"layer": [True, False, None], "label": [True, False, True], "value": [True, False, True]}
    ),
    "dictionaries": pa.table(
        {"layer": [0, 1, 2], "label": pa.array(["a", "b", "a"]).dictionary_encode(), "value": [1.0] * 3}
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_odd_columns_are_refused_or_shown(mutate, run, tmp_path, name):
    pq.write_table(NUMBERS[name], run / "tables" / "first.parquet")
    recount(run, "tables/first.parquet")
    read(mutate, run, tmp_path)


def test_the_guard_finds_what_it_guards_against(mutate, tmp_path):
    with pytest.raises(MemoryError):
        mutate.attempt(lambda: np.ones(2**28), tmp_path)
    with pytest.raises(AssertionError):
        mutate.attempt(lambda: (tmp_path / "new").touch(), tmp_path)
    with pytest.raises(AssertionError):
        mutate.attempt(lambda: (_ for _ in ()).throw(SparsescopeError("nothing else is said")), tmp_path)
    with pytest.raises(KeyError):
        mutate.attempt(lambda: {}["missing"], tmp_path)
