"""The report in a real browser, from a file, with no network: everything draws, nothing foreign runs."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from sparsescope.core.columns import Column
from sparsescope.core.registry import analyses
from sparsescope.core.run_store import Store
from sparsescope.reporting.build import build
from sparsescope.reporting.page import figure_page
from sparsescope.viz import theme

VIEWS = len(analyses().get("activation_sparsity").views)


@pytest.fixture(scope="module")
def report(synthetic, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run_id = synthetic.store_result(folder, synthetic.activation_result())
    return build([Store(folder).open(run_id)], folder / "report.html")


@pytest.fixture(scope="module")
def hostile(synthetic, tmp_path_factory):
    result = synthetic.activation_result(synthetic.HOSTILE[0], layers=3, domains=synthetic.HOSTILE)
    frame = pd.DataFrame({"label": list(synthetic.HOSTILE), "value": 1.0})
    result.add_table(
        "odd", frame, (Column("label", "label", synthetic.HOSTILE[1]), Column("value", "value", "v"))
    )
    for text in synthetic.HOSTILE:
        result.note("warning", text, text)
        result.add_scalar(text, 1, text, text)
    result.provenance |= {
        "command": synthetic.HOSTILE[0],
        "params": {synthetic.HOSTILE[1]: synthetic.HOSTILE[0]},
    }
    return build([result], tmp_path_factory.mktemp("hostile") / "report.html", title=synthetic.HOSTILE[1])


def opened(watch, path, **options):
    watched = watch(path.as_uri(), **options)
    watched.page.goto(path.as_uri())
    watched.page.wait_for_selector("html[data-drawn]")
    return watched


@pytest.fixture(scope="module")
def shown(watch_once, report):
    """The report, for tests that leave it as it was but for what is open, and where the mouse is."""
    return opened(watch_once, report, offline=True)


@pytest.fixture(scope="module")
def resized(watch_once, report):
    """The report, for tests that give it another size."""
    return opened(watch_once, report)


def assert_quiet(watched):
    assert watched.errors == []
    assert watched.requests == []
    assert watched.dialogs == []


def test_every_figure_is_drawn_and_nothing_else_happens(shown):
    page = shown.page
    assert page.get_attribute("html", "data-drawn") == str(VIEWS)
    assert page.locator(".plot .main-svg .cartesianlayer").count() == VIEWS
    assert page.locator(".plot .scatterlayer path.js-line").count() > 60
    for box in page.locator(".plot .svg-container").all():
        size = box.bounding_box()
        assert size["width"] > 600
        assert size["height"] > 300
    assert_quiet(shown)


def test_titles_stay_inside_their_figures(shown):
    page = shown.page
    titles = page.locator(".plot .gtitle").all()
    assert len(titles) == VIEWS
    for title in titles:
        inside, outside = (
            title.bounding_box(),
            title.locator("xpath=ancestor::*[contains(@class,'svg-container')]").bounding_box(),
        )
        assert inside["x"] >= outside["x"]
        assert inside["y"] >= outside["y"] - 1
        assert inside["x"] + inside["width"] <= outside["x"] + outside["width"] + 1


def test_names_at_the_ends_of_lines_do_not_overlap(shown):
    page = shown.page
    boxes = [b.bounding_box() for b in page.locator("#plot-s0-0 .annotation-text").all()]
    boxes = [b for b in boxes if b["width"] < 60]
    assert len(boxes) == 8
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            apart = (
                a["x"] + a["width"] <= b["x"]
                or b["x"] + b["width"] <= a["x"]
                or a["y"] + a["height"] <= b["y"] + 2
                or b["y"] + b["height"] <= a["y"] + 2
            )
            assert apart, (a, b)


def test_dark_form_by_button_and_by_system(shown, watch, report):
    page = shown.page
    background = "() => getComputedStyle(document.querySelector('.plot .main-svg')).backgroundColor"
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.click("#toggle-theme")
    page.wait_for_function(f"({background})() === 'rgb(17, 21, 26)'")
    assert page.locator("#toggle-theme").inner_text() == "Light colors"
    page.click("#toggle-theme")
    page.wait_for_function(f"({background})() === 'rgb(255, 255, 255)'")
    dark = opened(watch, report, color_scheme="dark").page
    assert dark.evaluate(background) == "rgb(17, 21, 26)"
    line = dark.locator("#plot-s0-1 .scatterlayer path.js-line").last.evaluate("n => n.style.stroke")
    wanted = tuple(int(theme.twins()[theme.BLUE][i : i + 2], 16) for i in (1, 3, 5))
    assert line == f"rgb({', '.join(map(str, wanted))})"
    assert_quiet(shown)


def test_definitions_appear_on_hover_and_on_focus(shown):
    page = shown.page
    card = page.locator(".card").first
    tip = card.locator(".tip")
    assert not tip.is_visible()
    card.hover()
    assert tip.is_visible()
    page.mouse.move(0, 0)
    page.locator(".card").nth(1).focus()
    assert page.locator(".card").nth(1).locator(".tip").is_visible()


def test_the_csv_downloads_and_reads_back(shown):
    page = shown.page
    page.locator("summary", has_text="unit use").click()
    with page.expect_download() as started:
        page.locator("details[open] a[download]").click()
    text = Path(started.value.path()).read_text()
    assert started.value.suggested_filename == "unit_use.csv"
    assert len(pd.read_csv(io.StringIO(text), skiprows=2)) == 60


def test_a_figure_downloads_as_svg_under_the_policy(shown):
    page = shown.page
    page.locator("#plot-s0-0").hover()
    with page.expect_download() as started:
        page.locator("#plot-s0-0 .modebar-btn").first.click()
    assert started.value.suggested_filename.endswith(".svg")
    assert "<svg" in Path(started.value.path()).read_text()[:200]
    assert_quiet(shown)


def test_hostile_strings_do_nothing(watch, hostile):
    watched = opened(watch, hostile)
    page = watched.page
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.locator("script:not([type])").count() == 3
    assert "{{7*7}}" in page.locator("main").inner_text()
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.hover()
    assert_quiet(watched)


def test_an_injected_script_is_refused_by_the_policy(watch, report, tmp_path):
    text = report.read_text().replace(
        "</main>",
        "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"></main>",
        1,
    )
    path = tmp_path / "injected.html"
    path.write_text(text)
    watched = opened(watch, path)
    assert "owned" not in watched.page.title()
    assert any("Content Security Policy" in error for error in watched.errors)


def test_it_prints_with_figures_that_fit_the_page(resized):
    data = resized.page.pdf(format="A4", print_background=True)
    assert data.startswith(b"%PDF")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") + data.count(b"/Type/Page") >= 5
    assert_quiet(resized)


def test_a_narrow_window_has_no_sideways_scroll(resized):
    page = resized.page
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(400)  # plotly resizes after the window has come to rest
    assert page.evaluate("document.documentElement.scrollWidth") <= 700


def test_a_single_figure_page_draws(watch, synthetic, tmp_path):
    path = tmp_path / "figure.html"
    path.write_text(
        figure_page(synthetic.activation_result(layers=4).view("concentration"), title="One figure")
    )
    watched = opened(watch, path, offline=True)
    assert watched.page.locator(".main-svg .cartesianlayer").count() == 1
    assert_quiet(watched)
