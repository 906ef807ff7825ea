"""A package that brings inputs, artifacts, a recipe and an analysis of any series appears everywhere with
no edit elsewhere.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# the code under test: the program leaves this folder before it imports it
ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
# Does everything in one process: importing takes longer than all the rest.
PROGRAM = r"""
import contextlib, io, json, os, shutil, sys
from pathlib import Path
folder = Path(sys.argv[1])
os.environ["SPARSESCOPE_HOME"] = str(folder / "runs")
os.chdir(folder)
from sparsescope.cli import app
from sparsescope.cli.exit_codes import execute

found = {}
def sparsescope(name, *words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(app, words)
    shown = out.getvalue()
    found[name] = {
        "code": code,
        "out": json.loads(shown) if shown.startswith("{") else shown,
        "err": err.getvalue(),
    }
    return found[name]["out"]

small = ("--corpus", "python-docs", "--tokens", "400", "--context", "64")
(folder / "words.txt").write_text("the a is")
sparsescope("list", "list", "--json")
sparsescope("help", "run", "--help")
found["torch before a run"] = "torch" in sys.modules
import torch
torch.set_num_threads(1)
for name, subject in (("drift", "grokking-short-seed1"), ("drift of text", "lazy-relu")):
    sparsescope(name, "run", "weight_drift", "--subject", subject, "--json")
sparsescope("drift of a model", "run", "weight_drift", "--subject", "random-llama")
sparsescope(
    "words", "run", "listed_words", "--subject", "random-llama", *small, "--word-list", "words.txt", "--json"
)
sparsescope("no words", "run", "listed_words", "--subject", "random-llama", *small)
sparsescope(
    "words for none", "run", "mean_code", "--subject", "random-llama", *small, "--word-list", "words.txt"
)
made = sparsescope("code", "run", "mean_code", "--subject", "random-llama", *small, "--json")
kept = next((folder / "runs" / "artifacts").iterdir())
code = kept.name
sparsescope(
    "distance", "run", "code_distance", "--subject", "random-llama", *small, "--toy-code", code, "--json"
)
(folder / "code.toml").write_text(
    'kind = "toy_code"\nsubject = "random-llama"\ntexts = ["some words about wolves"]\n'
)
sparsescope("train", "train", "code.toml", "--json")
sparsescope("train again", "train", "code.toml", "--json")
sparsescope("train with output", "train", "code.toml", "--output", "x")
other = found["train"]["out"]["artifact"]
sparsescope(
    "other distance",
    "run",
    "code_distance",
    "--subject",
    "random-llama",
    *small,
    "--toy-code",
    other,
    "--json",
)
sparsescope("report", "report", "random-llama", *small, "--output", "plain.html", "--json")
more = ("--toy-code", code, "--word-list", "words.txt")
sparsescope(
    "report with inputs", "report", "random-llama", *small, *more, "--output", "inputs.html", "--json"
)
sparsescope("report of a series", "report", "grokking-short-seed1", "--output", "series.html", "--json")

study = folder / "studied"
study.mkdir()
(study / "words.txt").write_text("the a is")
(study / "code.toml").write_text(
    'kind = "toy_code"\nscale = 2.0\nsubject = "random-llama"\ntexts = ["words of the study"]\n'
)
STUDY = '''
name = "studied"
title = "A family"
question = "Does it fit?"
corpus = "python-docs"
tokens = 400
context = 64
inputs = { word_list = "words.txt", toy_code = "recipe:code" }
recipes = { code = "code.toml" }
[[subject]]
name = "random-llama"
[[subject]]
name = "scaled@0.5:random-llama"
control_of = "random-llama"
[[analysis]]
name = "listed_words"
[[analysis]]
name = "code_distance"
[[figure]]
analysis = "code_distance"
table = "distances"
y = "distance"
title = "Distances"
[[finding]]
label = "the same words"
analysis = "listed_words"
scalar = "listed"
subject = "random-llama"
relation = ">"
value = 0
'''
(study / "study.toml").write_text(STUDY)
sparsescope("study", "study", "studied", "--output", "study.html", "--json")
sparsescope("study again", "study", "studied", "--output", "study.html", "--json")
for name, old, new in (
    ("wrong role", "word_list =", "word_lst ="), ("wrong recipe", "recipe:code", "recipe:cod"),
    ("outside", '"words.txt"', '"../words.txt"'),
    ("wrong analysis", 'name = "listed_words"', 'name = "weight_drift"'),
    ("unread input", 'name = "code_distance"', 'name = "mean_code"'),
    ("unread input of a subject", '[[subject]]\nname = "random-llama"',
     '[[subject]]\nname = "random-llama"\ninputs = { series = "x" }'),
    ("a model as input", "inputs = {", 'inputs = { subject = "glassllm",'),
    ("unused recipe", "recipe:code", "code.toml"),
):
    (study / "study.toml").write_text(STUDY.replace(old, new))
    sparsescope(name, "study", "studied", "--output", "wrong.html")

from streamlit.testing.v1 import AppTest
from sparsescope.reporting import explorer

def page(**query):
    test = AppTest.from_file(str(explorer.app()), default_timeout=60)
    for key, value in query.items():
        test.query_params[key] = value
    if query:
        test.switch_page("screens/result.py")
    test.run()
    kinds = ("title", "header", "subheader", "markdown", "caption", "info", "warning", "error", "code")
    words = " ".join(str(element.value) for kind in kinds for element in test.get(kind)).replace("\\", "")
    charts = [json.loads(chart.proto.spec)["layout"]["title"]["text"] for chart in test.get("plotly_chart")]
    return {"exceptions": [element.message for element in test.exception], "words": words, "charts": charts}

found["overview"] = page()
for name in ("drift", "words", "code", "distance"):
    found[name + " page"] = page(run=found[name]["out"]["run"])

import sparsescope as ss
shutil.rmtree(kept)
found["lost page"] = page(run=made["run"])
sparsescope("lost", "show", made["run"], "--json")
sparsescope("lost read", "run", "code_distance", "--subject", "random-llama", *small, "--toy-code", code)
sparsescope("remade", "run", "mean_code", "--subject", "random-llama", *small, "--json")
found["remade there"] = kept.is_dir()
sparsescope("stored", "run", "mean_code", "--subject", "random-llama", *small, "--json")
sparsescope("verify", "verify", "--json")

from sparsescope.core.registry import analyses
from sparsescope.testing import check_analysis
subject, text = (
    ss.load("random-llama"),
    ss.corpus(["some words about " + w * 40 for w in ("foxes ", "dogs ")], context=32),
)
in_memory = check_analysis(analyses().get("mean_code"), subject, text)
check_analysis(analyses().get("listed_words"), subject, text, word_list=["dogs"])
check_analysis(
    analyses().get("code_distance"),
    subject,
    text,
    toy_code=ss.run("mean_code", subject, text).artifacts["toy_code"],
)
check_analysis(analyses().get("weight_drift"), "grokking-short-seed1")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        env={
            **os.environ,
            "PYTHONPATH": f"{FIXTURES / 'toy_plugin'}{os.pathsep}{ROOT}",
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "Traceback" not in done.stdout
    return found, folder


def runs(shown):
    return {run["run"].rsplit("-", 1)[0] for run in shown["runs"]}


def test_the_command_line_has_options_for_its_inputs(family):
    found, _ = family
    listed = {entry["name"]: entry for entry in found["list"]["out"]["inputs"]}
    assert listed["word_list"]["option"] == "--word-list" and listed["subject"]["option"] == "--subject"
    assert "--word-list" in found["help"]["out"] and "--toy-code" in found["help"]["out"]
    assert found["torch before a run"] is False
    for name in ("drift", "drift of text", "words", "code", "distance"):
        assert found[name]["code"] == 0, found[name]["err"]


def test_what_an_analysis_reads_is_said_where_it_is_missing_or_too_much(family):
    found, _ = family
    assert found["no words"]["code"] == 1 and "listed_words reads a list of words" in found["no words"]["err"]
    assert "--word-list" in found["no words"]["err"]
    assert (
        found["words for none"]["code"] == 1
        and "mean_code reads no list of words" in found["words for none"]["err"]
    )
    assert found["drift of a model"]["code"] == 1 and "checkpoint series" in found["drift of a model"]["err"]


def test_inputs_name_the_run(family):
    found, _ = family
    one, two = found["distance"]["out"], found["other distance"]["out"]
    assert one["run"] != two["run"], "another artifact opened the run of the first"
    assert one["scalars"]["largest_distance"]["value"] == 0 < two["scalars"]["largest_distance"]["value"]
    assert one["provenance"]["artifacts"]["read"] == {
        "toy_code": found["code"]["out"]["provenance"]["artifacts"]["made"]["toy_code"]
    }
    assert "--toy-code" in one["provenance"]["command"]


def test_a_recipe_trains_once(family):
    found, folder = family
    assert found["train"]["code"] == 0, found["train"]["err"]
    assert found["train again"]["out"] == found["train"]["out"]
    assert (folder / "runs" / "artifacts" / found["train"]["out"]["artifact"] / "artifact.json").is_file()
    assert found["train with output"]["code"] == 1 and "--output" in found["train with output"]["err"]


def test_a_report_holds_what_fits(family):
    found, folder = family
    toys = {"weight_drift", "listed_words", "mean_code", "code_distance"}
    assert found["report"]["code"] == 0, found["report"]["err"]
    assert runs(found["report"]["out"]) & toys == {"mean_code"}
    assert found["report with inputs"]["code"] == 0, found["report with inputs"]["err"]
    assert runs(found["report with inputs"]["out"]) & toys == {"listed_words", "mean_code", "code_distance"}
    assert runs(found["report of a series"]["out"]) == {
        "convergent_learning",
        "grokking",
        "pathways",
        "weight_drift",
        "weight_sparsity_over_training",
    }
    page = (folder / "inputs.html").read_text()
    assert (
        "Words of a list (toy)" in page
        and "Distance to a code (toy)" in page
        and "The toy reads its artifact" in page
    )
    assert found["code"]["out"]["provenance"]["artifacts"]["made"]["toy_code"] in page, (
        "the foot names artifacts"
    )
    assert "Drift of the weights (toy)" in (folder / "series.html").read_text()


def test_a_study_trains_what_is_absent_and_gives_inputs(family):
    found, folder = family
    assert found["study"]["code"] == 0, found["study"]["err"]
    assert [f["status"] for f in found["study"]["out"]["findings"]] == ["holds"]
    assert len(found["study"]["out"]["runs"]) == 4 and all(
        run["run"] for run in found["study"]["out"]["runs"]
    )
    assert all(run["stored_before"] for run in found["study again"]["out"]["runs"])
    assert "Distances" in (folder / "study.html").read_text()
    for name, words in (
        ("wrong role", "'word_list'"), ("wrong recipe", "'code'"), ("outside", "inside its folder"),
        ("wrong analysis", "reads a series"),
        ("unread input", "no analysis of this study reads the input 'toy_code'"),
        ("unread input of a subject", "unknown role of inputs 'series'"),
        ("a model as input", "unknown role of inputs 'subject'"),
        ("unused recipe", "no input of this study is trained by this recipe"),
    ):  # fmt: skip
        assert found[name]["code"] == 1 and words in found[name]["err"], (name, found[name]["err"])


def test_the_explorer_shows_it(family):
    found, _ = family
    assert not found["overview"]["exceptions"]
    assert "Analyses by series of checkpoints" in found["overview"]["words"]
    assert "not for grokking-short-seed1" not in found["overview"]["words"]
    for name, title in (
        ("drift page", "Drift of the weights (toy)"),
        ("words page", "Words of a list (toy)"),
        ("code page", "Mean code (toy)"),
        ("distance page", "Distance to a code (toy)"),
    ):
        assert not found[name]["exceptions"] and title in found[name]["words"], name
    assert any("The toy reads its artifact" in title for title in found["code page"]["charts"])


def test_a_lost_artifact_is_an_empty_state_and_made_again(family):
    found, _ = family
    assert not found["lost page"]["exceptions"] and "missing" in found["lost page"]["words"]
    assert "sparsescope run mean_code" in found["lost page"]["words"]
    assert found["lost"]["code"] == 0
    assert found["lost read"]["code"] == 1 and "no artifact" in found["lost read"]["err"]
    assert found["remade"]["out"]["stored_before"] is False and found["remade there"]
    assert (
        found["remade"]["out"]["run"] == found["stored"]["out"]["run"]
        and found["stored"]["out"]["stored_before"] is True
    )
    assert found["verify"]["out"]["bad"] == 0
