"""Stored runs: what is written is read, damage is found, foreign and hostile folders are refused."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.core.manifest import MIGRATIONS, SCHEMA_VERSION
from sparsescope.core.numbers import Interval
from sparsescope.core.result import Result, Tensor
from sparsescope.core.run_store import Store, open_run
from sparsescope.core.sealed import seal_of
from sparsescope.core.spec import Spec
from sparsescope.errors import ArtifactError
from sparsescope.testing import check_same_numbers


def make_spec(seed=0):
    return Spec(
        analysis="activation_sparsity",
        version="1",
        params={"seed": seed},
        subject={"weight_hash": "w"},
        corpus=None,
    )


def make_result():
    result = Result("activation_sparsity")
    result.add_scalar("d", 0.25, "fraction", "density", interval=Interval(0.2, 0.3, 0.95, "bootstrap", 7))
    result.add_scalar("none", math.nan, "fraction", "not defined here")
    frame = pd.DataFrame({"layer": [0, 1], "label": ["a\u202e", "=cmd()"], "value": [0.5, math.nan]})
    columns = (
        Column("layer", "layer", "l"),
        Column("label", "label", "t"),
        Column("value", "value", "v", "units"),
    )
    result.add_table("t", frame, columns)
    result.tensors["x"] = Tensor(("layer", "neuron"), np.arange(6, dtype=np.float32).reshape(2, 3))
    result.note("warning", "mind this", "t")
    return result


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def folder(store):
    return store.write(
        make_result(), make_spec(), seconds=1.5, environment={"cores": 2}, command="sparsescope run"
    )


def test_what_is_written_is_read(store, folder):
    found = open_run(folder)
    check_same_numbers(make_result(), found)
    assert found.notes == make_result().notes
    assert found.columns == make_result().columns
    assert found.tensors["x"].dims == ("layer", "neuron")
    assert found.provenance["run_id"] == folder.name == make_spec().run_id
    assert [v.status for v in store.verify()] == ["ok"]
    assert not list(store.root.glob(".tmp-*"))


def test_the_same_run_is_not_written_twice(store, folder):
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    store.write(make_result(), make_spec(), seconds=9, environment={})
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    assert store.run_ids() == [folder.name]


def test_a_flipped_bit_a_missing_and_a_truncated_file_are_found(store, folder):
    table = folder / "tables" / "t.parquet"
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    assert "another checksum" in store.verify()[0].detail
    table.write_bytes(data[:-3])
    assert "bytes, not" in store.verify()[0].detail
    table.unlink()
    assert "missing" in store.verify()[0].detail
    with pytest.raises(ArtifactError, match=r"damaged[\s\S]*t\.parquet is missing"):
        store.open(folder.name)


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["seal"] = seal_of(manifest)  # otherwise every change would be found by the seal alone
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=99), "newer sparsescope"),
        (lambda m: m.update(schema_version=0), "no schema version"),
        (lambda m: m.update(surprise=1), "malformed"),
        (lambda m: m.pop("notes"), "malformed"),
        (lambda m: m["tables"]["t"].update(file="../../etc/passwd"), "malformed"),
        (lambda m: m["tables"]["t"].update(file="/etc/passwd"), "malformed"),
        (lambda m: m["spec"]["params"].update(seed=1), "does not belong"),
        (lambda m: m["tables"]["t"].update(rows=7), "differs from its manifest"),
    ],
)
def test_a_changed_manifest_is_refused(store, folder, change, message):
    edit(folder, change)
    with pytest.raises(ArtifactError, match=message):
        store.open(folder.name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(store, folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        store.open(folder.name)


def test_a_link_out_of_the_run_is_refused(store, folder, tmp_path):
    secret = tmp_path / "secret.parquet"
    secret.write_bytes((folder / "tables" / "t.parquet").read_bytes())
    (folder / "tables" / "t.parquet").unlink()
    (folder / "tables" / "t.parquet").symlink_to(secret)
    with pytest.raises(ArtifactError, match="outside"):
        store.open(folder.name)


@pytest.mark.parametrize(
    "name", ["../x", "activation_sparsity-zzz", "", "a-0123456789ab/..", "A-0123456789ab"]
)
def test_a_run_id_of_another_form_is_refused(store, name):
    with pytest.raises(ArtifactError, match="not the id"):
        store.path(name)


def test_a_renamed_run_is_refused(store, folder):
    other = folder.with_name("activation_sparsity-000000000000")
    folder.rename(other)
    with pytest.raises(ArtifactError, match="does not belong"):
        store.open(other.name)


def test_a_missing_run_lists_what_is_there(store, folder):
    with pytest.raises(ArtifactError, match=folder.name):
        store.open("activation_sparsity-000000000000")


def test_folders_of_dead_processes_are_removed_and_living_ones_kept(store, folder):
    from sparsescope.core.publish import HOST

    dead = store.root / f".tmp-a-0123456789ab-{HOST}-999999999-aa"
    alive = store.root / f".tmp-a-0123456789ab-{HOST}-{os.getpid()}-aa"
    elsewhere = store.root / ".tmp-a-0123456789ab-otherhost-999999999-aa"
    for path in (dead, alive, elsewhere):
        path.mkdir()
    store.write(make_result(), make_spec(seed=1), seconds=0, environment={})
    assert [path.exists() for path in (dead, alive, elsewhere)] == [False, True, True]


def test_a_step_keeps_shapes_and_types(tmp_path):
    """A number has no axis, and does not get one."""
    store = Store(tmp_path)
    arrays = {"number": np.array(2.5), "flags": np.array([True]), "columns": np.arange(6).reshape(2, 3).T}
    store.save_step("d" * 64, "pass", arrays, {})
    found, _ = store.load_step("d" * 64, "pass")
    for name, values in arrays.items():
        assert found[name].shape == values.shape and found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_steps_survive_and_a_broken_step_is_no_step(store):
    store.save_step("d" * 64, "pass", {"a": np.arange(3)}, {"next": 4})
    arrays, meta = store.load_step("d" * 64, "pass")
    assert meta == {"next": 4}
    np.testing.assert_array_equal(arrays["a"], np.arange(3))
    path = store.partial("d" * 64) / "pass.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    assert store.load_step("d" * 64, "pass") is None
    assert store.load_step("e" * 64, "pass") is None


FIXTURES = Path(__file__).parents[2] / "fixtures" / "manifests"


def test_a_run_of_schema_1_opens_and_keeps_its_name_and_bytes():
    old = Store(FIXTURES / "schema-1")
    (run_id,) = old.run_ids()
    before = (old.path(run_id) / "manifest.json").read_bytes()
    assert json.loads(before)["schema_version"] == 1
    found = old.open(run_id)
    check_same_numbers(make_result(), found)
    assert found.notes == make_result().notes and found.columns == make_result().columns
    assert run_id == make_spec().run_id and found.provenance["digest"].startswith(run_id.rpartition("-")[2])
    assert found.artifacts == {} and found.provenance["artifacts"] == {"made": {}, "read": {}}
    assert old.missing_artifacts(run_id) == []
    assert [verdict.status for verdict in old.verify()] == ["ok"]
    assert (old.path(run_id) / "manifest.json").read_bytes() == before


def test_every_older_schema_has_a_migration_and_a_fixture():
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA_VERSION))
    assert sorted(path.name for path in FIXTURES.iterdir()) == [f"schema-{version}" for version in MIGRATIONS]


def test_a_changed_manifest_of_schema_1_is_refused(tmp_path):
    run = next((FIXTURES / "schema-1").iterdir())
    copy = shutil.copytree(run, tmp_path / run.name)
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"value": 0.25', '"value": 0.26'))
    with pytest.raises(ArtifactError, match="was changed"):
        Store(tmp_path).open(run.name)


def test_a_tensor_is_read_and_its_checksum_compared_when_it_is_first_used(store, folder):
    first, second = store.open(folder.name), store.open(folder.name)
    assert "not read yet" in repr(first.tensors["x"])
    assert first.tensors["x"].array is first.tensors["x"].array
    assert repr(first.tensors["x"]) == "Tensor(layer, neuron: [2, 3])"
    path = folder / "tensors" / "x.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.open(folder.name).tables["t"].equals(first.tables["t"])
    with pytest.raises(ArtifactError, match=r"a tensor is damaged[\s\S]*another checksum"):
        _ = second.tensors["x"].array
    assert [verdict.status for verdict in store.verify()] == ["damaged"]
    path.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"the run is damaged[\s\S]*bytes, not"):
        store.open(folder.name)


def test_titles_of_numbers_and_ends_of_intervals_are_kept(store):
    result = make_result()
    result.add_scalar("named", 1.0, "", "a number", title="A name for people")
    ends = (
        Column("value", "value", "v"),
        Column("low", "value", "l", low_of="value"),
        Column("high", "value", "h", high_of="value"),
    )
    result.add_table("ends", pd.DataFrame({"value": [1.0], "low": [0.5], "high": [2.0]}), ends)
    found = open_run(store.write(result, make_spec(), seconds=1, environment={}))
    assert found.scalars["named"].title == "A name for people" and found.scalars["d"].title == ""
    assert found.columns["ends"] == ends


def test_an_opened_run_can_be_copied_before_its_tensors_are_read(store, folder):
    """The explorer keeps opened runs in a cache that copies them."""
    found = pickle.loads(pickle.dumps(store.open(folder.name)))
    assert "not read yet" in repr(found.tensors["x"])
    check_same_numbers(make_result(), found)
