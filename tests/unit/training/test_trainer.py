"""The trainer: the same seed gives the same files, an interrupted run goes on exactly, and
foreign work is refused.
"""

from __future__ import annotations

import json

import pytest
import torch

from sparsescope.cli import app
from sparsescope.cli.exit_codes import execute
from sparsescope.errors import ArtifactError, SpecError, SubjectError
from sparsescope.models.formats.series_file import SeriesFolder
from sparsescope.training.recipe import read_recipe
from sparsescope.training.trainer import PARTIAL, train


def marks(folder):
    return [
        (found.step, found.sha256, found.float32_hash)
        for found in SeriesFolder.open(folder).content.checkpoints
    ]


def test_the_same_seed_gives_the_same_checkpoints_and_another_seed_others(recipe, tmp_path):
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    state = torch.random.get_rng_state()
    train(recipe, first)
    train(recipe, second)
    train(recipe.model_copy(update={"seed": 4}), other)
    assert torch.equal(torch.random.get_rng_state(), state), "the random state of the process was touched"
    assert marks(first) == marks(second)
    assert not {mark[1] for mark in marks(first)} & {mark[1] for mark in marks(other)}
    assert SeriesFolder.open(first).curves().equals(SeriesFolder.open(second).curves())


@pytest.mark.parametrize("stops", [(13,), (10, 10), (1, 1, 27)])
def test_an_interrupted_run_goes_on_exactly(recipe, tmp_path, stops):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe, whole)
    for steps in stops:
        assert train(recipe, parts, stop_after=steps) is None
        assert not (parts / "series.json").exists()
    assert train(recipe, parts) == parts
    assert marks(whole) == marks(parts)
    assert SeriesFolder.open(whole).curves().equals(SeriesFolder.open(parts).curves())
    assert not (parts / PARTIAL).exists()


@pytest.mark.parametrize(
    ("key", "near"), [("hiden_size", "hidden_size"), ("intermediate_sizes", "intermediate_size")]
)
def test_a_misspelled_value_of_the_configuration_is_refused(recipe, tmp_path, key, near):
    model = recipe.model.model_copy(update={"config": {**recipe.model.config, key: 32}})
    with pytest.raises(SpecError, match=f"unknown value of the model's configuration '{key}'") as caught:
        train(recipe.model_copy(update={"model": model}), tmp_path / "run")
    assert f"'{near}'" in caught.value.next_step


def test_curves_hold_every_split_and_every_tensor(recipe, tmp_path):
    curves = SeriesFolder.open(train(recipe, tmp_path / "run")).curves()
    assert sorted(set(curves["step"])) == [0, 5, 10, 15, 20, 25, 30]
    at = curves[curves["step"] == 30]
    assert set(at[at["measure"] == "loss"]["split"]) == {"train", "test"}
    folder = SeriesFolder.open(tmp_path / "run")
    model = folder.model(30)
    norms = at[at["measure"] == "squared_norm"].set_index("part")["value"]
    assert set(norms.index) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert norms[name] == pytest.approx(
            float(parameter.detach().double().square().sum()), rel=2e-3, abs=1e-9
        )
    record = folder.checkpoint(30)
    train_loss = at[(at["measure"] == "loss") & (at["split"] == "train")]["value"].item()
    assert record.trained["train"]["loss"] == train_loss


def test_loss_before_and_after_rounding_is_measured_on_different_weights(recipe, tmp_path):
    last = SeriesFolder.open(train(recipe, tmp_path / "run")).checkpoint(30)
    before, after = last.trained["train"]["loss"], last.stored["train"]["loss"]
    assert before != after and before == pytest.approx(after, rel=1e-2)


def test_work_of_another_recipe_and_finished_work_are_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run", stop_after=12)
    with pytest.raises(ArtifactError, match="of another recipe"):
        train(recipe.model_copy(update={"log_every": 6}), tmp_path / "run")
    train(recipe, tmp_path / "run")
    with pytest.raises(ArtifactError, match="finished series"):
        train(recipe, tmp_path / "run")


def test_a_damaged_state_is_refused(recipe, tmp_path):
    train(recipe, tmp_path / "run", stop_after=12)
    path = tmp_path / "run" / PARTIAL / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="state of the training cannot be read"):
        train(recipe, tmp_path / "run")


def test_a_training_that_diverges_says_so(recipe, tmp_path):
    wild = recipe.model_copy(
        update={"optimizer": recipe.optimizer.model_copy(update={"learning_rate": 1e20})}
    )
    with pytest.raises(SubjectError, match=r"not finite|float16"):
        train(wild, tmp_path / "run")


def test_the_verb_trains_and_shows_plain_lines(recipe_file, tmp_path, capsys):
    assert (
        execute(
            app,
            ["train", str(recipe_file), "--output", str(tmp_path / "run"), "--seed", "5", "--name", "other"],
        )
        == 0
    )
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "run")
    assert "other: 30 of 30 steps, train loss" in shown.err and "steps/s" in shown.err
    content = json.loads((tmp_path / "run" / "series.json").read_text())
    assert (content["seed"], content["name"]) == (5, "other")
    copied = read_recipe(tmp_path / "run" / "recipe.toml")
    assert (copied.seed, copied.name) == (5, "other"), "the copy is not the recipe that made the series"
    again = SeriesFolder.open(train(copied, tmp_path / "again"))
    assert [found.sha256 for found in again.content.checkpoints] == [
        found["sha256"] for found in content["checkpoints"]
    ]
    assert execute(app, ["train", str(recipe_file), "--output", str(tmp_path / "run")]) == 1
    assert "finished series" in capsys.readouterr().err


def test_progress_is_a_bar_on_a_terminal(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(recipe, tmp_path / "run")
    shown = capsys.readouterr().err
    assert "tiny" in shown and "30/30" in shown and "train loss" in shown


def test_memorization_and_generalization_are_dated(recipe, tmp_path):
    easy = recipe.model_copy(
        update={
            "steps": 400,
            "checkpoints": [0, 400],
            "log_every": 20,
            "data": recipe.data.model_copy(update={"batch_size": None}),
            "optimizer": recipe.optimizer.model_copy(update={"weight_decay": 0.0}),
        }
    )
    folder = SeriesFolder.open(train(easy, tmp_path / "run"))
    curves = folder.curves()
    accuracy = curves[(curves["measure"] == "accuracy") & (curves["split"] == "train")].set_index("step")[
        "value"
    ]
    t_mem = folder.content.events["t_mem"]
    assert t_mem is not None and (accuracy[t_mem : t_mem + 40] >= 0.99).all() and accuracy[t_mem - 20] < 0.99
    assert folder.content.events["t_gen"] is None, "24 pairs without weight decay do not show addition"


def test_files_of_others_are_not_overwritten(recipe, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("precious")
    with pytest.raises(ArtifactError, match="other files"):
        train(recipe, tmp_path / "mine")
    assert (tmp_path / "mine" / "config.json").read_text() == "precious"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


@pytest.mark.parametrize("config", [{"vocab_size": 5}, {"hidden_act": "bogus"}, {"num_attention_heads": 3}])
def test_a_model_that_does_not_take_the_data_is_a_mistake_in_the_recipe(recipe, tmp_path, config):
    model = recipe.model.model_copy(update={"config": {**recipe.model.config, **config}})
    with pytest.raises(SpecError, match="cannot be built, or does not take its data") as caught:
        train(recipe.model_copy(update={"model": model}), tmp_path / "run")
    assert caught.value.next_step and not (tmp_path / "run" / "series.json").exists()


def test_two_trainings_do_not_share_a_folder(recipe, tmp_path):
    from filelock import FileLock

    (tmp_path / "run" / PARTIAL).mkdir(parents=True)
    with (
        FileLock(tmp_path / "run" / PARTIAL / "lock"),
        pytest.raises(ArtifactError, match="another training"),
    ):
        train(recipe, tmp_path / "run")
    assert train(recipe, tmp_path / "run") == tmp_path / "run"


def test_what_a_killed_run_left_does_not_fail_the_end(recipe, tmp_path):
    (tmp_path / "run" / PARTIAL).mkdir(parents=True)
    (tmp_path / "run" / PARTIAL / ".step-10.safetensors.1.abcd.tmp").write_text("half")
    train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / PARTIAL).exists() and (tmp_path / "run" / "series.json").is_file()
