"""A real Chromium for the tests of this folder, and pages that record what must not happen.

Where the browser comes from is said in tests/fixtures/browsers.py. Without one the tests fail and say what to
do; they are never skipped.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
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


WINDOW = {"viewport": {"width": 1280, "height": 900}}


class Watched:
    """A page that records what must not happen: requests elsewhere, errors, dialogs."""

    def __init__(self, context, allowed):
        self.page = context.new_page()
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


@contextmanager
def watching(browser):
    contexts = []

    def make(*allowed, **options):
        contexts.append(browser.new_context(**WINDOW, **options))
        return Watched(contexts[-1], allowed)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def watch(chromium):
    """Open watched pages, each with a profile of its own: ``watch(allowed_prefixes, **context_options)``."""
    with watching(chromium) as make:
        yield make


@pytest.fixture(scope="module")
def watch_once(chromium):
    """As ``watch``, for pages that several tests of a file look at: drawing one takes seconds."""
    with watching(chromium) as make:
        yield make


@pytest.fixture(scope="module")
def profile(chromium):
    """One profile for all pages of an explorer: what the browser has compiled of streamlit stays."""
    context = chromium.new_context(**WINDOW)
    yield context
    context.close()


@pytest.fixture
def visit(profile):
    """Open watched pages in ``profile``: ``visit(allowed_prefixes, color_scheme=None)``."""
    before = list(profile.pages)

    def make(*allowed, color_scheme=None):
        watched = Watched(profile, allowed)
        watched.page.emulate_media(color_scheme=color_scheme)
        return watched

    yield make
    for page in profile.pages:
        if page not in before:
            page.close()
