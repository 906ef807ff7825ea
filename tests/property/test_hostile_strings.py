"""Foreign strings in everything that is written without a browser: cells, CSV, notebooks, terminal,
JSON, stored runs.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsescope.cli import app, console, listing
from sparsescope.cli.exit_codes import execute
from sparsescope.core.columns import Column
from sparsescope.core.escaping import display, well_formed
from sparsescope.core.run_store import Store
from sparsescope.errors import SparsescopeError
from sparsescope.reporting.compare import compare
from sparsescope.testing import check_panel
from sparsescope.viz import tables
from sparsescope.viz.generic import draw, draw_table

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.fixture(scope="module")
def home(hostile_strings, tmp_path_factory):
    """A folder of three runs: hostile model names, and one of a registered analysis that lacks its tables."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    for text in ("script", "terminal colors"):
        hostile_strings.store(folder, hostile_strings.result(text))
    hostile_strings.store(folder, hostile_strings.result("shell", analysis="activation_sparsity"))
    return folder


def check_display(text):
    for spaces in (False, True):
        shown = display(text, spaces=spaces, limit=200)
        assert not set(shown) & set("<>&$") and "%{" not in shown
        assert not [c for c in shown if unicodedata.category(c) in HIDDEN and c not in "\u200c\u200d"]
        assert not re.search("[\u200c\u200d]{2}", shown)
        longest = max((len(run) for run in re.findall("[\u0300-\u036f\u20d0-\u20f0]+", shown)), default=0)
        assert longest <= 4
        shown.encode()
    assert len(display(text, limit=20)) <= 21 * len("‹U+10FFFF›")


def test_display_of_the_corpus(hostile_strings):
    for text in hostile_strings.STRINGS.values():
        check_display(text)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_display_of_any_text(text):
    check_display(text)


@pytest.mark.parametrize(
    "text", ["مرحبا", "می\u200cخواهم", "👩\u200d👩\u200d👧", "Việt", "שָׁלוֹם", "plain words 12"]
)
def test_ordinary_spelling_is_left_alone(text):
    assert display(text) == text


def test_csv_has_no_formula_and_keeps_the_numbers(hostile_strings):
    texts = list(hostile_strings.STRINGS.values())
    values = [(-1.5) ** number for number in range(len(texts))]
    columns = (Column("#=name", "label", "d"), Column("=value", "value", "d\n=1+1", "@u"))
    frame = pd.DataFrame({"#=name": pd.Series(texts, dtype=object), "=value": values})
    text = tables.csv(frame, columns, comments=[texts[0], "=1+1\n=1+1"])
    text.encode()
    comments = [line for line in text.split("\n") if line.startswith("#")]
    assert text.startswith("\n".join(comments)) and len(comments) == 3
    rows = list(csv.reader(io.StringIO(text.split("\n", 3)[3], newline="")))
    assert rows[0] == ["'#=name", "'=value"]
    assert [float(row[1]) for row in rows[1:]] == values
    for row, original in zip(rows[1:], texts, strict=True):
        folded = unicodedata.normalize("NFKC", row[0]).lstrip(" \0\ufeff")
        assert not folded.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert row[0].removeprefix("'") == well_formed(original).removeprefix("'")


@pytest.mark.parametrize(
    "value",
    [
        "=1",
        " =1",
        "\u00a0@x",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20x",
        "\t1",
        "\r1",
        "\n=1",
        "\ufeff=1",
        "-1",
    ],
)
def test_what_begins_like_a_formula_is_guarded(value):
    assert tables.guard(value) == "'" + value


@pytest.mark.parametrize("value", ["a=1", "1-2", "'=1", "", "word", -1, -1.5, None])
def test_what_does_not_is_left_alone(value):
    assert tables.guard(value) == value


def test_a_stored_run_is_what_it_was(home, hostile_strings):
    made = hostile_strings.result("script")
    (run_id,) = [
        i
        for i in Store(home).run_ids()
        if Store(home).manifest(i).spec.subject["id"] == made.provenance["subject"]["id"]
    ]
    found = Store(home).open(run_id)
    assert list(found.scalars) == [well_formed(name) for name in made.scalars]
    for name, frame in made.tables.items():
        for column, read in zip(frame.columns, found.tables[name].columns, strict=True):
            assert read == well_formed(column)
            expected = [well_formed(v) if isinstance(v, str) else v for v in frame[column]]
            assert found.tables[name][read].tolist() == expected
    assert [verdict.status for verdict in Store(home).verify()] == ["ok"] * 3
    assert not [path for path in home.parent.rglob("*") if not path.is_relative_to(home)]


def test_notebooks_get_text(home):
    for run_id in Store(home).run_ids():
        shown = Store(home).open(run_id)._repr_html_()
        assert not re.search(r"<(script|img|svg|a|iframe|b|meta|style)\b", shown)
        assert "$" not in shown and "\\(" not in shown and "\\[" not in shown
        assert not [c for c in shown if unicodedata.category(c) in HIDDEN and c not in "\u200c\u200d"]
        assert set(re.findall(r"<(\w+)", shown)) - {"details", "summary"} == {
            "h4",
            "table",
            "tr",
            "td",
            "ul",
            "li",
        }
        assert "\x1b" not in repr(Store(home).open(run_id))


def test_token_strips_hold_no_markup(hostile_strings):
    from html.parser import HTMLParser

    class Seen(HTMLParser):
        def __init__(self, text):
            super().__init__()
            self.tags, self.names, self.words, self.values = [], set(), "", []
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.names |= {name for name, _ in attrs}
            self.values += [value or "" for _, value in attrs]

        def handle_data(self, data):
            self.words += data

    texts = list(hostile_strings.STRINGS.values())
    for trick in texts:
        columns = (
            Column(f"{well_formed(trick)}document", "document", trick), Column("position", "position", trick),
            Column(f"{well_formed(trick)}text", "token_text", trick),
            Column(f"{well_formed(trick)}value", "value", trick, trick[:500]),
        )  # fmt: skip
        many = len(texts)
        cells = (
            pd.Series([trick] * many, dtype=object),
            range(many),
            pd.Series(texts, dtype=object),
            np.arange(many),
        )
        frame = pd.DataFrame({column.name: values for column, values in zip(columns, cells, strict=True)})
        made = hostile_strings.result()
        made.provenance["subject"]["id"] = trick
        made.add_table("strip", frame, columns)
        panel = draw(made, "strip")
        check_panel(panel)
        seen = Seen(panel.html())
        assert set(seen.tags) == {"div", "p", "b", "span", "br"}
        assert seen.names <= {
            "class",
            "title",
            "tabindex",
            "role",
            "aria-label",
            "aria-live",
            "data-mark",
            "data-readout",
        }
        for text in (seen.words, *seen.values):
            assert not [c for c in text if unicodedata.category(c) in HIDDEN and c not in "\u200c\u200d"]
            text.encode()
        page = Seen(panel.page())
        assert page.tags.count("script") == page.tags.count("style") == page.tags.count("title") == 1
        assert not set(page.tags) & {"img", "svg", "a", "iframe", "link", "base", "form"}
        shown = panel._repr_html_()
        assert re.findall(r"<(\w+)", shown) == ["iframe"]


def test_figures_hold_no_markup(hostile_strings):
    made = hostile_strings.result()
    for name, frame in made.tables.items():
        figure = draw_table(name, frame, made.columns[name])
        figure.layout.meta = None  # alt text and caption are not drawn; the pages escape them
        text = figure.to_json()
        for raw in re.findall(r'"((?:[^"\\]|\\.)*)"', text):
            word = json.loads(f'"{raw}"')
            bare = re.sub(r"</?b>|<br>|<extra>|</extra>|%\{(customdata|x|y)[^}]*\}", "", word)
            assert not re.search(r"[<>&$]|%\{", bare), (name, word)


def safe_for_a_terminal(text):
    return all(c == "\n" or c.isprintable() for c in text)


def test_every_verb_is_safe_for_a_terminal_and_its_json_is_json(home, capsys, monkeypatch):
    ids = Store(home).run_ids()
    pair = [i for i in ids if i.startswith("borrowed")]
    lines = [
        ["list"],
        ["verify"],
        ["compare", *pair],
        ["compare", pair[0], "\x1b[31m[red]x"],
        ["show", "\x9b[bold]"],
    ]
    lines += [["show", i] for i in ids] + [
        ["run", "[red]\x1b[31m", "--subject", "\x1b]0;x\x07"],
        ["list", "--home", ""],
    ]
    for words in lines:
        where = [] if "--home" in words else ["--home", str(home)]
        for tail in ([], ["--json"]):
            code = execute(app, [*words, *where, *tail])
            captured = capsys.readouterr()
            assert code in (0, 1)
            assert safe_for_a_terminal(captured.out) and safe_for_a_terminal(captured.err), words
            if tail:
                json.loads(captured.out)
                assert captured.out.isascii() and "\x7f" not in captured.out


def test_tables_on_a_terminal_keep_one_row_a_line(home, capsys):
    first, second = (
        Store(home).open(run_id) for run_id in Store(home).run_ids() if run_id.startswith("borrowed")
    )
    console.out(listing.tables_text(first))
    console.out(listing.comparison_text(compare(first, second)))
    found = capsys.readouterr().out
    assert safe_for_a_terminal(found) and "[red]x[/red]" in found


def test_errors_stay_on_one_screen(hostile_strings, capsys):
    for text in hostile_strings.STRINGS.values():
        console.say(
            "error: "
            f"{SparsescopeError('no such thing', where=text, allowed=[text], got=text, next_step=text)}"
        )
        shown = capsys.readouterr().err
        assert safe_for_a_terminal(shown) and len(shown.splitlines()) <= 5 and len(shown) < 5000
        console.error_json(SparsescopeError(text, where=text, got=text))
        assert set(json.loads(capsys.readouterr().out)) == {"error"}


@pytest.mark.parametrize("kind", ["table", "tensor"])
@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "", ".hidden", "a\0b", "x" * 100, "<b>"])
def test_names_that_would_be_paths_are_not_stored(hostile_strings, tmp_path, kind, name):
    import numpy as np

    from sparsescope.core.result import Tensor

    made = hostile_strings.result()
    if kind == "table":
        made.add_table(name, pd.DataFrame({"layer": [0]}), (Column("layer", "layer", "d"),))
    else:
        made.tensors[name] = Tensor(("layer",), np.zeros(1))
    with pytest.raises(SparsescopeError, match=f"a {kind} of this name cannot be stored"):
        hostile_strings.store(tmp_path / "deep" / "runs", made)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
