"""Which browser is taken, and what is said where there is none; nothing is downloaded."""

from __future__ import annotations

import subprocess

import pytest


def program(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def places(browsers, tmp_path):
    """A program in every place, the preferred first, and the environment that leads to them."""
    own, folder = program(tmp_path / "own"), tmp_path / "bin"
    found = [own, *(program(folder / name) for name in browsers.NAMES)]
    cache = tmp_path / ".cache" / "ms-playwright"
    found += [program(cache / f"chromium-{number}" / "chrome-linux" / "chrome") for number in (1200, 1100)]
    return found, {"PATH": str(folder), browsers.VARIABLE: str(own)}, tmp_path


def test_the_order_of_preference(browsers, places):
    found, environment, home = places
    assert browsers.find(environment, home) == found[0]
    del environment[browsers.VARIABLE]
    for path in found[1:]:
        assert browsers.find(environment, home) == path
        path.unlink()
    assert browsers.find(environment, home) is None


def test_playwrights_cache_is_where_it_was_put(browsers, places, tmp_path):
    environment = {"PATH": "", "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "elsewhere")}
    assert browsers.find(environment, tmp_path) is None
    there = program(tmp_path / "elsewhere" / "chromium-7" / "chrome-linux64" / "chrome")
    assert browsers.find(environment, tmp_path) == there


def test_what_is_no_program_is_not_taken(browsers, places):
    found, environment, home = places
    found[1].chmod(0o644)
    del environment[browsers.VARIABLE]
    assert browsers.find(environment, home) == found[2]


@pytest.mark.parametrize("name", ["missing", "bin"])
def test_a_named_browser_that_is_not_there_is_an_error(browsers, places, name):
    _, environment, home = places
    with pytest.raises(FileNotFoundError, match="correct it or unset it"):
        browsers.find(environment | {browsers.VARIABLE: str(home / name)}, home)


def test_apt_is_for_root_only(browsers, tmp_path):
    apt = program(tmp_path / "apt-get")
    environment = {"PATH": str(tmp_path)}
    assert [" ".join(way).count(str(apt)) for way in browsers.ways(environment, root=True)] == [2, 0]
    assert len(browsers.ways(environment, root=False)) == len(browsers.ways({"PATH": ""}, root=True)) == 1


def test_a_browser_that_an_installation_brings_is_used(browsers, tmp_path, monkeypatch):
    def install(command, **options):
        program(tmp_path / "bin" / "chromium")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", install)
    assert (
        browsers.get({"PATH": str(tmp_path / "bin")}, tmp_path, root=False) == tmp_path / "bin" / "chromium"
    )


@pytest.mark.parametrize("root", [True, False])
def test_without_any_the_message_says_what_was_tried_and_what_to_do(browsers, tmp_path, monkeypatch, root):
    commands = []

    def fail(command, **options):
        commands.append(command)
        if len(commands) == 1:
            raise subprocess.TimeoutExpired(command, 1)
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    program(tmp_path / "apt-get")
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(FileNotFoundError) as caught:
        browsers.get({"PATH": str(tmp_path)}, tmp_path, root=root)
    message = str(caught.value)
    assert len(commands) == message.count("tried:") == (2 if root else 1)
    assert "timed out" in message and ("no network" in message) == root
    assert browsers.VARIABLE in message and "apt-get install chromium" in message
