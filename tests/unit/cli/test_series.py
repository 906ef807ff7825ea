"""Analyses of series on the command line: run, report, and what is refused."""

from __future__ import annotations

import pytest

from sparsescope.cli.options import InputOptions, ModelOptions, TextOptions
from sparsescope.cli.running import Target
from sparsescope.models.sources import load
from sparsescope.training.recipe import find_recipe


def test_run_and_report_open_the_same_run(command, tiny_series, tmp_path, empty_home):
    code, found, _ = command("run", "grokking", "--subject", tiny_series, "--json")
    assert code == 0 and found["run"].startswith("grokking-")
    out = tmp_path / "report.html"
    code, report, _ = command("report", tiny_series, "--output", out, "--json")
    runs = [run["run"] for run in report["runs"]]
    assert code == 0 and found["run"] in runs
    names = {run.rpartition("-")[0] for run in runs}
    assert names == {"convergent_learning", "grokking", "pathways", "weight_sparsity_over_training"}
    text = out.read_text()
    assert "From memorizing to generalizing" in text and "Frequencies, checkpoint by checkpoint" in text
    assert "Units that a text never uses" not in text, "an analysis of models is in a report about a series"


def fitting(name, **text):
    _, wanted, _ = Target(str(name), ModelOptions(), TextOptions(**text), InputOptions()).open(None)
    return {record.name for record in wanted}


def test_a_report_about_a_model_has_no_analysis_of_series():
    names = fitting("random-opt")
    assert (
        "activation_sparsity" in names and "grokking" not in names and "sparsity_over_training" not in names
    )


def test_what_a_report_about_a_series_holds_depends_on_what_its_models_read(tiny_series):
    assert fitting(tiny_series) == {
        "convergent_learning",
        "grokking",
        "pathways",
        "weight_sparsity_over_training",
    }
    names = fitting("lazy-relu")
    assert "sparsity_over_training" in names and "activation_sparsity" in names and "grokking" not in names


def test_a_folder_of_checkpoints_is_a_series_and_no_model(words):
    assert fitting(words) == {"convergent_learning", "pathways", "sparsity_over_training"}


def test_what_has_no_meaning_for_a_series_is_refused(command, tiny_series, empty_home):
    code, _, error = command("run", "grokking", "--subject", tiny_series, "--revision", "step-2")
    assert code == 1 and "--revision" in error and "no meaning" in error
    code, _, error = command("run", "grokking", "--subject", "grokking-rely")
    assert code == 1 and "grokking-relu" in error
    code, _, error = command("run", "grokking", "--subject", tiny_series, "--set", "accuracy=2")
    assert code == 1 and "accuracy" in error


def test_show_and_list_name_the_analysis(command, empty_home):
    code, found, _ = command("show", "grokking", "--json")
    assert code == 0 and found["reads"] == ["series*"] and found["needs"] == ["curves", "pairs"]
    assert "grokking" in command("list", "analyses")[1]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Two checkpoints of a language model, in the layout of transformers: they carry no text of their own."""
    home = tmp_path_factory.mktemp("words") / "run"
    for step in (5, 50):
        model = load("random-opt", revision=str(step))
        model.model.save_pretrained(home / f"checkpoint-{step}")
        model.tokenizer.save_pretrained(home / f"checkpoint-{step}")
    return home


def test_a_text_is_read_with_windows_that_the_models_take(command, words, tmp_path, empty_home):
    text = tmp_path / "own.txt"
    text.write_text("\f".join("a few words and a few more of them " * (3 + n) for n in range(6)))
    small = ("--set", "resamples=100", "--set", "push=false")
    code, found, _ = command(
        "run", "sparsity_over_training", "--subject", words, "--tokens", 300, *small, "--json"
    )
    assert code == 0 and found["provenance"]["corpus"]["name"] == "python-docs+python-source", (
        "it carries no text of its own"
    )
    code, _, error = command("run", "sparsity_over_training", "--subject", "lazy-relu", "--tokens", 300)
    assert code == 1 and "--tokens" in error and "without --corpus" in error, (
        "a text that nobody reads was asked for"
    )
    code, found, _ = command(
        "run", "sparsity_over_training", "--subject", words, "--corpus", text, *small, "--json"
    )
    assert code == 0 and found["run"].startswith("sparsity_over_training-")
    code, again, _ = command(
        "run", "sparsity_over_training", "--subject", words, "--corpus", text, *small, "--json"
    )
    assert again["run"] == found["run"], "the same text names the same run"
    code, _, error = command("run", "sparsity_over_training", "--subject", words, "--corpus", "python-dogs")
    assert code == 1 and "python-docs" in error
    code, _, error = command("run", "grokking", "--subject", "grokking-short", "--corpus", "python-docs")
    assert code == 1 and "reads no text" in error


def test_a_shipped_recipe_has_the_name_of_its_series(command, tmp_path):
    code, _, error = command("train", "grokking-sort", "--output", tmp_path / "out")
    assert code == 1 and "grokking-short" in error and "TOML" in error
    assert find_recipe("grokking-short").parent.name == "grokking-short"
    code, _, error = command("train", "grokking-short", "--output", tmp_path / "out", "--seed", "-1")
    assert code == 1 and "seed" in error and not (tmp_path / "out").exists()
