"""The verb ``study`` and ``list studies``: output, exit codes, and what is refused before
torch is imported.
"""

from __future__ import annotations

import json
import sys

import pytest

TOY = """
name = "toy"
title = "Two random models"
question = "Which of two random models is sparser?"
corpus = "python-docs"
tokens = 300
context = 64
[[subject]]
name = "random-llama"
[[subject]]
name = "SECOND"
[[analysis]]
name = "activation_sparsity"
params = { resamples = 100 }
[[finding]]
label = "a Llama of random weights is dense"
analysis = "activation_sparsity"
scalar = "mean_nonzero"
subject = "random-llama"
relation = ">"
value = 0.99
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A repository with one study; the second subject is given."""
    monkeypatch.chdir(tmp_path)

    def make(second="random-opt"):
        folder = tmp_path / "analyses" / "toy"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.toml").write_text(TOY.replace("SECOND", second))

    make()
    return make


def test_a_study_by_name_as_text_and_as_json(command, empty_home, toy, tmp_path):
    code, out, err = command("study", "toy")
    assert (
        code == 0 and out.splitlines()[-1] == str(tmp_path / "toy.html") and (tmp_path / "toy.html").exists()
    )
    assert "holds" in out and "2 subjects x 1 analysis = 2 runs" in err
    code, found, _ = command(
        "study", tmp_path / "analyses" / "toy" / "study.toml", "-o", tmp_path / "x.html", "--json"
    )
    assert (
        code == 0
        and found["failed"] == 0
        and found["report"] == str(tmp_path / "x.html")
        and found["bytes"] > 1_000_000
    )
    assert [run["stored_before"] for run in found["runs"]] == [True, True]
    assert found["findings"][0]["status"] == "holds" and len(found["numbers"]) > 10


def test_2_where_a_subject_fails(command, empty_home, toy, tmp_path):
    toy("nobody/nothing")
    code, _, err = command("study", "toy")
    assert (
        code == 2
        and (tmp_path / "toy.html").exists()
        and "activation_sparsity of nobody/nothing failed" in err
    )
    code, found, _ = command("study", "toy", "--json")
    assert code == 2 and found["failed"] == 1 and found["runs"][1]["error"]


def test_1_where_the_file_is_wrong(command, empty_home, toy, tmp_path):
    toy("random-otp")
    code, out, err = command("study", "toy")
    assert code == 1 and out == "" and "subject[1].name" in err and "random-opt" in err
    code, _, err = command("study", "toys")
    assert code == 1 and "did you mean 'toy'" in err
    toy()
    code, _, err = command("study", "toy", "-o", tmp_path / "no" / "x.html")
    assert code == 1 and "cannot be written there" in err
    assert not empty_home.exists()


def test_a_notebook_is_executed_on_the_stored_runs(command, empty_home, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "toy.ipynb"
    code, found, err = command("study", "toy", "--notebook", path, "--json")
    assert (
        code == 0
        and found["notebook"] == str(path)
        and "report" not in found
        and found["bytes"] == path.stat().st_size
    )
    assert not (tmp_path / "toy.html").exists() and "executing the notebook" in err
    by_id = {cell["id"]: cell for cell in json.loads(path.read_text())["cells"]}
    said = "".join(by_id["study"]["outputs"][0]["text"])
    assert said.count("was stored already") == 2 and '"toy"' in "".join(by_id["study"]["source"])
    assert "<b>Holds:</b>" in "".join(by_id["finding-0"]["outputs"][0]["data"]["text/html"])


def test_a_notebook_without_runs(command, empty_home, toy, tmp_path):
    code, out, _ = command("study", "toy", "--notebook", "toy.ipynb", "--no-execute")
    assert code == 0 and out.strip() == str(tmp_path / "toy.ipynb") and not empty_home.exists()
    assert all(not cell.get("outputs") for cell in json.loads((tmp_path / "toy.ipynb").read_text())["cells"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--no-execute",), "--notebook FILE.ipynb"),
        (("--notebook", "x.ipynb", "-o", "x.html", "--no-execute"), "a notebook alone"),
        (("--notebook", "no/x.ipynb"), "the notebook cannot be written there"),
        (("--notebook", "x.ipynb", "missing"), "sparsescope[notebook]"),
    ],
)
def test_a_notebook_that_cannot_be(command, empty_home, toy, tmp_path, monkeypatch, words, said):
    if words[-1] == "missing":
        monkeypatch.setitem(sys.modules, "nbclient", None)
        words = words[:-1]
    code, out, err = command("study", "toy", *words)
    assert code == 1 and out == "" and said in err
    assert not empty_home.exists() and not list(tmp_path.glob("x.*"))


def test_list_studies(command, empty_home, toy, tmp_path):
    (tmp_path / "analyses" / "broken").mkdir()
    (tmp_path / "analyses" / "broken" / "study.toml").write_text("name = ")
    code, found, _ = command("list", "studies", "--json")
    rows = {row["name"]: row["summary"] for row in found["studies"]}
    assert code == 0 and rows["toy"] == "Which of two random models is sparser?"
    assert "cannot be read" in rows["broken"] and "relu_gelu_swiglu" in rows
