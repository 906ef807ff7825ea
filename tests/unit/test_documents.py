"""What the documents say can be run: no placeholder, every verb and public name that they mention exists."""

from __future__ import annotations

import re
from pathlib import Path

import sparsescope as ss
from sparsescope.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_is_no_placeholder():
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.findall(
            r"\b(?:TODO|FIXME|TBD|XXX|[A-Z]{3,}_[A-Z_]{3,})\b", text.replace("SPARSESCOPE_", "")
        ), name


def test_every_verb_in_the_readme_exists():
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    mentioned = set(re.findall(r"^sparsescope (\w+)", README, flags=re.M))
    assert mentioned and mentioned <= verbs
    assert verbs <= mentioned | {"compare"}


def test_the_readme_says_all_that_list_shows(tmp_path):
    from sparsescope.cli.listing import sections

    comment = re.search(r"^sparsescope list +# (.*)$", README, flags=re.M)[1]
    assert comment.split(", ") == list(sections(tmp_path))


def test_every_public_name_in_the_readme_exists():
    mentioned = set(re.findall(r"\bss\.(\w+)", README))
    assert mentioned and mentioned <= set(ss.__all__)


def test_every_file_that_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [path for path in re.findall(r"`((?:sparsescope|data|tests)/[\w./]+)`", text) if "<" not in path]
    assert paths and all((ROOT / path).exists() for path in paths), paths
