"""A third-party package (tests/fixtures/toy_plugin) appears everywhere with no edit; a broken one
takes nothing down.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
# Does everything in one process: importing takes longer than all the rest.
PROGRAM = r"""
import contextlib, io, json, os, sys
from pathlib import Path
folder = Path(sys.argv[1])
os.environ["SPARSESCOPE_HOME"] = str(folder / "runs")
from sparsescope.cli import app
from sparsescope.cli.exit_codes import execute

found = {}
def sparsescope(name, *words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(app, words)
    found[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    return out.getvalue()

corpus = ("--corpus", "python-docs", "--tokens", "400", "--context", "64")
sparsescope("list", "list", "analyses", "--json")
sparsescope("subjects", "list", "subjects", "--json")
sparsescope("corpora", "list", "corpora", "--json")
sparsescope("variants", "list", "variants", "--json")
sparsescope("kind", "show", "scaled", "--json")
sparsescope("no kind", "run", "mean_activation", "--subject", "scald@0.5:random-llama", *corpus)
sparsescope("broken kind", "run", "mean_activation", "--subject", "broken_variant:random-llama", *corpus)
found["torch before a run"] = "torch" in sys.modules
import torch
torch.set_num_threads(1)
from streamlit.testing.v1 import AppTest
from sparsescope.reporting import explorer
sparsescope("show", "show", "mean_activation", "--json")
sparsescope("broken show", "run", "broken_import", "--subject", "random-llama")
sparsescope("doctor", "doctor", "--json")
sparsescope("plain", "run", "mean_activation", "--subject", "random-llama", *corpus, "--json")
sparsescope(
    "other",
    "run",
    "mean_activation",
    "--subject",
    "random-llama",
    *corpus,
    "--set",
    "absolute=true",
    "--json",
)
sparsescope(
    "quick", "run", "mean_activation", "--subject", "random-llama", *corpus, "--preset", "quick", "--json"
)
sparsescope("wrong", "run", "mean_activation", "--subject", "random-llama", *corpus, "--set", "absolut=true")
for name in ("scaled@0.5:random-llama", "scaled@0.25:random-llama", "scaled:random-llama"):
    sparsescope(name, "run", "mean_activation", "--subject", name, *corpus, "--json")
sparsescope(
    "scaled report",
    "report",
    "scaled@factor=0.5:random-llama",
    *corpus,
    "-o",
    str(folder / "scaled.html"),
    "--json",
)
(folder / "study.toml").write_text('''
name = "scaled"
title = "A model and the same with smaller MLP outputs"
question = "What changes?"
corpus = "python-docs"
tokens = 400
context = 64
[[subject]]
name = "random-llama"
[[subject]]
name = "scaled@0.5:random-llama"
control_of = "random-llama"
[[analysis]]
name = "mean_activation"
''')
(folder / "README.md").write_text("Nothing.")
sparsescope("study", "study", str(folder / "study.toml"), "-o", str(folder / "study.html"), "--json")
sparsescope("drawn", "run", "positive_share", "--subject", "random-llama", *corpus, "--json")
sparsescope("tokens", "run", "token_norms", "--subject", "random-llama", *corpus, "--json")
sparsescope("report", "report", "random-llama", *corpus, "-o", str(folder / "report.html"), "--json")
runs = [
    json.loads(found[name]["out"])["run"] for name in ("plain", "other", "drawn", "scaled@0.5:random-llama")
]
sparsescope("compare", "compare", *runs[:2], "--json")
sparsescope("verify", "verify", "--json")

def page(**query):
    test = AppTest.from_file(str(explorer.app()), default_timeout=60)
    for key, value in query.items():
        test.query_params[key] = value
    if query:
        test.switch_page("screens/result.py")
    test.run()
    kinds = ("title", "header", "subheader", "markdown", "caption", "info", "warning", "error", "code")
    words = " ".join(str(element.value) for kind in kinds for element in test.get(kind)).replace("\\", "")
    charts = [chart.proto for chart in test.get("plotly_chart")]
    return {
        "exceptions": [element.message for element in test.exception],
        "words": words,
        "charts": [json.loads(chart.spec)["layout"]["title"]["text"] for chart in charts],
        "alts": [c.alt for c in charts],
        "boxes": {box.label: box.options for box in test.selectbox},
        "frames": [element.proto.srcdoc for element in test.get("iframe")],
        "columns": [list(frame.value.columns) for frame in test.dataframe],
        "metrics": [m.value for m in test.metric],
    }

found["overview"], found["plain page"], found["drawn page"] = page(), page(run=runs[0]), page(run=runs[2])
found["scaled page"] = page(run=runs[3])
found["tokens page"] = page(run=json.loads(found["tokens"]["out"])["run"])

if "--contract" in sys.argv:
    import sparsescope as ss
    from sparsescope.core.registry import analyses
    from sparsescope.models.variants import registered_variants
    from sparsescope.testing import check_accumulator, check_analysis, check_variant
    subject = ss.load("random-llama")
    check_variant(registered_variants()["scaled"], subject, factor=0.5)
    text = ss.corpus(
        ["some words about " + w * 40 for w in ("foxes ", "dogs ", "wizards ")], context=32, deduplicate=False
    )
    for name in ("mean_activation", "positive_share", "token_norms"):
        check_analysis(analyses().get(name), subject, text)
    from toy_sparsity.mean import Means
    from sparsescope.activations.capture import capture
    sites = subject.sites("blocks.*.mlp.hook_post")
    with capture(subject, text, [site.name for site in sites], batch_tokens=32) as source:
        batches = []
        for batch in source:
            batch.values = {key: value.clone() for key, value in batch.values.items()}
            batches.append(batch)
    check_accumulator(lambda: Means(sites, False), batches)
    found["contract"] = "kept"
print(json.dumps(found))
"""


def everything(folder, *packages, more=()):
    """What every surface shows when these packages are installed."""
    path = os.pathsep.join(str(FIXTURES / package) for package in packages)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *more],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, shown in found.items():
        if isinstance(shown, dict) and "out" in shown and shown["out"].startswith("{"):
            shown["json"] = json.loads(shown["out"])
        assert "Traceback" not in str(shown), name
    return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    found = everything(folder, "toy_plugin", "broken_plugin", more=["--contract"])
    return found, folder


def test_it_is_listed_and_described(toy):
    found, _ = toy
    names = {record["name"]: record["summary"] for record in found["list"]["json"]["analyses"]}
    assert names["mean_activation"] == "The mean of all activations of a layer."
    assert "positive_share" in names and "activation_sparsity" in names
    shown = found["show"]["json"]
    assert [p["name"] for p in shown["parameters"]] == ["sites", "absolute"]
    assert found["torch before a run"] is False


def test_it_runs_with_its_parameters(toy):
    found, folder = toy
    for name in ("plain", "other", "drawn"):
        assert found[name]["code"] == 0, found[name]["err"]
        assert (folder / "runs" / found[name]["json"]["run"] / "manifest.json").is_file()
    plain, other = (found[name]["json"]["scalars"]["largest_mean"]["value"] for name in ("plain", "other"))
    assert abs(plain) < other, "the mean of absolute values is larger"
    assert found["wrong"]["code"] == 1 and "did you mean 'absolute'" in found["wrong"]["err"]
    assert found["compare"]["code"] == 0 and found["compare"]["json"]["settings"]
    assert found["verify"]["json"]["bad"] == 0


def test_it_is_in_the_report(toy):
    _, folder = toy
    page = (folder / "report.html").read_text()
    for text in ("Mean activation (toy)", "Share of positive activations (toy)", "Activation sparsity"):
        assert text in page, text
    assert "The toy draws its own figure" in page
    assert "Largest mean over the sites." in page or "largest mean" in page
    assert "Mean over tokens and units." in page and "blocks.2.mlp.hook_post" in page


def test_it_is_in_the_explorer(toy):
    found, _ = toy
    overview, plain, drawn = (found[name] for name in ("overview", "plain page", "drawn page"))
    assert not overview["exceptions"] and not plain["exceptions"] and not drawn["exceptions"]
    assert "Mean activation (toy)" in overview["words"]
    assert "Mean activation (toy): random-llama" in plain["words"]
    assert len(plain["charts"]) == 1 and "means" in plain["charts"][0] and len(plain["alts"][0]) > 20
    assert any("layer" in columns[0].lower() for columns in plain["columns"]), plain["columns"]
    assert len(plain["metrics"]) == 1
    assert len(drawn["charts"]) == 1 and "The toy draws its own figure" in drawn["charts"][0]
    assert "Positive activations by layer" in drawn["words"] and "3 bars between" in drawn["alts"][0]


def test_numbers_of_tokens_are_shown_as_text(toy):
    found, folder = toy
    report = re.sub(r"<script.*?</script>", "", (folder / "report.html").read_text(), flags=re.S)
    # Six of the plug-in, three of what every token reads (sparse_inference), four of features
    assert "Some tokens get more from the layer than others" in report and report.count('class="panel"') == 13
    assert "Norm of each token: document " in report and 'data-mark=""' in report
    shown = found["tokens page"]
    assert not shown["exceptions"] and not shown["charts"] and len(shown["frames"]) == 2
    assert all(frame.count("<script") == 1 and "position 5" in frame for frame in shown["frames"])
    assert len(shown["boxes"]["Document"]) > 1


def test_a_variant_is_listed_and_described(toy):
    found, _ = toy
    rows = {row["name"]: row for row in found["variants"]["json"]["variants"]}
    assert rows["scaled"]["example"] == "scaled@1.0:NAME" and "times a factor" in rows["scaled"]["summary"]
    assert rows["shuffled"]["example"] == "shuffled@0:NAME"
    assert [p["name"] for p in found["kind"]["json"]["parameters"]] == ["factor"]
    assert found["no kind"]["code"] == 1 and "did you mean 'scaled'" in found["no kind"]["err"]


def test_a_variant_has_runs_of_its_own_under_its_name(toy):
    """Its weights and configuration are those of the plain model; what hooks do to it is not."""
    found, _ = toy
    named = {
        name: found[name]["json"] for name in found if name.startswith("scaled") and "random-llama" in name
    }
    assert len({found["plain"]["json"]["run"], *(shown["run"] for shown in named.values())}) == 4
    half = named["scaled@0.5:random-llama"]
    assert half["provenance"]["subject"]["id"] == "scaled@0.5:random-llama"
    assert "--subject scaled@0.5:random-llama " in half["provenance"]["command"]
    weights = {
        json.dumps(shown["provenance"]["subject"]["weight_hash"])
        for shown in [*named.values(), found["plain"]["json"]]
    }
    assert len(weights) == 1
    values = {name: shown["scalars"]["largest_mean"]["value"] for name, shown in named.items()}
    assert values["scaled:random-llama"] == found["plain"]["json"]["scalars"]["largest_mean"]["value"], (
        "times 1"
    )
    assert len(set(values.values())) == 3


def test_a_variant_is_in_reports_studies_and_the_explorer(toy):
    found, folder = toy
    run = found["scaled@0.5:random-llama"]["json"]["run"]
    assert run in {entry["run"] for entry in found["scaled report"]["json"]["runs"]}, (
        "opened under its other spelling"
    )
    assert "scaled(factor=0.5) of random-llama" in (folder / "scaled.html").read_text()
    assert "scaled(factor" not in (folder / "report.html").read_text()
    of_study = {entry["subject"]: entry for entry in found["study"]["json"]["runs"]}
    assert found["study"]["code"] == 0, found["study"]["err"]
    assert (
        of_study["scaled@0.5:random-llama"]["run"] == run
        and of_study["scaled@0.5:random-llama"]["stored_before"]
    )
    assert of_study["random-llama"]["run"] == found["plain"]["json"]["run"]
    assert not found["scaled page"]["exceptions"]
    assert "scaled(factor=0.5) of random-llama" in found["scaled page"]["words"]


def test_its_presets_are_those_of_every_analysis(toy):
    found, folder = toy
    shown = {(row["preset"], row["parameter"]): row["value"] for row in found["show"]["json"]["presets"]}
    assert shown == {("quick", "sites"): "blocks.0.mlp.hook_post", ("magnitudes", "absolute"): True}
    quick = found["quick"]["json"]["provenance"]
    assert quick["preset"] == "quick" and quick["params"] == {
        "sites": "blocks.0.mlp.hook_post",
        "absolute": False,
    }
    assert found["other"]["json"]["provenance"]["preset"] == "magnitudes", (
        "the label says what the parameters are"
    )
    ran = {run["run"]: run["preset"] for run in found["report"]["json"]["runs"]}
    assert ran.get(found["plain"]["json"]["run"]) == "", "a stored run of the defaults was not taken"
    scaled = {run["run"].rsplit("-", 1)[0]: run["preset"] for run in found["scaled report"]["json"]["runs"]}
    assert scaled["mean_activation"] == "" and scaled["effective_density"] == "quick"
    page = (folder / "scaled.html").read_text()
    assert "analyses come from quick presets" in page and "--depth full runs the whole analysis" in page


def test_it_keeps_the_contract(toy):
    assert toy[0]["contract"] == "kept"


BROKEN = {
    "broken_import": "RuntimeError: this plug-in <b>is</b> broken",
    "broken_missing": "ModuleNotFoundError",
    "broken_kind": "not an Analysis",
    "broken_name": "registered twice",
    "broken_input": 'say instead inputs=("series",)',
    "broken_reads_text": 'say instead inputs=("series", "text")',
    "broken_companions": 'say instead inputs=("series*",)',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plug_in_is_listed_with_its_reason(toy, name):
    found, _ = toy
    names = {record["name"]: record["summary"] for record in found["list"]["json"]["analyses"]}
    assert names[name].startswith("cannot be imported: ") and BROKEN[name] in names[name]
    assert names["activation_sparsity"].startswith("How few units")
    assert (
        found["broken show"]["code"] == 1 and "this plug-in <b>is</b> broken" in found["broken show"]["err"]
    )
    registry = next(f for f in found["doctor"]["json"]["installation"] if f["what"] == "registry")
    assert found["doctor"]["code"] == 1 and registry["ok"] is False and name in registry["detail"]
    assert name in found["overview"]["words"]


def test_what_fails_when_it_runs_fails_alone(toy):
    """Also in the forward pass that all share."""
    report = toy[0]["report"]
    assert report["code"] == 2 and report["json"]["failed"] == 2
    assert "broken_compute failed" in report["err"] and "ModuleNotFoundError" in report["err"]
    assert "broken_update has a bug: ZeroDivisionError: the third batch is too much" in report["err"]
    done = {run["run"].rsplit("-", 1)[0] for run in report["json"]["runs"]}
    assert {"activation_sparsity", "mean_activation", "positive_share"} <= done
    assert not done & {"broken_compute", "broken_update"}


def test_broken_subjects_corpora_and_variants_are_listed(toy):
    found, _ = toy
    assert (
        found["broken kind"]["code"] == 1
        and "broken_variant = broken_sparsity.raises:VARIANT" in found["broken kind"]["err"]
    )
    sections = (
        ("subjects", "broken_subject", 4),
        ("corpora", "broken_corpus", 4),
        ("variants", "broken_variant", 3),
    )
    for section, name, least in sections:
        summaries = {record["name"]: record["summary"] for record in found[section]["json"][section]}
        assert "is</b> broken" in summaries[name] and len(summaries) >= least
