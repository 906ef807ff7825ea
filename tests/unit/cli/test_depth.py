"""How deep a report goes: quick presets, a stored run of the defaults before them, ``--depth full``."""

from __future__ import annotations

import html
import re

import pytest

from sparsescope.core.registry import analyses
from sparsescope.core.run_store import Store

TEXT = ("--corpus", "python-docs", "--tokens", "700", "--context", "64")
QUICK = ("activation_interventions", "effective_density", "attention_sparsity")


def report(command, target, *words):
    """Runs of a report by analysis, its text, and what was said."""
    code, found, err = command("report", "glassllm", *TEXT, "-o", target, "--json", *words)
    assert code == 0, err
    page = html.unescape(
        re.sub(r"<[^>]+>", "", re.sub(r"<(script|style)[\s\S]*?</\1>", "", target.read_text()))
    )
    return {run["run"].rsplit("-", 1)[0]: run for run in found["runs"]}, page, err


def test_every_analysis_of_a_model_has_a_quick_preset_or_needs_none():
    without = {
        record.name for record in analyses() if "quick" not in record.presets and "subject" in record.roles
    }
    assert without == {"activation_sparsity", "activation_reuse", "activation_rank"}


def test_a_report_is_quick_and_takes_what_is_there_in_full(command, empty_home, only, tmp_path):
    only(*QUICK, "activation_sparsity")
    name = "activation_interventions"
    code, full, err = command("run", name, "--subject", "glassllm", *TEXT, "--json")
    assert code == 0, err
    assert full["provenance"]["preset"] == ""
    quick, page, err = report(command, tmp_path / "quick.html")
    assert quick[name]["run"] == full["run"] and quick[name]["preset"] == "", "less than was there already"
    others = [other for other in QUICK if other != name]
    assert others and all(quick[other]["preset"] == "quick" for other in others)
    assert f"{len(others)} of {len(quick)} analyses come from quick presets" in page
    assert page.count("--depth full runs the whole analysis") == len(others)
    parameters = Store(empty_home).open(quick["effective_density"]["run"]).provenance["params"]
    assert f"quick preset: {len(parameters['percents'])} of 3 percents" in page
    again, _, err = report(command, tmp_path / "again.html")
    assert again == quick and "masked passes" not in err, "computed again"

    whole, page, _ = report(command, tmp_path / "full.html", "--depth", "full")
    assert all(run["preset"] == "" for run in whole.values()) and "quick preset" not in page
    assert whole[name] == quick[name] and all(whole[other]["run"] != quick[other]["run"] for other in others)
    now, page, err = report(command, tmp_path / "now.html")
    assert now == whole and "masked passes" not in err and "quick preset" not in page


def test_a_run_starts_from_a_preset(command, empty_home):
    words = ("run", "activation_interventions", "--subject", "glassllm", *TEXT, "--json")
    record = analyses().get("activation_interventions")
    start = record.preset("quick")
    _, quick, err = command(*words, "--preset", "quick")
    assert quick["provenance"]["preset"] == "quick", err
    assert quick["provenance"]["params"] == record.params(**start).model_dump(mode="json")
    assert "--preset" not in quick["provenance"]["command"], (
        "a preset may change, a command makes the same run for ever"
    )
    _, again, _ = command(*words, *(part for pair in _settings(start) for part in ("--set", pair)))
    assert again["run"] == quick["run"] and again["stored_before"], (
        "the name of a preset is part of the digest"
    )
    _, other, _ = command(*words, "--preset", "quick", "--set", "null_draws=60")
    assert other["run"] != quick["run"] and other["provenance"]["preset"] == ""
    assert other["provenance"]["params"]["tokens"] == start["tokens"]
    code, shown, _ = command("show", quick["run"], "--json")
    assert code == 0 and shown["preset"] == "quick"


def _settings(changes):
    return [
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in changes.items()
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report", "glassllm", "--depth", "ful"), "unknown depth 'ful'"),
        (
            ("run", "activation_interventions", "--subject", "glassllm", "--preset", "quik"),
            "unknown preset of activation_interv",
        ),
    ],
)
def test_a_wrong_name_is_said_before_anything_is_loaded(
    command, empty_home, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*words)
    assert (
        code == 1
        and out == ""
        and message in err
        and "did you mean" in err
        and "full" in err
        and "loading" not in err
    )


def test_show_lists_presets(command):
    code, found, _ = command("show", "effective_density", "--json")
    assert code == 0
    listed = {row["parameter"]: row["value"] for row in found["presets"] if row["preset"] == "quick"}
    assert listed.keys() == analyses().get("effective_density").presets["quick"].keys()
    text = command("show", "effective_density")[1]
    assert re.search(r"^presets$", text, re.MULTILINE) and re.search(
        r"^quick +tolerance +0.1$", text, re.MULTILINE
    )
