"""The head of a report: findings with their figures, in pieces that a page sets apart; nothing
in them is markup.
"""

from __future__ import annotations

import importlib
import re

import pytest

from sparsescope.core.numbers import Interval, Scalar
from sparsescope.core.registry import find_record
from sparsescope.core.result import Note, Result
from sparsescope.core.statements import Statement
from sparsescope.reporting import build
from sparsescope.reporting.head import findings_of, measured, parts_of, warnings_of

HOSTILE = "</script><script>alert(1)</script> <b>19.84 %</b> {{7*7}}"


@pytest.fixture
def result():
    interval = Interval(0.1976, 0.1992, 0.95, "bootstrap", 8)
    scalars = (
        Scalar("share", 0.1984, "fraction", "none", "d", interval),
        Scalar("few", 3.0, "count", "none", "d"),
        Scalar("ratio", 19.0, "", "none", "d"),
    )
    subject = {"id": "m", "architecture": "A", "n_parameters": 2_000_000, "n_layers": 1}
    corpus = {"name": "docs", "tokens": 2048, "documents": 8}
    return Result("none", {s.name: s for s in scalars}, provenance={"subject": subject, "corpus": corpus})


def test_numbers_intervals_and_what_they_rest_on_are_told_apart(result):
    text = (
        "19.84 % [19.76, 19.92] of 13 units (top-p, n = 8 documents), 3 of 19.84 %, 3.5, "
        "1.19 and 19, no (aside)."
    )
    parts = parts_of(Statement(text, scalars=("share", "few", "ratio", "absent")), result)
    assert "".join(part for part, _ in parts) == text
    assert [(part, kind) for part, kind in parts if kind] == [
        ("19.84 %", "number"),
        ("[19.76, 19.92]", "interval"),
        ("(top-p, n = 8 documents)", "basis"),
        ("3", "number"),
        ("19", "number"),
    ]
    assert parts_of(Statement("nothing (no interval, one run)."), result)[1] == (
        "(no interval, one run)",
        "basis",
    )


def test_what_was_measured_names_models_only_where_there_are_several(result):
    assert measured([result, result]) == [
        "A, 2.0 M parameters, 1 layer · 2,048 tokens of docs in 8 documents"
    ]
    other = Result("none", provenance={"subject": {"id": "n"}, "corpus": None})
    assert measured([result, other])[1] == "n" and measured([result, other])[0].startswith("m · A, ")
    assert measured([Result("none")]) == []


def test_of_many_models_the_first_are_named_and_the_rest_counted(result):
    several = [Result("none", provenance={"subject": {"id": f"m{n}"}}) for n in range(12)]
    assert measured(several) == [*(f"m{n}" for n in range(8)), "and 4 more"]
    assert measured(several[:8]) == [f"m{n}" for n in range(8)]


def test_a_warning_stands_once(result):
    result.notes += [
        Note("warning", "Only 8 documents: bootstrap intervals are likely too narrow."),
        Note("warning", "Only 8 documents: intervals are likely too narrow."),
        Note("info", "protocol"),
        Note("error", "no"),
    ]
    assert warnings_of([result, result]) == [
        "Only 8 documents: bootstrap intervals are likely too narrow.",
        "no",
    ]


def test_findings_lead_to_figures_that_are_drawn(synthetic):
    result = synthetic.activation_result(layers=2)
    found = findings_of(result, {"per_layer": ("s0-0", "Density by layer")})
    assert (found[0].anchor, found[0].figure) == ("s0-0", "Density by layer")
    assert {finding.anchor for finding in findings_of(result, {})} == {""}, "its figure is not on the page"


@pytest.mark.parametrize("several", [False, True])
def test_a_hostile_statement_stays_text(synthetic, monkeypatch, several):
    module = importlib.import_module(find_record("activation_sparsity").statements)
    monkeypatch.setattr(
        module, "statements", lambda result: [Statement(HOSTILE, "per_layer", ("mean_gini",))]
    )
    monkeypatch.setattr(module, "TITLES", {"mean_gini": HOSTILE})
    result = synthetic.activation_result(layers=2)
    page = build.render([result, result] if several else [result])
    bare = re.sub(r"<script>\s*(?:/\*|\(function|\(\(\)).*?</script>", "", page, flags=re.DOTALL)
    assert (
        "<script>alert" not in bare
        and "<b>19.84" not in bare
        and "&lt;script&gt;alert(1)" in bare
        and "{{7*7}}" in bare
    )
    assert "<script>alert" not in result._summary_html() and "&lt;b&gt;19.84" in result._summary_html()


def test_the_head_comes_first_and_notes_of_protocol_are_folded(synthetic):
    result = synthetic.activation_result(layers=2)
    result.note("info", "a note of protocol", "cost")
    result.note("warning", "a warning that stays open", "per_layer")
    page = build.render([result])
    body = page[page.index("<main") :]
    assert (
        body.index("hidden units hold 90 % of a token")
        < body.index("Model and text")
        < body.index('class="cards"')
    )
    folded = [
        part
        for part in re.findall(r"<details>.*?</details>", body, re.DOTALL)
        if "a note of protocol" in part
    ]
    assert len(folded) == 1 and "a warning that stays open" not in folded[0]
    assert "(per layer)" in body and "<code>resamples</code>" not in body.partition("Provenance")[0]
