"""Artifacts: named by their contents, complete or absent, checked when read; runs that made and read them."""

from __future__ import annotations

import gc
import hashlib
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from sparsescope.core.artifact_store import META_LIMIT, ArtifactStore
from sparsescope.core.artifacts import Artifact
from sparsescope.core.publish import HOST
from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.sealed import seal_of
from sparsescope.core.spec import Spec, canonical_json
from sparsescope.errors import ArtifactError, SpecError

WEIGHTS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def keep(artifacts, *, seed=0, kind="toy", **more):
    """A small artifact: one file streamed, one in a folder, one that a library saves by itself."""
    with artifacts.keep(kind, format="toy-1", meta={"seed": seed}, made_by="toy run", **more) as writer:
        writer.write("cfg.json", json.dumps({"seed": seed}).encode())
        with writer.file("deep/weights.safetensors") as handle:
            data = save({"W": WEIGHTS + seed, "none": np.zeros((0, 3)), "one": np.array(7, np.int16)})
            handle.write(data[:50])
            handle.write(memoryview(data)[50:])
        save_file({"b": np.ones(2)}, writer.folder / "saved.safetensors")
        writer.meta["loss"] = 0.5
    return writer.artifact


def test_what_is_kept_is_opened(store):
    made = keep(store.artifacts)
    found = store.artifacts.open(made.id)
    assert found.path == store.root / "artifacts" / made.id and found.path.is_dir()
    assert (found.kind, found.format, found.made_by) == ("toy", "toy-1", "toy run")
    assert found.meta == {"seed": 0, "loss": 0.5}
    assert [entry.file for entry in found.files] == [
        "cfg.json",
        "deep/weights.safetensors",
        "saved.safetensors",
    ]
    for entry in found.files:
        data = found.path_of(entry.file, check=True).read_bytes()
        assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert found.bytes == sum(
        path.stat().st_size for path in found.path.rglob("*.[js]*") if path.name != "artifact.json"
    )
    assert store.artifacts.ids() == [made.id] and store.artifacts.has(made.id)
    assert [verdict.status for verdict in store.artifacts.verify()] == ["ok"]
    assert sorted(path.name for path in store.artifacts.root.iterdir()) == [made.id]
    assert "format='toy-1', files=3" in repr(found)


def test_the_id_hashes_kind_format_and_files_alone(store):
    made = keep(store.artifacts)
    files = {entry.file: entry.sha256 for entry in made.files}
    text = canonical_json({"kind": "toy", "format": "toy-1", "files": files})
    assert made.digest == hashlib.sha256(text.encode()).hexdigest()
    assert made.id == f"toy-{made.digest[:12]}"
    assert keep(store.artifacts, seed=1).id != made.id
    assert keep(store.artifacts, kind="other").digest != made.digest


def test_a_folder_from_elsewhere_has_the_id_that_it_would_have_if_it_were_kept(store, tmp_path):
    made = keep(store.artifacts)
    folder = tmp_path / "some where"
    (folder / "deep").mkdir(parents=True)
    for entry in made.files:
        (folder / entry.file).write_bytes(made.path_of(entry.file).read_bytes())
    (folder / ".cache" / "empty").mkdir(parents=True)
    (folder / ".cache" / "time").write_text("now")
    found = Artifact.of_folder("toy", folder, "toy-1")
    assert (found.id, found.digest, found.present, found.verify()) == (made.id, made.digest, True, [])
    assert Artifact.of_folder("toy", made.path, "toy-1").id == made.id
    blob = tmp_path / "blob"  # the cache of the hub links its files
    (folder / "cfg.json").rename(blob)
    (folder / "cfg.json").symlink_to(blob)
    assert Artifact.of_folder("toy", folder, "toy-1").id == made.id
    assert found.path_of("cfg.json", check=True).read_bytes() == blob.read_bytes()
    blob.write_text("{}")
    assert "cfg.json" in found.verify()[0]
    (folder / "loop").symlink_to(folder)
    with pytest.raises(ArtifactError, match="not a file"):
        Artifact.of_folder("toy", folder, "toy-1")
    with pytest.raises(ArtifactError, match="no file in this folder"):
        Artifact.of_folder("toy", folder / ".cache" / "empty", "toy-1")
    with pytest.raises(ArtifactError, match="ENOENT"):
        Artifact.of_folder("toy", tmp_path / "nowhere", "toy-1")


def test_ranges_of_tensors_are_read_without_the_rest(store):
    tensors = keep(store.artifacts).tensors("deep/weights.safetensors", check=True)
    assert isinstance(tensors["W"], np.memmap) and not tensors["W"].flags.writeable
    np.testing.assert_array_equal(tensors["W"][1:3, 2], WEIGHTS[1:3, 2])
    assert tensors["none"].shape == (0, 3) and tensors["none"].dtype == np.float64
    assert tensors["one"] == 7 and tensors["one"].shape == ()


def test_a_type_that_numpy_lacks_is_refused(store):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    with store.artifacts.keep("toy", format="t") as writer:
        writer.write("x.safetensors", len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ArtifactError, match="numpy lacks"):
        writer.artifact.tensors("x.safetensors")


def test_the_same_contents_are_kept_once_and_what_was_lost_is_put_back(store):
    made = keep(store.artifacts)
    stamp = (made.path / "artifact.json").stat().st_mtime_ns
    assert keep(store.artifacts).id == made.id
    assert (made.path / "artifact.json").stat().st_mtime_ns == stamp
    (made.path / "saved.safetensors").unlink()
    assert not made.present and not store.artifacts.has(made.id)
    assert keep(store.artifacts).present and made.present
    assert sorted(path.name for path in store.artifacts.root.iterdir()) == [made.id]


def test_a_folder_that_a_person_made_under_the_name_is_set_aside(store):
    made = keep(store.artifacts)
    (made.path / "artifact.json").unlink()
    assert keep(store.artifacts).present
    (aside,) = (path for path in store.artifacts.root.iterdir() if path.name.startswith(".incomplete-"))
    assert (aside / "cfg.json").is_file()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("inside", [True, False])
def test_an_exception_leaves_nothing(store, tmp_path, monkeypatch, error, inside):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    for artifacts in (store.artifacts, ArtifactStore(None)):
        with pytest.raises(error), artifacts.keep("toy", format="t") as writer:
            writer.write("a", b"1")
            with writer.file("b") as handle:
                handle.write(b"2")
                if inside:
                    raise error
            raise error
        with pytest.raises(ArtifactError, match="not kept yet"):
            _ = writer.artifact
    assert not list(store.artifacts.root.iterdir()) and not list((tmp_path / "scratch").iterdir())


def test_a_file_whose_writing_failed_is_no_part_of_it(store):
    with store.artifacts.keep("toy", format="t") as writer:
        writer.write("a", b"1")
        with pytest.raises(RuntimeError), writer.file("b") as handle:
            handle.write(b"half")
            raise RuntimeError
        writer.write("c", b"old")
        (writer.folder / "c").write_bytes(b"new")  # a library that saves over it
    assert [entry.file for entry in writer.artifact.files] == ["a", "c"]
    assert writer.artifact.verify() == []


HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a//b",
    "a/",
    ".hidden",
    "a\\b",
    "a\0b",
    "a b",
    "artifact.json",
    "a/b/c/d/e",
    "x" * 81,
    "\u202ea",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_of_files_are_refused(store, name):
    with (
        pytest.raises(ArtifactError, match="cannot be kept"),
        store.artifacts.keep("toy", format="t") as writer,
    ):
        writer.write(name, b"x")
    assert store.artifacts.ids() == []


def link_to_file(folder, target):
    (folder / "link").symlink_to(target / "secret")


def link_to_folder(folder, target):
    (folder / "link").symlink_to(target)


def hidden(folder, target):
    (folder / ".hidden").write_text("x")


def fifo(folder, target):
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize("spoil", [link_to_file, link_to_folder, hidden, fifo])
def test_what_is_no_plain_file_is_refused(store, tmp_path, spoil):
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ArtifactError), store.artifacts.keep("toy", format="t") as writer:
        writer.write("a", b"1")
        spoil(writer.folder, tmp_path)
    assert store.artifacts.ids() == [] and (tmp_path / "secret").read_text() == "secret"


def test_a_name_twice_and_no_file_at_all_are_refused(store):
    with pytest.raises(ArtifactError, match="EEXIST"), store.artifacts.keep("toy", format="t") as writer:
        writer.write("a", b"1")
        writer.write("a", b"1")
    with pytest.raises(ArtifactError, match="without files"), store.artifacts.keep("toy", format="t"):
        pass
    assert not list(store.artifacts.root.iterdir())


@pytest.mark.parametrize("kind", ["", "A", "a-b", "../a", "9a", "a" * 65, "a\n"])
def test_a_malformed_kind_is_refused(store, kind):
    with pytest.raises(SpecError, match="malformed"), store.artifacts.keep(kind, format="t"):
        pass


@pytest.mark.parametrize("kind", ["activation_sparsity", "grokking", "capture"])
def test_no_kind_has_the_name_of_an_analysis_or_benchmark(store, tmp_path, kind):
    with pytest.raises(SpecError, match="name of an analysis"), store.artifacts.keep(kind, format="t"):
        pass
    with pytest.raises(SpecError, match="name of an analysis"):
        Artifact.of_folder(kind, tmp_path, "t")
    assert not store.root.exists()


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": object()}, {"x": "y" * META_LIMIT}])
def test_meta_data_that_cannot_be_stored_are_refused(store, meta):
    with (
        pytest.raises(SpecError, match="meta data"),
        store.artifacts.keep("toy", format="t", meta=meta) as writer,
    ):
        writer.write("a", b"1")
    assert store.artifacts.ids() == []


def test_without_a_store_it_lives_as_long_as_its_object(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = keep(ArtifactStore(None))
    assert made.present and made.verify() == []
    tensors = made.tensors("deep/weights.safetensors")
    del made
    gc.collect()
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(tensors["W"], WEIGHTS)
    assert ArtifactStore(None).ids() == [] and not ArtifactStore(None).has("toy-0123456789ab")


def test_folders_of_dead_processes_are_swept(store):
    keep(store.artifacts)
    dead = store.artifacts.root / f".tmp-toy-{HOST}-999999999-aa"
    alive = store.artifacts.root / f".tmp-toy-{HOST}-{os.getpid()}-aa"
    written = store.artifacts.root / ".tmp-toy-otherhost-999999999-aa"
    for path in (dead, alive, written):
        path.mkdir()
        (path / "big").write_text("x")
        os.utime(path, (0, 0))  # the folder is old, the file in it is being written
    keep(store.artifacts, seed=1)
    assert [path.exists() for path in (dead, alive, written)] == [False, True, True]
    os.utime(written / "big", (0, 0))
    store.write(Result("toy"), spec(), seconds=0, environment={})
    assert not written.exists()


def edit(artifact, change, *, sealed=True):
    record = json.loads((artifact.path / "artifact.json").read_text())
    change(record)
    if sealed:
        record["seal"] = seal_of(record)
    (artifact.path / "artifact.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema_version=2), "newer sparsescope"),
        (lambda r: r.update(surprise=1), "malformed"),
        (lambda r: r.pop("files"), "malformed"),
        (lambda r: r["files"][0].update(file="../cfg.json"), "malformed"),
        (lambda r: r["files"].append(r["files"][0]), "malformed"),
        (lambda r: r["files"][0].update(sha256="0" * 64), "does not belong"),
        (lambda r: r.update(format="other"), "does not belong"),
        (lambda r: r.update(kind="other"), "does not belong"),
        (lambda r: r.update(id="toy-000000000000"), "does not belong"),
    ],
)
def test_a_changed_record_is_refused(store, change, message):
    made = keep(store.artifacts)
    edit(made, change)
    with pytest.raises(ArtifactError, match=message):
        store.artifacts.open(made.id)
    assert not store.artifacts.has(made.id)
    assert [verdict.status for verdict in store.artifacts.verify()] == ["unreadable"]


def test_a_record_that_was_edited_by_hand_is_refused(store):
    made = keep(store.artifacts)
    edit(made, lambda record: record.update(made_by="me"), sealed=False)
    with pytest.raises(ArtifactError, match="was changed"):
        store.artifacts.open(made.id)


def test_damage_is_found(store, tmp_path):
    made = keep(store.artifacts)
    path = made.path / "deep" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = store.artifacts.open(made.id)
    assert found.present and "another checksum" in found.verify()[0]
    assert [verdict.status for verdict in store.artifacts.verify()] == ["damaged"]
    assert found.path_of("deep/weights.safetensors") == path
    with pytest.raises(ArtifactError, match=r"damaged[\s\S]*another checksum[\s\S]*toy run"):
        found.tensors("deep/weights.safetensors", check=True)
    path.write_bytes(data[:-4])
    with pytest.raises(ArtifactError, match="bytes, not"):
        found.path_of("deep/weights.safetensors")
    (tmp_path / "secret").write_bytes(data)
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="outside"):
        found.path_of("deep/weights.safetensors")
    assert not found.present


def test_an_unknown_file_lists_near_matches(store):
    with pytest.raises(ArtifactError, match=r"did you mean 'cfg\.json'"):
        keep(store.artifacts).path_of("cfg.jsn")


@pytest.mark.parametrize("name", ["../x", "toy", "toy-zzz", "", "toy-0123456789ab/..", "TOY-0123456789ab"])
def test_an_id_of_another_form_is_refused(store, name):
    with pytest.raises(ArtifactError, match="not the id"):
        store.artifacts.open(name)


def test_a_missing_artifact_lists_what_is_there(store):
    made = keep(store.artifacts)
    with pytest.raises(ArtifactError, match=made.id):
        store.artifacts.open("toy-000000000000")


# -- artifacts of runs ---------------------------------------------------------------------------------


def spec(seed=0, **more):
    return Spec(analysis="toy", version="1", params={"seed": seed}, subject={"weight_hash": "w"}, **more)


def run_that_made(store, **more):
    result = Result("toy")
    result.artifacts["weights"] = keep(store.artifacts)
    store.write(result, spec(), seconds=1, environment={}, command="sparsescope run toy", **more)
    return result


def test_a_run_names_what_it_made_and_what_it_read(store):
    made = run_that_made(store).artifacts["weights"]
    reader = Result("toy")
    reader.artifacts |= {"weights": made, "own": keep(store.artifacts, seed=1)}
    inputs = {"weights": [{"id": made.id, "digest": made.digest}]}
    reading = spec(seed=1, inputs=inputs)
    assert reading.digest != spec(seed=1).digest
    store.write(reader, reading, seconds=1, environment={}, preset="quick")
    manifest = store.manifest(reading.run_id)
    assert manifest.artifacts.read == {"weights": made.id} and manifest.spec.inputs == inputs
    assert manifest.artifacts.made == {"own": reader.artifacts["own"].id} and manifest.preset == "quick"
    found = store.open(reading.run_id)
    assert found.provenance["artifacts"] == {"made": manifest.artifacts.made, "read": manifest.artifacts.read}
    assert found.provenance["preset"] == "quick" and found.provenance["inputs"] == inputs
    np.testing.assert_array_equal(
        found.artifacts["weights"].tensors("deep/weights.safetensors")["W"], WEIGHTS
    )
    assert store.open(spec().run_id).provenance["artifacts"] == {"made": {"weights": made.id}, "read": {}}


def test_the_digest_of_a_run_without_inputs_is_what_it_was():
    assert spec().digest == spec(inputs=None).digest == spec(inputs={}).digest
    assert spec().run_id == "toy-89fb849b43ac"


def test_a_missing_artifact_is_an_empty_state_with_the_command_that_makes_it(store):
    made = run_that_made(store).artifacts["weights"]
    reader = Result("toy")
    reader.artifacts["dictionary"] = made
    reading = spec(seed=1, inputs={"dictionary": [{"id": made.id, "digest": made.digest}]})
    store.write(reader, reading, seconds=1, environment={}, command="sparsescope run other")
    assert store.missing_artifacts(spec().run_id) == []
    made.path.rename(made.path.with_name("gone"))
    assert (
        store.missing_artifacts(spec().run_id) == [made.id] and store.missing_artifacts(reading.run_id) == []
    )
    for run_id, name in ((spec().run_id, "weights"), (reading.run_id, "dictionary")):
        found = store.open(run_id).artifacts[name]
        assert not found.present and found.id == made.id and found.kind == "toy" and "missing" in repr(found)
        with pytest.raises(ArtifactError, match=r"missing[\s\S]*sparsescope run toy"):
            found.tensors("deep/weights.safetensors")
    assert [verdict.status for verdict in store.verify()] == ["ok", "ok"]


def test_a_run_takes_the_place_of_one_whose_artifacts_were_lost(store):
    run_that_made(store)
    before = store.manifest(spec().run_id)
    again = Result("toy")
    again.artifacts["weights"] = keep(store.artifacts, seed=2)
    store.write(again, spec(), seconds=2, environment={})
    assert store.manifest(spec().run_id) == before
    folder = store.write(again, spec(), seconds=2, environment={}, replace=True)
    assert store.manifest(spec().run_id).artifacts.made == {"weights": again.artifacts["weights"].id}
    assert sorted(path.name for path in store.root.iterdir()) == ["artifacts", folder.name]
    store.write(again, spec(seed=5), seconds=2, environment={}, replace=True)
    assert len(store.run_ids()) == 2


def test_artifacts_that_were_not_stored_are_stored_with_the_run(store, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    result = Result("toy")
    result.artifacts["weights"] = keep(ArtifactStore(None))
    store.write(result, spec(), seconds=1, environment={})
    gc.collect()
    assert not list((tmp_path / "scratch").iterdir())
    assert store.missing_artifacts(spec().run_id) == []
    assert result.artifacts["weights"].meta == {"seed": 0, "loss": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["artifacts"]["made"].update(x="../toy"),
        lambda m: m["artifacts"]["made"].update({"../x": "toy-0123456789ab"}),
        lambda m: m["artifacts"]["read"].update(weights="toy-0123456789ab"),
        lambda m: m["artifacts"].update(lost={}),
        lambda m: m.update(artifacts=[]),
        lambda m: m.update(preset=1),
    ],
)
def test_a_forged_list_of_artifacts_is_refused(store, change):
    run_that_made(store)
    path = store.path(spec().run_id) / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))
    with pytest.raises(ArtifactError, match="malformed"):
        store.open(spec().run_id)
