"""Pages of features in a real browser: filtered, walked with the keyboard, and deaf to hostile tokens."""

from __future__ import annotations

import dataclasses

import pytest

import sparsescope as ss
from sparsescope.analysis.features import page
from sparsescope.core.escaping import well_formed
from sparsescope.core.feature_store import FeatureStore
from sparsescope.core.registry import analyses
from sparsescope.viz.panel import Panel

SMALL = {
    "components": 12,
    "iterations": 5,
    "resamples": 100,
    "permutations": 40,
    "shown": 6,
    "top": 3,
    "queries": 0,
}


@pytest.fixture(scope="module")
def found(glass):
    text = ss.corpus("python-docs+python-source", tokens=2600, context=64)
    return ss.run("features", glass, text, map=False, baselines=(), **SMALL)


@pytest.fixture
def hostile(found, hostile_strings, monkeypatch):
    """The same result, of a tokenizer whose tokens are hostile."""
    strings = [well_formed(text) for text in hostile_strings.STRINGS.values()]
    monkeypatch.setattr(
        FeatureStore, "texts", lambda self, ids: [strings[int(token) % len(strings)] for token in ids]
    )
    tables = {name: frame.copy() for name, frame in found.tables.items()}
    for name, column in (
        ("contexts", "token_text"),
        ("features", "label"),
        ("features", "raises"),
        ("features", "strongest"),
    ):
        tables[name][column] = [strings[place % len(strings)] for place in range(len(tables[name]))]
    return dataclasses.replace(found, tables=tables)


def panels(result) -> dict[str, Panel]:
    record = analyses().get("features")
    name = result.tables["features"]["name"].iloc[2]
    return {"list": record.draw("browser", result), "page": record.draw("feature", result, name)}


def opened(watch, panel, folder, **options):
    path = folder / "panel.html"
    path.write_text(panel.page(), encoding="utf-8")
    watched = watch(path.as_uri(), offline=True, **options)
    watched.page.goto(path.as_uri())
    return watched


def quiet(watched):
    assert watched.requests == [] and watched.errors == [] and watched.dialogs == []
    assert watched.page.evaluate("window.hacked === undefined")


@pytest.mark.parametrize("name", ["list", "page"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_tokens_are_text(watch, hostile, tmp_path, name, scheme):
    watched = opened(watch, panels(hostile)[name], tmp_path, color_scheme=scheme)
    tags = set(watched.page.evaluate("[...document.querySelectorAll('.panel *')].map(n => n.localName)"))
    assert tags <= {"div", "span", "p", "b", "br", "details", "summary", "input"}
    if name == "list":
        watched.page.fill("input", "<script>")
        watched.page.locator("summary").first.click()
    quiet(watched)


def test_typing_filters_the_list(watch, found, tmp_path):
    watched = opened(watch, panels(found)["list"], tmp_path)
    items = watched.page.locator("[data-item]")
    assert items.count() == 6
    wanted = items.nth(3).get_attribute("data-item").split()[0]
    watched.page.fill("input", wanted)
    shown = [items.nth(place).is_visible() for place in range(6)]
    said = [items.nth(place).get_attribute("data-item").lower() for place in range(6)]
    assert shown == [wanted.lower() in text for text in said] and sum(shown) < 6
    assert watched.page.locator("[data-count]").inner_text() == f"{sum(shown)} of 6"
    watched.page.fill("input", "no such words at all")
    assert not any(items.nth(place).is_visible() for place in range(6))
    watched.page.fill("input", "")
    assert all(items.nth(place).is_visible() for place in range(6))
    quiet(watched)


def test_the_keyboard_reaches_every_feature_and_every_token(watch, found, tmp_path):
    """Tab goes from feature to feature, Enter opens one, Tab goes to its strips, arrows to their tokens."""
    watched = opened(watch, panels(found)["list"], tmp_path)
    keyboard, focused = watched.page.keyboard, "document.activeElement"
    watched.page.locator("input").focus()
    reached = []
    for _ in range(6):
        keyboard.press("Tab")
        assert watched.page.evaluate(f"{focused}.localName") == "summary"
        reached.append(watched.page.evaluate(f"{focused}.textContent"))
    assert len(set(reached)) == 6
    keyboard.press("Enter")
    strips = watched.page.locator("details[open] .strip")
    seen = set()
    for _ in range(strips.count()):
        keyboard.press("Tab")
        assert watched.page.evaluate(f"{focused}.hasAttribute('data-mark')")
        seen.add(
            watched.page.evaluate(
                f"[...document.querySelectorAll('.strip')].indexOf({focused}.closest('.strip'))"
            )
        )
    assert len(seen) == strips.count() > 3
    before = watched.page.locator("[data-readout]").inner_text()
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowRight")
    after = watched.page.locator("[data-readout]").inner_text()
    assert "activation" in before and "activation" in after
    quiet(watched)


def test_a_feature_fits_a_small_screen(watch, found, tmp_path):
    watched = opened(watch, panels(found)["page"], tmp_path)
    watched.page.set_viewport_size({"width": 1280, "height": 720})
    wide = watched.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert wide and watched.page.locator(".facts .what").count() >= 5
    assert watched.page.locator(".bars span").count() == page._BINS
    quiet(watched)
