"""A real Chromium for the tests of this folder, and the generator of synthetic results.

Playwright's own browsers cannot be downloaded on closed networks, so Debian's build is used. Where it is
missing it is installed (as root); where that is not possible the tests fail and say what to do. They are
never skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
INSTALL = "apt-get update && apt-get install -y --no-install-recommends chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium():
    """A browser; see the head of this file for where it comes from."""
    if not Path(CHROMIUM).is_file() and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["sh", "-c", INSTALL], check=False, capture_output=True, timeout=280)
    if not Path(CHROMIUM).is_file():
        pytest.fail(f"browser tests need {CHROMIUM}; as root run: {INSTALL}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page that records what must not happen: requests elsewhere, errors, dialogs."""

    def __init__(self, browser, allowed, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.requests, self.errors, self.dialogs = [], [], []
        self.page.on("request", lambda r: None if r.url.startswith(allowed) else self.requests.append(r.url[:200]))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("dialog", self._dialog)

    def _dialog(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@pytest.fixture
def watch(chromium):
    """Open watched pages: ``watch(allowed_prefixes, **context_options)``."""
    opened = []

    def make(*allowed, **options):
        opened.append(Watched(chromium, allowed, **options))
        return opened[-1]

    yield make
    for entry in opened:
        entry.context.close()
