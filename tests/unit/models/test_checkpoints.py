"""Series of checkpoints: from our trainer, from folders of transformers, from the hub; one model at
a time, resumable.
"""

from __future__ import annotations

import gc
import json
import shutil
import weakref

import pytest

from sparsescope.errors import ArtifactError, DependencyError, SpecError, SubjectError
from sparsescope.models.checkpoints import CheckpointSeries, open_series
from sparsescope.models.entries import LoadRequest
from sparsescope.models.sources import load
from sparsescope.models.zoo.random_configs import load_random


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints in the layout of the trainer of transformers, and a folder of logs."""
    home = tmp_path_factory.mktemp("saved") / "my-run"
    for step in (200, 50):
        loaded = load_random(LoadRequest("random-opt", str(step)))
        loaded.model.save_pretrained(home / f"checkpoint-{step}")
        loaded.tokenizer.save_pretrained(home / f"checkpoint-{step}")
    (home / "runs").mkdir()
    return home


@pytest.fixture
def copy(tiny_series, tmp_path):
    """A copy of the trained series that a test may damage."""
    return shutil.copytree(tiny_series, tmp_path / "copy")


def test_a_trained_series_gives_subjects_in_order(tiny_series):
    series = open_series(tiny_series)
    assert series.steps == (0, 2, 8) and len(series) == 3 and "tiny" in repr(series)
    hashes = []
    for checkpoint, subject in series:
        assert subject.revision == checkpoint.revision == f"step-{checkpoint.step}"
        assert (
            subject.origin_precision == "float16"
            and subject.dtype == "float32"
            and not subject.model.training
        )
        assert subject.sites("blocks.*.mlp.hook_post")[0].activation == "relu"
        hashes.append(subject.identity.weight_hash)
    assert len(set(hashes)) == 3
    assert series.subject(8).identity.weight_hash == hashes[2]


def test_the_folder_of_a_training_run_is_a_model_too(tiny_series):
    series = open_series(tiny_series)
    last, second = load(tiny_series), load(f"{tiny_series}@step-2")
    assert last.id == "tiny" and last.revision == "step-8" and second.revision == "step-2"
    assert last.identity.weight_hash == series.subject(8).identity.weight_hash
    assert second.identity.weight_hash == series.subject(2).identity.weight_hash
    with pytest.raises(SpecError, match="no checkpoint of step 3"):
        load(tiny_series, revision="step-3")
    with pytest.raises(SpecError, match="named by its step"):
        load(tiny_series, revision="main")


def test_a_folder_with_the_name_of_a_shipped_series_is_itself(tiny_series, tmp_path, monkeypatch):
    """Also where the working directory holds it: its checkpoints are never those of the registered model."""
    shutil.copytree(tiny_series, tmp_path / "lazy-relu")
    monkeypatch.chdir(tmp_path)
    found = open_series("./lazy-relu")
    assert found.subject(8).identity.weight_hash == open_series(tiny_series).subject(8).identity.weight_hash
    assert (
        found.name == found.subject(8).id == "lazy-relu"
        and not found.shipped
        and open_series("lazy-relu").shipped
    )


def test_the_series_keeps_no_subject(tiny_series):
    alive = []
    for _, subject in open_series(tiny_series):
        alive.append(weakref.ref(subject.model))
        del subject
        gc.collect()
    assert all(found() is None for found in alive)


def test_finished_steps_are_not_loaded(tiny_series):
    assert [checkpoint.step for checkpoint, _ in open_series(tiny_series).subjects(done=[0, 8])] == [2]


def test_probe_set_is_fixed_by_its_digest(tiny_series, copy):
    from safetensors.numpy import load_file, save_file

    from sparsescope.core.files import sha256_file

    probe = open_series(tiny_series).probe()
    assert (
        probe.tokens.shape == (121, 3) and (probe.tokens[:, :2].sum(1) % 11 == probe.fields["answer"]).all()
    )
    assert probe.fields["train"].sum() == 60
    arrays = load_file(copy / "probe.safetensors")
    arrays["tokens"][0, 0] += 1
    save_file(arrays, copy / "probe.safetensors")
    content = json.loads((copy / "series.json").read_text())
    content["files"]["probe.safetensors"] = sha256_file(copy / "probe.safetensors")
    (copy / "series.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="probe set is not the one"):
        open_series(copy).probe()


@pytest.mark.parametrize("name", ["step-2.safetensors", "config.json", "curves.parquet"])
def test_damaged_and_missing_files_are_named(copy, name):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    series = open_series(copy)
    read = series.curves if name == "curves.parquet" else lambda: series.subject(2)
    with pytest.raises(ArtifactError, match="missing or damaged"):
        read()
    path.unlink()
    with pytest.raises(ArtifactError, match="missing or damaged"):
        read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(format=2), "format"),
        (lambda content: content.pop("seed"), "seed"),
        (lambda content: content["checkpoints"].reverse(), "not ascending"),
        (lambda content: content["checkpoints"].append(content["checkpoints"][-1]), "not ascending"),
        (lambda content: content["checkpoints"][0].update(file="../../etc/passwd"), "not the name of a file"),
        (lambda content: content["checkpoints"][0].update(sha256="0"), "sha256"),
    ],
)
def test_a_series_file_that_is_not_valid_is_refused(copy, change, message):
    content = json.loads((copy / "series.json").read_text())
    change(content)
    (copy / "series.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        open_series(copy)


def test_weights_of_another_architecture_are_refused(copy):
    from sparsescope.core.files import sha256_file

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    content = json.loads((copy / "series.json").read_text())
    content["files"]["config.json"] = sha256_file(copy / "config.json")
    (copy / "series.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="not those of its architecture"):
        open_series(copy).subject(2)


def test_a_folder_of_transformers_is_a_series(saved):
    series = open_series(saved)
    assert series.steps == (50, 200) and series.trained is None
    for checkpoint, subject in series:
        assert subject.id == "my-run" and subject.revision == f"checkpoint-{checkpoint.step}"
    assert open_series(saved, revisions=["checkpoint-200"]).steps == (200,)
    with pytest.raises(SpecError, match="no probe set"):
        series.probe()


def test_folders_with_mixed_missing_or_no_names_are_refused(saved, tmp_path):
    with pytest.raises(SpecError, match="no such checkpoint"):
        open_series(saved, revisions=["checkpoint-7"])
    with pytest.raises(SpecError, match="no checkpoint"):
        open_series(tmp_path)
    (tmp_path / "step-1").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(SpecError, match="mixed"):
        open_series(tmp_path)
    assert open_series(tmp_path, form="step-N").steps == (1,)


def test_hub_revisions_are_given_or_asked_for():
    pythia = open_series("EleutherAI/pythia-14m", revisions=["step1000", "step0", "step512"])
    assert [(c.step, c.tokens) for c in pythia.checkpoints] == [
        (0, 0),
        (512, 512 * 2097152),
        (1000, 1000 * 2097152),
    ]
    assert open_series("EleutherAI/pythia-160m-v0", revisions=["step1000"]).checkpoints[0].tokens is None
    olmo = open_series(
        "allenai/OLMo-2-1124-7B", revisions=["stage1-step2000-tokens9B", "stage1-step1000-tokens5B"]
    )
    assert [(c.revision, c.stage, c.tokens) for c in olmo.checkpoints] == [
        ("stage1-step1000-tokens5B", 1, 5 * 10**9),
        ("stage1-step2000-tokens9B", 1, 9 * 10**9),
    ]
    with pytest.raises(DependencyError, match="cannot be asked"):
        open_series("EleutherAI/pythia-14m")


def test_branches_that_are_no_checkpoints_are_left_out(monkeypatch):
    from sparsescope.models import checkpoints

    names = ["main", "step5000-tokens20B", "step10000-tokens41B", "refs/convert"]
    monkeypatch.setattr(checkpoints, "_branches", lambda repository: names)
    assert open_series("allenai/OLMoE-1B-7B-0924").steps == (5000, 10000)
    names.append("stage1-step1-tokens1B")
    with pytest.raises(SpecError, match="mixed"):
        open_series("allenai/OLMoE-1B-7B-0924")
    assert open_series("allenai/OLMoE-1B-7B-0924", form="stage1-stepN-tokensMB").steps == (1,)


def test_steps_and_names_that_are_not_there_are_named(tiny_series):
    series = open_series(tiny_series)
    with pytest.raises(SpecError, match="no checkpoint of step 3"):
        series.subject(3)
    with pytest.raises(SubjectError, match="unknown checkpoint series 'grokking-rely'"):
        open_series("grokking-rely")
    assert isinstance(series, CheckpointSeries)
