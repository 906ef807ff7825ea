"""Damaged and hostile artifacts: refused with a message, or read as they were. Seeded; each bounded
in time and memory.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from random import Random

import numpy as np
import pytest
from safetensors.numpy import save

from sparsescope.core.run_store import Store
from sparsescope.core.sealed import seal_of

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The folder of a sound artifact."""
    with Store(tmp_path_factory.mktemp("sound")).artifacts.keep(
        "toy", format="t", meta={"a": {"b": 1}}, made_by="x"
    ) as writer:
        writer.write("cfg.json", b"{}")
        writer.write("deep/w.safetensors", save({"W": WEIGHTS, "b": np.ones(3)}))
    return writer.artifact.path


@pytest.fixture
def copy(sound, tmp_path):
    """A copy to be damaged, in a folder of runs of its own, with a neighbor that must not be touched."""
    (tmp_path / "neighbor.txt").write_text("precious")
    return shutil.copytree(sound, tmp_path / "artifacts" / sound.name)


def read(mutate, copy, tmp_path):
    """Open the artifact, check all of it and read a tensor; ``list`` and ``verify`` must
    bear whatever it is.
    """
    artifacts = Store(tmp_path).artifacts

    def opened():
        found = artifacts.open(copy.name)
        assert isinstance(found.present, bool) and found.kind == "toy" and isinstance(found.meta, dict)
        return found, found.tensors("deep/w.safetensors", check=True)["W"][1:].copy()

    value, refusal = mutate.attempt(opened, tmp_path)
    verdicts, nothing = mutate.attempt(artifacts.verify, tmp_path)
    assert nothing is None and len(verdicts) <= 1
    return value, refusal, verdicts


@pytest.mark.parametrize("seed", range(100))
def test_a_changed_record(mutate, copy, tmp_path, seed):
    document = json.loads((copy / "artifact.json").read_bytes())
    changed, what = mutate.mutate_json(document, Random(seed))
    mutate.write_json(copy / "artifact.json", changed)
    value, refusal, _ = read(mutate, copy, tmp_path)
    if refusal is None:
        assert changed == document or what.startswith(("remove seal", "set seal")), what
        np.testing.assert_array_equal(value[1], WEIGHTS[1:])
    if isinstance(changed, dict):  # now the seal says nothing, but the id still names the contents
        with contextlib.suppress(ValueError, RecursionError):
            mutate.write_json(copy / "artifact.json", changed | {"seal": seal_of(changed)})
    value, refusal, _ = read(mutate, copy, tmp_path)
    if refusal is None:
        np.testing.assert_array_equal(value[1], WEIGHTS[1:])


@pytest.mark.parametrize("name", ["artifact.json", "cfg.json", "deep/w.safetensors"])
@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes(mutate, copy, tmp_path, seed, name):
    before = (copy / name).read_bytes()
    after = mutate.mutate_bytes(before, Random(f"{seed}{name}"))
    (copy / name).write_bytes(after)
    _, refusal, verdicts = read(mutate, copy, tmp_path)
    if name == "artifact.json":
        assert refusal is not None or json.loads(after) == json.loads(before)
    else:
        assert [verdict.status for verdict in verdicts] == ["ok" if after == before else "damaged"]
