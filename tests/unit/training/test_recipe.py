"""Recipes: every shipped one is valid, and what is not valid is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sparsescope.errors import SpecError
from sparsescope.training.recipe import OptimizerRecipe, changed_text, find_recipe, read_recipe
from sparsescope.training.schedule import Schedule

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted(path for path in (ROOT / "analyses").glob("*/*.toml") if "[optimizer]" in path.read_text())


def test_there_are_recipes():
    assert {path.stem for path in FILES} >= {"relu", "moe", "swiglu"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_recipes_are_valid_and_say_their_command(path):
    recipe = read_recipe(path)
    command = f"sparsescope train {path.relative_to(ROOT).as_posix()} --output data/models/{recipe.name}"
    assert command in path.read_text()
    assert 0 in recipe.checkpoints and recipe.steps in recipe.checkpoints


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 30", "steps = 20", "checkpoints lie in 0 to 20"),
        ("[0, 10, 30]", "[10, 0, 30]", "ascending"),
        ("[0, 10, 30]", "[0, 10, 10]", "ascending"),
        ("ModularTransformerForCausalLM", "AutoModel", "architecture is one of"),
        ("modular_addition", "pickle", "kind"),
        ("log_every = 5", "log_every = 0", "log_every"),
        ("log_every = 5", "log_often = 5", "log_often"),
        ("1e-2", "nan", "learning_rate"),
        ("name = ", "name ", "no TOML"),
        ('name = "tiny"', 'name = "../tiny"', "name"),
    ],
)
def test_what_is_not_valid_is_named(recipe_file, old, new, message):
    text = recipe_file.read_text()
    assert old in text
    recipe_file.write_text(text.replace(old, new))
    with pytest.raises(SpecError, match=message):
        read_recipe(recipe_file)


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_the_schedule_is_that_of_the_recipe(decay):
    declared = OptimizerRecipe(
        learning_rate=0.1, weight_decay=0.0, warmup_steps=7, decay=decay, final_fraction=0.2
    )
    assert declared.schedule(50) == Schedule(0.1, 50, 7, decay, None, 0.2)


def test_the_copied_recipe_says_what_was_changed():
    text = '# a comment\nname = "a"\nsteps = 3\n\n[model]\nname = "inner"\n'
    changed = changed_text(text, seed=7, name="b")
    assert tomllib.loads(changed) == {"name": "b", "steps": 3, "seed": 7, "model": {"name": "inner"}}
    assert changed_text(text, seed=None, name=None) == text
    assert changed_text(text, seed=None, name="a") == text
    quoted = '"name" = "a"\n[model]\n'
    assert changed_text(quoted, name="b") == quoted, "a key that stands there twice is no TOML"


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 5000 + "]" * 5000)
    with pytest.raises(SpecError, match="no TOML"):
        read_recipe(path)


def test_a_recipe_of_a_study_is_found_from_any_folder(tmp_path, monkeypatch):
    """In an installed wheel, too, where no folder ``analyses`` is at hand: there they lie in the package."""
    monkeypatch.chdir(tmp_path)
    found = find_recipe("analyses/grokking/relu.toml")
    assert read_recipe(found).name == "grokking-relu"
    wheel = tmp_path / "sparsescope"
    (wheel / "training").mkdir(parents=True)
    (wheel / "studies" / "grokking").mkdir(parents=True)
    (wheel / "studies" / "grokking" / "relu.toml").write_bytes(found.read_bytes())
    monkeypatch.setattr("sparsescope.training.recipe.__file__", str(wheel / "training" / "recipe.py"))
    assert find_recipe("analyses/grokking/relu.toml") == wheel / "studies" / "grokking" / "relu.toml"
    for other in ("analyses/grokking/nothing.toml", "analyses/../secret.toml"):
        with pytest.raises(SpecError, match="unknown recipe"):
            find_recipe(other)
