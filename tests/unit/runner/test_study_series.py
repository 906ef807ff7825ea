"""A study of series of checkpoints beside models, with parameters of single subjects."""

from __future__ import annotations

import shutil

import pytest

from sparsescope.errors import SpecError
from sparsescope.runner.study import load_study
from sparsescope.runner.study_checks import check_study
from sparsescope.runner.study_run import cost_text, study

STUDY = """
name = "toy"
title = "A series"
question = "Does it grok?"
[[subject]]
name = "./tiny"
label = "tiny"
params.grokking = {params}
[[analysis]]
name = "grokking"
params = {{ surrogates = 19, draws = 100 }}
[[figure]]
analysis = "grokking"
table = "curves"
x = "step"
y = "test_loss"
log_y = true
title = "Test loss"
[[finding]]
label = "it did not grok"
analysis = "grokking"
scalar = "grokked"
subject = "./tiny"
relation = "<"
value = 1
"""


def write(folder, trained, params: str):
    shutil.copytree(trained, folder / "tiny", dirs_exist_ok=True)
    path = folder / "study.toml"
    path.write_text(STUDY.format(params=params))
    return path


def test_a_study_of_a_series_runs_and_judges(tiny_series, tmp_path):
    path = write(tmp_path, tiny_series, "{ accuracy = 0.5 }")
    outcome = study(path, store=tmp_path / "runs")
    assert not outcome.failed
    (run,) = outcome.runs
    assert run.result.provenance["params"]["accuracy"] == 0.5, "parameters of the subject"
    assert run.result.provenance["params"]["draws"] == 100, "parameters of the analysis"
    assert [verdict.status for verdict in outcome.findings] == ["holds"]
    assert "checkpoints" in cost_text(load_study(path)) and "tokens" not in cost_text(load_study(path))
    assert study(path, store=tmp_path / "runs").runs[0].stored


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{ acuracy = 0.5 }", "acuracy"),
        ("{ seeds = ['../elsewhere'] }", "registered series"),
        ("{ accuracy = 3 }", "accuracy"),
    ],
)
def test_parameters_of_a_subject_are_checked_and_lead_nowhere_else(tiny_series, tmp_path, params, message):
    with pytest.raises(SpecError, match=message):
        check_study(load_study(write(tmp_path, tiny_series, params)))


def test_parameters_of_an_analysis_that_is_not_there(tiny_series, tmp_path):
    path = write(tmp_path, tiny_series, "{}")
    path.write_text(path.read_text().replace("params.grokking", "params.groking"))
    with pytest.raises(SpecError, match="analysis of this study"):
        check_study(load_study(path))
