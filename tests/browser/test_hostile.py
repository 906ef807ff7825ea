"""Hostile strings in a real browser: pages, notebooks and explorer make nothing of them
and ask for nothing.
"""

from __future__ import annotations

import http.client
import re
import sys
from collections import Counter
from types import ModuleType

import pytest

from sparsescope.core.escaping import display
from sparsescope.core.run_store import Store
from sparsescope.reporting import explorer
from sparsescope.reporting.build import build
from sparsescope.reporting.page import figure_page
from sparsescope.viz.generic import draw_table

READY = "[data-testid=stApp][data-test-script-state=notRunning][data-test-connection-state=CONNECTED]"
# Streamlit asks for its health below the path of a page before it finds the root; it is on this machine.
HARMLESS = re.compile(r"Failed to load resource: the server responded with a status of 404")
TAGS = (
    "[...document.querySelectorAll('*')].filter(n => {outside}n.closest('.plot, "
    ".panel')).map(n => n.localName)"
)

HOVER = """n => n._fullData.forEach((trace, i) => {
  if (trace.hoverinfo !== 'skip') window.Plotly.Fx.hover(n, [{curveNumber: i, pointNumber: 1}]);
})"""


def assert_quiet(watched):
    assert watched.requests == []
    assert [error for error in watched.errors if not HARMLESS.match(error)] == []
    assert watched.dialogs == []
    assert watched.page.evaluate("window.hacked === undefined")


def opened(watch, path):
    watched = watch(path.as_uri(), offline=True)
    watched.page.goto(path.as_uri())
    watched.page.wait_for_selector("html[data-drawn]")
    return watched


@pytest.fixture(scope="module")
def home(hostile_strings, tmp_path_factory):
    """Runs of hostile names: of models, of everything else."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    for text in ("script", "markdown", "shell"):
        hostile_strings.store(folder, hostile_strings.result(text))
    return folder


@pytest.fixture(scope="module")
def reports(hostile_strings, home, tmp_path_factory):
    """The same report with hostile and with harmless strings."""
    folder = tmp_path_factory.mktemp("reports")
    benign = folder / "runs"
    hostile_strings.store(benign, hostile_strings.result("script", strings=hostile_strings.BENIGN))
    bad, good = (
        next(
            found
            for found in map(Store(at).open, Store(at).run_ids())
            if found.provenance["subject"]["id"].startswith(start)
        )
        for at, start in ((home, "</script>"), (benign, "plain"))
    )
    return [
        build([bad], folder / "hostile.html", title=hostile_strings.STRINGS["image"]),
        build([good], folder / "benign.html", title="Plain words"),
    ]


@pytest.fixture(scope="module")
def shown(watch_once, reports):
    """Both reports in the browser, and the elements that each had outside and inside its figures
    before a mouse was over them.
    """
    pages = [opened(watch_once, path) for path in reports]
    return pages, *([page.page.evaluate(TAGS.format(outside=o)) for page in pages] for o in ("!", ""))


def test_a_report_has_the_elements_of_a_harmless_one(shown):
    pages, *elements = shown
    outside = [Counter(found) for found in elements[0]]
    assert outside[0] == outside[1]
    assert outside[0]["script"] >= 8 and outside[0]["img"] == outside[0]["iframe"] == 0
    inside = [set(found) for found in elements[1]]
    assert inside[0] - inside[1] <= {"br"}, "a token with a line feed breaks the text"
    names = "[...new Set([...document.querySelectorAll('*')].flatMap(n => n.getAttributeNames()))]"
    assert not [name for name in pages[0].page.evaluate(names) if name.startswith("on")]
    links = pages[0].page.evaluate("[...document.links].map(n => n.protocol)")
    assert set(links) <= {"file:", "data:"}
    for entry in pages:
        assert_quiet(entry)


def test_hover_text_in_a_report_is_text(shown, hostile_strings):
    watched = shown[0][0]
    page = watched.page
    said = ""
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.evaluate(HOVER)
        layer = plot.locator(".hoverlayer")
        assert layer.locator("a, image, foreignObject, script").count() == 0
        said += layer.text_content() + "\n"
    assert display(hostile_strings.STRINGS["script"], limit=20)[:20] in said
    assert "<" not in said and "&" not in said
    assert_quiet(watched)


def test_a_strip_of_hostile_tokens_is_text(shown, hostile_strings):
    watched = shown[0][0]
    panel = watched.page.locator(".panel").first
    panel.scroll_into_view_if_needed()
    marks, readout = panel.locator("[data-mark]"), panel.locator("[data-readout]")
    assert marks.count() == len(hostile_strings.STRINGS)
    assert panel.locator("script, img, a, svg, iframe, style").count() == 0
    assert readout.text_content().startswith("Point at a token")
    for index, text in enumerate(hostile_strings.STRINGS.values()):
        marks.nth(index).evaluate("n => n.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))")
        said = readout.text_content()
        assert said.startswith(display(text, spaces=True, limit=60, markup=False)[:60] or "(empty)")
        assert f"position {index}" in said and readout.locator("*").count() == 0
    marks.nth(0).click(position={"x": 3, "y": 6})
    marks.nth(2).hover(position={"x": 3, "y": 6})
    assert readout.text_content().startswith(hostile_strings.STRINGS["script"].replace(" ", "·")[:40]), (
        "a click keeps it"
    )
    watched.page.keyboard.press("Escape")
    watched.page.keyboard.press("ArrowRight")
    assert readout.text_content().startswith("<!--<script>-->")
    assert_quiet(watched)


def test_the_mouse_over_a_hostile_bar_shows_its_name(watch, hostile_strings, tmp_path):
    import pandas as pd

    from sparsescope.core.columns import Column

    text = hostile_strings.STRINGS["link"]
    frame = pd.DataFrame({"label": [text, "b"], "value": [2.0, 1.0]})
    figure = draw_table("t", frame, (Column("label", "label", text), Column("value", "value", text, text)))
    path = tmp_path / "figure.html"
    path.write_text(figure_page(figure, title=text, source=text))
    watched = opened(watch, path)
    bar = watched.page.locator(".barlayer .point path").first.bounding_box()
    watched.page.mouse.move(bar["x"] + bar["width"] / 2, bar["y"] + bar["height"] / 2)
    watched.page.locator(".hoverlayer .hovertext").wait_for()
    assert display(text, limit=60) in watched.page.locator(".hoverlayer").text_content()
    assert watched.page.locator("svg a").count() == 0
    assert_quiet(watched)


@pytest.mark.parametrize("way", ["html", "display"])
def test_a_notebook_shows_text(watch, hostile_strings, synthetic, tmp_path, monkeypatch, way):
    results = [
        hostile_strings.result(),
        synthetic.activation_result(hostile_strings.STRINGS["image"], layers=3),
    ]
    results[1].note("warning", hostile_strings.STRINGS["svg"], hostile_strings.STRINGS["link"])
    if way == "html":
        parts = [made._repr_html_() for made in results]
    else:
        notebook, parts = ModuleType("IPython.display"), []
        notebook.HTML = str
        notebook.display = lambda o: parts.append(
            o if isinstance(o, str) else o.to_html(full_html=False, include_plotlyjs=True)
        )
        monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", notebook)
        for made in results:
            made._ipython_display_()
        assert len(parts) == 3
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><meta charset=utf-8><title>t</title><body>" + "\n".join(parts))
    watched = watch(path.as_uri(), "data:", offline=True)
    watched.page.goto(path.as_uri())
    watched.page.locator(".main-svg").first.wait_for()
    assert watched.page.locator("img, iframe, body a:not(.modebar a), svg a").count() == 0
    assert "onerror" in watched.page.locator("body").inner_text()
    assert_quiet(watched)


# -- the explorer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port(browsers, home):
    """The port of an explorer that shows the hostile runs."""
    with browsers.served(home, home.parent / "server.log") as number:
        yield number


@pytest.mark.parametrize("name", ["overview", "result", "compare", "link"])
def test_the_explorer_shows_hostile_runs(visit, port, home, name):
    ids = Store(home).run_ids()
    query = {
        "overview": "",
        "result": f"result?run={ids[0]}",
        "compare": f"compare?a={ids[0]}&b={ids[1]}",
        "link": "result?run=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&view=![x](http://evil.example/x.png)",
    }[name]
    here = f"{explorer.ADDRESS}:{port}/"
    watched = visit(f"http://{here}", f"ws://{here}", "data:", "blob:")
    watched.page.goto(f"http://{here}{query}")
    watched.page.wait_for_selector(READY, timeout=60_000)
    watched.page.locator("h1").first.wait_for()
    assert watched.page.locator("[data-testid=stException]").count() == 0
    assert "could not" not in watched.page.locator("[data-testid=stApp]").inner_text()
    assert watched.page.locator("img[src*=evil], img[src=x], object, embed, [onerror], [onload]").count() == 0
    for frame in watched.page.locator("iframe").all():
        inside = frame.content_frame
        # Where it begins: it may go on in the next line
        inside.locator("[data-mark]").nth(2).hover(position={"x": 3, "y": 6})
        assert "<" in inside.locator("[data-readout]").text_content()
        assert (
            inside.locator("img, a, svg, iframe, [onerror], [onload]").count() == 0
            and inside.locator("script").count() == 1
        )
    links = watched.page.evaluate(
        "[...document.querySelectorAll('a[href]')].map(n => n.getAttribute('href'))"
    )
    assert not [
        link
        for link in links
        if not re.match(rf"(http://{explorer.ADDRESS}:{port})?/?(result|compare|$)|#|\?", link)
    ]
    assert_quiet(watched)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example:{port}"]
)
def test_another_host_name_is_refused(port, host):
    """Rebinding: a page of another site makes its name lead to 127.0.0.1 and asks with that name."""
    host = host.format(port=port)
    connection = http.client.HTTPConnection(explorer.ADDRESS, port, timeout=10)
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }  # fmt: skip
    connection.request(
        "GET", "/_stcore/stream", headers={"Host": host, "Origin": f"http://{host}", **upgrade}
    )
    assert connection.getresponse().status == 403
    connection.close()


def test_what_another_host_name_gets_tells_nothing_of_the_runs(port, home):
    """Everything about runs goes through the stream, which is refused; the shell of the page
    is the same for all.
    """
    for path in (
        "/",
        "/result",
        "/_stcore/host-config",
        "/_stcore/health",
        "/media/",
        "/app/static/",
        "/../../etc/passwd",
    ):
        connection = http.client.HTTPConnection(explorer.ADDRESS, port, timeout=10)
        connection.request("GET", path, headers={"Host": "evil.example", "Origin": "http://evil.example"})
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
        assert not [run_id for run_id in Store(home).run_ids() if run_id in body]
        assert str(home) not in body and "root:" not in body
        assert answer.headers.get("Access-Control-Allow-Origin") in (
            None,
            f"http://{explorer.ADDRESS}:{port}",
        )
        connection.close()


def test_this_host_name_is_answered(port):
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        connection = http.client.HTTPConnection(explorer.ADDRESS, port, timeout=10)
        connection.request("GET", "/_stcore/health", headers={"Host": host})
        assert connection.getresponse().status == 200
        connection.close()
