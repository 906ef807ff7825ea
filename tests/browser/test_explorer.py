"""The explorer in a real browser: served on this machine only, drawn without any request elsewhere."""

from __future__ import annotations

import http.client
import re
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError

from sparsescope.core.registry import analyses
from sparsescope.reporting import explorer
from sparsescope.viz import theme

READY = "[data-testid=stApp][data-test-script-state=notRunning][data-test-connection-state=CONNECTED]"
# Streamlit asks for its health below the path of a page before it finds the root; it is on this machine.
HARMLESS = re.compile(r"Failed to load resource: the server responded with a status of 404")


@pytest.fixture(scope="module")
def served(browsers, synthetic, profile, tmp_path_factory):
    """Port, a run, one of hostile names, and what the link to the first of them showed as the first
    page that the new server was asked for.
    """
    home = tmp_path_factory.mktemp("runs")
    first = synthetic.store_result(home, synthetic.activation_result())
    hostile = synthetic.activation_result(synthetic.HOSTILE[0], layers=3, domains=synthetic.HOSTILE)
    for text in synthetic.HOSTILE:
        hostile.note("warning", text, text)
        hostile.add_scalar(text, 1, "", text)
    second = synthetic.store_result(home, hostile, weight="2e" * 32)
    with browsers.served(home, home / "server.log") as port:
        page = profile.new_page()
        page.goto(f"http://{explorer.ADDRESS}:{port}/result?run={first}")
        page.wait_for_selector(READY, timeout=60_000)
        page.locator(".main-svg").first.wait_for()
        names = ("stSidebarNav", "stTopNavLinkContainer")
        shown = {name: page.get_by_test_id(name).count() for name in names}
        page.close()
        yield port, first, second, shown


def opened(visit, served, path, **options):
    here = f"{explorer.ADDRESS}:{served[0]}/"
    watched = visit(f"http://{here}", f"ws://{here}", "data:", "blob:", **options)
    watched.page.goto(f"http://{explorer.ADDRESS}:{served[0]}/{path}")
    watched.page.wait_for_selector(READY, timeout=30_000)
    return watched


def assert_quiet(watched):
    assert watched.requests == []
    assert [error for error in watched.errors if not HARMLESS.match(error)] == []
    assert watched.dialogs == []


def test_a_link_to_a_run_may_be_the_first_that_a_new_server_is_asked_for(served):
    """Streamlit would take a folder ``pages`` beside the app for pages of their own, without its frame."""
    assert served[3] == {"stSidebarNav": 0, "stTopNavLinkContainer": 3}


def test_overview_lists_the_runs_and_a_click_opens_one(visit, served):
    watched = opened(visit, served, "")
    page = watched.page
    page.get_by_text("What was found").wait_for()
    page.get_by_text("Analyses by model").wait_for()
    page.get_by_role("link", name="python-docs").last.click()
    page.wait_for_url(re.compile(r"/result\?run=activation_sparsity-"))
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    assert_quiet(watched)


def test_a_deep_link_draws_every_view_with_alt_text(visit, served):
    watched = opened(visit, served, f"?run={served[1]}")
    page = watched.page
    page.wait_for_url(re.compile(rf"/result\?run={served[1]}"))
    views = analyses().get("activation_sparsity").views
    page.wait_for_function(
        f"document.querySelectorAll('.js-plotly-plot').length === {len(views)}", timeout=30_000
    )
    assert page.get_by_text("of a token's energy").first.is_visible()
    assert page.locator("[aria-label*='Line chart of density by layer']").count() >= 1
    assert_quiet(watched)


def test_one_view_survives_a_reload(visit, served):
    watched = opened(visit, served, f"result?run={served[1]}&view=frequency")
    page = watched.page
    page.locator(".js-plotly-plot").wait_for()
    page.reload()
    page.wait_for_selector(READY)
    page.locator(".js-plotly-plot").wait_for()
    assert page.locator(".js-plotly-plot").count() == 1
    assert "view=frequency" in page.url
    assert_quiet(watched)


def test_hostile_names_do_nothing(visit, served):
    for path in ("", f"result?run={served[2]}", f"compare?a={served[1]}&b={served[2]}"):
        watched = opened(visit, served, path)
        watched.page.locator("h1").first.wait_for()
        watched.page.wait_for_timeout(300)
        assert watched.page.locator("img[src*='evil'], img[src='x']").count() == 0
        assert_quiet(watched)


def downloaded(page, name):
    """What a button downloads. Streamlit makes the file when it is asked for, and loses the question where
    the page is drawn again at that moment, as on a machine under load: then one clicks once more.
    """
    for patience in (10_000, 20_000, 40_000):
        page.wait_for_selector(READY, timeout=30_000)
        try:
            with page.expect_download(timeout=patience) as started:
                page.get_by_role("button", name=name).first.click()
            return Path(started.value.path()).read_text()
        except TimeoutError:
            continue
    raise AssertionError(f"{name} downloads nothing")


def test_a_table_downloads_as_csv(visit, served):
    watched = opened(visit, served, f"result?run={served[1]}&view=unit_use")
    page = watched.page
    page.get_by_text("Table unit use").first.click()
    text = downloaded(page, "CSV")
    assert text.startswith("# sparsescope activation_sparsity, table unit_use")
    assert len(text.splitlines()) == 3 + 60


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_page_and_figures_follow_the_system_theme(visit, served, mode):
    page = opened(visit, served, f"result?run={served[1]}&view=unit_use", color_scheme=mode).page
    ink = tuple(int(theme.INK[mode][i : i + 2], 16) for i in (1, 3, 5))
    fill = "getComputedStyle(document.querySelector('.js-plotly-plot .gtitle')).fill"
    page.locator(".js-plotly-plot .gtitle").first.wait_for()
    page.wait_for_function(f"{fill} === 'rgb({', '.join(map(str, ink))})'")
    background = page.evaluate(
        "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    )
    channels = [int(part) for part in re.findall(r"\d+", background)[:3]]
    assert theme.contrast("#{:02x}{:02x}{:02x}".format(*channels), theme.INK[mode]) > 10


def test_another_host_name_is_refused(served):
    connection = http.client.HTTPConnection(explorer.ADDRESS, served[0], timeout=10)
    connection.request(
        "GET",
        "/_stcore/stream",
        headers={
            "Host": "evil.example",
            "Origin": "http://evil.example",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
        },
    )
    assert connection.getresponse().status == 403
    connection.close()


def test_it_listens_on_this_machine_only(served):
    port = f":{served[0]:04X}"
    tables = [Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    listening = [row[1] for row in rows if row[3] == "0A"]
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]
