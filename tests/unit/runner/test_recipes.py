"""Recipes of artifacts: what was trained before is taken again only where the same would be trained."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from dataclasses import replace

import pytest
from pydantic import Field

import sparsescope as ss
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Params
from sparsescope.errors import DependencyError, SpecError, SubjectError
from sparsescope.runner.recipes import inputs_of, trained
from sparsescope.training import kinds
from sparsescope.training.kinds import ArtifactRecipe, RecipeKind


class Plain(Params):
    """Parameters that name no input."""

    size: int = 3


class Reading(Plain):
    """Parameters that name inputs."""

    subject: str | None = Field(None, json_schema_extra={"role": "subject"})
    text: str | None = Field(None, json_schema_extra={"role": "text"})
    series: list[str] = Field([], json_schema_extra={"role": "series"})


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """A recipe whose training is counted: each makes another artifact."""
    calls = []

    def train(params, keep, progress):
        calls.append(params)
        with keep("toy", format="text") as writer:
            writer.write("a.txt", str(len(calls)).encode())
        return writer.artifact

    module = types.ModuleType("toy_recipe_of_tests")
    module.train = train
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def make(params, version=1):
        kind = RecipeKind("toy", "A toy.", type(params), module.__name__, version=version)
        return ArtifactRecipe(tmp_path / "toy.toml", kind, params)

    make.calls = calls
    return make


def test_what_was_trained_before_there_were_versions_keeps_its_name(recipe):
    before = hashlib.sha256(b'["toy",{"size":3}]').hexdigest()
    assert recipe(Plain()).digest({}) == before
    assert recipe(Plain(), version=2).digest({}) != before
    assert recipe(Reading()).digest(inputs_of(recipe(Reading()), None)) == recipe(Reading()).digest({})


def test_another_version_trains_again(recipe, tmp_path):
    store = Store(tmp_path / "runs")
    first, again = (trained(recipe(Plain()), store)[0].id for _ in range(2))
    second, back = trained(recipe(Plain(), version=2), store)[0].id, trained(recipe(Plain()), store)[0].id
    assert first == again == back != second and len(recipe.calls) == 2


def test_another_model_of_the_same_name_trains_again(recipe, tmp_path):
    store, folder = Store(tmp_path / "runs"), tmp_path / "model"
    ids = []
    for seed in (0, 0, 1):
        subject = ss.load(f"random-llama@{seed}")
        subject.model.save_pretrained(folder)
        subject.tokenizer.save_pretrained(folder)
        ids.append(trained(recipe(Reading(subject=str(folder))), store)[0].id)
    assert ids[0] == ids[1] != ids[2]


def test_another_text_of_the_same_name_trains_again(recipe, tmp_path):
    store, path = Store(tmp_path / "runs"), tmp_path / "text.txt"
    ids = []
    for text in ("some words", "some words", "other words"):
        path.write_text(text)
        ids.append(trained(recipe(Reading(text=str(path))), store)[0].id)
    assert ids[0] == ids[1] != ids[2]


def test_each_input_of_a_list_joins(recipe):
    names = ["grokking-short-seed1", "grokking-short-seed2"]
    both, one = (inputs_of(recipe(Reading(series=given)), None) for given in (names, names[:1]))
    assert both["series"][:1] == one["series"] and len(set(both["series"])) == 2
    assert json.loads(json.dumps(both)) == both


def test_an_input_that_is_not_there_is_said_before_the_training(recipe, tmp_path):
    with pytest.raises(SubjectError, match="unknown subject 'nowhere'"):
        trained(recipe(Reading(subject="nowhere")), Store(tmp_path))
    assert not recipe.calls


@pytest.mark.parametrize("version", [0, "2", True, 1.0])
def test_a_version_is_a_whole_number(monkeypatch, version):
    kind = replace(RecipeKind("toy", "A toy.", Plain, "nowhere"), version=version)
    point = types.SimpleNamespace(name="toy", value="x:KIND", load=lambda: kind)
    monkeypatch.setattr(kinds, "entry_points", lambda group: [point])
    found = kinds.recipe_kinds.__wrapped__()["toy"]
    assert isinstance(found, DependencyError) and "not a whole number" in found.what


def test_a_training_that_returns_no_artifact(recipe, monkeypatch):
    made = recipe(Plain())
    sys.modules["toy_recipe_of_tests"].train = lambda params, keep, progress: None
    with pytest.raises(SpecError, match=r"returned no artifact[\s\S]*writer\.artifact"):
        trained(made, None)
