"""No test is skipped or expected to fail without a row in tests/QUARANTINE.md, and
none disappears unnoticed.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
MARKS = {
    "skip",
    "skipif",
    "xfail",
    "importorskip",
    "expectedFailure",
    "skipIf",
    "skipUnless",
    "SkipTest",
    "exit",
}
MINIMUM = TESTS / "collected_minimum.txt"


def marked(path):
    """Names of the tests of a file (``file::test``) that are skipped or expected to fail; the file
    alone outside of tests.
    """
    found = set()

    def visit(node, place):
        imported = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()
        if imported & MARKS and node.module in ("pytest", "unittest"):
            found.add("::".join([path.relative_to(TESTS).as_posix(), *place]))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            place = [*place, node.name]
            for decorator in node.decorator_list:
                visit(decorator, place)
        name = (
            node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
        )
        owner = ast.unparse(node.value).split(".")[0] if isinstance(node, ast.Attribute) else ""
        if name in MARKS and owner in ("pytest", "unittest", "mark"):
            found.add("::".join([path.relative_to(TESTS).as_posix(), *place]))
        for child in ast.iter_child_nodes(node):
            visit(child, place)

    visit(ast.parse(path.read_text()), [])
    return found


def rows():
    """Cells of the table in QUARANTINE.md."""
    lines = [line for line in (TESTS / "QUARANTINE.md").read_text().splitlines() if line.startswith("|")]
    assert lines[0] == "| test | reason | owner | date |" and set(lines[1]) <= set("|-")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_mark_has_a_row_and_every_row_a_mark():
    marks = set().union(*(marked(path) for path in TESTS.rglob("*.py")))
    assert {row[0].strip("`") for row in rows()} == marks


def test_every_row_is_complete():
    for row in rows():
        assert len(row) == 4 and all(row), row
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row[3]), row


def test_marks_are_found_in_all_their_forms(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "TESTS", tmp_path)
    file = tmp_path / "test_x.py"
    file.write_text(
        "import pytest\nfrom pytest import mark\n"
        "@pytest.mark.skip\ndef test_a(): pass\n"
        "@mark.xfail(reason='x')\ndef test_b(): pass\n"
        "def test_c():\n    pytest.skip('no')\n"
        "@pytest.mark.parametrize('x', [pytest.param(1, marks=pytest.mark.skipif(True))])\ndef test_d(x): "
        "pass\n"
        "class TestE:\n    def test_f(self): pytest.importorskip('x')\n"
        "def test_g(words): words.skip()\n"
        "def test_h():\n    from pytest import skip\n    skip('no')\n"
    )
    names = ("test_a", "test_b", "test_c", "test_d", "TestE::test_f", "test_h")
    assert marked(file) == {f"test_x.py::{name}" for name in names}


def test_at_least_as_many_tests_as_before(request):
    """The number is raised by hand when tests are added, so that a folder that is no longer
    collected is noticed.
    """
    assert collected(request.config, request.session) >= int(MINIMUM.read_text())


def collected(config, session):
    """Number of tests of the whole suite: of this run where it is the whole suite, else counted anew."""
    folders = [(config.invocation_params.dir / argument).resolve() for argument in config.args]
    if (
        folders == [TESTS]
        and not config.option.keyword
        and not config.option.markexpr
        and not config.option.deselect
    ):
        return len(session.items)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return int(re.search(r"^(\d+) tests collected", done.stdout, re.MULTILINE)[1])
