"""Makes the pictures of the README from stored runs: the first screen of a report and one
page of the explorer.

``make pictures`` runs this. Nothing is computed: the runs of a model must be there (``make report``). Both
pictures are what a browser of 1280 x 720 shows, at twice its resolution, in a palette: the files stay small
in the repository.
"""

from __future__ import annotations

import argparse
import io
import os
import runpy
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import sparsescope as ss
from sparsescope.core.result import Result
from sparsescope.core.run_store import Store, home
from sparsescope.reporting import explorer

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = runpy.run_path(str(ROOT / "tests" / "fixtures" / "browsers.py"))
SIZE, SCALE, COLORS = (1280, 720), 2, 64
MOST_BYTES = 300_000  # of both together
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"


def stored(subject: str) -> list[Result]:
    """The newest run of each analysis of a model, in the order of reports."""
    store, newest = Store(), {}
    for run_id in store.run_ids():  # newest first
        if store.manifest(run_id).spec.subject.get("id") == subject:
            newest.setdefault(run_id.rpartition("-")[0], run_id)
    return [store.open(newest[record.name]) for record in ss.analyses() if record.name in newest]


def picture(page: Page) -> bytes:
    """What the window shows, as a PNG with a palette."""
    page.wait_for_timeout(1000)  # figures fade in
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    out = io.BytesIO()
    seen.quantize(COLORS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def opened(browser: Browser, address: str, ready: str) -> Page:
    """A page of a light theme, once something is there."""
    page = browser.new_page(
        viewport={"width": SIZE[0], "height": SIZE[1]}, device_scale_factor=SCALE, color_scheme="light"
    )
    page.goto(address)
    page.wait_for_selector(ready, timeout=60_000)
    return page


def main() -> None:
    """Write ``report.png`` and ``explorer.png`` beside this file."""
    given = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    given.add_argument("--subject", default="smollm2-135m", help="model whose stored runs are shown")
    given.add_argument(
        "--analysis", default="activation_sparsity", help="analysis whose run the explorer shows"
    )
    given.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder of the pictures")
    options = given.parse_args()
    results = stored(options.subject)
    shown = {result.analysis: result for result in results}.get(options.analysis)
    if shown is None:
        sys.exit(
            f"no stored run of {options.analysis} on {options.subject} in {home()}; make report leaves one"
        )
    chromium = BROWSERS["get"](os.environ, Path.home(), root=os.geteuid() == 0)
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        playwright.chromium.launch(
            executable_path=str(chromium), args=["--no-sandbox", "--disable-gpu"]
        ) as browser,
    ):
        report = ss.report(results, Path(folder) / "report.html")
        pictures = {"report.png": picture(opened(browser, report.as_uri(), "html[data-drawn]"))}
        with BROWSERS["served"](home(), Path(folder) / "server.log") as port:
            page = opened(browser, explorer.address(port, shown.run_id), ".main-svg")
            page.wait_for_selector(IDLE)
            page.locator(".js-plotly-plot").first.evaluate(
                "figure => figure.scrollIntoView({block: 'center'})"
            )
            pictures["explorer.png"] = picture(page)
    for name, data in pictures.items():
        (options.output / name).write_bytes(data)
        print(f"{options.output / name}: {len(data) / 1000:.0f} kB")
    if sum(map(len, pictures.values())) > MOST_BYTES:
        sys.exit(f"together they have more than {MOST_BYTES / 1000:.0f} kB: lower COLORS or SCALE")


if __name__ == "__main__":
    main()
