"""Every page of the explorer in every state: empty, with runs, broken, partial, hostile, odd links."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from sparsescope.core import registry
from sparsescope.core.columns import Column
from sparsescope.core.registry import Analysis, Registry, analyses
from sparsescope.core.result import Result
from sparsescope.core.run_store import Store
from sparsescope.core.spec import Params, Spec
from sparsescope.reporting import explorer

FIRST = "sparsescope run activation_sparsity --subject smollm2-135m"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSESCOPE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def prepared(synthetic, tmp_path_factory):
    """Two stored runs of one analysis; tests copy them."""
    folder = tmp_path_factory.mktemp("prepared")
    first = synthetic.store_result(folder, synthetic.activation_result(layers=4))
    second = synthetic.store_result(
        folder, synthetic.activation_result("pythia-70m", layers=3, seed=2), weight="2e" * 32
    )
    return folder, first, second


@pytest.fixture
def two_runs(home, prepared):
    folder, first, second = prepared
    shutil.copytree(folder, home, dirs_exist_ok=True)
    return first, second


def show(page=None, **query):
    app = AppTest.from_file(str(explorer.app()), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    if page:
        app.switch_page(f"screens/{page}.py")
    app.run()
    assert not app.exception, [element.message for element in app.exception]
    return app


def charts(app):
    return [element.proto for element in app.get("plotly_chart")]


def words(app):
    """All text of a page without Markdown's escapes."""
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error", "code")
    text = " ".join(str(element.value) for kind in kinds for element in app.get(kind))
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


def test_a_view_that_selects_has_a_box_and_a_panel_its_frame(home):
    made = Result("not_installed")
    columns = (
        Column("document", "document", "Document."), Column("position", "position", "Position."),
        Column("text", "token_text", "Token."), Column("norm", "value", "Norm."),
    )  # fmt: skip
    rows = [(name, n, f" <b>{name}{n}", float(n)) for name in ("one", "t`wo") for n in range(3)]
    made.add_table("tokens", pd.DataFrame(rows, columns=[column.name for column in columns]), columns)
    spec = Spec(analysis=made.analysis, version="1", params={}, subject={"id": "m"}, corpus=None)
    Store(home).write(made, spec, seconds=1.0, environment={}, command="sparsescope run not_installed")
    app = show("result", run=spec.run_id)
    (box,) = [box for box in app.selectbox if box.label == "Document"]
    assert box.options == ["document one", "document t`wo"]
    for chosen, name in ((None, "one"), (1, "t`wo")):
        if chosen is not None:
            app = box.set_value(chosen).run()
        (frame,) = [element.proto for element in app.get("iframe")]
        assert f"·&lt;b&gt;{name}2" in frame.srcdoc and frame.srcdoc.count("<script") == 1
        assert (
            "default-src 'none'; script-src 'sha256-" in frame.srcdoc and 'data-theme="light"' in frame.srcdoc
        )
        assert "3 tokens of document" in str(frame) and name in str(frame)
    assert not app.exception and not charts(app)


def test_overview_without_runs_shows_the_command(home):
    app = show()
    assert [code.value for code in app.code] == [FIRST]
    assert not app.dataframe


def test_overview_with_runs(two_runs):
    app = show()
    assert {m.label: m.value for m in app.metric} == {
        "Runs": "2",
        "Models": "2",
        "Analyses": "1",
        "Runs with warnings": "2",
    }
    newest = app.dataframe[-1].value
    assert set(newest["run"]) == set(two_runs)
    assert set(newest["model"]) == {"smollm2-135m", "pythia-70m"}
    headline = app.dataframe[0].value
    assert "> 99.99 %" in headline["Units that are not exactly zero"].iloc[0]
    assert "Analyses by model" in words(app) and "What was found" in words(app)


def test_series_of_checkpoints_have_a_matrix_of_their_own(two_runs, home):
    """A model is not offered analyses of series, nor a series those of models, or of
    series of another kind.
    """
    result = Result("grokking")
    result.add_scalar("memorized_step", 5, "count", "step")
    spec = Spec(analysis="grokking", version="1", params={}, subject={"id": "my-series", "weight_hash": "0"})
    Store(home).write(result, spec, seconds=1.0, environment={})
    app = show()
    assert "Analyses by series of checkpoints" in words(app) and "my-series" in words(app)
    offered = [code.value for code in app.code]
    assert not any("grokking" in text for text in offered if "my-series" not in text)
    of_models = {record.name for record in analyses() if "subject" in record.roles}
    assert not any("my-series" in text and text.split()[2] in of_models for text in offered)


def test_a_link_at_the_root_opens_the_run(two_runs):
    app = show(run=two_runs[0])
    assert app.query_params["run"] in (two_runs[0], [two_runs[0]])
    assert "smollm2-135m" in words(app)
    assert charts(app)


@pytest.mark.parametrize("which", [0, 1])
def test_result_page_shows_every_declared_view_with_alt_text(two_runs, which):
    app = show("result", run=two_runs[which])
    views = registry.analyses().get("activation_sparsity").views
    found = charts(app)
    assert len(found) == len(views)
    for chart in found:
        figure = json.loads(chart.spec)
        assert chart.alt == figure["layout"]["meta"]["alt"] or chart.alt
        assert len(chart.alt) > 30
    assert [s.value.replace("\\", "") for s in app.subheader][: len(views)] == [view.title for view in views]
    text = words(app)
    assert "exact zeros say nothing here" in text
    assert "dequantized from gguf:Q4_1" in text
    assert "sparsescope run activation_sparsity" in text
    labels = [button.label for button in app.get("download_button")]
    assert labels.count("CSV") == labels.count("Parquet") == len(views) + 1
    assert labels.count("HTML") == labels.count("JSON") == len(views)


def test_one_view_by_link_and_by_choice(two_runs):
    app = show("result", run=two_runs[0], view="frequency")
    assert len(charts(app)) == 1
    box = next(box for box in app.selectbox if box.label == "View")
    assert box.value == "frequency"
    box.select("unit_use").run()
    assert app.query_params["view"] in ("unit_use", ["unit_use"])
    assert len(charts(app)) == 1
    assert "Dead and always-on units" in words(app)


def test_links_that_name_nothing_warn_and_show_the_default(two_runs):
    app = show("result", run="activation_sparsity-000000000000", view="<script>alert(1)</script>")
    warnings = " ".join(w.value for w in app.warning)
    assert warnings.count("which is not here") == 2
    assert "<script>" not in warnings.replace("\\<", "")
    assert app.query_params["view"] in ("all", ["all"])
    assert charts(app)


def test_result_page_without_runs_shows_the_command(home):
    assert FIRST in words(show("result"))


def test_a_run_with_a_broken_manifest_is_named_with_the_next_step(two_runs, home):
    (home / two_runs[0] / "manifest.json").write_text("{not json")
    overview = show()
    assert any(two_runs[0] in e.value.replace("\\", "") for e in overview.error)
    assert "not valid JSON" in words(overview)
    page = show("result", run=two_runs[0])
    assert "not valid JSON" in words(page)
    assert "run the analysis again" in words(page)
    assert str(home) not in words(page)


def test_a_run_with_a_damaged_table_shows_an_error_not_a_traceback(two_runs, home):
    table = home / two_runs[0] / "tables" / "frequency.parquet"
    table.write_bytes(table.read_bytes()[:100])
    app = show("result", run=two_runs[0])
    assert "the run is damaged" in words(app)
    assert "sparsescope verify" in words(app)
    assert "Traceback" not in words(app)


def test_a_run_without_a_manifest_and_unfinished_work_are_listed(two_runs, home):
    (home / two_runs[1] / "manifest.json").unlink()
    (home / ".partial" / ("a" * 64)).mkdir(parents=True)
    text = words(show())
    assert "has no manifest" in text
    assert "1 unfinished" in text


def test_only_broken_runs_still_give_a_page(home):
    (home / "activation_sparsity-0123456789ab").mkdir()
    assert "has no manifest" in words(show())


def test_a_view_that_fails_leaves_the_rest_of_the_page(two_runs, monkeypatch):
    from sparsescope.analysis.activation_sparsity import views

    def broken(result):
        raise RuntimeError("/a/path")

    monkeypatch.setattr(views, "concentration", broken)
    app = show("result", run=two_runs[0])
    assert "could not draw this figure: RuntimeError" in words(app)
    assert "/a/path" not in words(app)
    assert len(charts(app)) == len(registry.analyses().get("activation_sparsity").views) - 1


def test_hostile_strings_are_no_markdown(home, synthetic):
    for text in synthetic.HOSTILE[:3]:
        result = synthetic.activation_result(text, layers=2, domains=synthetic.HOSTILE)
        result.note("warning", text, text)
        result.add_scalar(text, 0.1, text, text)
        run_id = synthetic.store_result(home, result, weight=f"{len(text):02d}" * 32)
    for app in (show(), show("result", run=run_id)):
        raw = " ".join(
            str(e.value) for kind in ("title", "markdown", "caption", "warning") for e in app.get(kind)
        )
        # Without what a backslash escapes, and links to figures of the page
        bare = re.sub(r"\\.|\]\(#\w+\)", "", raw)
        for mark in ("<", "](", "{{"):
            assert mark not in bare
    assert "{{7*7}}" in words(app)


def test_compare_shows_deltas_settings_and_both_figures(two_runs):
    app = show("compare", a=two_runs[0], b=two_runs[1])
    numbers = app.dataframe[0].value
    assert list(numbers.columns)[:4] == ["number", "a", "b", "b - a"]
    assert numbers["b - a"].str.contains("points").any()
    assert len(charts(app)) == 2
    settings = next(d.value for d in app.dataframe if "setting" in d.value.columns)
    assert set(settings["setting"]) == {"subject.id", "subject.weight_hash"}
    app.toggle[0].set_value(False).run()
    assert len(app.dataframe[0].value) > len(numbers)


def test_compare_with_an_odd_link_warns(two_runs):
    app = show("compare", a="nope", b=two_runs[0])
    assert any("which is not here" in w.value for w in app.warning)
    assert len(charts(app)) == 2


def test_compare_with_one_run_says_what_is_missing(home, synthetic):
    synthetic.store_result(home, synthetic.activation_result(layers=2))
    app = show("compare")
    assert "Two runs of the same analysis are needed" in words(app)
    assert FIRST in words(app)


# -- an analysis that nobody edited anything for --------------------------------------------------


class ToyParams(Params):
    """Parameters of the toy."""


def toy(**tables):
    result = Result("toy")
    result.add_scalar("answer", 42, "count", "The answer.")
    for name, (frame, columns) in tables.items():
        result.add_table(name, frame, columns)
    result.provenance = {"subject": {"id": "tiny"}}
    return result


COLUMNS = (
    Column("layer", "layer", "Layer."),
    Column("label", "label", "Kind."),
    Column("value", "value", "Value.", "bits"),
)
FRAMES = {
    "plain": pd.DataFrame(
        {"layer": [0, 1, 0, 1], "label": ["a", "a", "b", "b"], "value": [1.0, 2.0, 3.0, 4.0]}
    ),
    "empty": pd.DataFrame(
        {"layer": pd.Series(dtype=int), "label": pd.Series(dtype=str), "value": pd.Series(dtype=float)}
    ),
    "nan": pd.DataFrame({"layer": [0, 1], "label": ["a", None], "value": [float("nan"), float("inf")]}),
    "huge": pd.DataFrame({"layer": range(60_000), "label": "<b>", "value": 0.5}),
}


@pytest.mark.parametrize("frame", FRAMES)
def test_a_third_party_analysis_appears_with_no_edit(home, synthetic, monkeypatch, frame):
    known = Registry()
    for record in registry.analyses():
        known.add(record)
    known.add(
        Analysis("toy", "1", "Toy analysis", "A toy.", ToyParams, "toy_package.compute", headline=("answer",))
    )
    known.broken["bad_package"] = "ImportError: no <b>"
    monkeypatch.setattr(registry, "analyses", lambda: known)
    for module in [name for name in sys.modules if name.split(".")[0] in {"state", "shell", "components"}]:
        monkeypatch.delitem(sys.modules, module)
    run_id = synthetic.store_result(home, toy(curve=(FRAMES[frame], COLUMNS)))
    overview = show()
    assert "Toy analysis" in words(overview)
    assert "bad_package" in words(overview)
    app = show("result", run=run_id)
    assert "Toy analysis: tiny" in words(app)
    assert [m.value for m in app.metric] == ["42"]
    assert len(charts(app)) == 1
    assert charts(app)[0].alt


def test_the_explorer_loads_no_model_library(two_runs, home):
    code = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "from sparsescope.reporting import explorer\n"
        "app = AppTest.from_file(str(explorer.app()), default_timeout=60)\n"
        f"app.query_params['run'] = {two_runs[0]!r}\n"
        "app.run()\n"
        "assert not app.exception and app.get('plotly_chart')\n"
        "print(sorted({'torch', 'transformers', 'transformer_lens'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]


# -- commands that pages show ----------------------------------------------------------------------


@pytest.mark.parametrize("state", ["empty", "one run", "two runs"])
@pytest.mark.parametrize("page", [None, "result", "compare"])
def test_every_command_on_a_page_names_what_is_there(page, state, home, synthetic, shown_commands):
    for subject in {"empty": (), "one run": ("glassllm",), "two runs": ("glassllm", "lazy-relu")}[state]:
        synthetic.store_result(
            home, synthetic.activation_result(subject, layers=2), weight=subject[:1].encode().hex() * 32
        )
    app = show(page)
    lines = [line for code in app.code for line in code.value.splitlines() if line.startswith("sparsescope")]
    captions = [
        found
        for caption in app.caption
        for found in re.findall(r"sparsescope(?: [a-z-]+)+", str(caption.value))
    ]
    assert lines or captions or (state == "two runs" and page)
    for line in [*lines, *captions]:
        shown_commands.check_command(line)


def test_the_overview_says_how_many_of_the_runs_it_lists(home, synthetic, monkeypatch):
    run_id = synthetic.store_result(home, synthetic.activation_result("glassllm", layers=2))
    monkeypatch.setattr(Store, "run_ids", lambda self: [run_id] * 201)
    assert "The newest 200 of 201 are here" in words(show())
