"""Recipes of dictionaries: training, the kept folders, verify; bad recipes train nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

import sparsescope as ss
from sparsescope.core.run_store import Store
from sparsescope.dictionaries.artifact import read_dictionary, training_of
from sparsescope.dictionaries.documents import document_digest
from sparsescope.training.kinds import read_artifact_recipe

RECIPE = """\
kind = "dictionaries"
subject = "glassllm"
corpus = "python-docs"
tokens = 3000
context = 64
site = "blocks.1.mlp.hook_post"
epochs = 2
batch_rows = 256
held_out = 0.2

[[dictionaries]]
architecture = "topk"
width = 96
k = 8

[[dictionaries]]
architecture = "mutual_choice"
width = 96
k = 8
seed = 1

[[dictionaries]]
architecture = "snmf"
width = 12
sparsity = 0.1
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder with the recipe, and what training it twice printed."""
    from sparsescope.runner.recipes import trained
    from sparsescope.training.kinds import read_artifact_recipe

    folder = tmp_path_factory.mktemp("recipe")
    (folder / "small.toml").write_text(RECIPE)
    recipe = read_artifact_recipe(folder / "small.toml")
    store = Store(folder / "runs")
    told = []
    first = trained(recipe, store, lambda *said: told.append(said))
    return folder, recipe, store, first, told


def test_a_recipe_gives_one_artifact_for_each_dictionary(trained):
    folder, _, store, first, told = trained
    assert [found.kind for found in first] == ["dictionary"] * 3
    assert [found.meta["name"] for found in first] == ["topk-96-k8-s0", "batch_topk-96-k8-s1", "snmf-12-s0"]
    assert [found.format for found in first] == ["saelens", "saelens", "snmf"]
    assert {phase for phase, *_ in told} >= {"store", "count", "factorize"}
    assert not list((folder / "runs" / ".partial").glob("train-*")), "what is finished leaves no work"
    assert all(verdict.status == "ok" for verdict in store.artifacts.verify())


def test_the_same_recipe_is_not_trained_again(trained):
    from sparsescope.runner.recipes import trained as train

    _, recipe, store, first, _ = trained
    told = []
    again = train(recipe, store, lambda *said: told.append(said))
    assert [found.id for found in again] == [found.id for found in first] and told == []


def test_another_recipe_on_the_same_text_reads_the_same_store(trained, tmp_path):
    from sparsescope.runner.recipes import trained as train
    from sparsescope.training.kinds import read_artifact_recipe

    folder, _, store, _, _ = trained
    kept = list((folder / "runs" / "activations").glob("*/shards/*"))
    before = [path.stat().st_mtime_ns for path in kept]
    (tmp_path / "more.toml").write_text(
        RECIPE.split("[[")[0] + '[[dictionaries]]\narchitecture = "relu"\nwidth = 32\n'
    )
    made = train(read_artifact_recipe(tmp_path / "more.toml"), store)
    assert made[0].meta["architecture"] == "relu"
    assert [path.stat().st_mtime_ns for path in kept] == before and len(kept) > 0


def test_what_a_training_says_of_a_dictionary(trained):
    _, _, _, first, _ = trained
    facts = training_of(first[0])["facts"]
    assert (
        0 < facts["train_fvu"] < 1
        and facts["held_out_fvu"] > 0
        and facts["thresholds_on"] == "other documents"
    )
    assert facts["held_out_l0"] <= 8 and 0 <= facts["born_dead_centred"] <= facts["born_dead_raw"] <= 1
    census = training_of(first[0])["census"]
    assert len(census["rows_per_feature"]) == 96
    assert facts["dead_share"] == np.mean(np.array(census["rows_per_feature"]) == 0)
    mutual = training_of(first[1])["facts"]
    assert abs(mutual["held_out_l0"] - 8) < 4, (
        "thresholds of other documents hold about as many features active"
    )


def test_documents_are_split_once(trained):
    _, _, _, first, _ = trained
    said = training_of(first[0])["documents"]
    assert said == training_of(first[2])["documents"]
    parts = [set(said[name]) for name in ("train", "thresholds", "held_out")]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    subject = ss.load("glassllm")
    text = ss.corpus("python-docs", tokens=3000, context=64).tokenize(
        subject.tokenizer, subject.max_positions
    )
    assert {document_digest(document.ids) for document in text.documents} == set().union(*parts)


def test_the_kept_folder_is_one_of_saelens(trained):
    _, _, _, first, _ = trained
    config = json.loads((first[1].path / "cfg.json").read_text())
    assert config["architecture"] == "jumprelu" and config["d_sae"] == 96
    assert config["metadata"]["hook_name"] == "blocks.1.mlp.hook_post"
    found = read_dictionary(first[1])
    assert (found.width, found.site) == (96, "blocks.1.mlp.hook_post")
    snmf = read_dictionary(first[2])
    assert (snmf.width, snmf.site, snmf.architecture) == (12, "blocks.1.mlp.hook_post", "snmf")


def test_verify_looks_at_files_and_at_the_model(trained, command):
    folder, _, _, first, _ = trained
    words = ("verify", first[0].id, "--home", folder / "runs")
    code, found, _ = command(*words, "--json")
    assert code == 0 and [proof["what"] for proof in found["proofs"]] == ["files"]
    code, found, _ = command(*words, "--subject", "glassllm", "--json")
    assert [proof["what"] for proof in found["proofs"]] == ["files", "site", "L0", "error"]
    assert code == 0, found


def test_verify_notices_a_wrong_hook(trained, command, tmp_path):
    """The file loads and the width fits: only L0 and error tell."""
    from sparsescope.dictionaries.interchange import load_saelens, save_saelens

    _, _, _, first, _ = trained
    wrong = load_saelens(first[1].path)
    wrong.site = "blocks.0.mlp.hook_post"
    wrong.metadata["hook_name"] = "blocks.0.mlp.hook_post"
    wrong.metadata["l0"] = 8.0
    save_saelens(wrong, tmp_path / "wrong")
    code, found, _ = command("verify", tmp_path / "wrong", "--subject", "glassllm", "--json")
    assert code == 1 and not all(proof["ok"] for proof in found["proofs"])


def test_an_analysis_takes_them_by_id(trained, command):
    folder, _, _, first, _ = trained
    few = (
        "--set",
        "loss_tokens=64",
        "--set",
        "probe_rows=64",
        "--set",
        "resamples=100",
        "--set",
        "absorption=false",
    )
    words = ("--dictionary", first[0].id, "--dictionary", first[1].id, "--home", folder / "runs", *few)
    text = ("--corpus", "python-source", "--tokens", "1500", "--context", "64")
    code, found, err = command("run", "dictionary_quality", "--subject", "glassllm", *text, *words, "--json")
    assert code == 0, err
    assert {entry["id"] for entry in found["provenance"]["inputs"]["dictionary"]} == {
        one.id for one in first[:2]
    }
    assert {"fvu_topk_96_k8_s0", "fvu_batch_topk_96_k8_s1"} <= set(found["scalars"])


def test_list_and_show_know_dictionaries(trained, command):
    folder, _, _, first, _ = trained
    code, found, _ = command("list", "artifacts", "--home", folder / "runs", "--json")
    assert code == 0 and {row["artifact"] for row in found["artifacts"]} >= {one.id for one in first}
    code, out, _ = command("show", first[0].id, "--home", folder / "runs")
    assert code == 0 and "topk" in out and "blocks.1.mlp.hook_post" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("k = 8", "k = 0"), "k is a whole number from 1 to the width, 96; got 0"),
        (("k = 8", "k = 97"), "k is a whole number from 1 to the width, 96; got 97"),
        (
            ('"topk"', '"topkk"'),
            "unknown architecture of a dictionary 'topkk'; allowed: relu, topk, batch_topk",
        ),
        (('"topk"', '"gated"'), "gated is read from files, and not trained here"),
        (('"mutual_choice"', '"transcoder"'), "transcoders need site_out"),
        (("seed = 1", 'name = "topk-96-k8-s0"'), "two dictionaries are called topk-96-k8-s0"),
        (("tokens = 3000", "tokens = 0"), "tokens"),
        (("held_out = 0.2", 'scores = "float16"'), "scores"),
        (("held_out = 0.2", "held_out = 0.7"), "held_out"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_a_model_is_loaded(command, tmp_path, change, message):
    (tmp_path / "bad.toml").write_text(RECIPE.replace(*change, 1))
    code, _, err = command("train", tmp_path / "bad.toml", "--home", tmp_path / "runs")
    assert code == 1 and message in err, err
    assert not (tmp_path / "runs").exists()


def test_a_key_that_came_later_tells_trainings_apart_only_where_it_is_set(tmp_path):
    """What was trained before is found by its old name."""
    (tmp_path / "old.toml").write_text(RECIPE)
    (tmp_path / "same.toml").write_text(RECIPE.replace("held_out", 'scores = "float32"\nheld_out'))
    (tmp_path / "other.toml").write_text(RECIPE.replace("held_out", 'scores = "bfloat16"\nheld_out'))
    old, same, other = (
        read_artifact_recipe(tmp_path / f"{name}.toml").digest({}) for name in ("old", "same", "other")
    )
    assert old == same != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("blocks.1.mlp.hook_post", "blocks.99.mlp.hook_post"), "blocks.99.mlp.hook_post"),
        (("blocks.1.mlp.hook_post", "blocks.*.mlp.hook_post"), "a recipe of dictionaries is of one site"),
        (("k = 8", "sharpness = 8"), "a setting of the dictionary is unknown"),
        (("held_out = 0.2", 'log = ["csv:x"]'), "curves cannot go there"),
        (("tokens = 3000", "tokens = 40"), "there are too few documents to hold some out"),
    ],
)
def test_what_only_the_model_tells_is_refused_before_it_reads(command, tmp_path, change, message):
    (tmp_path / "bad.toml").write_text(RECIPE.replace(*change, 1))
    code, _, err = command("train", tmp_path / "bad.toml", "--home", tmp_path / "runs")
    assert code == 1 and message in err, err
    assert not list((tmp_path / "runs").glob("activations/*")) and not list(
        (tmp_path / "runs").glob("artifacts/*")
    )
