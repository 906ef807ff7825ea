"""The shipped series: each opens, its files are the recorded ones, and its first and last checkpoints have
the recorded loss.
"""

from __future__ import annotations

import pytest

import sparsescope as ss
from sparsescope.core.files import sha256_file
from sparsescope.errors import DependencyError, SpecError
from sparsescope.models.checkpoints import open_series
from sparsescope.models.entries import LoadRequest
from sparsescope.models.formats.series_file import CONFIG, CURVES, PROBE, RECIPE, SeriesFolder
from sparsescope.models.zoo import shipped_series
from sparsescope.models.zoo.shipped_series import (
    load_shipped,
    models_folder,
    shipped_folder,
    shipped_names,
    shipped_subjects,
)

NAMES = shipped_names()
_MOST_BYTES = 100_000_000


def test_every_shipped_folder_is_registered_and_all_are_small_enough():
    assert {path.name for path in models_folder().iterdir() if path.is_dir()} == set(NAMES)
    assert sum(path.stat().st_size for path in models_folder().rglob("*") if path.is_file()) < _MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_the_series(name):
    folder = SeriesFolder.open(shipped_folder(name))
    content = folder.content
    assert content.name == name and set(content.files) == {CONFIG, CURVES, PROBE, RECIPE}
    recorded = {**content.files, **{found.file: found.sha256 for found in content.checkpoints}}
    there = {path.name for path in folder.folder.iterdir()} - {"series.json"}
    assert there == set(recorded)
    assert all(sha256_file(folder.folder / file) == digest for file, digest in recorded.items())
    assert folder.probe().digest == content.probe_digest


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_beside_the_weights_is_the_one_in_the_repository(name):
    from sparsescope.training.recipe import read_recipe

    folder = SeriesFolder.open(shipped_folder(name))
    recipe = read_recipe(folder.path(RECIPE))
    assert recipe.name == name and recipe.seed == folder.content.seed
    assert [found.step for found in folder.content.checkpoints] == recipe.checkpoints
    texts = [path.read_bytes() for path in (models_folder().parents[1] / "analyses").glob("*/*.toml")]
    assert folder.path(RECIPE).read_bytes() in texts


@pytest.mark.parametrize("name", NAMES)
def test_first_and_last_checkpoints_have_the_recorded_loss(name):
    import torch

    from sparsescope.training.data import Examples
    from sparsescope.training.measure import measure

    series = open_series(name)
    probe = series.probe()
    tokens = torch.from_numpy(probe.tokens)
    arithmetic = series.trained.data["kind"] == "modular_addition"
    for checkpoint in (series.checkpoints[0], series.checkpoints[-1]):
        model = series.subject(checkpoint.step).model
        if arithmetic:
            train = torch.from_numpy(probe.fields["train"]) == 1
            answers = torch.from_numpy(probe.fields["answer"])
            examples = [
                Examples(split, "", tokens[rows], answers[rows])
                for split, rows in (("train", train), ("test", ~train))
            ]
            found = measure(model, examples)
            for split in ("train", "test"):
                recorded = checkpoint.stored[split]
                assert found[split]["loss"] == pytest.approx(recorded["loss"], rel=1e-3, abs=1e-7)
                assert found[split]["accuracy"] == pytest.approx(recorded["accuracy"], abs=2e-3)
        else:
            found = measure(model, [Examples("probe", "", tokens, tokens)])
            assert found["probe"]["loss"] == pytest.approx(checkpoint.stored["probe"]["loss"], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_to_float16_changes_the_loss_little(name):
    for checkpoint in open_series(name).checkpoints:
        for split, measured in checkpoint.trained.items():
            assert checkpoint.stored[split]["loss"] == pytest.approx(measured["loss"], rel=0.05, abs=1e-4)


def test_subjects_are_loaded_by_name_and_step():
    entries = {entry.name: entry for entry in shipped_subjects()}
    assert set(entries) == {name for name in NAMES if "seed" not in name}
    name = NAMES[0]
    steps = open_series(name).steps
    last, first = (load_shipped(LoadRequest(name, revision)) for revision in (None, f"step-{steps[0]}"))
    assert (last.revision, first.revision) == (f"step-{steps[-1]}", f"step-{steps[0]}")
    assert load_shipped(LoadRequest(name, str(steps[1]), dtype="bfloat16")).model.dtype.is_floating_point
    with pytest.raises(SpecError, match="named by its step"):
        load_shipped(LoadRequest(name, "main"))
    with pytest.raises(SpecError, match="no checkpoint of step 7"):
        load_shipped(LoadRequest(name, "step-7"))


def test_a_missing_series_is_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped_series, "models_folder", lambda: tmp_path)
    with pytest.raises(DependencyError, match="missing from this installation"):
        shipped_folder(NAMES[0])


def test_byte_models_read_text_and_arithmetic_models_read_ids():
    text = ss.corpus(["the quick brown fox " * 30], tokens=64, context=32)
    loaded = load_shipped(LoadRequest("lazy-relu"))
    assert text.tokenize(loaded.tokenizer).n_tokens == 64
    assert load_shipped(LoadRequest("grokking-relu")).tokenizer is None
