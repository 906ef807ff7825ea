"""Choosing one of many values on a page: from the table behind the view, by words, by buttons, by a link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import sparsescope as ss

APP = Path(__file__).parents[2] / "apps" / "explorer" / "app.py"
SMALL = {"components": 12, "iterations": 5, "resamples": 100, "permutations": 40, "shown": 3, "queries": 0}


@pytest.fixture(scope="module")
def stored(glass, tmp_path_factory):
    """A run with more features than a box should hold; its folder and its name."""
    folder = tmp_path_factory.mktemp("browse")
    text = ss.corpus("python-docs+python-source", tokens=2600, context=64)
    found = ss.run("features", glass, text, store=folder, map=False, **SMALL)
    return folder, found.run_id


@pytest.fixture
def page(stored, monkeypatch):
    folder, run_id = stored
    monkeypatch.setenv("SPARSESCOPE_HOME", str(folder))

    def opened(**query):
        app = AppTest.from_file(str(APP), default_timeout=60)
        app.switch_page("screens/result.py")
        app.query_params["run"], app.query_params["view"] = run_id, "feature"
        for name, value in query.items():
            app.query_params[name] = value
        app.run()
        assert not app.exception and not app.error
        return app

    return opened


def place(app):
    """What the line beside the buttons says, for example ``4 of 353: SNMF/3``."""
    said = [caption.value.replace("\\", "") for caption in app.caption]
    (line,) = [text for text in said if re.match(r"[\d,]+ of [\d,]+: SNMF/", text)]
    return line


def test_a_link_opens_its_feature(page):
    assert place(page()) == "1 of 353: SNMF/0"
    assert place(page(feature="SNMF/3")) == "4 of 353: SNMF/3"


def test_buttons_go_on_and_the_address_follows(page):
    app = page(feature="SNMF/3")
    next(button for button in app.button if button.label == "Next").click().run()
    assert place(app) == "5 of 353: SNMF/4"
    assert app.query_params["feature"] in ("SNMF/4", ["SNMF/4"])
    next(button for button in app.button if button.label == "Previous").click().run()
    next(button for button in app.button if button.label == "Previous").click().run()
    assert place(app) == "3 of 353: SNMF/2"


def test_words_filter_and_what_holds_nothing_says_so(page):
    app = page()
    (field,) = [field for field in app.text_input if field.label == "Find"]
    field.set_value("SNMF/11").run()
    assert place(app).startswith("1 of ") and place(app).endswith(": SNMF/11")
    assert app.query_params["feature"] in ("SNMF/11", ["SNMF/11"])
    field = next(field for field in app.text_input if field.label == "Find")
    field.set_value("no such words in here").run()
    assert any("all rows are shown" in info.value for info in app.info)
    assert place(app) == "1 of 353: SNMF/0"


def test_a_link_to_what_is_not_there_says_so(page):
    app = page(feature="SNMF/9999")
    assert any("is not here" in warning.value for warning in app.warning)
    assert place(app) == "1 of 353: SNMF/0"
