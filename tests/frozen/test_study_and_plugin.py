"""A study whose runs are stored with schema 1, and runs of a plug-in, without it and with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import sparsescope as ss

TOYS = ("mean of the toy", "share of the toy")
# In a process of its own, where the plug-in is installed.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import freeze
import sparsescope as ss
home, found = Path(sys.argv[2]), {}
for name in sys.argv[3:]:
    recipe = freeze.described()["runs"][name]
    stored = ss.open(home / recipe["run"])
    opened, again = freeze.made(recipe, home), freeze.made(recipe, None)
    record = next(record for record in ss.analyses() if record.name == recipe["analysis"])
    found[name] = {
        "created": [stored.provenance["created"], opened.provenance["created"]],
        "run": opened.run_id,
        "digests": [result.provenance["digest"] for result in (stored, again)],
        "scalars": [[scalar.value for scalar in result.scalars.values()] for result in (stored, again)],
        "tables": [
            {key: frame.to_dict("list") for key, frame in result.tables.items()} for result in (stored, again)
        ],
        "titles": [stored.view(view.name).layout.title.text for view in record.views],
    }
print(json.dumps(found))
"""


def test_a_study_takes_its_stored_runs_and_says_the_same(freeze, copied):
    outcome = ss.study(copied("study", "study"), store=copied("stored"))
    assert [run.error for run in outcome.runs] == [None] * 6
    assert all(run.stored for run in outcome.runs)
    found, expected = freeze.said(outcome), json.loads((freeze.FROZEN / "study.json").read_text())
    for part, rows in expected.items():
        now = [{key: row[key] for key in before} for row, before in zip(found[part], rows, strict=True)]
        assert json.dumps(now) == json.dumps(rows)  # as text: NaN is not equal to itself
    assert {verdict["status"] for verdict in expected["findings"]} == {"holds", "not checked"}


@pytest.mark.parametrize("name", TOYS)
def test_a_run_of_a_plug_in_opens_without_it(name, freeze, frozen):
    run = frozen["runs"][name]
    assert run["analysis"] not in {record.name for record in ss.analyses()}
    result = ss.open(freeze.FROZEN / "stored" / run["run"])
    assert result.run_id == run["run"] and result.tables
    assert run["analysis"] in result._repr_html_()


def test_runs_of_a_plug_in_open_and_are_made_again_with_it(
    freeze, frozen, copied, same_machine, same_weights
):
    fixtures = freeze.FROZEN.parent
    path = os.pathsep.join([str(fixtures / "toy_plugin"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(fixtures), str(copied("stored")), *TOYS],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in TOYS:
        shown = found[name]
        assert len(shown["titles"]) == (name == "share of the toy")
        if not same_weights(frozen["runs"][name]):
            continue
        assert shown["run"] == frozen["runs"][name]["run"]
        assert len(set(shown["digests"])) == len(set(shown["created"])) == 1
        assert shown["scalars"][0] == pytest.approx(shown["scalars"][1], rel=1e-12 if same_machine else 1e-3)
        if same_machine:
            assert shown["tables"][0] == shown["tables"][1]
    assert "The toy draws its own figure" in found["share of the toy"]["titles"][0]
