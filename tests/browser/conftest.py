"""A real Chromium for the tests of this folder, and pages that record what must not happen.

Where the browser comes from is said in tests/fixtures/browsers.py. Without one the tests fail and say what to
do; they are never skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium(browsers):
    """A browser."""
    try:
        path = browsers.get(os.environ, Path.home(), root=os.geteuid() == 0)
    except FileNotFoundError as error:
        pytest.fail(str(error))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(path), args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page that records what must not happen: requests elsewhere, errors, dialogs."""

    def __init__(self, browser, allowed, **options):
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        self.page = self.context.new_page()
        self.requests, self.errors, self.dialogs = [], [], []
        self.page.on(
            "request", lambda r: None if r.url.startswith(allowed) else self.requests.append(r.url[:200])
        )
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
