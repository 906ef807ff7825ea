"""Every page of the explorer over runs whose names are hostile: no exception, nothing is
Markdown, nothing is lost.
"""

from __future__ import annotations

import re

import pytest
from streamlit.testing.v1 import AppTest

from sparsescope.core.run_store import Store
from sparsescope.reporting import explorer

ESCAPED = re.compile(r"\\[!-/:-@\[-`{-~]")


@pytest.fixture(scope="module")
def home(hostile_strings, tmp_path_factory):
    """Runs with hostile names; one of an analysis that is installed, without the tables
    that its views need.
    """
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    for text in ("markdown", "shell"):
        hostile_strings.store(folder, hostile_strings.result(text))
    hostile_strings.store(folder, hostile_strings.result("terminal colors", analysis="activation_sparsity"))
    return folder


def show(page=None, **query):
    app = AppTest.from_file(str(explorer.app()), default_timeout=120)
    for name, value in query.items():
        app.query_params[name] = value
    if page:
        app.switch_page(f"screens/{page}.py")
    return app.run()


@pytest.mark.parametrize("page", ["overview", "result", "uninstalled", "compare"])
def test_nothing_is_markdown(home, monkeypatch, page):
    monkeypatch.setenv("SPARSESCOPE_HOME", str(home))
    ids = Store(home).run_ids()
    pair = [run_id for run_id in ids if run_id.startswith("borrowed")]
    lacking = next(run_id for run_id in ids if run_id not in pair)
    pages = {
        "overview": lambda: show(),
        "result": lambda: show("result", run=lacking),
        "uninstalled": lambda: show("result", run=pair[0]),
        "compare": lambda: show("compare", a=pair[0], b=pair[1]),
    }
    app = pages[page]()
    assert not app.exception, [element.message for element in app.exception]
    kinds = ("title", "subheader", "markdown", "caption", "info", "warning", "error")
    texts = [str(element.value) for kind in kinds for element in app.get(kind)]
    texts += [str(part) for metric in app.metric for part in (metric.label, metric.value)]
    assert len(texts) > 3
    for text in texts:
        bare = ESCAPED.sub("", text)
        assert not re.search(r"[<$`]|\]\(|\{\{|://|www\.[a-z]|:red\[|\x1b|\x00|[\u202a-\u202e]", bare), text[
            :300
        ]
    for element in app.code:
        assert element.value.isprintable() or "\n" not in element.value
        assert "\x1b" not in element.value


def test_a_command_to_copy_is_quoted(home, monkeypatch):
    monkeypatch.setenv("SPARSESCOPE_HOME", str(home))
    commands = [element.value for element in show().code if "touch hacked" in element.value]
    assert commands
    for command in commands:
        assert "'$(touch hacked) `touch hacked`; touch hacked | sh'" in command
