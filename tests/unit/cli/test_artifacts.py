"""Artifacts on the command line: listed, shown, verified, and named by the runs that made and read them."""

from __future__ import annotations

import json

import pytest

from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Spec


@pytest.fixture
def kept(empty_home):
    """A store with a run, the artifact that it made, and one that nobody made."""
    store = Store(empty_home)
    result = Result("toy")
    for name, content in (("weights", b"mine"), ("other", b"other")):
        with store.artifacts.keep(
            "toy_weights", format="toy-1", meta={"seed": 3}, made_by="sparsescope run toy"
        ) as writer:
            writer.write("deep/weights.bin", content)
        result.artifacts[name] = writer.artifact
    other = result.artifacts.pop("other")
    spec = Spec(analysis="toy", version="1", params={}, subject={"id": "small", "weight_hash": "w"})
    store.write(result, spec, seconds=1, environment={}, command="sparsescope run toy --subject small")
    return store, spec.run_id, result.artifacts["weights"], other


def test_list(command, kept):
    _, run_id, made, other = kept
    code, found, _ = command("list", "artifacts", "--json")
    assert code == 0 and {row["artifact"] for row in found["artifacts"]} == {made.id, other.id}
    assert {(row["format"], row["made_by"]) for row in found["artifacts"]} == {
        ("toy-1", "sparsescope run toy")
    }
    (other.path / "artifact.json").write_text("{")
    code, out, _ = command("list")
    assert code == 0 and "artifacts\n" in out and made.id in out and "unreadable" in out and run_id in out


def test_list_without_artifacts(command, empty_home):
    assert command("list", "artifacts") == (0, "artifacts\n\n  none yet\n\n", "")


def test_show(command, kept):
    made = kept[2]
    for name in (made.id, made.path):
        code, found, _ = command("show", name, "--json")
        assert code == 0 and found["kind"] == "artifact (toy_weights)" and found["name"] == made.id
        assert found["digest"] == made.digest and found["damage"] == [] and found["path"] == str(made.path)
        assert found["files"] == [{"file": "deep/weights.bin", "bytes": 4, "sha256": made.files[0].sha256}]
        assert found["meta"] == [{"name": "seed", "value": 3}]
    code, out, _ = command("show", made.id)
    assert code == 0 and "deep/weights.bin" in out and "sparsescope run toy" in out
    (made.path / "deep" / "weights.bin").write_bytes(b"MINE")
    code, out, _ = command("show", made.id)
    assert code == 0 and "deep/weights.bin has another checksum" in out
    code, _, err = command("show", "toy_weights-000000000000")
    assert code == 1 and "no run 'toy_weights-000000000000'" in err


def test_a_run_names_its_artifacts_and_the_command_that_makes_a_missing_one(command, kept):
    store, run_id, made, _ = kept
    code, found, _ = command("show", run_id, "--json")
    line = {"label": "made: weights", "artifact_id": made.id, "state": "toy-1, 4 B", "command": ""}
    assert code == 0 and found["artifacts"] == [line]
    made.path.rename(store.root / "elsewhere")
    code, found, _ = command("show", run_id, "--json")
    assert code == 0 and found["artifacts"][0]["state"] == "not in this folder of runs"
    assert found["artifacts"][0]["command"] == "sparsescope run toy --subject small"


def test_verify(command, kept):
    made, other = kept[2:]
    code, out, _ = command("verify")
    assert (
        code == 0
        and "1 of 1 runs are intact" in out
        and out.splitlines()[-1] == "2 of 2 artifacts are intact"
    )
    (made.path / "deep" / "weights.bin").write_bytes(b"MINE")
    record = json.loads((other.path / "artifact.json").read_text())
    (other.path / "artifact.json").write_text(json.dumps(record | {"made_by": "me"}))
    code, out, _ = command("verify")
    assert (
        code == 1 and "deep/weights.bin has another checksum" in out and "0 of 2 artifacts are intact" in out
    )
    assert "1 of 1 runs are intact" in out
    code, found, _ = command("verify", "--json")
    assert code == 1 and found["bad"] == 2 and [run["status"] for run in found["runs"]] == ["ok"]
    statuses = {entry["artifact_id"]: entry["status"] for entry in found["artifacts"]}
    assert statuses == {made.id: "damaged", other.id: "unreadable"}
