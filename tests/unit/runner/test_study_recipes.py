"""Studies whose series are trained when they are absent: once, by the recipe with its seed, or refused."""

from __future__ import annotations

import json

import pytest

from sparsescope.core.run_store import Store
from sparsescope.errors import SpecError
from sparsescope.models.checkpoints import open_series
from sparsescope.runner import recipes
from sparsescope.runner.recipes import declared_recipe, trained_series
from sparsescope.runner.study import load_study
from sparsescope.runner.study_checks import check_study
from sparsescope.runner.study_run import study

RECIPE = """
name = "tiny"
title = "A tiny run"
license = "Apache-2.0"
seed = 0
steps = 6
checkpoints = [0, 3, 6]
log_every = 3
threads = 1

[model]
architecture = "ModularTransformerForCausalLM"

[model.config]
vocab_size = 12
hidden_size = 16
intermediate_size = 32
num_attention_heads = 2

[data]
kind = "modular_addition"
modulus = 11
train_fraction = 0.5

[optimizer]
learning_rate = 1e-2
weight_decay = 1.0
"""
STUDY = """
name = "toy"
title = "Toy"
question = "Which?"

[recipes]
one = "tiny.toml"
two = { file = "tiny.toml", seed = 1 }
three = { file = "tiny.toml", seed = 2 }

[[subject]]
name = "recipe:one"
label = "first"
inputs = { series = ["recipe:two", "recipe:three"] }

[[analysis]]
name = "grokking"
params = { draws = 100, surrogates = 19 }

[[analysis]]
name = "weight_sparsity_over_training"
"""


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()

    def write(text=STUDY, recipe=RECIPE):
        (folder / "tiny.toml").write_text(recipe)
        (folder / "study.toml").write_text(text)
        return load_study(folder)

    return write


def test_series_are_trained_once_and_found_again(written, tmp_path, monkeypatch):
    home = tmp_path / "runs"
    written()
    first = study(tmp_path / "study", store=home)
    assert not first.failed
    folders = sorted(path.name for path in (home / recipes.SERIES).glob("*/*"))
    assert folders == ["tiny", "tiny-seed1", "tiny-seed2"]
    own = first.result("recipe:one", "grokking").tables["onsets"]
    assert own["series"].tolist() == ["tiny", "tiny-seed1", "tiny-seed2"]
    assert first.result("recipe:one", "weight_sparsity_over_training") is not None, (
        "it takes one series alone"
    )

    def refuse(*given, **more):
        raise AssertionError("it is trained again")

    monkeypatch.setattr("sparsescope.training.trainer.train", refuse)
    again = study(tmp_path / "study", store=home)
    assert all(run.stored for run in again.runs)


def test_the_seed_of_a_study_makes_the_series_of_that_seed(written, tmp_path):
    from sparsescope.training.recipe import read_recipe
    from sparsescope.training.trainer import train

    found = written()
    made = trained_series(declared_recipe(found, "two"), Store(tmp_path / "runs"))
    plain = train(read_recipe(tmp_path / "study" / "tiny.toml", seed=1), tmp_path / "by-hand")
    weights = [json.loads((folder / "series.json").read_text())["checkpoints"] for folder in (made, plain)]
    assert [entry["sha256"] for entry in weights[0]] == [entry["sha256"] for entry in weights[1]]
    text = (made / "recipe.toml").read_text()
    assert "seed = 1" in text and 'name = "tiny-seed1"' in text
    assert open_series(made).trained.seed == 1


def test_another_recipe_is_another_series(written):
    one = declared_recipe(written(), "one")
    other = declared_recipe(written(recipe=RECIPE.replace("steps = 6", "steps = 9")), "one")
    assert one.digest != other.digest != declared_recipe(written(), "two").digest
    assert one.digest == declared_recipe(written(recipe="# a comment\n" + RECIPE), "one").digest


def test_without_a_folder_of_runs_it_lives_as_long_as_the_process(written):
    folder = trained_series(declared_recipe(written(), "one"), None)
    assert open_series(folder).steps == (0, 3, 6)
    assert trained_series(declared_recipe(written(), "one"), None) == folder


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "recipe:one"', 'name = "recipe:won"', "unknown recipe of this study"),
        ('two = { file = "tiny.toml"', 'two = { file = "../tiny.toml"', "inside its folder"),
        ('two = { file = "tiny.toml", seed = 1 }', 'two = { file = "tiny.toml", seed = -1 }', "recipes"),
        ('"recipe:two", "recipe:three"', '"recipe:two"', "no input of this study is trained by"),
        ("{ series = [", "{ dictionary = [", "trains a model, not an artifact"),
    ],
)
def test_what_is_refused_before_anything_is_trained(written, old, new, said):
    assert old in STUDY
    with pytest.raises(SpecError) as caught:
        check_study(written(STUDY.replace(old, new)))
    assert said in str(caught.value), caught.value


def test_a_recipe_of_an_artifact_is_no_subject(written, tmp_path):
    sae = 'kind = "dictionaries"\nsubject = "random-llama"\n'
    written()
    (tmp_path / "study" / "sae.toml").write_text(sae)
    text = STUDY.replace('one = "tiny.toml"', 'one = "sae.toml"')
    with pytest.raises(SpecError):
        check_study(written(text))


def test_series_beside_need_an_analysis_that_takes_several(written):
    text = STUDY[: STUDY.index("[[analysis]]")] + '[[analysis]]\nname = "weight_sparsity_over_training"\n'
    with pytest.raises(SpecError, match="role of inputs"):
        check_study(written(text))
