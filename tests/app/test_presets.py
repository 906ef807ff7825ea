"""The explorer says which preset a run comes from, and what it leaves out."""

from __future__ import annotations

import pytest
from streamlit.testing.v1 import AppTest

from sparsescope.core.registry import analyses
from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Spec
from sparsescope.reporting import explorer


@pytest.fixture
def run_id(tmp_path, monkeypatch, synthetic):
    """A stored run of the quick preset of an analysis that is installed."""
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path))
    record = analyses().get("activation_interventions")
    result = Result(record.name)
    result.add_scalar("x", 1, "count", "A number.")
    params = record.params(**record.preset("quick")).model_dump(mode="json")
    spec = Spec(
        analysis=record.name, version=record.version, params=params, subject=synthetic.subject_identity()
    )
    Store(tmp_path).write(result, spec, seconds=1, environment={}, preset="quick")
    return str(result.run_id)


def test_pages_say_the_preset(run_id):
    app = AppTest.from_file(str(explorer.app()), default_timeout=60)
    app.run()
    assert (
        "quick"
        in next(frame.value for frame in app.dataframe if "preset" in frame.value.columns)["preset"].tolist()
    )
    app.query_params["run"] = run_id
    app.switch_page("screens/result.py").run()
    assert not app.exception, [element.message for element in app.exception]
    said = [element.value.replace("\\", "") for element in app.caption if "quick preset" in element.value]
    assert said and "2 of 5 densities" in said[0] and "--depth full" in said[0]
    chosen = next(box for box in app.selectbox if box.label == "Run")
    assert "quick preset" in chosen.options[0]
