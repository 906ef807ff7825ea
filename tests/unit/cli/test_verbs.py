"""Every verb, as text and as JSON: results on standard output, everything else on standard error."""

from __future__ import annotations

import re
import shutil

import pytest

from sparsescope.core.run_store import Store
from sparsescope.reporting import explorer

TEXT = ("--corpus", "python-docs", "--tokens", "400", "--context", "64", "--set", "resamples=100")
RUN = ("run", "activation_sparsity", *TEXT)
SECTIONS = ["analyses", "subjects", "corpora", "benchmarks", "runs"]


def test_list_shows_every_kind_of_name(command, home, runs):
    code, out, err = command("list")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert set(SECTIONS) <= set(lines)
    for name in (
        "activation_sparsity",
        "smollm2-135m",
        "glassllm",
        "random-llama",
        "python-docs",
        "capture",
        *runs[1:],
    ):
        assert any(line.startswith(name) for line in lines), name
    code, found, _ = command("list", "--json")
    assert code == 0 and set(SECTIONS) <= set(found)
    assert {run["run"] for run in found["runs"]} == set(runs[1:])
    assert {run["subject"] for run in found["runs"]} == {"glassllm", "random-llama"}


def test_list_benchmarks_alone(command, home):
    code, found, _ = command("list", "benchmarks", "--json")
    assert code == 0 and list(found) == ["benchmarks"]
    names = [record["name"] for record in found["benchmarks"]]
    assert names == ["capture", "decode", "dictionaries", "feature_store", "kernels", "prune"]


def test_list_without_runs_says_how_to_make_one(command, empty_home):
    code, out, _ = command("list", "runs")
    assert code == 0 and "sparsescope report smollm2-135m" in out
    assert not empty_home.exists(), "reading made a folder"


def test_show_an_analysis(command, home):
    code, out, err = command("show", "activation_sparsity")
    assert code == 0 and err == ""
    for part in ("use_share", "resamples", "Hoyer = ", "arxiv.org", "Dead and always-on units"):
        assert part in out
    code, found, _ = command("show", "activation_sparsity", "--json")
    assert code == 0 and found["kind"] == "analysis" and found["needs"] == ["hidden_units"]
    assert {p["name"] for p in found["parameters"]} >= {
        "sites",
        "shares",
        "use_share",
        "resamples",
        "level",
        "seed",
    }
    assert all(p["meaning"] for p in found["parameters"])


@pytest.mark.parametrize(
    ("name", "kind", "license"),
    [("glassllm", "subject", "MIT"), ("python-docs", "corpus", "PSF-2.0"), ("capture", "benchmark", None)],
)
def test_show_other_names(command, home, name, kind, license):
    code, found, _ = command("show", name, "--json")
    assert code == 0 and found["kind"] == kind and found["name"] == name and found.get("license") == license
    code, out, _ = command("show", name)
    assert code == 0 and out.startswith("kind:") and name in out


def test_show_a_run_by_id_and_by_folder(command, home, runs):
    code, by_id, _ = command("show", runs[1], "--json")
    assert (
        code == 0
        and by_id["subject"] == "glassllm"
        and by_id["command"].startswith("sparsescope run activation_sparsity")
    )
    assert command("show", home / runs[1], "--home", "/nonexistent", "--json")[1] == by_id
    code, out, _ = command("show", runs[1])
    assert code == 0 and "mean_density_energy_90" in out and "%" in out


def test_run_prints_numbers_and_path_on_standard_output_and_progress_elsewhere(command, empty_home):
    code, out, err = command(*RUN, "--subject", "random-llama")
    assert code == 0
    path = out.splitlines()[-1]
    assert Store(empty_home).run_ids() == [path.rsplit("/", 1)[-1]]
    assert (
        out.startswith("Activation sparsity of random-llama on 400 tokens")
        and "hold 90 % of a token's energy" in out
    )
    assert "Units that hold 90 % of the energy" in out and "loading" not in out and "forward pass" not in out
    assert "loading random-llama" in err
    assert re.search(r"^forward pass: 400 of 400 tokens", err, re.MULTILINE)
    assert "\x1b" not in err and "\r" not in err, "no terminal, so plain lines"


def test_run_again_opens_what_is_stored(command, home, runs):
    code, found, err = command(*RUN, "--subject", "glassllm", "--json")
    assert code == 0 and found["stored_before"] is True and found["run"] == runs[1]
    assert "forward pass" not in err
    assert found["path"] == str(home / runs[1])
    scalar = found["scalars"]["mean_density_energy_90"]
    assert 0 < scalar["value"] < 1 and scalar["interval"]["low"] < scalar["value"] and scalar["definition"]
    assert found["provenance"]["corpus"]["name"] == "python-docs"
    assert found["tables"]["per_layer"] > 0


@pytest.mark.parametrize("where", ["--home", "environment"])
def test_the_folder_of_runs(command, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSESCOPE_HOME", raising=False)
    more = ("--home", tmp_path / "a") if where == "--home" else ()
    if where == "environment":
        monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path / "a"))
    code, _, err = command(*RUN, "--subject", "random-llama", *more)
    assert code == 0, err
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_report_of_stored_runs(command, home, runs, tmp_path):
    target = tmp_path / "both.html"
    code, out, err = command("report", *runs[1:], "-o", target)
    assert code == 0 and out == f"{target}\n", "standard output carries the path only"
    assert "Activation sparsity of glassllm on 400 tokens" in err
    page = target.read_text()
    assert "glassllm" in page and "random-llama" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?https?:", page), (
        "the report loads something"
    )


def test_report_of_a_subject_runs_what_is_missing(command, empty_home, tmp_path):
    target = tmp_path / "report.html"
    words = (
        "report",
        "random-llama",
        "--corpus",
        "python-docs",
        "--tokens",
        "300",
        "--context",
        "64",
        "-o",
        target,
        "--json",
    )
    code, found, err = command(*words)
    assert code == 0 and found["report"] == str(target) and found["failed"] == 0
    assert found["bytes"] == target.stat().st_size
    runs = [run["run"] for run in found["runs"]]
    assert sorted(runs) == sorted(Store(empty_home).run_ids())
    assert [run.rsplit("-", 1)[0] for run in runs][:2] == ["activation_sparsity", "activation_reuse"], (
        "not in reading order"
    )
    assert "forward pass: 300 of 300" in err
    assert "forward pass" not in command(*words)[2], "computed again"


def test_report_falls_back_with_a_notice(command, empty_home, only, tmp_path, monkeypatch):
    from sparsescope.errors import DependencyError
    from sparsescope.models import sources

    only("activation_sparsity", "activation_reuse")
    load = sources.load

    def unreachable(name, **options):
        if name == "smollm2-135m":
            raise DependencyError("the package index cannot be reached")
        return load(name, **options)

    monkeypatch.setattr(sources, "load", unreachable)
    target = tmp_path / "report.html"
    words = (
        "report",
        "smollm2-135m",
        "--corpus",
        "python-docs",
        "--tokens",
        "300",
        "--context",
        "64",
        "-o",
        target,
    )
    code, out, err = command(*words)
    assert code == 1 and out == "" and "cannot be reached" in err and not target.exists()
    code, out, err = command(*words, "--fallback", "random-llama")
    assert code == 0 and out == f"{target}\n"
    notice = "smollm2-135m could not be fetched, so this report is about random-llama instead"
    assert notice in err and notice in target.read_text()
    assert notice not in command("show", Store(empty_home).run_ids()[0])[1], (
        "the stored run is not about the notice"
    )


def test_compare(command, home, runs):
    code, out, _ = command("compare", runs[1], runs[2])
    assert (
        code == 0
        and "Units that hold 90 % of the energy" in out
        and "subject.id" in out
        and "intervals apart" in out
    )
    code, found, _ = command("compare", runs[1], runs[2], "--json")
    assert code == 0 and {"scalars", "settings", "environment", "tables"} <= set(found)
    settings = {row["name"]: (row["a"], row["b"]) for row in found["settings"]}
    assert settings["subject.id"] == ("glassllm", "random-llama")
    code, found, _ = command("compare", runs[1], runs[1], "--json")
    assert code == 0 and found["settings"] == [] and all(change["delta"] == 0 for change in found["scalars"])


def test_verify_intact_and_damaged(command, runs, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(runs[0], folder)
    code, out, _ = command("verify", "--home", folder)
    assert code == 0 and out.splitlines()[-1] == "2 of 2 runs are intact"
    table = folder / runs[1] / "tables" / "units.parquet"
    data = bytearray(table.read_bytes())
    data[50] ^= 1
    table.write_bytes(data)
    code, out, _ = command("verify", "--home", folder)
    assert (
        code == 1
        and "tables/units.parquet has another checksum" in out
        and out.splitlines()[-1].startswith("1 of 2")
    )
    code, found, _ = command("verify", "--home", folder, "--json")
    assert code == 1 and found["bad"] == 1
    assert {run["run_id"]: run["status"] for run in found["runs"]} == {runs[1]: "damaged", runs[2]: "ok"}


def test_doctor(command, home):
    code, out, _ = command("doctor")
    assert code == 0 and "PROBLEM" not in out and "2 runs" in out
    code, found, _ = command("doctor", "--subject", "glassllm", "--json")
    assert code == 0 and all(finding["ok"] for finding in found["installation"])
    assert found["subject"]["healthy"] is True and found["subject"]["hooks_left"] == 0
    assert all(row["bit_equal"] for row in found["subject"]["parity"])


def test_explore_says_what_it_would_start(command, home):
    code, found, err = command("explore", "--json", "--port", "8765")
    assert code == 0 and found["address"] == explorer.address(8765) == "http://127.0.0.1:8765/"
    assert found["command"] == explorer.command(8765) and err == ""
    assert "127.0.0.1" in found["command"] and "0.0.0.0" not in found["command"]


def test_version_and_help(command):
    from sparsescope import __version__

    assert command("--version") == (0, f"{__version__}\n", "")
    code, out, _ = command("--help")
    assert code == 0
    for verb in ("list", "show", "run", "report", "compare", "verify", "doctor", "bench", "explore"):
        assert re.search(rf"^ +{verb} ", out, re.MULTILINE), verb
        assert command(verb, "--help")[0] == 0


def test_a_report_is_there_before_the_last_analysis(command, home, only, tmp_path, monkeypatch):
    """The figures of the shared pass are written first; the report grows with every analysis after it."""
    from sparsescope.cli import running
    from sparsescope.reporting import build

    only("activation_sparsity", "activation_reuse", "activation_rank", "activation_interventions")
    monkeypatch.setattr(running.GrowingReport, "SECONDS", 0.0)
    sizes = []
    original = build.build

    def counted(results, output):
        sizes.append(len(results))
        return original(results, output)

    monkeypatch.setattr(build, "build", counted)
    words = (
        "report",
        "random-llama",
        "--corpus",
        "python-docs",
        "--tokens",
        "300",
        "--context",
        "64",
        "-o",
        tmp_path / "r.html",
    )
    code, out, err = command(*words)
    assert code == 0 and out.splitlines()[-1].endswith("r.html")
    assert sizes == sorted(sizes) and len(sizes) >= 4 and sizes[0] < sizes[-1]
    assert sizes.count(sizes[-1]) == 1, "the whole report was written twice"
    assert "has 1 of" in err


def test_a_report_keeps_what_it_has_when_a_later_target_cannot_be_opened(command, home, runs, tmp_path):
    target = tmp_path / "report.html"
    code, found, err = command("report", runs[1], "organization/model", "-o", target, "--json")
    assert code == 2 and found["failed"] == 1 and [run["run"] for run in found["runs"]] == [runs[1]]
    assert "organization/model is left out" in err and target.is_file()
    code, _, err = command("report", runs[1], "--tokens", "5", "-o", target)
    assert code == 1 and "--tokens" in err and "stored runs" in err
    code, _, err = command("report", "grokking-short-seed1", "--dtype", "bfloat16", "-o", target)
    assert code == 1 and "--dtype" in err
