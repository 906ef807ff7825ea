"""Paths that users give: home, links, folders that one may not enter, names that no file can have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import sparsescope as ss
from sparsescope.core.files import given_output, given_path
from sparsescope.core.run_store import Store
from sparsescope.errors import ArtifactError, SpecError

RUN = ("run", "activation_sparsity", "--corpus", "python-docs", "--tokens", "300", "--context", "64")
# Verbs with a path in one of their places
PLACES = {
    "home": ("list", "--home", "{}"),
    "home of a run": (*RUN, "--subject", "random-llama", "--home", "{}"),
    "subject": (*RUN, "--subject", "{}"),
    "gguf": (*RUN, "--subject", "{}.gguf"),
    "corpus": (*RUN, "--subject", "random-llama", "--corpus", "{}.txt"),
    "report": ("report", "random-llama", "-o", "{}.html"),
    "run in a report": ("report", "{}"),
    "series": ("run", "sparsity_over_training", "--subject", "{}"),
    "dictionary": ("run", "dictionary_quality", "--subject", "random-llama", "--dictionary", "{}"),
    "study": ("study", "{}/study.toml"),
    "notebook": ("study", "relu_gelu_swiglu", "--no-execute", "--notebook", "{}.ipynb"),
    "recipe": ("train", "{}.toml", "--output", "x"),
    "series to write": ("train", "grokking-relu", "--output", "{}"),
    "pruned model": ("prune", "random-llama", "--sparsity", "0.5", "-o", "{}"),
    "masks": ("doctor", "--subject", "random-llama", "--masks", "{}"),
    "folder to verify": ("verify", "{}"),
    "name": ("show", "{}"),
    "run to compare": ("compare", "{}", "{}"),
}


def words(place, path):
    return [word.format(path) for word in PLACES[place]]


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A path in a folder that nobody but its owner may enter, and its owner neither."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "inside").mkdir()
    folder.chmod(0)
    yield folder / "inside" / "given"
    folder.chmod(0o700)


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_one_may_not_enter_is_named(place, command, locked, ordinary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ordinary.ordinary_user():
        code, _, err = command(*words(place, locked))
    assert code == 1 and "internal" not in err and "error:" in err, (code, err)
    assert str(locked) in err and ("not let you" in err or "Permission" in err or "cannot be" in err), err


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["x" * 300, "~nosuchuser/x", "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(place, name, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*words(place, name))
    assert code == 1 and "internal" not in err and "error:" in err.lower(), (code, err)
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.parametrize("place", PLACES)
def test_a_working_folder_that_is_gone_is_said(place, command, tmp_path):
    folder, before = tmp_path / "gone", Path.cwd()
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()
    try:
        code, _, err = command(*words(place, "given"))
    finally:
        os.chdir(before)
    assert code == 1 and "internal" not in err and "error:" in err, (code, err)


def test_a_tilde_is_the_home_everywhere(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    code, _, err = command(*RUN, "--subject", "random-llama", "--home=~/runs")
    assert code == 0, err
    (run_id,) = Store(tmp_path / "runs").run_ids()
    assert command("report", f"~/runs/{run_id}", "-o", "~/one.html")[0] == 0
    assert (tmp_path / "one.html").is_file()
    result = ss.open(f"~/runs/{run_id}")
    assert ss.report([result], "~/two.html") == tmp_path / "two.html"
    monkeypatch.setenv("SPARSESCOPE_HOME", "~/runs")
    assert ss.open(run_id).run_id == run_id
    assert not list(work.iterdir())


def test_a_report_may_have_the_longest_name_that_a_file_can_have(command, runs, tmp_path):
    for length in (236, 255):
        path = tmp_path / ("r" * (length - 5) + ".html")
        code, _, err = command("report", runs[0] / runs[1], "-o", path)
        assert code == 0 and path.is_file(), err
    assert len(list(tmp_path.iterdir())) == 2


def test_an_output_that_is_a_link_stays_one(command, runs, tmp_path):
    (tmp_path / "shown.html").symlink_to(tmp_path / "kept.html")
    for _ in range(2):
        code, out, _ = command("report", runs[0] / runs[1], "-o", tmp_path / "shown.html")
        assert code == 0 and out.strip() == str(tmp_path / "kept.html")
    assert (tmp_path / "shown.html").is_symlink() and "<html" in (tmp_path / "kept.html").read_text("utf-8")


@pytest.mark.parametrize("output", ["-", "/dev/null", "folder", "folder/"])
def test_what_is_no_file_is_no_output(output, command, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    code, _, err = command("report", runs[0] / runs[1], "-o", output)
    assert code == 1 and "the report cannot be written there" in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] and Path("/dev/null").exists()
    with pytest.raises(SpecError, match="the report cannot be written there"):
        ss.report([ss.open(runs[0] / runs[1])], output)


def test_given_paths_need_not_be_there(tmp_path):
    assert given_path(tmp_path / "a" / "b", "x") == tmp_path / "a" / "b"
    (tmp_path / "file").write_text("")
    assert given_path(tmp_path / "file" / "b", "x") == tmp_path / "file" / "b"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(SpecError, match="does not let you look"):
        given_output(tmp_path / "loop", "x")


# -- runs: links, renamed and copied folders ------------------------------------------------------


def test_a_link_to_a_run_is_that_run_in_every_verb(command, runs, tmp_path):
    (tmp_path / "latest").symlink_to(runs[0] / runs[1])
    assert ss.open(tmp_path / "latest").run_id == runs[1]
    assert command("show", tmp_path / "latest")[0] == 0
    code, _, err = command("report", tmp_path / "latest", "-o", tmp_path / "r.html")
    assert code == 0, err
    assert command("compare", tmp_path / "latest", runs[0] / runs[2])[0] == 0


def test_a_renamed_run_is_refused_in_the_same_words_everywhere(command, runs, tmp_path):
    shutil.copytree(runs[0] / runs[1], tmp_path / "mine")
    with pytest.raises(ArtifactError, match="does not belong to this folder"):
        ss.open(tmp_path / "mine")
    for verb in (("show", tmp_path / "mine"), ("report", tmp_path / "mine", "-o", tmp_path / "r.html")):
        code, _, err = command(*verb)
        assert code == 1 and "does not belong to this folder" in err and "do not rename" in err, err


def test_newest_first_survives_a_copy(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    for age, run_id in enumerate(Store(runs[0]).run_ids()):  # the oldest is touched last
        os.utime(tmp_path / "copy" / run_id / "manifest.json", (2_000_000_000 + age,) * 2)
    assert Store(tmp_path / "copy").run_ids() == Store(runs[0]).run_ids()
