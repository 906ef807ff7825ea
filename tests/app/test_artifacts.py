"""The artifacts of a run in the explorer and in a report: named, and with the command
where one is missing.
"""

from __future__ import annotations

import html
import re

import pytest
from streamlit.testing.v1 import AppTest

from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Spec
from sparsescope.reporting import explorer
from sparsescope.reporting.build import render

MAKES = "sparsescope run maker --subject small"
READS = "sparsescope run reader --subject small --dictionary"


def show(run_id):
    """The result page of a run."""
    app = AppTest.from_file(str(explorer.app()), default_timeout=60)
    app.query_params["run"] = run_id
    app.switch_page("screens/result.py")
    app.run()
    assert not app.exception, [element.message for element in app.exception]
    return app


def words(app):
    """The text of a page without Markdown's escapes and line breaks."""
    text = " ".join(str(element.value) for element in app.markdown)
    return " ".join(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text).split())


@pytest.fixture
def kept(tmp_path, monkeypatch, synthetic):
    """A run that made an artifact, and one that read it and made another."""
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path))
    store = Store(tmp_path)
    artifacts = []
    for content in (b"1", b"22"):
        with store.artifacts.keep("toy_weights", format="toy-<b>1</b>") as writer:
            writer.write("weights.bin", content)
        artifacts.append(writer.artifact)
    subject = synthetic.subject_identity()
    maker, reader = Result("maker"), Result("reader")
    maker.artifacts["weights"] = artifacts[0]
    reader.artifacts |= {"own": artifacts[1], "dictionary": artifacts[0]}
    read = {"dictionary": [{"id": artifacts[0].id, "digest": artifacts[0].digest}]}
    for result, inputs, command in ((maker, None, MAKES), (reader, read, READS)):
        result.add_scalar("x", 1, "count", "A number.")
        spec = Spec(analysis=result.analysis, version="1", params={}, subject=subject, inputs=inputs)
        store.write(result, spec, seconds=1, environment={}, command=command, preset="quick")
    return store, {result.analysis: result.run_id for result in (maker, reader)}, artifacts


def test_the_result_page_names_them(kept):
    _, runs, (first, second) = kept
    text = words(show(runs["reader"]))
    assert f"made: own :gray[{second.id}, toy-<b>1</b>, 2 B]" in text
    assert f"read: dictionary :gray[{first.id}, toy-<b>1</b>, 1 B]" in text
    assert "To make it again" not in text and "Preset :gray[quick]" in text


def test_the_result_page_of_a_run_whose_artifact_is_missing_shows_the_command(kept):
    store, runs, (first, _) = kept
    first.path.rename(store.root / "elsewhere")
    for run in runs.values():
        app = show(run)
        text = words(app)
        assert f"{first.id}, not in this folder of runs" in text and "To make it again" in text
        assert MAKES in [code.value for code in app.code]


def test_a_report_names_them(kept):
    store, runs, (first, second) = kept
    page = render([store.open(runs["maker"]), store.open(runs["reader"])])
    for part in (
        "made: weights",
        "made: own",
        "read: dictionary",
        first.id,
        second.id,
        "toy-&lt;b&gt;1&lt;/b&gt;, 1 B",
    ):
        assert part in page, part
    assert "toy-<b>" not in page
    assert "to make it again" not in page
    first.path.rename(store.root / "elsewhere")
    page = html.unescape(render([store.open(runs["reader"])]))
    assert f"not in this folder of runs; to make it again: <code>{MAKES}</code>" in page
