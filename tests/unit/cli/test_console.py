"""Progress in plain lines, tables, and JSON that every reader can read."""

from __future__ import annotations

import json
import math

from sparsescope.cli import console


def test_plain_progress_tells_begin_middle_and_end(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.progress_bar() as show:
        for done in range(0, 1001, 10):
            clock[0] += 0.5
            show("forward pass", done, 1000)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0] == "forward pass: 0 of 1,000 tokens"
    assert lines[1] == "forward pass: 200 of 1,000 tokens, 20 tokens/s, 40 s left"
    assert lines[-1] == "forward pass: 1,000 of 1,000 tokens, 20 tokens/s, 0 s left"
    assert len(lines) == 6, "a line every ten seconds"


def test_a_terminal_gets_a_bar_on_standard_error(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress_bar() as show:
        show("forward pass", 1, 2)
        show("forward pass", 2, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and "forward pass" in captured.err and "2/2" in captured.err


def test_a_bar_follows_a_total_that_grows(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress_bar() as show:
        show("masked passes", 1, 2, "passes")
        show("masked passes", 3, 3, "passes")
    shown = capsys.readouterr().err
    assert "3/3" in shown and "passes" in shown and "tokens" not in shown


def test_tables_are_aligned_and_hold_no_control_characters():
    text = console.table(["a", "long heading"], [["x\x1b[31m", 7], ["yy", "\u202e"]])
    lines = text.splitlines()
    assert lines[0] == "a       long heading" and "\x1b" not in text and "\u202e" not in text
    assert {
        line.index(cell) for line, cell in zip(lines[2:], ("7", "\N{REPLACEMENT CHARACTER}"), strict=True)
    } == {8}


def test_json_has_no_nan(capsys):
    console.out_json({"a": math.nan, "b": [math.inf, 1.5], "c": (1, "x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": [1, "x"]}


def test_progress_names_what_it_counts(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with console.progress_bar() as show:
        for done in (0, 2, 4):
            clock[0] += 20
            show("grokking", done, 4, "checkpoints")
    assert capsys.readouterr().err.splitlines() == [
        "grokking: 0 of 4 checkpoints",
        "grokking: 2 of 4 checkpoints, 0.1 checkpoints/s, 20 s left",
        "grokking: 4 of 4 checkpoints, 0.1 checkpoints/s, 0 s left",
    ]


def test_a_cell_of_several_lines_stands_on_one():
    shown = console.table(["what"], [["one\n  where: two\n\n  next: three"]])
    assert shown.splitlines()[-1] == "one · where: two · next: three"
